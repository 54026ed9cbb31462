"""What an earlier run of the agent left, taken up again without disturbing a packet.

Endpoints come from their files; the kernel's maps say what is enforced. Nothing is written for an
endpoint that is whole: its rows and policy stay as they are until its new policy is known. What no
file explains is removed; what a broken file leaves unclear is closed and its addresses stay taken.
"""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cilium_core.errors import CiliumError
from cilium_core.identities import SCOPE_LOCAL, SCOPE_MASK, cidr_labels, is_local
from cilium_core.telemetry import gauge, get_logger

from cilium_agent.datapath import EndpointInfo
from cilium_agent.endpoints import rows
from cilium_agent.endpoints.records import HOST_ID, Attachment, Endpoint, EndpointID
from cilium_agent.endpoints.states import State
from cilium_agent.errors import EndpointFileError
from cilium_agent.ipcaches import Entry
from cilium_agent.planes import ifindex_exists, ifindex_of, link_exists

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cilium_core.identities import Families
    from cilium_core.labels import LabelSet

    from cilium_agent.addresses import PodAddresses
    from cilium_agent.cni.requests import PodRequest
    from cilium_agent.datapath import Datapath, IpcacheEntry
    from cilium_agent.endpoints.provisioning import Provisioner
    from cilium_agent.endpoints.storing import EndpointDirectory
    from cilium_agent.endpoints.tables import EndpointTable
    from cilium_agent.planes import Plane
    from cilium_agent.pods import PodTable

log = get_logger()

RESTORED = gauge(
    "cilium_endpoint_restoration_endpoints", "Endpoints found at start.", "phase", "outcome"
)


@dataclass
class Remains:
    """What was found."""

    kept: list[Endpoint] = field(default_factory=list)
    gone: list[Endpoint] = field(default_factory=list)


@dataclass(frozen=True)
class Broken:
    """An endpoint whose file is unreadable: closed, its addresses taken, until its pod is gone."""

    row: EndpointInfo
    error: EndpointFileError


class Restorer:
    """Takes up an earlier run's endpoints."""

    def __init__(
        self,
        *,
        table: EndpointTable,
        directory: EndpointDirectory,
        addresses: PodAddresses,
        plane: Plane,
    ) -> None:
        """Take the parts."""
        self._table = table
        self._directory = directory
        self._addresses = addresses
        self._plane = plane
        self.broken: dict[EndpointID, Broken] = {}

    async def load(self, queued: Iterable[PodRequest]) -> Remains:
        """Read files and maps, claim ids and addresses, close what is unclear."""
        found = await asyncio.to_thread(self._directory.load)
        deleted = {(r.attachment.container_id, r.attachment.ifname) for r in queued}
        remains = Remains()
        for endpoint in found.endpoints:
            key = (endpoint.attachment.container_id, endpoint.attachment.ifname)
            whole = endpoint.link is not None and link_exists(endpoint.link)
            if key in deleted or not whole:
                why = "deleted while the agent was away" if key in deleted else "interface is gone"
                endpoint.note(why)
                remains.gone.append(endpoint)
            else:
                endpoint.note("found on disk")
                remains.kept.append(endpoint)
        remains.gone.extend(found.unfinished)
        for endpoint in [*remains.kept, *remains.gone]:
            self._claim(endpoint)
        for endpoint in remains.kept:
            self._table.add(endpoint)
        known = {HOST_ID, *(e.id for e in [*remains.kept, *remains.gone])}
        await self._close_unclear(known, found.broken)
        RESTORED.set(len(remains.kept), "load", "success")
        RESTORED.set(len(self.broken), "load", "fail")
        return remains

    async def remove_gone(self, remains: Remains, provisioner: Provisioner) -> None:
        """Remove endpoints whose pods went while nobody looked."""
        for endpoint in remains.gone:
            self._table.add(endpoint)
            # Its labels hold no reference in this run, so there is none to give back.
            endpoint.identity = 0
            await provisioner.dismantle(endpoint, "gone at start")

    async def remove_podless(
        self, remains: Remains, pods: PodTable, provisioner: Provisioner
    ) -> None:
        """Remove endpoints whose Pod objects were deleted while nobody looked.

        Those whose objects are there but unreadable stay as they were.
        """
        for endpoint in list(remains.kept):
            if endpoint.state is not State.RESTORING:
                continue
            if pods.is_doubtful(endpoint.namespace, endpoint.pod_name):
                log.warning(
                    "restored as it was: its pod's objects are unreadable", pod=endpoint.pod
                )
                continue
            pod = pods.get(endpoint.namespace, endpoint.pod_name)
            replaced = pod is not None and endpoint.pod_uid and pod.uid != endpoint.pod_uid
            if pod is None or replaced:
                remains.kept.remove(endpoint)
                endpoint.identity = 0
                await provisioner.dismantle(endpoint, "its Pod object is gone")

    def _claim(self, endpoint: Endpoint) -> None:
        self._table.reserve_id(endpoint.id)
        try:
            self._addresses.claim(endpoint.addresses, endpoint.pod)
        except CiliumError as error:
            log.error("address of a restored endpoint", endpoint=endpoint.id, error=str(error))

    async def release(self, attachment: Attachment) -> bool:
        """Remove what is left of a container that no endpoint is known for."""
        ifindex = await asyncio.to_thread(ifindex_of, attachment)
        for endpoint_id, broken in list(self.broken.items()):
            if broken.row.ifindex == ifindex:
                await self._remove_broken(endpoint_id)
        return await self._plane.remove_link_of(attachment)

    async def _close_unclear(
        self, known: set[EndpointID], unreadable: Mapping[EndpointID, EndpointFileError]
    ) -> None:
        for endpoint_id in unreadable:
            self._table.reserve_id(endpoint_id)
        closed = await self._plane.run(_close, self._plane.datapath, known, set(unreadable))
        for endpoint_id, error in unreadable.items():
            row = closed.get(endpoint_id)
            log.error("endpoint not restored", endpoint=endpoint_id, error=str(error))
            if row is None:
                await self._forget(endpoint_id)
                continue
            self.broken[endpoint_id] = Broken(row, error)
            self._addresses.claim(_addresses(row), f"unrestored endpoint {endpoint_id}")
            if not ifindex_exists(row.ifindex):
                await self._remove_broken(endpoint_id)

    async def _remove_broken(self, endpoint_id: EndpointID) -> None:
        row = self.broken[endpoint_id].row
        await self._plane.disconnect(endpoint_id)
        await self._plane.scrub(_addresses(row))
        await self._forget(endpoint_id)
        self._addresses.release(_addresses(row))
        del self.broken[endpoint_id]
        log.info("unrestored endpoint removed", endpoint=endpoint_id)

    async def _forget(self, endpoint_id: EndpointID) -> None:
        await asyncio.to_thread(self._directory.remove, endpoint_id)
        self._table.free_id(endpoint_id)


def _addresses(row: EndpointInfo) -> list[str]:
    return [str(address) for address in (row.ipv4, row.ipv6) if address]


def _close(
    datapath: Datapath, known: set[EndpointID], unreadable: set[EndpointID]
) -> dict[int, EndpointInfo]:
    """Close rows of unreadable endpoints and remove those that nothing explains."""
    closed = {}
    for info in datapath.endpoints.dump():
        if not info.id or info.id in known:
            continue
        if info.id in unreadable:
            datapath.endpoints.upsert(dataclasses.replace(info, flags=rows.NOT_READY))
            closed[info.id] = info
        else:
            log.warning("endpoint without a file removed", endpoint=info.id)
            datapath.endpoints.delete(info)
    for endpoint_id in datapath.policy.endpoints():
        if endpoint_id not in known and endpoint_id not in unreadable:
            datapath.policy.delete(endpoint_id)
    return closed


def restored_entries(dump: Iterable[IpcacheEntry]) -> dict[str, Entry]:
    """The kernel's address table as weakest claims."""
    return {
        str(row.prefix): Entry(row.identity, str(row.tunnel_ipv4) if row.tunnel_ipv4 else None)
        for row in dump
    }


def restored_identities(
    dump: Iterable[IpcacheEntry], families: Families, kept: Mapping[int, LabelSet]
) -> Mapping[int, LabelSet]:
    """Node-local identities that the kernel's address table uses, with the labels they had.

    `kept` are labels from disk; they say more than those that a prefix gives.
    """
    return {
        row.identity: kept.get(row.identity) or cidr_labels(row.prefix, families)
        for row in dump
        if is_local(row.identity)
        and (row.identity in kept or row.identity & SCOPE_MASK == SCOPE_LOCAL)
    }
