"""Counts of flows that reach further back than the ring: the history's, then the ring's.

Of complete parts the summaries are counted, where these know enough. The others are read, several
at once, one to a thread: most of the work (decompressing, arrays) leaves the interpreter to the
others.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from cilium.flows.v1 import flows_pb2
from flow import flow_pb2

from hubble_server.flows.aggregating import Groups, count_ring, note_loss
from hubble_server.flows.columns import KIND_LOST, KIND_RECORD
from hubble_server.history.ahead import THREADS
from hubble_server.history.summaries import UnknownColumnError, summary_of
from hubble_server.history.walking import Chosen, Place, Unreadable, Walker
from hubble_server.history.writing import note_damage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from hubble_server.flows.naming import Namer
    from hubble_server.flows.querying import Query
    from hubble_server.flows.store import FlowStore
    from hubble_server.history.layout import Part
    from hubble_server.history.summaries import Summary
    from hubble_server.history.walking import Asked, Stretch
    from hubble_server.history.writing import History


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
    with ThreadPoolExecutor(THREADS, thread_name_prefix="history-count") as threads:
        while True:
            snapshot = history.snapshot()
            parts = snapshot.parts
            walker = Walker(asked, start, history.part)
            for counted in _count_parts(threads, walker, groups.by, parts):
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


def _count_parts(
    threads: ThreadPoolExecutor, walker: Walker, by: Sequence[int], parts: Sequence[Part]
) -> Iterator[_Counted]:
    """What the parts say, in order; those that have to be read at once."""
    summaries = threads.map(lambda part: summary_of(part) if walker.covers(part) else None, parts)
    known: list[tuple[Part, _Counted, int | None]] = []
    for part, summary in zip(parts, summaries, strict=True):
        counted = _Counted(Groups(by), flows_pb2.LossBudget())
        chosen = None if summary is None else _count_summary(walker, summary, counted)
        known.append((part, counted, chosen))
    yield from threads.map(lambda each: _count_part(walker, *each), known)


def _count_summary(walker: Walker, summary: Summary, counted: _Counted) -> int | None:
    """Count a part by its summary alone; bits of the row groups with losses, which it lacks.

    None where the part has to be read.
    """
    found, groups = walker.reader.passing(summary), counted.groups
    records = groups.asks_records and (found.rows & (summary.kinds == KIND_RECORD)).any()
    if not found.exact or records:
        return None
    flows = summary.flows(found)
    try:
        groups.count(flows, walker.reader.namer(summary), flows["flows"], flows["last_ns"])
    except UnknownColumnError:
        return None
    counted.first_ns = summary.first_ns
    return summary.losses()


def _count_part(walker: Walker, part: Part, counted: _Counted, chosen: int | None) -> _Counted:
    """Read what is not counted yet: all, or the losses in the row groups chosen."""
    if chosen == 0:
        return counted

    def read(stretch: Stretch) -> Iterator[None]:
        if chosen is None:
            _count_stretch(stretch, counted)
        else:
            _count_losses(stretch, stretch.wanted, counted)
        yield None

    for found in walker.part(part, read, chosen=chosen):
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
    _count_losses(stretch, mask, counted)
    mask &= kinds != KIND_LOST
    if groups.asks_records:
        records = np.flatnonzero(mask & (kinds == KIND_RECORD))
        times: list[int] = rows["time_ns"][records].tolist()
        for message, at in zip(rows.messages(records), times, strict=True):
            groups.count_record(message, at)
        mask &= kinds != KIND_RECORD
    if mask.any():
        chosen: Any = rows if mask.all() else Chosen(rows, np.flatnonzero(mask))
        with stretch.tools.reading(rows, "counts"):
            groups.count(chosen, stretch.tools.namer)


def _count_losses(stretch: Stretch, mask: NDArray[np.bool_], counted: _Counted) -> None:
    lost = np.flatnonzero(mask & (stretch.rows["kind"] == KIND_LOST))
    for message in stretch.rows.messages(lost) if len(lost) else ():
        note_loss(counted.budget, flow_pb2.LostEvent.FromString(message))
