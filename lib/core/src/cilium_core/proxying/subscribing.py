"""Keeps a proxy's assignment as the agent wants it, through the agent's absences.

`Subscription.restored` is what was in force last, from disk, so that a proxy serves before it has
found an agent. `run` then follows the agent: it takes a change up (`take_up`, given by the proxy,
tells which ports it cannot serve and why), keeps a copy on disk and acknowledges. When the stream
breaks it comes back, at first soon, and begins with a snapshot; until then nothing changes.

Used from one event loop. gRPC is imported when first needed, so that a proxy's sockets are open
before.
"""

from __future__ import annotations

import asyncio
import os
import random
from typing import TYPE_CHECKING

from cilium.proxy.v1 import proxy_pb2

from cilium_core import traces
from cilium_core.errors import InvalidError
from cilium_core.proxying import redirects
from cilium_core.proxying.redirects import KINDS, Assignment
from cilium_core.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path

    import grpc.aio
    from cilium.proxy.v1 import proxy_pb2_grpc

    from cilium_core.policy.l7 import L7Kind

    TakeUp = Callable[[Assignment], Awaitable[Mapping[int, str]]]

log = get_logger()

SOCKET = "proxies.sock"
"""Name of the agent's socket within its state directory."""

MIN_BACKOFF_S = 0.05
MAX_BACKOFF_S = 1.0

CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", 64 << 20),
)


def dial(state_dir: Path) -> grpc.aio.Channel:
    """A channel to the agent of a node; it connects when it is used and whenever it must."""
    import grpc.aio

    return grpc.aio.insecure_channel(
        f"unix:{state_dir / SOCKET}",
        options=CHANNEL_OPTIONS,
        interceptors=traces.client_interceptors(),
    )


class Subscription:
    """What one proxy is to do."""

    def __init__(
        self,
        kind: L7Kind,
        copy: Path,
        take_up: TakeUp,
        *,
        joined: Callable[[], None] = lambda: None,
        left: Callable[[], None] = lambda: None,
    ) -> None:
        """`copy` is the file of the copy on disk.

        `joined` is called when an agent has sent its snapshot, `left` when it is gone again.
        """
        self._kind = kind
        self._copy = copy
        self._take_up = take_up
        self._joined, self._left = joined, left
        self._requests: asyncio.Queue[proxy_pb2.WatchRedirectsRequest] = asyncio.Queue()
        self._revision = 0
        self.assignment = Assignment()
        self.connected = False
        """Whether the agent has sent its snapshot, and the stream stands."""

    async def restored(self) -> None:
        """Do what was to be done before this process began."""
        try:
            found = redirects.load(self._copy, self._kind)
        except InvalidError as error:
            log.error("restored nothing", error=str(error))
            return
        if found is not None:
            self.assignment = found
            errors = await self._take_up(found)
            log.info("restored", redirects=len(found.redirects), failed=dict(errors))

    async def run(self, channel: grpc.aio.Channel) -> None:
        """Follow the agent until cancelled."""
        import grpc.aio
        from cilium.proxy.v1 import proxy_pb2_grpc

        stub = proxy_pb2_grpc.ProxyServiceStub(channel)  # type: ignore[no-untyped-call]
        backoff_s = MIN_BACKOFF_S
        while True:
            try:
                await self._follow(stub)
            except grpc.aio.AioRpcError as error:
                log.debug("agent away", code=error.code().name, details=error.details())
            except InvalidError as error:
                log.error("the agent's redirects make no sense", error=str(error))
            if self.connected:
                backoff_s = MIN_BACKOFF_S
                log.warning("the agent is away; going on with what is known")
                self.connected = False
                self._left()
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    def tell(self, errors: Mapping[int, str]) -> None:
        """Tell the agent again which ports are not served; no effect while it is away."""
        self._requests.put_nowait(
            proxy_pb2.WatchRedirectsRequest(
                acknowledged_revision=self._revision,
                errors=[proxy_pb2.PortError(port=p, error=e) for p, e in errors.items()],
            )
        )

    async def _follow(self, stub: proxy_pb2_grpc.ProxyServiceStub) -> None:
        self._requests = asyncio.Queue()
        self._requests.put_nowait(
            proxy_pb2.WatchRedirectsRequest(kind=KINDS[self._kind], pid=os.getpid())
        )
        async for change in stub.WatchRedirects(_drain(self._requests)):
            wanted = redirects.apply(self._kind, self.assignment, change)
            errors = await self._take_up(wanted)
            if wanted != self.assignment:
                self.assignment = wanted
                await asyncio.to_thread(self._save)
            if not self.connected:
                self.connected = True
                log.info("following the agent", redirects=len(wanted.redirects))
                self._joined()
            self._revision = change.revision
            self.tell(errors)

    def _save(self) -> None:
        try:
            redirects.save(self._copy, self.assignment)
        except OSError as error:
            log.error("copy on disk not written", file=str(self._copy), error=str(error))


async def _drain(
    queue: asyncio.Queue[proxy_pb2.WatchRedirectsRequest],
) -> AsyncIterator[proxy_pb2.WatchRedirectsRequest]:
    while True:
        yield await queue.get()
