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
from cilium_core.identities import cidr_labels, is_local
from cilium_core.telemetry import gauge, get_logger

from cilium_agent.endpoints import rows
from cilium_agent.endpoints.records import Endpoint, EndpointID
from cilium_agent.endpoints.states import State
from cilium_agent.errors import EndpointFileError
from cilium_agent.ipcaches import Entry
from cilium_agent.planes import link_exists

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cilium_core.identities import Families
    from cilium_core.labels import LabelSet

    from cilium_agent.addresses import PodAddresses
    from cilium_agent.cni.requests import PodRequest
    from cilium_agent.datapath import Datapath, EndpointInfo, IpcacheEntry
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
    """What was found; `broken` endpoints stay closed until their pods are deleted."""

    kept: list[Endpoint] = field(default_factory=list)
    gone: list[Endpoint] = field(default_factory=list)
    broken: dict[EndpointID, EndpointFileError] = field(default_factory=dict)


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

    async def load(self, queued: Iterable[PodRequest]) -> Remains:
        """Read files and maps, claim ids and addresses, close what is unclear."""
        found = await asyncio.to_thread(self._directory.load)
        deleted = {(r.attachment.container_id, r.attachment.ifname) for r in queued}
        remains = Remains(broken=found.broken)
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
        await self._close_unclear(remains)
        RESTORED.set(len(remains.kept), "load", "success")
        RESTORED.set(len(remains.broken), "load", "fail")
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
        """Remove endpoints whose Pod objects were deleted while nobody looked."""
        for endpoint in list(remains.kept):
            if endpoint.state is not State.RESTORING:
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

    async def _close_unclear(self, remains: Remains) -> None:
        known = {e.id for e in remains.kept} | {e.id for e in remains.gone}
        for endpoint_id, error in remains.broken.items():
            self._table.reserve_id(endpoint_id)
            log.error("endpoint not restored", endpoint=endpoint_id, error=str(error))
        datapath = self._plane.datapath
        closed = await self._plane.run(_close, datapath, known, set(remains.broken))
        for info in closed:
            addresses = [str(a) for a in (info.ipv4, info.ipv6) if a]
            self._addresses.claim(addresses, f"unrestored endpoint {info.id}")


def _close(
    datapath: Datapath, known: set[EndpointID], broken: set[EndpointID]
) -> list[EndpointInfo]:
    """Close rows of broken endpoints and remove those that nothing explains."""
    closed = []
    for info in datapath.endpoints.dump():
        if not info.id or info.id in known:
            continue
        if info.id in broken:
            datapath.endpoints.upsert(dataclasses.replace(info, flags=rows.NOT_READY))
            closed.append(info)
        else:
            log.warning("endpoint without a file removed", endpoint=info.id)
            datapath.endpoints.delete(info)
    for endpoint_id in datapath.policy.endpoints():
        if endpoint_id not in known and endpoint_id not in broken:
            datapath.policy.delete(endpoint_id)
    return closed


def restored_entries(dump: Iterable[IpcacheEntry]) -> dict[str, Entry]:
    """The kernel's address table as weakest claims."""
    return {
        str(row.prefix): Entry(row.identity, str(row.tunnel_ipv4) if row.tunnel_ipv4 else None)
        for row in dump
    }


def restored_identities(dump: Iterable[IpcacheEntry], families: Families) -> Mapping[int, LabelSet]:
    """Node-local identities that the kernel's address table uses, with the labels they had."""
    return {
        row.identity: cidr_labels(row.prefix, families) for row in dump if is_local(row.identity)
    }
