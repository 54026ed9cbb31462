"""From a query to a stream of encoded responses: reading, waiting, encoding, telling of losses.

Shared by the public GetFlows, the batches between our own services, and the agent and debug event
streams, which differ in how they encode and send.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

from cilium_core.serving.packed import pack
from flow import flow_pb2

from hubble_server.flows.columns import KIND_LOST, Batch
from hubble_server.flows.querying import MOST_FOUND
from hubble_server.flows.store import Attached

if TYPE_CHECKING:
    from hubble_server.flows.querying import Cursor, Found
    from hubble_server.flows.store import FlowStore


_PACED = 16
_PACE_S = 0.0004 * _PACED
"""Calls woken at once of those that found nothing new lately, and when the next ones are. A call
takes a quarter of its share to find nothing once more, so that any number of them leaves most of
the processor to others."""

_EAGER = 64
"""Calls that are woken as soon as there is anything new, since they found something lately."""

_ASIDE_THREADS = 1

_FIRST_FOUND = 128
_PROMPT_S = 0.05
"""Most events of the first chunk, and how soon it must be taken for the next one to be larger: what
waits for a client that does not read is small."""

_SLOW_S = 0.5
"""How long a chunk may take for the next one not to be as small as the first. Small chunks cost
twice as much for each event, and clients that print take a while for a large one."""

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class NewEvents:
    """Lets calls on the event loop wait for the ingest thread to write, and do long work aside."""

    def __init__(self, store: FlowStore) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._eager: list[_Waiting] = []
        self._paced: deque[_Waiting] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._threads = ThreadPoolExecutor(_ASIDE_THREADS, "slow-queries")
        self._stop = store.listen(self._written)

    def stop(self) -> None:
        """Wake nobody any more, and leave out what waits to be done aside."""
        self._stop()
        if self._timer is not None:
            self._timer.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _written(self) -> None:
        """Called on the ingest thread."""
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:
            self._stop()  # the loop is closed

    def _wake(self) -> None:
        """Wake the eager ones, and begin to wake the others."""
        eager, self._eager = self._eager, []
        for waiting in eager:
            waiting.wake()
        if self._timer is None:
            self._wake_some()

    def _wake_some(self) -> None:
        """Wake some of those that are paced; the rest when it is time."""
        head, count = self._store.head, 0
        while self._paced and self._paced[0].head < head and count < _PACED:
            count += self._paced.popleft().wake()
        more = bool(self._paced) and self._paced[0].head < head
        self._timer = self._loop.call_later(_PACE_S, self._wake_some) if more else None

    async def aside(
        self,
        work: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Result:
        """Do what takes long on one of the few threads there are for it, when it is its turn."""
        call = functools.partial(work, *arguments, **named)
        return await self._loop.run_in_executor(self._threads, call)

    async def wait(self, head: int, timeout_s: float | None = None, *, found: bool = True) -> None:
        """Wait until the store has more than `head` events ever written, or for a while.

        Who `found` nothing the last time is woken after those who did.
        """
        if self._store.head > head:
            return
        waiting = _Waiting(head, self._loop.create_future())
        if found and len(self._eager) < _EAGER:
            self._eager.append(waiting)
        else:
            self._paced.append(waiting)
        try:
            async with asyncio.timeout(timeout_s):
                await waiting.woken
        except TimeoutError:
            return


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A call that knows all events before `head`."""

    head: int
    woken: asyncio.Future[None]

    def wake(self) -> bool:
        """Wake it, unless it has given up."""
        if self.woken.done():
            return False
        self.woken.set_result(None)
        return True


@dataclass(frozen=True, slots=True)
class Encoding:
    """How one stream's responses are made."""

    columns: Callable[[Batch], list[bytes]]
    attached: Callable[[int, int, Attached], bytes]
    """From kind, time in nanoseconds and what is attached."""
    lost: Callable[[flow_pb2.LostEvent, int], bytes] | None
    """From a loss and the time now; None when losses are not told."""


@dataclass(slots=True)
class Chunk:
    """Responses to send together, with their times."""

    responses: list[bytes]
    times_ns: list[int]
    position: int | None = None
    """Number of the event after these, of a ring."""
    untold: int = 0
    """Events lost up to there that are yet to be told."""

    def __bool__(self) -> bool:
        return bool(self.responses)

    def take(self) -> bytes:
        """The responses as they are sent, once: nothing is held twice while a client is slow."""
        packed = pack(self.responses)
        self.responses.clear()
        return packed


class _Overtaken:
    """Events that this reader was too slow for, to be told once an interval."""

    def __init__(self, interval_s: float) -> None:
        self._interval_ns = int(interval_s * 1e9)
        self._count = 0
        self._first_ns = self._last_ns = 0

    def add(self, count: int) -> None:
        if count:
            self._last_ns = time.time_ns()
            self._first_ns = self._first_ns if self._count else self._last_ns
            self._count += count

    def take(self, *, at_once: bool = False) -> flow_pb2.LostEvent | None:
        """Report what is due."""
        due = at_once or time.time_ns() - self._first_ns >= self._interval_ns
        if not self._count or not due:
            return None
        event = flow_pb2.LostEvent(source=flow_pb2.HUBBLE_RING_BUFFER, num_events_lost=self._count)
        event.first.FromNanoseconds(self._first_ns)
        event.last.FromNanoseconds(self._last_ns)
        self._count = 0
        return event

    @property
    def count(self) -> int:
        """Events that are yet to be told."""
        return self._count

    @property
    def wait_s(self) -> float | None:
        """Seconds until something is due, None when nothing will be."""
        if not self._count:
            return None
        return max(0.0, (self._first_ns + self._interval_ns - time.time_ns()) / 1e9)


async def chunks(
    store: FlowStore,
    cursor: Cursor,
    encoding: Encoding,
    new_events: NewEvents,
    on_lost: Callable[[int], None],
    *,
    lost_interval_s: float = 1.0,
    untold: int = 0,
) -> AsyncGenerator[Chunk, None]:
    """Encoded responses of what a cursor finds until it ends. Others get a turn at each step.

    `untold` events got lost before, and are told here.
    """
    overtaken = _Overtaken(lost_interval_s)
    overtaken.add(untold)
    most = _FIRST_FOUND
    while True:
        chunk = Chunk([], [])
        _tell(chunk, encoding, overtaken.take())
        head = store.head
        aside = cursor.is_slow
        found = await new_events.aside(cursor.read, most) if aside else cursor.read(most)
        if found.lost:
            overtaken.add(found.lost)
            on_lost(found.lost)
        _encode(chunk, encoding, found)
        if cursor.ended:
            _tell(chunk, encoding, overtaken.take(at_once=True))
        chunk.position, chunk.untold = cursor.position, overtaken.count
        some = bool(chunk)
        if some:
            sent_s = time.monotonic()
            yield chunk
            took_s = time.monotonic() - sent_s
            if took_s < _PROMPT_S:
                most = min(2 * most, MOST_FOUND)
            elif took_s > _SLOW_S:
                most = _FIRST_FOUND
        if cursor.ended:
            return
        if cursor.at_end:
            await new_events.wait(head, overtaken.wait_s, found=some)
        else:
            await asyncio.sleep(0)


def _tell(chunk: Chunk, encoding: Encoding, event: flow_pb2.LostEvent | None) -> None:
    if event is not None and encoding.lost is not None:
        now = time.time_ns()
        chunk.responses.append(encoding.lost(event, now))
        chunk.times_ns.append(now)


def _encode(chunk: Chunk, encoding: Encoding, found: Found) -> None:
    for run in found.runs:
        if isinstance(run, dict):
            chunk.responses += encoding.columns(run)
            chunk.times_ns += run["time_ns"].tolist()
            continue
        kind, time_ns, attached = run
        if kind == KIND_LOST:
            if encoding.lost is None:
                continue
            chunk.responses.append(encoding.lost(cast("flow_pb2.LostEvent", attached), time_ns))
        else:
            chunk.responses.append(encoding.attached(kind, time_ns, attached))
        chunk.times_ns.append(time_ns)
