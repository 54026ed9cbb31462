"""Flows counted by what users tell them apart by, on columns.

Flows that are alike in the columns behind the dimensions asked for are one group; of each group one
message is made, which says what the group is called. Groups that are called the same are added up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from cilium.flows.v1 import flows_pb2
from cilium_core.flow_dimensions import values_of
from flow import flow_pb2
from observer import observer_pb2

from hubble_server.flows.columns import KIND_LOST, KIND_RECORD
from hubble_server.flows.grouping import hashes
from hubble_server.flows.querying import passing_flows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hubble_server.encoding.encoder import Encoder
    from hubble_server.flows.querying import Query
    from hubble_server.flows.store import Block, FlowStore

MOST: Final = 10_000
"""Most groups of an answer."""

_D: Final = flows_pb2
_SOURCE_IP: Final = ("source_high", "source_low", "flags")
_DESTINATION_IP: Final = ("destination_high", "destination_low", "flags")
_COLUMNS: Final[dict[int, tuple[str, ...]]] = {
    _D.DIMENSION_SOURCE: ("source_row", "source_names", *_SOURCE_IP),
    _D.DIMENSION_DESTINATION: ("destination_row", "destination_names", *_DESTINATION_IP),
    _D.DIMENSION_SOURCE_NAMESPACE: ("source_row",),
    _D.DIMENSION_DESTINATION_NAMESPACE: ("destination_row",),
    _D.DIMENSION_SOURCE_WORKLOAD: ("source_row",),
    _D.DIMENSION_DESTINATION_WORKLOAD: ("destination_row",),
    _D.DIMENSION_SOURCE_IDENTITY: ("source_row",),
    _D.DIMENSION_DESTINATION_IDENTITY: ("destination_row",),
    _D.DIMENSION_SOURCE_IP: _SOURCE_IP,
    _D.DIMENSION_DESTINATION_IP: _DESTINATION_IP,
    _D.DIMENSION_SERVICE: ("destination_service",),
    _D.DIMENSION_PORT: ("destination_port", "protocol", "flags"),
    _D.DIMENSION_PROTOCOL: ("protocol", "l7", "flags"),
    _D.DIMENSION_VERDICT: ("verdict",),
    _D.DIMENSION_DROP_REASON: ("verdict", "drop_reason"),
    _D.DIMENSION_TYPE: ("type",),
    _D.DIMENSION_DIRECTION: ("direction",),
    _D.DIMENSION_REPLY: ("reply",),
    _D.DIMENSION_NODE: (),
    _D.DIMENSION_POLICY: ("rules", "direction", "verdict"),
}
_OF_RECORDS: Final = frozenset({_D.DIMENSION_POLICY, _D.DIMENSION_PROTOCOL})
"""What only the message of a record says."""


@dataclass(slots=True)
class Sums:
    """What is counted of a group; times in ns since the epoch."""

    flows: int = 0
    packets: int = 0
    bytes: int = 0
    first_ns: int = 0
    last_ns: int = 0

    def add(self, other: Sums) -> None:
        """Take in another part of the group."""
        self.first_ns = min(self.first_ns, other.first_ns) if self.flows else other.first_ns
        self.last_ns = max(self.last_ns, other.last_ns)
        self.flows += other.flows
        self.packets += other.packets
        self.bytes += other.bytes


def aggregate(
    store: FlowStore, query: Query, by: Sequence[int], most: int, encoder: Encoder, node_name: str
) -> flows_pb2.AggregateFlowsResponse:
    """Count what passes the query's filters within its times. May be called on any thread."""
    groups: dict[tuple[str, ...], Sums] = {}
    budget = flows_pb2.LossBudget(node_name=node_name)
    names = tuple(dict.fromkeys(name for one in by for name in _COLUMNS.get(one, ())))
    head, position = store.head, store.oldest
    if position and query.since_ns != 0:
        oldest = int(store.block(position, position + 1)["time_ns"][0])
        if query.since_ns is None or query.since_ns < oldest:
            budget.covered_from_ns = oldest
    while position < head:
        position = max(position, store.valid_from)
        block = store.block(position, head)
        _count(store, block, query, by, names, encoder, groups)
        _count_losses(store, block, query, budget)
        budget.lost_in_ring += max(0, min(store.valid_from, head) - position)
        position += len(block)
    return _answer(groups, budget, min(most or MOST, MOST))


def _count(
    store: FlowStore,
    block: Block,
    query: Query,
    by: Sequence[int],
    names: Sequence[str],
    encoder: Encoder,
    groups: dict[tuple[str, ...], Sums],
) -> None:
    kinds = block["kind"].copy()
    times = block["time_ns"].copy()
    mask = passing_flows(store, block, kinds, query.filters)
    if query.since_ns is not None:
        mask &= times >= query.since_ns
    if query.until_ns is not None:
        mask &= times <= query.until_ns
    singly = mask & (kinds == KIND_RECORD) if not _OF_RECORDS.isdisjoint(by) else mask & False
    for row in np.flatnonzero(singly).tolist():
        record = store.attached(block.first + row)
        if isinstance(record, bytes):
            key = values_of(flow_pb2.Flow.FromString(record), by)
            at = int(times[row])
            groups.setdefault(key, Sums()).add(Sums(1, 0, 0, at, at))
    columns = block.take(np.flatnonzero(mask & ~singly))
    if not len(columns["time_ns"]):
        return
    _, first, inverse = np.unique(hashes(columns, names), return_index=True, return_inverse=True)
    messages = encoder.responses({name: column[first] for name, column in columns.items()})
    sums = _sums(columns, first, inverse)
    for message, part in zip(messages, sums, strict=True):
        flow = observer_pb2.GetFlowsResponse.FromString(message).flow
        groups.setdefault(values_of(flow, by), Sums()).add(part)


def _sums(
    columns: dict[str, NDArray[Any]], first: NDArray[np.intp], inverse: NDArray[np.intp]
) -> list[Sums]:
    count = len(first)
    times = columns["time_ns"]
    flows = np.bincount(inverse, minlength=count)
    packets = np.bincount(inverse, weights=columns["packets"], minlength=count)
    octets = np.bincount(inverse, weights=columns["bytes"], minlength=count)
    # flows are in order of time, and of several written to one place the last stays
    last = np.zeros(count, dtype=np.int64)
    last[inverse] = times
    first_ns = times[first]
    return [
        Sums(*row)
        for row in zip(
            flows.tolist(),
            packets.astype(np.int64).tolist(),
            octets.astype(np.int64).tolist(),
            first_ns.tolist(),
            last.tolist(),
            strict=True,
        )
    ]


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
        if lost is None:
            continue
        if lost.source == flow_pb2.OBSERVER_EVENTS_QUEUE:
            budget.lost_in_queue += lost.num_events_lost
        else:
            budget.lost_in_kernel += lost.num_events_lost


def _answer(
    groups: dict[tuple[str, ...], Sums], budget: flows_pb2.LossBudget, most: int
) -> flows_pb2.AggregateFlowsResponse:
    ordered = sorted(groups.items(), key=lambda item: (-item[1].flows, item[0]))
    rest = ordered[most:]
    return flows_pb2.AggregateFlowsResponse(
        groups=[
            flows_pb2.FlowGroup(
                values=values,
                flows=sums.flows,
                packets=sums.packets,
                bytes=sums.bytes,
                first_ns=sums.first_ns,
                last_ns=sums.last_ns,
            )
            for values, sums in ordered[:most]
        ],
        other_groups=len(rest),
        other_flows=sum(sums.flows for _, sums in rest),
        budgets=[budget],
    )
