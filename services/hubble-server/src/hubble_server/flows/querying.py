"""Where a query starts in the ring, what it finds, and when it ends: the rules of GetFlows.

Pure but for the store it reads; the servicers add waiting, encoding and sending. A `Cursor` belongs
to one call and is used on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from flow import flow_pb2
from numpy.typing import NDArray

from hubble_server.filters import Filters
from hubble_server.filters.columns import Columns, Mask
from hubble_server.flows.columns import (
    KIND_AGENT,
    KIND_DEBUG,
    KIND_FLOW,
    KIND_LOST,
    KIND_RECORD,
)
from hubble_server.flows.store import Attached

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hubble_server.flows.store import Block, FlowStore

SCAN = 8192
"""Events looked at in one step, so that other clients get their turn."""

SLOW_SCAN = 512
"""The same where filters are slow: a CEL expression may take a millisecond for each event."""

MOST_FOUND = 1024
"""Most events found in one step."""

FLOWS = frozenset({KIND_FLOW, KIND_RECORD})
AGENT_EVENTS = frozenset({KIND_AGENT})
DEBUG_EVENTS = frozenset({KIND_DEBUG})

_NO_FILTERS = Filters((), ())


@dataclass(frozen=True, slots=True)
class Query:
    """What a client asked for. Times are nanoseconds since the epoch, both ends inclusive."""

    number: int = 0
    """0 is no limit."""
    first: bool = False
    follow: bool = False
    since_ns: int | None = None
    until_ns: int | None = None
    filters: Filters = _NO_FILTERS
    kinds: frozenset[int] = FLOWS
    resume: int | None = None
    """Number of the event to go on with, for who follows and was cut off."""
    shows: Callable[[Any], bool] | None = None
    """Which messages of other kinds than flows are handed out, None for all."""
    given_up: Callable[[], bool] = bool
    """Whether nobody waits for the answer any more."""


@dataclass(slots=True)
class Found:
    """One step's result: runs of flows as columns, and single events as messages, in order."""

    runs: list[dict[str, NDArray[Any]] | tuple[int, int, Attached]] = field(default_factory=list)
    """Columns, or (kind, time in nanoseconds, what is attached)."""
    lost: int = 0
    """Events overwritten before this reader got to them."""

    def __bool__(self) -> bool:
        return bool(self.runs)


@dataclass(frozen=True, slots=True)
class Start:
    """Where a query starts, and what finding that out has found already."""

    position: int
    """Number of the first event."""
    passing: NDArray[np.int64] | None = None
    """Numbers of the events from there up to `known_to` that pass; None when nobody looked."""
    known_to: int = 0


def start_of(store: FlowStore, query: Query) -> Start:
    """Where a query starts."""
    head, oldest = store.head, store.oldest
    if query.resume is not None:
        return Start(min(query.resume, head))
    if query.since_ns is not None:
        return Start(_first_since(store, query.since_ns, oldest, head))
    if query.first:
        return Start(oldest)
    if not query.number:
        return Start(max(oldest, head - 1) if query.follow else oldest)
    return _last(store, query, oldest, head)


def _first_since(store: FlowStore, since_ns: int, oldest: int, head: int) -> int:
    start = head
    for block in store.blocks_backwards(oldest, head, store.slots):
        at = int(np.searchsorted(block["time_ns"], since_ns))
        start = block.first + at
        if at:
            break
    return start


def _last(store: FlowStore, query: Query, oldest: int, head: int) -> Start:
    """Walk back until `number` events that pass were seen."""
    wanted, position = query.number, oldest
    if wanted >= head - oldest:
        return Start(oldest)
    found: list[NDArray[np.int64]] = []
    # where messages are to be read, as few as can be
    most = SLOW_SCAN if query.filters.slow else SCAN
    stop, size = head, most if query.filters.matches is None else min(max(wanted, 64), most)
    while stop > oldest and not query.given_up():
        block = next(store.blocks_backwards(oldest, stop, size))
        stop, size = block.first, min(2 * size, most)
        hits = np.flatnonzero(_counted(store, block, query)) + block.first
        if len(hits) >= wanted:
            hits = hits[len(hits) - wanted :]
            position = int(hits[0])
            found.append(hits)
            break
        wanted -= len(hits)
        found.append(hits)
    if query.filters.pass_all or not found:
        return Start(position)
    return Start(position, np.concatenate(found[::-1]), head)


def _counted(store: FlowStore, block: Block, query: Query) -> Mask:
    """Events that count towards "the last N".

    Of flows without a filter that is everything but losses, as in Hubble. Of agent and debug events
    it is these alone: they are so few between flows that users would hardly see one.
    """
    kinds = block["kind"]
    counted: Mask
    if query.kinds != FLOWS:
        counted = _events(store, block, kinds, query)
    elif query.filters.pass_all:
        counted = kinds != KIND_LOST
    else:
        counted = passing_flows(store, block, kinds, query.filters)
    return counted


def _events(store: FlowStore, block: Block, kinds: NDArray[np.uint8], query: Query) -> Mask:
    """Events of the other kinds that are asked for."""
    mask: Mask = np.isin(kinds, list(query.kinds - FLOWS))
    if query.shows is not None:
        for row in np.flatnonzero(mask).tolist():
            message = store.attached(block.first + row)
            mask[row] = message is not None and query.shows(message)
    return mask


def passing_flows(
    store: FlowStore, block: Block, kinds: NDArray[np.uint8], filters: Filters
) -> Mask:
    """Flows that pass the filters; their messages are read where the columns do not decide."""
    mask: Mask = kinds <= KIND_RECORD
    if filters.pass_all or not mask.any():
        return mask
    mask &= filters.mask(Columns(block, len(block)))
    if filters.matches is None:
        return mask
    for row in np.flatnonzero(mask & (kinds == KIND_RECORD)).tolist():
        record = store.attached(block.first + row)
        mask[row] = isinstance(record, bytes) and filters.matches(flow_pb2.Flow.FromString(record))
    if filters.messages is not None:
        rows = np.flatnonzero(mask & (kinds == KIND_FLOW))
        mask[rows] = [filters.matches(flow) for flow in filters.messages(block.take(rows))]
    return mask


class Cursor:
    """Reads a query's events step by step, from its start position to its end."""

    def __init__(self, store: FlowStore, query: Query) -> None:
        self._store = store
        self._query = query
        self._start = start_of(store, query)
        self.position = self._start.position
        self._stop = None if query.follow else store.head
        self._remaining = query.number if query.number and not query.follow else None
        self.ended = False

    @property
    def is_slow(self) -> bool:
        """Whether a step is long enough to be taken on a thread of its own."""
        return self._query.filters.slow

    @property
    def at_end(self) -> bool:
        """Whether there is nothing more to read now."""
        return self.position >= (self._store.head if self._stop is None else self._stop)

    def read(self, most: int = MOST_FOUND) -> Found:
        """Take one step, which finds at most so many.

        Finding nothing means nothing unless `at_end` or `ended` is set.
        """
        store, query, found = self._store, self._query, Found()
        self._skip_lost(found)
        if self.at_end:
            self.ended = self._stop is not None
            return found
        stop = store.head if self._stop is None else self._stop
        # what the start has looked at already takes no time to go through
        known = self._start.passing is not None and self.position < self._start.known_to
        reach = self._start.known_to if known else self.position + SCAN
        block = store.block(self.position, min(stop, reach))
        count = len(block)
        kinds = block["kind"].copy()
        times = block["time_ns"].copy()
        if query.until_ns is not None:
            late = np.flatnonzero((times > query.until_ns) & (kinds != KIND_LOST))
            if len(late):
                count = int(late[0])
                self.ended = True
        rows = np.flatnonzero(self._mask(block, kinds, times)[:count])
        rows, count = self._limit(rows, kinds, count, most)
        first = block.first
        self.position = first + count
        is_flow = kinds[rows] == KIND_FLOW
        columns = block.take(rows[is_flow])
        valid_from = store.valid_from
        if valid_from > first:
            torn = min(valid_from - first, count)
            found.lost += torn
            self._return(int(((rows < torn) & (kinds[rows] != KIND_LOST)).sum()))
            columns = {name: column[(rows >= torn)[is_flow]] for name, column in columns.items()}
            is_flow = is_flow[rows >= torn]
            rows = rows[rows >= torn]
        self._assemble(found, first, rows, is_flow, columns)
        if not self.ended and self._stop is not None and self.at_end:
            self.ended = True
        return found

    def _skip_lost(self, found: Found) -> None:
        valid_from = self._store.valid_from
        if self.position < valid_from:
            found.lost += valid_from - self.position
            self.position = valid_from
            if self._stop is not None:
                self._stop = max(self._stop, valid_from)

    def _mask(self, block: Block, kinds: NDArray[np.uint8], times: NDArray[np.int64]) -> Mask:
        """Events to hand out: those asked for that pass, and losses, which bypass everything."""
        query = self._query
        mask: Mask = np.zeros(len(block), dtype=np.bool_)
        passing = self._start.passing
        if passing is not None and block.first + len(block) <= self._start.known_to:
            within = np.searchsorted(passing, (block.first, block.first + len(block)))
            mask[passing[within[0] : within[1]] - block.first] = True
        else:
            if KIND_FLOW in query.kinds:
                mask = passing_flows(self._store, block, kinds, query.filters)
            if query.kinds != FLOWS:
                mask |= _events(self._store, block, kinds, query)
        if query.since_ns is not None:
            mask &= times >= query.since_ns
        if KIND_FLOW in query.kinds:
            mask |= kinds == KIND_LOST
        return mask

    def _limit(
        self, rows: NDArray[np.intp], kinds: NDArray[np.uint8], count: int, most: int
    ) -> tuple[NDArray[np.intp], int]:
        """Cut what was found to what may still be handed out, and the step to where that ends."""
        if len(rows) > most:
            rows = rows[:most]
            count = int(rows[-1]) + 1
            self.ended = False
        if self._remaining is not None:
            counts = np.cumsum(kinds[rows] != KIND_LOST)
            if len(counts) and counts[-1] >= self._remaining:
                rows = rows[: int(np.searchsorted(counts, self._remaining)) + 1]
                count = int(rows[-1]) + 1
                self._remaining = 0
                self.ended = True
            elif len(counts):
                self._remaining -= int(counts[-1])
        return rows, count

    def _return(self, count: int) -> None:
        """Give back what was counted as handed out but got lost."""
        if self._remaining is not None and count:
            self._remaining += count
            self.ended = False

    def _assemble(
        self,
        found: Found,
        first: int,
        rows: NDArray[np.intp],
        is_flow: Mask,
        columns: dict[str, NDArray[Any]],
    ) -> None:
        if is_flow.all():
            if len(rows):
                found.runs.append(columns)
            return
        taken = 0
        for stretch in _stretches(is_flow):
            length = stretch.stop - stretch.start
            if is_flow[stretch.start]:
                part = slice(taken, taken + length)
                found.runs.append({name: column[part] for name, column in columns.items()})
                taken += length
                continue
            for row in rows[stretch.start : stretch.stop].tolist():
                attached = self._store.attached(first + row)
                if attached is None:
                    found.lost += 1
                    self._return(1)
                    continue
                block = self._store.block(first + row, first + row + 1)
                found.runs.append((int(block["kind"][0]), int(block["time_ns"][0]), attached))


def _stretches(flags: Mask) -> Iterable[range]:
    """Ranges of equal neighbours."""
    edges = np.flatnonzero(flags[1:] != flags[:-1]) + 1
    bounds = [0, *edges.tolist(), len(flags)]
    return [range(start, stop) for start, stop in pairwise(bounds)]
