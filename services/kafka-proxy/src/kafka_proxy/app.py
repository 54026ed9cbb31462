"""Wiring of the Kafka proxy; the only module that knows all others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cilium_core.policy.l7 import L7Kind
from cilium_core.proxying.running import Proxy

from kafka_proxy import measuring
from kafka_proxy.ports import Ports

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cilium_core.proxying.redirects import Assignment
    from cilium_core.proxying.running import ProxySettings


class KafkaProxy(Proxy):
    """The Kafka proxy of a node. Make it within a running event loop."""

    kind = L7Kind.KAFKA
    program = "cilium-kafka-proxy"

    def __init__(self, settings: ProxySettings) -> None:
        super().__init__(settings)
        self._ports = Ports(self.reporter)

    @property
    def ports(self) -> Ports:
        """What is listened on."""
        return self._ports

    async def take_up(self, assignment: Assignment) -> dict[int, str]:
        """Serve the ports of an assignment; returns those that cannot be, and why."""
        return await self.ports.reconcile(assignment.redirects)

    def totals(self) -> Iterable[tuple[str, str, int]]:
        """What the agent is told, for its own metrics: event, reason, total."""
        return measuring.totals(self)

    def refresh(self) -> None:
        """Bring the metrics up to date."""
        measuring.refresh(self)

    async def close(self) -> None:
        """Serve nothing any more."""
        await self.ports.close()
