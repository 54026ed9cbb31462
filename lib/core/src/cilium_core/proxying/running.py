"""The life of a proxy that is a process of ours: what `app.py` of each of them builds upon.

What was enforced last is taken up from disk before anything else, so that a restart is over as soon
as the interpreter runs. The agent is looked for after that, again and again.

Used from one event loop. A part that fails ends the process: the agent starts it anew, and what it
enforced is on disk.
"""

from __future__ import annotations

import asyncio
import gc
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cilium_core.proxying.reporting import Reporter
from cilium_core.proxying.subscribing import Subscription, dial
from cilium_core.serving.programs import own_version
from cilium_core.serving.sockets import raise_file_limit, stop_signal
from cilium_core.settings import NodeSettings, TelemetrySettings, setting
from cilium_core.telemetry import REGISTRY, get_logger

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sized

    import grpc.aio

    from cilium_core.policy.l7 import L7Kind
    from cilium_core.proxying.redirects import Assignment
    from cilium_core.serving.http_server import HttpServer

log = get_logger()

PORT_RETRY_S = 1.0
"""Time between two attempts to serve a port that could not be served."""


@dataclass(frozen=True)
class ProxySettings(TelemetrySettings, NodeSettings):
    """What a proxy can be told; what it enforces, and how, comes from the agent."""

    metrics_listen_address: str = setting(
        "", "Address (host:port) of the metrics; empty serves none.", group="Observability"
    )


class Proxy(ABC):
    """A proxy of a node. Make it within a running event loop."""

    kind: ClassVar[L7Kind]
    program: ClassVar[str]
    """The name of its package."""

    def __init__(self, settings: ProxySettings) -> None:
        self._settings = settings
        self.copy = settings.state_dir / "proxies" / f"{self.kind.value}.json"
        """File of what was to be enforced last."""
        self.reporter = Reporter(self.kind, counters=self.totals)
        self.subscription = Subscription(
            self.kind, self.copy, self._take_up, joined=self.joined, left=self.left
        )
        self._unserved: dict[int, str] = {}
        self._channel: grpc.aio.Channel | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._metrics: HttpServer | None = None

    @property
    @abstractmethod
    def ports(self) -> Sized:
        """The ports that are served."""

    @abstractmethod
    async def take_up(self, assignment: Assignment) -> dict[int, str]:
        """Enforce this and nothing else; returns the ports that cannot be served, and why."""

    @abstractmethod
    def totals(self) -> Iterable[tuple[str, str, int]]:
        """What the agent is told, for its own metrics: event, reason, total."""

    @abstractmethod
    def refresh(self) -> None:
        """Bring the metrics up to date; called before each scrape."""

    @abstractmethod
    async def close(self) -> None:
        """Serve nothing any more."""

    def works(self, channel: grpc.aio.Channel) -> Iterable[Coroutine[Any, Any, None]]:
        """What else runs until it is cancelled; `channel` leads to the agent."""
        del channel
        return ()

    def joined(self) -> None:  # noqa: B027 - most need not know
        """Called when an agent has sent what is to be enforced."""

    def left(self) -> None:  # noqa: B027 - most need not know
        """Called when the agent is gone again."""

    async def run(self) -> None:
        """Serve until the process is asked to stop, or a part fails; raises what made it fail."""
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
        raise_file_limit()
        await self.subscription.restored()
        # What exists by now stays; looking at it again and again would only cost time.
        gc.freeze()
        channel = self._channel = dial(self._settings.state_dir)
        self._tasks = [
            asyncio.create_task(work)
            for work in (
                self.subscription.run(channel),
                self.reporter.run(channel),
                self._retry_ports(),
                *self.works(channel),
            )
        ]
        REGISTRY.on_collect(self.refresh)
        if self._settings.metrics_listen_address:
            from cilium_core.serving.observability import observability_server

            self._metrics = observability_server(registry=REGISTRY)
            await self._metrics.listen_tcp(self._settings.metrics_listen_address)
        log.info("serving", ports=len(self.ports), version=own_version(self.program))

    async def stop(self) -> None:
        """Stop serving; the agent's restart of this process takes over."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.close()
        if self._metrics is not None:
            await self._metrics.stop()
        if self._channel is not None:
            await self._channel.close()
        log.info("stopped")

    async def _take_up(self, assignment: Assignment) -> dict[int, str]:
        self._unserved = await self.take_up(assignment)
        return self._unserved

    async def _retry_ports(self) -> None:
        while True:
            await asyncio.sleep(PORT_RETRY_S)
            if self._unserved:
                before = self._unserved
                after = await self._take_up(self.subscription.assignment)
                if after != before:
                    self.subscription.tell(after)
