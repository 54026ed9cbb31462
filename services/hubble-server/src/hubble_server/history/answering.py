"""Answers of GetFlows that reach further back than the ring: the history, then the ring.

The history ends at a number of the ring, from which the ring goes on, so nothing is missing and
nothing comes twice. Where the ring has moved past that number meanwhile, the history is read on.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from hubble_server.flows.querying import Cursor, Query
from hubble_server.history.reading import Asked, Place, Reading
from hubble_server.history.writing import note_damage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from observer import observer_pb2

    from hubble_server.encoding.masks import Mask
    from hubble_server.flows.store import FlowStore
    from hubble_server.history.writing import History
    from hubble_server.servicers.streaming import Chunk

ALL: Final = (1 << 64) - 1
"""Number of flows by which clients ask for all there are."""


def reaches_back(store: FlowStore, query: Query) -> bool:
    """Whether a query asks for what may be older than the ring."""
    oldest = store.oldest
    oldest_ns = int(store.block(oldest, oldest + 1)["time_ns"][0]) if len(store) else None
    if query.since_ns is not None:
        return oldest_ns is None or query.since_ns < oldest_ns
    if query.follow:
        return False
    if query.first or query.number == ALL:
        return True
    until_ns = query.until_ns
    return not query.number and until_ns is not None and (oldest_ns is None or until_ns < oldest_ns)


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
        asked = Asked(
            whitelist=tuple(request.whitelist),
            blacklist=tuple(request.blacklist),
            mask=mask,
            since_ns=query.since_ns,
            until_ns=None if query.follow else query.until_ns,
        )
        return answer(self._history, self._store, query, asked, go_on)


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
    asked = replace(asked, number=query.number if limited else 0)
    while True:
        snapshot = await asyncio.to_thread(history.snapshot)
        reading = Reading(snapshot.parts, asked, note_damage, start=start, find=history.part)
        chunks = iter(reading)
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            yield chunk
        if reading.ended:
            return
        asked = replace(asked, number=reading.remaining)
        last = snapshot.parts[-1] if snapshot.parts else None
        end = Place(last.number, last.rows) if last is not None else start
        if store.valid_from <= snapshot.head or end == start:
            break
        start = end
    ring = replace(
        query, number=asked.number, first=False, since_ns=query.since_ns or 0
    )  # fmt: skip
    cursor = Cursor(store, ring)
    cursor.position = snapshot.head
    async with aclosing(go_on(cursor)) as rest:
        async for chunk in rest:
            yield chunk
