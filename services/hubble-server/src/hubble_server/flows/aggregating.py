"""Flows counted by what users tell them apart by, on columns.

`Groups` take in stretches of flows from any number of places, such as the two ends of the ring.
Of each stretch the columns behind the dimensions asked for become places in lists of names
(`naming.py`), and flows with the same names are added up as arrays. Only the groups that are
answered with become messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import numpy as np
from cilium.flows.v1 import flows_pb2
from cilium_core.flow_dimensions import values_of
from flow import flow_pb2
from numpy.typing import NDArray

from hubble_server.flows.columns import KIND_LOST, KIND_RECORD
from hubble_server.flows.grouping import Codes, joined
from hubble_server.flows.naming import OF_RECORDS, Named, columns_of
from hubble_server.flows.querying import passing_flows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubble_server.flows.columns import Selectable
    from hubble_server.flows.naming import Namer
    from hubble_server.flows.querying import Query
    from hubble_server.flows.store import Block, FlowStore

MOST: Final = 10_000
"""Most groups of an answer."""

_MOST_PARTS: Final = 32
"""Parts counted apart before they are added up."""

_MOST_RECORDS: Final = 16_384
"""Records kept singly before they become a part."""


class _Sums(NamedTuple):
    """What is counted of groups, one element for each; times in ns since the epoch."""

    flows: NDArray[np.int64]
    packets: NDArray[np.int64]
    bytes: NDArray[np.int64]
    first_ns: NDArray[np.int64]
    last_ns: NDArray[np.int64]

    def by(self, groups: Codes) -> _Sums:
        """Add up what is in the same group."""
        first = np.full(groups.size, np.iinfo(np.int64).max)
        np.minimum.at(first, groups.codes, self.first_ns)
        last = np.zeros(groups.size, dtype=np.int64)
        np.maximum.at(last, groups.codes, self.last_ns)

        def total(column: NDArray[Any]) -> NDArray[np.int64]:
            return np.bincount(groups.codes, column, groups.size).astype(np.int64)

        return _Sums(total(self.flows), total(self.packets), total(self.bytes), first, last)


@dataclass(slots=True)
class _Part:
    """Groups of one stretch: for each dimension the places of their names, and these."""

    places: list[NDArray[np.intp]]
    names: list[list[str]]
    sums: _Sums


class Groups:
    """Counts flows by some dimensions. Used by one thread at a time."""

    def __init__(self, by: Sequence[int]) -> None:
        self.by = tuple(by)
        self.asks_records: Final = not OF_RECORDS.isdisjoint(by)
        """Whether columns do not say what records are called, and `count_record` is for them."""
        self._parts: list[_Part] = []
        self._records: list[tuple[tuple[str, ...], int]] = []

    def count(
        self,
        columns: Selectable,
        namer: Namer,
        flows: NDArray[np.int64] | None = None,
        last_ns: NDArray[np.int64] | None = None,
    ) -> None:
        """Count flows whose rows are in the namer's directory. Asks for the columns it needs.

        A row may stand for several `flows` that are alike, from its time to `last_ns`.
        """
        times = columns["time_ns"]
        if not len(times):
            return
        if flows is None:
            flows = np.ones(len(times), dtype=np.int64)
        last = times if last_ns is None else last_ns
        named = [namer.names(one, columns, len(times)) for one in self.by]
        groups = joined((one.codes for one in named), len(times))
        sums = _Sums(flows, columns["packets"], columns["bytes"], times, last).by(groups)
        self._add(named, groups, sums)

    def count_record(self, message: bytes, time_ns: int) -> None:
        """Count the encoded flow of a record."""
        flow = flow_pb2.Flow.FromString(message)
        self._records.append((values_of(flow, self.by), time_ns))
        if len(self._records) >= _MOST_RECORDS:
            self._close_records()

    def merge(self, other: Groups) -> None:
        """Take in what others have counted by the same dimensions."""
        self._parts += other._parts
        self._records += other._records
        if len(self._records) >= _MOST_RECORDS:
            self._close_records()
        if len(self._parts) > _MOST_PARTS:
            self._add(*self._whole())

    def _add(self, named: list[Named], groups: Codes, sums: _Sums) -> None:
        examples = groups.examples()
        part = _Part([one.places[examples] for one in named], [one.names for one in named], sums)
        self._parts.append(part)

    def answer(self, budget: flows_pb2.LossBudget, most: int) -> flows_pb2.AggregateFlowsResponse:
        """The groups with the most flows first, at most `most` (0: `MOST`) of them."""
        self._close_records()
        if not self._parts:
            return flows_pb2.AggregateFlowsResponse(budgets=[budget])
        named, groups, sums = self._whole()
        # groups are in the order of their names, which decides between those of equal size
        order = np.argsort(-sums.flows, kind="stable")
        chosen, rest = np.split(order, [min(most or MOST, MOST)])
        examples = groups.examples()[chosen]
        values = [[names[place] for place in places[examples].tolist()] for places, names in named]
        rows = zip(*(column[chosen].tolist() for column in sums), strict=True)
        return flows_pb2.AggregateFlowsResponse(
            groups=[
                flows_pb2.FlowGroup(
                    values=called,
                    flows=flows,
                    packets=packets,
                    bytes=octets,
                    first_ns=first_ns,
                    last_ns=last_ns,
                )
                for called, (flows, packets, octets, first_ns, last_ns) in zip(
                    zip(*values, strict=True) if values else [()] * len(chosen), rows, strict=True
                )
            ],
            other_groups=len(rest),
            other_flows=int(sums.flows[rest].sum()),
            budgets=[budget],
        )

    def _whole(self) -> tuple[list[Named], Codes, _Sums]:
        """All parts made one, and taken out; its groups are in the order of their names."""
        parts, self._parts = self._parts, []
        named = [_together(parts, at) for at in range(len(self.by))]
        length = sum(len(part.sums.flows) for part in parts)
        groups = joined((one.codes for one in named), length)
        columns = zip(*(part.sums for part in parts), strict=True)
        return named, groups, _Sums(*map(np.concatenate, columns)).by(groups)

    def _close_records(self) -> None:
        """Make what was counted singly a part like the others."""
        if not self._records:
            return
        values, times = zip(*self._records, strict=True)
        self._records = []
        places, lists = [], []
        for at in range(len(self.by)):
            names: dict[str, int] = {}
            found = [names.setdefault(each[at], len(names)) for each in values]
            places.append(np.array(found, dtype=np.intp))
            lists.append(list(names))
        ones, zeros = np.ones(len(times), dtype=np.int64), np.zeros(len(times), dtype=np.int64)
        at_ns = np.array(times, dtype=np.int64)
        self._parts.append(_Part(places, lists, _Sums(ones, zeros, zeros, at_ns, at_ns)))


def _together(parts: Sequence[_Part], dimension: int) -> Named:
    """Places of the names of all parts in one list of names, which is sorted."""
    names = sorted({name for part in parts for name in part.names[dimension]})
    place = {name: at for at, name in enumerate(names)}
    found = [
        np.array([place[name] for name in part.names[dimension]], dtype=np.intp).take(
            part.places[dimension]
        )
        for part in parts
    ]
    return Named(np.concatenate(found), names)


def aggregate(
    store: FlowStore, query: Query, by: Sequence[int], most: int, namer: Namer, node_name: str
) -> flows_pb2.AggregateFlowsResponse:
    """Count what passes the query's filters within its times. May be called on any thread."""
    groups, budget = Groups(by), flows_pb2.LossBudget(node_name=node_name)
    start = store.oldest
    if start and query.since_ns != 0:
        oldest = int(store.block(start, start + 1)["time_ns"][0])
        if query.since_ns is None or query.since_ns < oldest:
            budget.covered_from_ns = oldest
    count_ring(store, start, query, groups, namer, budget)
    return groups.answer(budget, most)


def count_ring(
    store: FlowStore,
    start: int,
    query: Query,
    groups: Groups,
    namer: Namer,
    budget: flows_pb2.LossBudget,
) -> None:
    """Count what the ring holds from event `start` on."""
    head, position = store.head, start
    while position < head:
        valid_from = min(store.valid_from, head)
        if position < valid_from:
            budget.lost_in_ring += valid_from - position
            position = valid_from
            continue
        block = store.block(position, head)
        budget.lost_in_ring += _count(store, block, query, groups, namer)
        _count_losses(store, block, query, budget)
        position += len(block)


def _count(store: FlowStore, block: Block, query: Query, groups: Groups, namer: Namer) -> int:
    """Count a block; returns how many of its events were overwritten before they were read."""
    kinds = block["kind"].copy()
    times = block["time_ns"].copy()
    mask = passing_flows(store, block, kinds, query.filters)
    if query.since_ns is not None:
        mask &= times >= query.since_ns
    if query.until_ns is not None:
        mask &= times <= query.until_ns
    columns = {name: block[name].copy() for name in columns_of(groups.by)}
    columns |= {
        "time_ns": times,
        "packets": block["packets"].copy(),
        "bytes": block["bytes"].copy(),
    }
    torn = min(max(store.valid_from - block.first, 0), len(block))
    mask[:torn] = False
    if groups.asks_records:
        singly = mask & (kinds == KIND_RECORD)
        for row in np.flatnonzero(singly).tolist():
            record = store.attached(block.first + row)
            if isinstance(record, bytes):
                groups.count_record(record, int(times[row]))
            else:
                torn += 1
        mask &= ~singly
    if not mask.all():
        columns = {name: column[mask] for name, column in columns.items()}
    groups.count(columns, namer)
    return torn


def _count_losses(
    store: FlowStore, block: Block, query: Query, budget: flows_pb2.LossBudget
) -> None:
    for row in np.flatnonzero(block["kind"] == KIND_LOST).tolist():
        at = int(block["time_ns"][row])
        if (query.since_ns is not None and at < query.since_ns) or (
            query.until_ns is not None and at > query.until_ns
        ):
            continue
        lost = cast("flow_pb2.LostEvent | None", store.attached(block.first + row))
        if lost is not None:
            note_loss(budget, lost)


def note_loss(budget: flows_pb2.LossBudget, lost: flow_pb2.LostEvent) -> None:
    """Add a loss that a query came upon."""
    if lost.source == flow_pb2.OBSERVER_EVENTS_QUEUE:
        budget.lost_in_queue += lost.num_events_lost
    elif lost.source == flow_pb2.PERF_EVENT_RING_BUFFER:
        budget.lost_in_kernel += lost.num_events_lost
    else:  # of the ring, when they were to be written into the history
        budget.lost_in_history += lost.num_events_lost
