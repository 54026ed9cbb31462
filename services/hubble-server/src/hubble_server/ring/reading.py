"""Reading the events of all processors in bulk, in the order in which they happened.

`EventReader` owns the perf buffers and the map they are put in. It is driven by one thread
(`hubble_server.ingest`), which calls `wait` and then `read`. The kernel wakes it by watermark
only; otherwise it looks every `interval_s`, which costs next to nothing and keeps following live.

The agent may create its map anew (a change of shape) at any time: the reader looks once a second
and moves its buffers over. Without a map it goes on trying, and nothing is lost that anyone wrote
for us.
"""

from __future__ import annotations

import select
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from cilium_core.telemetry import get_logger

from hubble_server.errors import EventsMapMissingError, RingError
from hubble_server.ring.buffers import CpuBuffer, online_cpus
from hubble_server.ring.maps import EventsMap
from hubble_server.ring.records import NO_EVENTS, Events, split

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_log = get_logger()

DEFAULT_PAGES = 1024
"""Pages of each processor's buffer: 4 MiB hold 29,000 events."""

_WATERMARK_SHARE = 8
_RECHECK_S = 1.0


@dataclass(frozen=True, slots=True)
class Reading:
    """Events of all processors in order of time, and what the kernel could not write."""

    events: Events = field(default_factory=lambda: NO_EVENTS)
    lost: dict[int, int] = field(default_factory=dict)
    """Losses since the previous reading, by processor; no zeroes."""


class EventReader:
    """Perf buffers of all processors behind the events map pinned at `path`."""

    def __init__(
        self,
        path: Path,
        *,
        pages: int = DEFAULT_PAGES,
        interval_s: float = 0.025,
        cpus: Sequence[int] | None = None,
    ) -> None:
        self._path = path
        self._interval_s = interval_s
        self._map: EventsMap | None = None
        self._check_at = 0.0
        self._complaint = ""
        self.malformed = 0
        self._epoll = select.epoll()
        self._buffers: list[CpuBuffer] = []
        try:
            for cpu in online_cpus() if cpus is None else cpus:
                buffer = CpuBuffer(cpu, pages, watermark=pages * 4096 // _WATERMARK_SHARE)
                self._buffers.append(buffer)
                self._epoll.register(buffer.fd, select.EPOLLIN)
        except RingError:
            self.close()
            raise

    @property
    def attached(self) -> bool:
        """Whether the programs write into our buffers."""
        return self._map is not None

    def wait(self, timeout_s: float | None = None) -> None:
        """Sleep until a buffer fills up or the interval is over."""
        self._epoll.poll(self._interval_s if timeout_s is None else timeout_s)

    def read(self) -> Reading:
        """Take everything written so far. Never blocks."""
        self._follow_map()
        heads = [buffer.pending() for buffer in self._buffers]
        parts: list[Events] = []
        lost: dict[int, int] = {}
        for buffer, head in zip(self._buffers, heads, strict=True):
            found = split(buffer.take(head))
            self.malformed += found.malformed
            if len(found.events):
                parts.append(found.events)
            count = buffer.new_losses() if buffer.counts_losses else found.lost
            if count:
                lost[buffer.cpu] = count
        return Reading(merge(parts), lost)

    def _follow_map(self) -> None:
        now = time.monotonic()
        if now < self._check_at:
            return
        self._check_at = now + (_RECHECK_S if self._map else _RECHECK_S / 4)
        try:
            if self._map is not None and not self._map.replaced():
                return
            fresh = EventsMap(self._path)
        except EventsMapMissingError:
            if self._map is not None:
                _log.warning("events map gone", path=str(self._path))
                self._detach()
            return
        except RingError as error:
            self._complain(str(error))
            return
        self._detach()
        try:
            for buffer in self._buffers:
                fresh.put(buffer.cpu, buffer.fd)
        except RingError as error:
            fresh.close()
            self._complain(str(error))
            return
        self._map = fresh
        self._complaint = ""
        _log.info("reading events", path=str(self._path), cpus=len(self._buffers), map_id=fresh.id)

    def _complain(self, text: str) -> None:
        """Log a failure once, not at each attempt."""
        if text != self._complaint:
            self._complaint = text
            _log.error("cannot attach to the events map", reason=text)

    def _detach(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None

    def close(self) -> None:
        """Take the buffers out of the map and free them."""
        self._detach()
        for buffer in self._buffers:
            buffer.close()
        self._buffers = []
        self._epoll.close()


def merge(parts: Sequence[Events]) -> Events:
    """Order events of several processors, each already in order, by time."""
    if not parts:
        return NO_EVENTS
    if len(parts) == 1:
        return parts[0]
    events = np.concatenate(parts)
    order = np.argsort(events["time_ns"], kind="stable")
    return events[order]


class Clock:
    """Adds to an event's monotonic time what makes it time since the epoch.

    The offset is measured again when it is older than a second, as the wall clock is adjusted.
    Each flow gets a time of its own: never earlier than, or equal to, the one before.
    """

    def __init__(self) -> None:
        self.offset_ns = _measure_offset()
        self._measured_at = time.monotonic()
        self._last_ns = 0

    def refresh(self) -> None:
        """Measure the offset again if it is time to."""
        now = time.monotonic()
        if now - self._measured_at > 1:
            self.offset_ns = _measure_offset()
            self._measured_at = now

    def now_ns(self) -> int:
        """A unique time for something that happens now and is not an event of the kernel."""
        self._last_ns = max(time.time_ns(), self._last_ns + 1)
        return self._last_ns

    def stamp(self, monotonic_ns: np.typing.NDArray[np.uint64]) -> np.typing.NDArray[np.int64]:
        """Unique, increasing times since the epoch for events in order."""
        times = monotonic_ns.astype(np.int64)
        times += self.offset_ns
        if len(times) == 0:
            return times
        if times[0] <= self._last_ns or bool((times[1:] <= times[:-1]).any()):
            # max(t[i], t[i-1] + 1), all at once: take the slope of one out, accumulate, put it in.
            slope = np.arange(len(times), dtype=np.int64)
            times -= slope
            times[0] = max(int(times[0]), self._last_ns + 1)
            np.maximum.accumulate(times, out=times)
            times += slope
        self._last_ns = int(times[-1])
        return times


def _measure_offset() -> int:
    """Wall clock minus monotonic clock in nanoseconds, the tightest of three tries."""
    best, offset = 1 << 62, 0
    for _ in range(3):
        before = time.monotonic_ns()
        wall = time.time_ns()
        after = time.monotonic_ns()
        if after - before < best:
            best, offset = after - before, wall - (before + after) // 2
    return offset
