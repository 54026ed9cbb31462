"""Wiring and life cycle of the DNS proxy; the only module that knows all others.

What was enforced last is taken up from disk before anything else, so that a restart is over as soon
as the interpreter runs. The agent is looked for after that, again and again.
"""

from __future__ import annotations

import asyncio
import gc
import resource
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from cilium_core.policy.l7 import L7Kind
from cilium_core.proxying.reporting import Reporter
from cilium_core.proxying.subscribing import Subscription, dial
from cilium_core.serving.sockets import stop_signal
from cilium_core.telemetry import REGISTRY, get_logger

from dns_proxy import measuring
from dns_proxy.announcing import Announcer
from dns_proxy.datagrams import Datagrams
from dns_proxy.exchanges import Service
from dns_proxy.ports import Ports
from dns_proxy.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Sequence

    import grpc.aio
    from cilium.proxy.v1 import proxy_pb2
    from cilium_core.proxying.redirects import Assignment
    from cilium_core.serving.http_server import HttpServer

    from dns_proxy.settings import DnsProxySettings

log = get_logger()

SWEEP_S = 0.5
PORT_RETRY_S = 1.0
NAMES_TIMEOUT_S = 5.0


def own_version() -> str:
    """The version of this package."""
    try:
        return version("cilium-dns-proxy")
    except PackageNotFoundError:
        return "0"


class DnsProxy:
    """The DNS proxy of a node. Make it within a running event loop."""

    def __init__(self, settings: DnsProxySettings) -> None:
        self._settings = settings
        loop = asyncio.get_running_loop()
        self.reporter = Reporter(L7Kind.DNS, counters=lambda: measuring.totals(self))
        self.announcer = Announcer(loop)
        self.service = Service(self.announcer, self.reporter)
        self.datagrams = Datagrams(loop, self.service)
        self.streams = Streams(self.service)
        self.ports = Ports(self.datagrams, self.streams)
        self.subscription = Subscription(
            L7Kind.DNS,
            settings.copy,
            self._take_up,
            joined=self.announcer.joined,
            left=self.announcer.left,
        )
        self._unserved: dict[int, str] = {}
        self._channel: grpc.aio.Channel | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._metrics: HttpServer | None = None

    async def run(self) -> None:
        """Serve until the process is asked to stop."""
        stop = stop_signal()
        await self.start()
        await stop.wait()
        await self.stop()

    async def start(self) -> None:
        """Begin to serve."""
        _raise_file_limit()
        await self.subscription.restored()
        # What exists by now stays; looking at it again and again would only cost time.
        gc.freeze()
        channel = self._channel = dial(self._settings.state_dir)
        self.announcer.connect(_names_call(channel))
        self._tasks = [
            asyncio.create_task(work)
            for work in (
                self.subscription.run(channel),
                self.reporter.run(channel),
                self.announcer.run(),
                self._sweep(),
                self._retry_ports(),
            )
        ]
        measuring.register(self)
        if self._settings.metrics_listen_address:
            from cilium_core.serving.observability import observability_server

            self._metrics = observability_server(registry=REGISTRY)
            await self._metrics.listen_tcp(self._settings.metrics_listen_address)
        log.info("serving", ports=len(self.ports), version=own_version())

    async def stop(self) -> None:
        """Stop serving; the agent's restart of this process takes over."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.ports.close()
        await self.streams.close()
        self.datagrams.close()
        if self._metrics is not None:
            await self._metrics.stop()
        if self._channel is not None:
            await self._channel.close()
        log.info("stopped")

    async def _take_up(self, assignment: Assignment) -> dict[int, str]:
        self.service.configure(assignment.dns_options)
        self._unserved = await self.ports.reconcile(assignment.redirects)
        return self._unserved

    async def _retry_ports(self) -> None:
        while True:
            await asyncio.sleep(PORT_RETRY_S)
            if self._unserved:
                before = self._unserved
                after = await self._take_up(self.subscription.assignment)
                if after != before:
                    self.subscription.tell(after)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self.service.sweep()
            self.datagrams.sweep()
            self.streams.sweep()


def _raise_file_limit() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


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
