"""Reading the events of all processors in bulk, in the order in which they happened.

`EventReader` owns the mapped ring. It is driven by one thread (`hubble_server.ingest`), which calls
`wait` and then `read`. Nobody is woken: the reader looks every `interval_s`, sooner while the ring
fills up quickly, so that the data plane spends nothing on its readers.

The agent may pin maps anew (a change of shape) at any time: the reader looks once a second, takes
the rest of the old ring and moves over. Without maps it goes on trying. What was written while no
server ran is read at start, as far as it is young enough for today's names to be right; what was
overwritten or is older counts as lost. Without a history, what an earlier server has read is read
again, so that the ring of flows begins with something.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
from cilium_core.telemetry import get_logger

from hubble_server.errors import EventsMapMissingError, RingError
from hubble_server.ring.buffers import CpuRing
from hubble_server.ring.maps import EventMaps
from hubble_server.ring.records import NO_EVENTS, Events, concatenate, pick

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hubble_server.ring.positions import ReadPositions


_log = get_logger()

REPLAYED_NS: Final = 10_000_000_000
"""Age up to which events of the time before this reader are taken."""

_RECHECK_S: Final = 1.0
_RELAXED_FILL: Final = 0.125
"""Share of a ring that may fill up between two readings before they come closer together."""


_QUIET_ROUNDS: Final = 100
"""Rounds without an event after which the reader looks half as often."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Events of all processors in order of time, and what was overwritten unread."""

    events: Events = field(default_factory=lambda: NO_EVENTS)
    lost: dict[int, int] = field(default_factory=dict)
    """Losses since the previous reading, by processor; no zeroes."""


class EventReader:
    """Reader of the ring whose maps are pinned below `root`."""

    def __init__(
        self, root: Path, *, interval_s: float = 0.025, positions: ReadPositions | None = None
    ) -> None:
        self._root = root
        self._positions = positions
        self._interval_s = interval_s
        self._next_wait_s = interval_s
        self._quiet = 0
        self._maps: EventMaps | None = None
        self._rings: list[CpuRing] = []
        self._check_at = 0.0
        self._complaint = ""

    @property
    def attached(self) -> bool:
        """Whether there is a ring to read."""
        return self._maps is not None

    def wait(self, timeout_s: float | None = None) -> None:
        """Sleep until it is time to look again."""
        time.sleep(self._next_wait_s if timeout_s is None else timeout_s)

    def read(self) -> Reading:
        """Take what was written so far, or a good part of it. Never blocks."""
        before = self._follow_maps()
        fill = max((ring.fill() for ring in self._rings), default=0.0)
        self._quiet = self._quiet + 1 if not fill else 0
        self._next_wait_s = self._interval_s * min(1.0, _RELAXED_FILL / max(fill, 1e-9))
        if self._quiet > _QUIET_ROUNDS:
            self._next_wait_s *= 2
        current = _take(self._rings)
        if not len(before.events) and not before.lost:
            return current
        lost = {
            cpu: before.lost.get(cpu, 0) + current.lost.get(cpu, 0)
            for cpu in before.lost.keys() | current.lost.keys()
        }
        return Reading(concatenate([before.events, current.events]), lost)

    def _follow_maps(self) -> Reading:
        """Find the maps, or notice that they were replaced; return the rest of the old ring."""
        now = time.monotonic()
        if now < self._check_at:
            return Reading()
        self._check_at = now + (_RECHECK_S if self._maps else _RECHECK_S / 4)
        if self._maps is not None and not self._maps.replaced():
            return Reading()
        rest = _take(self._rings)
        try:
            fresh = EventMaps(self._root)
        except EventsMapMissingError:
            if self._maps is not None:
                _log.warning("event maps gone", root=str(self._root))
                self._detach()
            return rest
        except RingError as error:
            self._complain(str(error))
            return rest
        self._detach()
        missed = self._attach(fresh)
        for cpu, count in rest.lost.items():
            missed[cpu] = missed.get(cpu, 0) + count
        return Reading(rest.events, missed)

    def processed(self, head: int) -> None:
        """All that was read is in the store, which has `head` events by now."""
        if self._positions is not None and self._maps is not None:
            self._positions.note([ring.position for ring in self._rings], head)

    def _attach(self, maps: EventMaps) -> dict[int, int]:
        """Start with the events of the last seconds, or after those that are on the disk.

        Returns what nobody has read and nobody will, by processor.
        """
        oldest_ns = time.monotonic_ns() - REPLAYED_NS
        heads = maps.heads()
        known = self._positions.attach(maps.id, maps.cpus) if self._positions else None
        on_disk = self._positions is not None and self._positions.kept is not None
        missed: dict[int, int] = {}
        self._rings = []
        for cpu in range(maps.cpus):
            slots = maps.slots_of(cpu)
            start = _first_since(slots, int(heads[cpu]), oldest_ns)
            if known is not None and known[cpu] <= int(heads[cpu]):
                if start > known[cpu]:
                    missed[cpu] = start - known[cpu]
                elif on_disk:
                    start = known[cpu]
            self._rings.append(CpuRing(slots, heads, cpu, start))
        self._maps = maps
        self._complaint = ""
        _log.info(
            "reading events", root=str(self._root), cpus=maps.cpus, slots=maps.slots, map_id=maps.id
        )
        return missed

    def _complain(self, text: str) -> None:
        """Log a failure once, not at each attempt."""
        if text != self._complaint:
            self._complaint = text
            _log.error("cannot read events", reason=text)

    def _detach(self) -> None:
        self._rings = []
        if self._maps is not None:
            self._maps.close()
            self._maps = None

    def close(self) -> None:
        """Unmap the ring. Another reader can go on where this one stopped."""
        if self._positions is not None:
            self._positions.settle()
        self._detach()


def _first_since(slots: Events, written: int, oldest_ns: int) -> int:
    """Number of the first event in the ring that is young enough."""
    size = len(slots)
    numbers = np.arange(max(0, written - size), written)
    times = slots["time_ns"][numbers % size]
    young = np.flatnonzero(times >= oldest_ns)
    return int(numbers[young[0]]) if len(young) else written


def _take(rings: Sequence[CpuRing]) -> Reading:
    """One step of every processor's ring."""
    parts: list[Events] = []
    lost: dict[int, int] = {}
    for cpu, ring in enumerate(rings):
        before = ring.lost
        events = ring.take()
        if len(events):
            parts.append(events)
        if ring.lost != before:
            lost[cpu] = ring.lost - before
    return Reading(merge(parts), lost)


def merge(parts: Sequence[Events]) -> Events:
    """Order events of several processors, each already in order, by time."""
    if not parts:
        return NO_EVENTS
    if len(parts) == 1:
        return parts[0]
    events = concatenate(parts)
    return pick(events, np.argsort(events["time_ns"], kind="stable"))


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
