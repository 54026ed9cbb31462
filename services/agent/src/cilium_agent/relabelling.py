"""Running pods whose labels change: a new identity, which the other nodes learn before it is used.

Level-triggered: each pass compares every endpoint with its Pod object and namespace. The new
identity is allocated at once, so that it is announced to all nodes, and taken on after a grace
period. A pass that fails is repeated by its controller.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilium_core.labels import LabelSet
from cilium_core.telemetry import get_logger

from cilium_agent.endpoints.states import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from cilium_agent.endpoints.records import Endpoint, EndpointID
    from cilium_agent.endpoints.storing import EndpointDirectory
    from cilium_agent.endpoints.tables import EndpointTable
    from cilium_agent.identities import Identities
    from cilium_agent.pods import Pod, PodTable
    from cilium_agent.policies import Policies
    from cilium_agent.publishing import EndpointAnnouncer

log = get_logger()


@dataclass(frozen=True)
class _Pending:
    labels: LabelSet
    identity: int
    due_s: float


class Relabeller:
    """Keeps endpoints' labels and named ports equal to their pods'."""

    def __init__(
        self,
        *,
        table: EndpointTable,
        pods: PodTable,
        identities: Identities,
        policies: Policies,
        announcer: EndpointAnnouncer,
        directory: EndpointDirectory,
        grace_s: float,
    ) -> None:
        """Take the parts; `grace_s` passes between announcing an identity and using it."""
        self.trigger: Callable[[], None] = lambda: None
        self._table = table
        self._pods = pods
        self._identities = identities
        self._policies = policies
        self._announcer = announcer
        self._directory = directory
        self._grace_s = grace_s
        self._pending: dict[EndpointID, _Pending] = {}

    async def reconcile(self) -> None:
        """Compare all endpoints with their pods."""
        for endpoint in self._table:
            if not endpoint.created or endpoint.is_host or endpoint.state is not State.READY:
                continue
            pod = self._pods.get(endpoint.namespace, endpoint.pod_name)
            doubtful = self._pods.is_doubtful(endpoint.namespace, endpoint.pod_name)
            if pod is not None and not doubtful:
                await self._compare(endpoint, pod)
        for endpoint_id in [i for i in self._pending if not self._alive(i)]:
            self._drop(endpoint_id)

    async def _compare(self, endpoint: Endpoint, pod: Pod) -> None:
        labels = self._pods.identity_labels(pod)
        pending = self._pending.get(endpoint.id)
        if labels == endpoint.labels:
            if pending is not None:
                self._drop(endpoint.id)
            await self._follow_number(endpoint)
            await self._follow_ports(endpoint, pod)
            return
        if pending is not None and pending.labels != labels:
            self._drop(endpoint.id)
            pending = None
        if pending is None:
            identity = await self._identities.acquire(labels)
            pending = _Pending(labels, identity, time.monotonic() + self._grace_s)
            self._pending[endpoint.id] = pending
            endpoint.note(f"labels changed; identity {identity} follows")
        wait_s = pending.due_s - time.monotonic()
        if wait_s > 0:
            asyncio.get_running_loop().call_later(wait_s + 0.01, self.trigger)
            return
        del self._pending[endpoint.id]
        old = endpoint.labels
        endpoint.named_ports = pod.named_ports
        await self._switch(endpoint, labels, pending.identity)
        self._identities.release(old)

    async def _follow_number(self, endpoint: Endpoint) -> None:
        """Take on the number that the cluster agreed on for the labels meanwhile."""
        number = self._identities.number_in_use(endpoint.labels)
        if number is not None and number != endpoint.identity:
            await self._switch(endpoint, endpoint.labels, number)

    async def _follow_ports(self, endpoint: Endpoint, pod: Pod) -> None:
        if pod.named_ports != endpoint.named_ports:
            endpoint.named_ports = pod.named_ports
            await self._policies.build(endpoint)
            self._announcer.publish(endpoint)
            await asyncio.to_thread(self._directory.save, endpoint)

    async def _switch(self, endpoint: Endpoint, labels: LabelSet, identity: int) -> None:
        old = endpoint.identity
        endpoint.enter(State.WAITING_FOR_IDENTITY, f"identity {old} becomes {identity}")
        endpoint.labels, endpoint.identity = labels, identity
        endpoint.enter(State.READY, f"identity {identity}")
        endpoint.row_stale = True
        try:
            await self._policies.build(endpoint)
        finally:
            # Whatever happened, the row carries the new identity now or as soon as it can.
            self._announcer.note(endpoint)
            self._announcer.publish(endpoint)
        await self._announcer.announce(endpoint)
        await asyncio.to_thread(self._directory.save, endpoint)
        self._table.changed(endpoint)
        log.info("identity changed", endpoint=endpoint.id, old=old, new=identity)

    def _alive(self, endpoint_id: EndpointID) -> bool:
        return any(e.id == endpoint_id and e.alive for e in self._table)

    def _drop(self, endpoint_id: EndpointID) -> None:
        pending = self._pending.pop(endpoint_id)
        self._identities.release(pending.labels)
