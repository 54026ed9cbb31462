from __future__ import annotations

import asyncio
import queue
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from hubble_server.app import App
from hubble_server.ring.reading import Reading
from hubble_server.settings import ServerSettings
from observer import observer_pb2, observer_pb2_grpc

from tests.needing import need
from tests.unit.hubble.loads import Emitter, emitter, snapshot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray


class Feed:
    """A source whose readings come from the test; wakes at once."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Reading] = queue.SimpleQueue()
        self._next: Reading | None = None

    def put(self, events: NDArray[Any], lost: dict[int, int] | None = None) -> None:
        events = events.copy()
        events["time_ns"] = time.monotonic_ns()
        self._queue.put(Reading(events, lost or {}))

    def wait(self, timeout_s: float | None = None) -> None:
        try:
            self._next = self._queue.get(timeout=0.01)
        except queue.Empty:
            self._next = None

    def read(self) -> Reading:
        reading, self._next = self._next, None
        return reading or Reading()


class Server:
    """A running server, its feed, and a client's stubs."""

    def __init__(self, app: App, feed: Feed, channel: grpc.aio.Channel) -> None:
        self.app = app
        self.feed = feed
        self.channel = channel
        self.observer = observer_pb2_grpc.ObserverStub(channel)

    async def until(self, holds: Callable[[], bool], limit_s: float = 30.0) -> None:
        """Wait for a condition."""
        async with asyncio.timeout(limit_s):
            while not holds():  # noqa: ASYNC110 - what is waited for knows no events
                await asyncio.sleep(0.005)

    async def feed_flows(self, events: NDArray[Any]) -> None:
        """Feed events and wait until they are flows."""
        wanted = self.app.store.head + len(events)
        self.feed.put(events)
        await self.until(lambda: self.app.store.head >= wanted)

    async def get(self, **request: Any) -> list[observer_pb2.GetFlowsResponse]:
        call = self.observer.GetFlows(observer_pb2.GetFlowsRequest(**request))
        return [response async for response in call]


@asynccontextmanager
async def running(tmp_path: Path, pods: int = 4, **settings: Any) -> AsyncIterator[Server]:
    """A server on a unix socket in `tmp_path`, with `pods` pods known."""
    chosen = ServerSettings(node_name="node1", state_dir=tmp_path, **settings)
    feed = Feed()
    async with App(chosen, feed) as app:
        if pods:
            app.replace(snapshot(pods))
        async with grpc.aio.insecure_channel(f"unix:{chosen.socket_path}") as channel:
            server = Server(app, feed, channel)
            await server.until(lambda: not pods or app.directory.interfaces.stop > 1)
            yield server


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with running(tmp_path, hubble_lost_event_send_interval=0.05) as made:
        yield made


@pytest.fixture
def kernel() -> Iterator[Emitter]:
    """A ring in the kernel, and what writes events into it."""
    try:
        context = emitter("tE-ring")
        made = context.__enter__()
    except (ImportError, OSError) as error:
        need(f"a ring in the kernel needs root, bcc and a bpffs: {error}")
        raise
    try:
        yield made
    finally:
        context.__exit__(None, None, None)
