"""Wiring and life cycle of the Kafka proxy; the only module that knows all others.

What was enforced last is taken up from disk before anything else, so that a restart is over as soon
as the interpreter runs. The agent is looked for after that, again and again.
"""

from __future__ import annotations

import asyncio
import resource
from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING

from cilium_core.policy.l7 import L7Kind
from cilium_core.proxying.reporting import Reporter
from cilium_core.proxying.subscribing import Subscription, dial
from cilium_core.serving.sockets import stop_signal
from cilium_core.telemetry import REGISTRY, get_logger

from kafka_proxy import measuring
from kafka_proxy.ports import Ports

if TYPE_CHECKING:
    import grpc.aio
    from cilium_core.proxying.redirects import Assignment
    from cilium_core.serving.http_server import HttpServer

    from kafka_proxy.settings import KafkaProxySettings

log = get_logger()

VERSION = version("cilium-kafka-proxy")
PORT_RETRY_S = 1.0


class KafkaProxy:
    """The Kafka proxy of a node. Make it within a running event loop."""

    def __init__(self, settings: KafkaProxySettings) -> None:
        self._settings = settings
        self.reporter = Reporter(L7Kind.KAFKA, counters=lambda: measuring.totals(self))
        self.ports = Ports(self.reporter)
        self.subscription = Subscription(L7Kind.KAFKA, settings.copy, self._take_up)
        self._unserved: dict[int, str] = {}
        self._channel: grpc.aio.Channel | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._metrics: HttpServer | None = None

    async def run(self) -> None:
        """Serve until the process is asked to stop, or a part of it fails.

        Raises what made the part fail; the agent's restart of this process is the remedy.
        """
        stop = stop_signal()
        await self.start()
        asked = asyncio.create_task(stop.wait())
        ended, _ = await asyncio.wait([asked, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        await self.stop()
        for task in ended:
            task.result()

    async def start(self) -> None:
        """Begin to serve."""
        _raise_file_limit()
        await self.subscription.restored()
        channel = self._channel = dial(self._settings.state_dir)
        self._tasks = [
            asyncio.create_task(work)
            for work in (
                self.subscription.run(channel),
                self.reporter.run(channel),
                self._retry_ports(),
            )
        ]
        measuring.register(self)
        if self._settings.metrics_listen_address:
            from cilium_core.serving.observability import observability_server

            self._metrics = observability_server(registry=REGISTRY)
            await self._metrics.listen_tcp(self._settings.metrics_listen_address)
        log.info("serving", ports=len(self.ports), version=VERSION)

    async def stop(self) -> None:
        """Stop serving; the agent's restart of this process takes over."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.ports.close()
        if self._metrics is not None:
            await self._metrics.stop()
        if self._channel is not None:
            await self._channel.close()
        log.info("stopped")

    async def _take_up(self, assignment: Assignment) -> dict[int, str]:
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


def _raise_file_limit() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
