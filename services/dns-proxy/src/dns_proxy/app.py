"""Wiring of the DNS proxy; the only module that knows all others."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from cilium_core.policy.l7 import L7Kind
from cilium_core.proxying.running import Proxy

from dns_proxy import measuring
from dns_proxy.announcing import Announcer
from dns_proxy.datagrams import Datagrams
from dns_proxy.exchanges import Service
from dns_proxy.ports import Ports
from dns_proxy.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence

    import grpc.aio
    from cilium.proxy.v1 import proxy_pb2
    from cilium_core.proxying.redirects import Assignment
    from cilium_core.proxying.running import ProxySettings

SWEEP_S = 0.5
NAMES_TIMEOUT_S = 5.0


class DnsProxy(Proxy):
    """The DNS proxy of a node. Make it within a running event loop."""

    kind = L7Kind.DNS
    program = "cilium-dns-proxy"

    def __init__(self, settings: ProxySettings) -> None:
        super().__init__(settings)
        loop = asyncio.get_running_loop()
        self.announcer = Announcer(loop)
        self.service = Service(self.announcer, self.reporter)
        self.datagrams = Datagrams(loop, self.service)
        self.streams = Streams(self.service)
        self._ports = Ports(self.datagrams, self.streams)

    @property
    def ports(self) -> Ports:
        """What is listened on."""
        return self._ports

    async def take_up(self, assignment: Assignment) -> dict[int, str]:
        """Serve the ports of an assignment; returns those that cannot be, and why."""
        self.service.configure(assignment.dns_options)
        return await self.ports.reconcile(assignment.redirects)

    def joined(self) -> None:
        """Tell the agent what it has missed."""
        self.announcer.joined()

    def left(self) -> None:
        """Keep what the agent misses."""
        self.announcer.left()

    def works(self, channel: grpc.aio.Channel) -> Iterable[Coroutine[Any, Any, None]]:
        """Tell the agent what names mean, and give up on what takes too long."""
        self.announcer.connect(_names_call(channel))
        return self.announcer.run(), self._sweep()

    def totals(self) -> Iterable[tuple[str, str, int]]:
        """What the agent is told, for its own metrics: event, reason, total."""
        return measuring.totals(self)

    def refresh(self) -> None:
        """Bring the metrics up to date."""
        measuring.refresh(self)

    async def close(self) -> None:
        """Serve nothing any more."""
        self.ports.close()
        await self.streams.close()
        self.datagrams.close()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self.service.sweep()
            self.datagrams.sweep()
            self.streams.sweep()


def _names_call(channel: grpc.aio.Channel) -> Any:
    """`ReportNames` as the announcer calls it: seconds in answer, `OSError` in failure."""
    import grpc.aio
    from cilium.proxy.v1 import proxy_pb2_grpc

    stub = proxy_pb2_grpc.ProxyServiceStub(channel)  # type: ignore[no-untyped-call]

    async def call(request: proxy_pb2.ReportNamesRequest) -> Sequence[float]:
        try:
            response = await stub.ReportNames(request, timeout=NAMES_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise ConnectionError(error.details() or error.code().name) from error
        return [number / 1000 for number in response.lifetimes_ms]

    return call
