"""Answers of GetFlows that reach further back than the ring: the history, then the ring.

The history ends at a number of the ring, from which the ring goes on, so nothing is missing and
nothing comes twice. Where the ring has moved past that number meanwhile, the history is read on.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from hubble_server.flows.querying import SCAN, Cursor, Query, passing_flows
from hubble_server.history.counting import count
from hubble_server.history.reading import Reading, place_of_last
from hubble_server.history.walking import Asked, Place
from hubble_server.history.writing import note_damage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from cilium.flows.v1 import flows_pb2
    from observer import observer_pb2

    from hubble_server.encoding.masks import Mask
    from hubble_server.flows.naming import Namer
    from hubble_server.flows.store import FlowStore
    from hubble_server.history.writing import History, Snapshot
    from hubble_server.servicers.streaming import Chunk

ALL: Final = (1 << 64) - 1
"""Number of flows by which clients ask for all there are."""


def reaches_back(store: FlowStore, query: Query) -> bool:
    """Whether a query asks for what may be older than the ring."""
    oldest_ns = _oldest_ns(store)
    if query.since_ns is not None:
        return oldest_ns is None or query.since_ns < oldest_ns
    until_ns = None if query.follow else query.until_ns
    if until_ns is not None and not query.first and query.number != ALL:
        return oldest_ns is None or until_ns < oldest_ns
    if is_of_last(query):
        _, found = last_in_ring(store, query, store.oldest)
        return found < query.number
    return not query.follow and (query.first or query.number == ALL)


def is_of_last(query: Query) -> bool:
    """Whether a query is for a number of flows, the newest ones."""
    return query.since_ns is None and not query.first and query.number not in (0, ALL)


def _oldest_ns(store: FlowStore) -> int | None:
    oldest = store.oldest
    return int(store.block(oldest, oldest + 1)["time_ns"][0]) if len(store) else None


class Past:
    """Answers queries that reach further back than a store."""

    def __init__(self, history: History, store: FlowStore) -> None:
        self._history = history
        self._store = store

    def answers(self, query: Query) -> bool:
        """Whether a query is to be answered here rather than by the ring alone."""
        return reaches_back(self._store, query)

    def answer(
        self,
        query: Query,
        request: observer_pb2.GetFlowsRequest,
        mask: Mask | None,
        go_on: Callable[[Cursor], AsyncGenerator[Chunk, None]],
    ) -> AsyncGenerator[Chunk, None]:
        """All chunks; `go_on` reads those of the ring."""
        return answer(self._history, self._store, query, _asked(query, request, mask), go_on)

    def counts(self, query: Query) -> bool:
        """Whether flows are to be counted here rather than in the ring alone."""
        oldest_ns = _oldest_ns(self._store)
        return query.since_ns is None or oldest_ns is None or query.since_ns < oldest_ns

    def count(
        self,
        query: Query,
        request: observer_pb2.GetFlowsRequest,
        by: Sequence[int],
        most: int,
        namer: Namer,
    ) -> flows_pb2.AggregateFlowsResponse:
        """Count flows of the history and the ring. May be called on any thread."""
        asked = _asked(query, request, None)
        return count(self._history, self._store, query, asked, by, most, namer)


def _asked(query: Query, request: observer_pb2.GetFlowsRequest, mask: Mask | None) -> Asked:
    return Asked(
        whitelist=tuple(request.whitelist),
        blacklist=tuple(request.blacklist),
        mask=mask,
        since_ns=query.since_ns,
        until_ns=None if query.follow else query.until_ns,
    )


async def answer(
    history: History,
    store: FlowStore,
    query: Query,
    asked: Asked,
    go_on: Callable[[Cursor], AsyncGenerator[Chunk, None]],
) -> AsyncGenerator[Chunk, None]:
    """Chunks of the history, then those that `go_on` reads from a cursor of the ring."""
    start = Place()
    limited = query.number not in (0, ALL) and not query.follow
    snapshot = await asyncio.to_thread(history.snapshot)
    if is_of_last(query):
        last = await asyncio.to_thread(_last, history, snapshot, store, query, asked)
        if last.position is not None:
            snapshot = replace(snapshot, parts=(), head=last.position)
        start, limited = last.place, limited and last.number == query.number
    asked = replace(asked, number=query.number if limited else 0)
    while True:
        reading = Reading(snapshot.parts, asked, note_damage, start=start, find=history.part)
        chunks = iter(reading)
        try:
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                yield chunk
        finally:
            await asyncio.to_thread(chunks.close)
        if reading.ended:
            return
        asked = replace(asked, number=reading.remaining)
        parts = snapshot.parts
        end = Place(parts[-1].number, parts[-1].rows) if parts else start
        if store.valid_from <= snapshot.head or end == start:
            break
        start = end
        snapshot = await asyncio.to_thread(history.snapshot)
    ring = replace(query, number=asked.number, first=False, since_ns=query.since_ns or 0)
    cursor = Cursor(store, ring)
    cursor.position = snapshot.head
    async with aclosing(go_on(cursor)) as rest:
        async for chunk in rest:
            yield chunk


class _Last(NamedTuple):
    """Where the last flows of a query begin."""

    place: Place
    position: int | None
    """Number in the ring, where they are all in it."""
    number: int
    """How many there are, in the history and the ring."""


def _last(
    history: History, snapshot: Snapshot, store: FlowStore, query: Query, asked: Asked
) -> _Last:
    position, in_ring = last_in_ring(store, query, snapshot.head)
    if in_ring == query.number:
        return _Last(Place(), position, in_ring)
    wanted = query.number - in_ring
    place, found = place_of_last(snapshot.parts, asked, wanted, find=history.part)
    return _Last(place, None, in_ring + found)


def last_in_ring(store: FlowStore, query: Query, start: int) -> tuple[int, int]:
    """Where the last flows of a query begin in the ring from a number on, and how many it has."""
    position, number = start, 0
    for block in store.blocks_backwards(max(start, store.valid_from), store.head, SCAN):
        mask = passing_flows(store, block, block["kind"], query.filters)
        if query.until_ns is not None and not query.follow:
            mask &= block["time_ns"] <= query.until_ns
        hits = np.flatnonzero(mask)[-(query.number - number) :]
        if len(hits):
            position, number = block.first + int(hits[0]), number + len(hits)
        if number == query.number:
            break
    return position, number
