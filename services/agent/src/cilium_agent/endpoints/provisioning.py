"""Making and removing endpoints: every step, its order, and how each is undone.

Order of creation: intent on disk → interface and identity → row that drops everything → address to
identity → policy, which opens the row → other nodes → "created" on disk. A failure anywhere undoes
what was done and gives ids and addresses back; a crash leaves the intent, from which the next start
undoes the rest. Removal goes the other way round and can be repeated. An address is free again only
once no tracked connection of its former owner is left.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Protocol

from cilium_core.telemetry import get_logger

from cilium_agent.endpoints import rows
from cilium_agent.endpoints.records import Endpoint, EndpointID, Link
from cilium_agent.endpoints.states import State
from cilium_agent.errors import EndpointError, RequestError
from cilium_agent.locks import KeyedLocks

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from cilium_core.labels import LabelSet

    from cilium_agent.cni.requests import PodRequest
    from cilium_agent.datapath.models import EndpointInfo
    from cilium_agent.endpoints.records import Attachment
    from cilium_agent.endpoints.storing import EndpointDirectory
    from cilium_agent.endpoints.tables import EndpointTable
    from cilium_agent.pods import Pod, PodTable

POD_WAIT_S = 10.0
PUBLISH_WAIT_S = 1.0

log = get_logger()


class Plane(Protocol):
    """What provisioning asks of the data plane."""

    async def make_link(self, endpoint: Endpoint) -> Link:
        """Create the pod's interface pair and configure the pod's side."""

    async def remove_link(self, endpoint: Endpoint) -> None:
        """Remove the pair; one that is gone is fine."""

    def has_link(self, endpoint: Endpoint) -> bool:
        """Whether the host side of the pair is there."""

    async def prepare(self, endpoint_id: EndpointID) -> None:
        """Make room for an endpoint's policy."""

    async def connect(self, row: EndpointInfo) -> None:
        """Write an endpoint's row and attach the programs to its device."""

    async def disconnect(self, endpoint_id: EndpointID) -> None:
        """Remove an endpoint's rows and policy; unknown ones are fine."""

    async def scrub(self, addresses: Sequence[str]) -> None:
        """Forget tracked connections of addresses."""


class Remnants(Protocol):
    """What an earlier run left and could not be restored."""

    async def release(self, attachment: Attachment) -> bool:
        """Remove what is left of a container's interface; False when nothing is."""


class Addresses(Protocol):
    """The node's pod addresses."""

    def allocate(self, owner: str) -> tuple[str, str]:
        """An IPv4 and an IPv6 address, empty for a family that is off."""

    def release(self, addresses: Sequence[str]) -> None:
        """Give addresses back."""


class Identities(Protocol):
    """Cluster-wide identities."""

    async def acquire(self, labels: LabelSet) -> int:
        """The number of a label set, with one more use; known to local policy on return."""

    def release(self, labels: LabelSet) -> None:
        """One use less."""


class Policies(Protocol):
    """Policy of endpoints."""

    async def build(self, endpoint: Endpoint) -> None:
        """Compute and install an endpoint's policy and open its row."""

    def forget(self, endpoint_id: EndpointID) -> None:
        """The endpoint is gone."""


class Announcer(Protocol):
    """The endpoint's addresses towards this node's table and the other nodes."""

    async def announce(self, endpoint: Endpoint) -> None:
        """Address to identity on this node, at once; towards other nodes, soon."""

    async def published(self, endpoint: Endpoint, timeout_s: float) -> bool:
        """Wait until the other nodes can know; False after `timeout_s`."""

    async def withdraw(self, endpoint: Endpoint) -> None:
        """Take both back."""


class Provisioner:
    """Makes and removes endpoints."""

    def __init__(
        self,
        *,
        table: EndpointTable,
        directory: EndpointDirectory,
        pods: PodTable,
        plane: Plane,
        addresses: Addresses,
        identities: Identities,
        policies: Policies,
        announcer: Announcer,
        remnants: Remnants,
    ) -> None:
        """Take the parts."""
        self._table = table
        self._directory = directory
        self._pods = pods
        self._plane = plane
        self._addresses = addresses
        self._identities = identities
        self._policies = policies
        self._announcer = announcer
        self._remnants = remnants
        self._locks = KeyedLocks()
        self._missing: set[EndpointID] = set()
        self._sweeps: set[asyncio.Task[None]] = set()

    async def add(self, request: PodRequest) -> Endpoint:
        """Give a pod its network; on any error nothing of it is left."""
        attachment = request.attachment
        async with self._locks.hold((attachment.container_id, attachment.ifname)):
            if (stale := self._table.find(attachment)) is not None:
                await self.dismantle(stale, "the runtime asks for the same interface again")
            pod = await self._pods.wait_for(request.namespace, request.pod_name, POD_WAIT_S)
            if pod.host_network:
                raise RequestError(f"pod {request.pod} uses the node's network; it gets no own one")
            endpoint = self._begin(request, pod)
            try:
                await self._build(endpoint, pod)
            except BaseException as error:
                endpoint.note(f"creation failed: {error}")
                await asyncio.shield(self.dismantle(endpoint, "creation failed"))
                raise
            return endpoint

    async def delete(self, request: PodRequest) -> bool:
        """Remove a pod's network; False when there was none."""
        attachment = request.attachment
        async with self._locks.hold((attachment.container_id, attachment.ifname)):
            endpoint = self._table.find(attachment)
            if endpoint is None:
                return await self._remnants.release(attachment)
            await self.dismantle(endpoint, "deleted by the runtime")
            return True

    async def dismantle(self, endpoint: Endpoint, reason: str) -> None:
        """Remove an endpoint, however far its creation came; can be repeated."""
        if endpoint.state is not State.DISCONNECTING:
            endpoint.enter(State.DISCONNECTING, reason)
        self._table.changed(endpoint)
        self._policies.forget(endpoint.id)
        await self._plane.disconnect(endpoint.id)
        await self._plane.remove_link(endpoint)
        await self._announcer.withdraw(endpoint)
        if endpoint.identity:
            self._identities.release(endpoint.labels)
            endpoint.identity = 0
        endpoint.enter(State.DISCONNECTED, "removed")
        self._table.remove(endpoint)
        self._spawn(self._give_back(endpoint))
        log.info("endpoint removed", endpoint=endpoint.id, pod=endpoint.pod, reason=reason)

    async def sweep(self) -> None:
        """Remove endpoints whose interface was gone at two sweeps in a row.

        A pod's namespace can end without the runtime ever saying so.
        """
        pods = (e for e in self._table if e.created and not e.is_host)
        missing = {e.id for e in pods if not self._plane.has_link(e)}
        for endpoint in self._table:
            if endpoint.id in missing & self._missing:
                attachment = endpoint.attachment
                async with self._locks.hold((attachment.container_id, attachment.ifname)):
                    if endpoint in self._table:
                        await self.dismantle(endpoint, "its interface is gone")
        self._missing = missing

    async def drain(self) -> None:
        """Wait until addresses of removed endpoints are free again."""
        while self._sweeps:
            await asyncio.gather(*self._sweeps)

    def _begin(self, request: PodRequest, pod: Pod) -> Endpoint:
        endpoint_id = self._table.new_id()
        try:
            ipv4, ipv6 = self._addresses.allocate(request.pod)
        except BaseException:
            self._table.free_id(endpoint_id)
            raise
        endpoint = Endpoint(
            id=endpoint_id,
            attachment=request.attachment,
            namespace=request.namespace,
            pod_name=request.pod_name,
            pod_uid=request.pod_uid or pod.uid,
            ipv4=ipv4,
            ipv6=ipv6,
            state=State.WAITING_FOR_IDENTITY,
            named_ports=pod.named_ports,
            workloads=pod.workloads,
        )
        endpoint.note("created for the runtime")
        self._table.add(endpoint)
        return endpoint

    async def _build(self, endpoint: Endpoint, pod: Pod) -> None:
        await asyncio.to_thread(self._directory.save, endpoint)
        await _all(
            self._take_link(endpoint),
            self._take_identity(endpoint, pod),
            self._plane.prepare(endpoint.id),
        )
        endpoint.enter(State.READY, f"identity {endpoint.identity}")
        endpoint.enter(State.WAITING_TO_REGENERATE, "first policy")
        await self._plane.connect(rows.row(endpoint, rows.NOT_READY))
        await self._announcer.announce(endpoint)
        await self._policies.build(endpoint)
        endpoint.created = True
        await _all(
            asyncio.to_thread(self._directory.save, endpoint), self._wait_published(endpoint)
        )
        if not endpoint.alive:
            raise EndpointError(f"endpoint {endpoint.id} was removed while it was made")
        self._table.changed(endpoint)
        log.info(
            "endpoint created",
            endpoint=endpoint.id,
            pod=endpoint.pod,
            identity=endpoint.identity,
            ipv4=endpoint.ipv4,
            ipv6=endpoint.ipv6,
        )

    async def _take_link(self, endpoint: Endpoint) -> None:
        endpoint.link = await self._plane.make_link(endpoint)

    async def _take_identity(self, endpoint: Endpoint, pod: Pod) -> None:
        labels = self._pods.identity_labels(pod)
        endpoint.identity = await self._identities.acquire(labels)
        endpoint.labels = labels

    async def _wait_published(self, endpoint: Endpoint) -> None:
        if not await self._announcer.published(endpoint, PUBLISH_WAIT_S):
            endpoint.note("other nodes do not know the addresses yet")
            log.warning("addresses not published yet", endpoint=endpoint.id, pod=endpoint.pod)

    async def _give_back(self, endpoint: Endpoint) -> None:
        try:
            await self._plane.scrub(endpoint.addresses)
        except Exception:
            # The addresses stay taken until the agent restarts: better lost than mixed up.
            log.exception("connections not swept", endpoint=endpoint.id, pod=endpoint.pod)
            return
        await asyncio.to_thread(self._directory.remove, endpoint.id)
        self._addresses.release(endpoint.addresses)
        self._table.free_id(endpoint.id)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._sweeps.add(task)
        task.add_done_callback(self._sweeps.discard)


async def _all(*work: Coroutine[object, object, None]) -> None:
    """Run all to their end, then raise the first error: nothing may still run while undoing."""
    tasks = [asyncio.ensure_future(item) for item in work]
    try:
        results = await asyncio.gather(*tasks, return_exceptions=True)
    except asyncio.CancelledError:
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
        raise
    for result in results:
        if isinstance(result, BaseException):
            raise result
