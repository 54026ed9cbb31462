"""Many streams, each in the order of time, made into one in the order of time.

Pure: no clock, no I/O; times come in as arguments, so that rules can be tested without waiting.

An item leaves when nothing older can still come: when every stream that goes on has something
waiting too, and this item is the oldest of them. A stream with nothing waiting holds the others
back, but not for long:

- usually up to the drain timeout after an item arrived,
- only for a moment once it is known to be up to date (it told something newer than the start of the
  request, when following) or was silent for a whole drain timeout already,
- not at all, when following, for the oldest items beyond the limit of the buffer.

Without following, a stream with a full buffer is paused instead (`room` says so), so that the order
is kept however uneven the streams are. When following, only a client that does not keep up gets
that far.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Payload = TypeVar("Payload")

FOLLOWED_LIMIT = 512
"""Items of one stream that may wait while following, when the client does not keep up, beside those
that came at once with them. The node's ring has room for more, the relay has many clients."""

UP_TO_DATE_WAIT_S = 0.1
"""How long to wait for a stream that has nothing to tell: what servers need to gather flows."""


@dataclass
class _Batch(Generic[Payload]):
    arrival_s: float
    times_ns: Sequence[int]
    payloads: Sequence[Payload]
    position: int = 0


@dataclass
class _Source(Generic[Payload]):
    index: int
    last_arrival_s: float
    batches: deque[_Batch[Payload]] = field(default_factory=deque)
    held: int = 0
    ended: bool = False
    up_to_date: bool = False


class Merger(Generic[Payload]):
    """The buffers of one request. Times of items in ns since the epoch, of the clock in s."""

    def __init__(self, *, limit: int, drain_timeout_s: float, follow: bool, start_ns: int) -> None:
        self._limit = limit
        self._drain_timeout_s = drain_timeout_s
        self._follow = follow
        self._start_ns = start_ns
        self._sources: dict[object, _Source[Payload]] = {}
        self._heads: list[tuple[int, int, object]] = []
        self._held = 0
        self._count = 0

    @property
    def held(self) -> int:
        """Items that wait."""
        return self._held

    def add(self, key: object, now_s: float) -> None:
        """A stream begins. Its key may come again after `end`."""
        self._count += 1
        known = self._sources.get(key)
        if known is not None:
            known.ended = False
            known.last_arrival_s = now_s
        else:
            self._sources[key] = _Source(self._count, now_s)

    def end(self, key: object) -> None:
        """A stream tells nothing more; what waits of it still leaves in order."""
        source = self._sources.get(key)
        if source is not None:
            source.ended = True
            if not source.batches:
                del self._sources[key]

    def push(
        self, key: object, times_ns: Sequence[int], payloads: Sequence[Payload], now_s: float
    ) -> None:
        """A stream tells several items, oldest first."""
        if not payloads:
            return
        source = self._sources[key]
        source.last_arrival_s = now_s
        if times_ns[-1] >= self._start_ns:
            source.up_to_date = True
        if not source.batches:
            heapq.heappush(self._heads, (times_ns[0], source.index, key))
        source.batches.append(_Batch(now_s, times_ns, payloads))
        source.held += len(payloads)
        self._held += len(payloads)

    def room(self, key: object) -> bool:
        """Whether a stream may tell more now."""
        source = self._sources.get(key)
        limit = max(self._limit, FOLLOWED_LIMIT) if self._follow else self._limit
        return source is None or source.held < limit

    def take(self, now_s: float) -> tuple[list[int], list[Payload]]:
        """Times and payloads of the items that may leave now, oldest first."""
        times: list[int] = []
        payloads: list[Payload] = []
        while self._heads:
            _, _, key = self._heads[0]
            source = self._sources[key]
            batch = source.batches[0]
            spare = self._held - self._limit if self._follow else 0
            if batch.arrival_s > self._cutoff(now_s):
                if spare <= 0:
                    break
            else:
                spare = self._held
            heapq.heappop(self._heads)
            bound = self._heads[0][:2] if self._heads else None
            start, end = self._take_run(source, batch, bound, spare)
            times += batch.times_ns[start:end]
            payloads += batch.payloads[start:end]
            if source.batches:
                head = source.batches[0]
                heapq.heappush(self._heads, (head.times_ns[head.position], source.index, key))
            elif source.ended:
                del self._sources[key]
        return times, payloads

    def _take_run(
        self,
        source: _Source[Payload],
        batch: _Batch[Payload],
        bound: tuple[int, int] | None,
        spare: int,
    ) -> tuple[int, int]:
        """Take items of one batch up to the head of the next stream, at most `spare` of them."""
        times, start = batch.times_ns, batch.position
        end = min(len(times), start + spare)
        position = start + 1
        if bound is None:
            position = end
        else:
            while position < end and (times[position], source.index) <= bound:
                position += 1
        count = position - start
        batch.position = position
        source.held -= count
        self._held -= count
        if position == len(times):
            source.batches.popleft()
        return start, position

    def _cutoff(self, now_s: float) -> float:
        """Items that arrived later have to wait for a stream that has nothing waiting."""
        wait_s = max(
            (
                self._patience_s(source, now_s)
                for source in self._sources.values()
                if not source.batches and not source.ended
            ),
            default=None,
        )
        return float("inf") if wait_s is None else now_s - wait_s

    def _patience_s(self, source: _Source[Payload], now_s: float) -> float:
        silent = now_s - source.last_arrival_s >= self._drain_timeout_s
        if silent or (self._follow and source.up_to_date):
            return min(UP_TO_DATE_WAIT_S, self._drain_timeout_s)
        return self._drain_timeout_s

    def wait_s(self, now_s: float) -> float | None:
        """When to look again if nothing arrives, in seconds from now; None for never."""
        if not self._heads:
            return None
        head = self._sources[self._heads[0][2]].batches[0].arrival_s
        soon = head + min(UP_TO_DATE_WAIT_S, self._drain_timeout_s)
        due = now_s
        for source in self._sources.values():
            if source.batches or source.ended:
                continue
            if self._patience_s(source, now_s) < self._drain_timeout_s:
                due = max(due, soon)
            else:
                silent = source.last_arrival_s + self._drain_timeout_s
                due = max(due, min(head + self._drain_timeout_s, max(soon, silent)))
        return due - now_s
