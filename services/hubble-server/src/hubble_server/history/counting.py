"""Counts of flows that reach further back than the ring: the history's, then the ring's.

Parts are counted at once, one to a thread: most of the work (reading, decompressing, arrays) leaves
the interpreter to the others.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from cilium.flows.v1 import flows_pb2
from flow import flow_pb2

from hubble_server.flows.aggregating import Groups, count_ring, note_loss
from hubble_server.flows.columns import KIND_LOST, KIND_RECORD
from hubble_server.history.walking import Chosen, Place, Unreadable, Walker
from hubble_server.history.writing import note_damage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hubble_server.flows.naming import Namer
    from hubble_server.flows.querying import Query
    from hubble_server.flows.store import FlowStore
    from hubble_server.history.layout import Part
    from hubble_server.history.walking import Asked, Stretch
    from hubble_server.history.writing import History

_THREADS: Final = min(8, os.cpu_count() or 1)


@dataclass(slots=True)
class _Counted:
    """What one part says."""

    groups: Groups
    budget: flows_pb2.LossBudget
    first_ns: int = 0
    """Time of the first row in range, 0 when there is none."""


def count(
    history: History,
    store: FlowStore,
    query: Query,
    asked: Asked,
    by: Sequence[int],
    most: int,
    namer: Namer,
) -> flows_pb2.AggregateFlowsResponse:
    """Count what is asked for in the history, then in the ring. May be called on any thread."""
    groups, budget = Groups(by), flows_pb2.LossBudget(node_name=namer.node.qualified_name)
    start, from_ns, complete = Place(), 0, True
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="history-count") as threads:
        while True:
            snapshot = history.snapshot()
            parts = snapshot.parts
            walker = Walker(asked, start, history.part)
            for counted in threads.map(partial(_count_part, walker, groups.by), parts):
                groups.merge(counted.groups)
                budget.MergeFrom(_added(budget, counted.budget))
                from_ns = from_ns or counted.first_ns
            complete = complete and (not parts or parts[0].number == 1)
            end = Place(parts[-1].number, parts[-1].rows) if parts else start
            if store.valid_from <= snapshot.head or end == start:
                break
            start = end
    asks_older = query.since_ns is not None and 0 < query.since_ns < from_ns
    if asks_older or (query.since_ns is None and not complete):
        budget.covered_from_ns = from_ns
    count_ring(store, snapshot.head, query, groups, namer, budget)
    return groups.answer(budget, most)


def _added(one: flows_pb2.LossBudget, other: flows_pb2.LossBudget) -> flows_pb2.LossBudget:
    return flows_pb2.LossBudget(
        lost_in_kernel=one.lost_in_kernel + other.lost_in_kernel,
        lost_in_queue=one.lost_in_queue + other.lost_in_queue,
        lost_in_history=one.lost_in_history + other.lost_in_history,
    )


def _count_part(walker: Walker, by: Sequence[int], part: Part) -> _Counted:
    counted = _Counted(Groups(by), flows_pb2.LossBudget())

    def read(stretch: Stretch) -> Iterator[None]:
        _count_stretch(stretch, counted)
        yield None

    for found in walker.part(part, read):
        if isinstance(found, Unreadable):
            note_damage(found.reason)
            counted.budget.lost_in_history += max(part.rows, 1)
    return counted


def _count_stretch(stretch: Stretch, counted: _Counted) -> None:
    rows, groups = stretch.rows, counted.groups
    if not counted.first_ns:
        counted.first_ns = int(rows["time_ns"][stretch.wanted.argmax()])
    mask = stretch.passing()
    kinds = rows["kind"]
    lost = np.flatnonzero(mask & (kinds == KIND_LOST))
    for message in rows.messages(lost) if len(lost) else ():
        note_loss(counted.budget, flow_pb2.LostEvent.FromString(message))
    mask &= kinds != KIND_LOST
    if groups.asks_records:
        records = np.flatnonzero(mask & (kinds == KIND_RECORD))
        times: list[int] = rows["time_ns"][records].tolist()
        for message, at in zip(rows.messages(records), times, strict=True):
            groups.count_record(message, at)
        mask &= kinds != KIND_RECORD
    if mask.any():
        chosen: Any = rows if mask.all() else Chosen(rows, np.flatnonzero(mask))
        groups.count(chosen, stretch.tools.namer)
