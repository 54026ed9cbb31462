"""Counts of flows added up: those that nodes made, and single flows of nodes that cannot count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cilium.flows.v1 import flows_pb2

from cilium_core.flow_counts import counts_of
from cilium_core.flow_dimensions import values_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flow import flow_pb2

MOST: Final = 10_000
"""Most groups of an answer."""


class Totals:
    """Groups of several answers added up."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, ...], flows_pb2.FlowGroup] = {}
        self._budgets: list[flows_pb2.LossBudget] = []
        self._other = [0, 0]

    def add(self, answer: flows_pb2.AggregateFlowsResponse) -> None:
        """Take in what a node counted."""
        for group in answer.groups:
            self._add(group)
        self._budgets += answer.budgets
        self._other[0] += answer.other_groups
        self._other[1] += answer.other_flows

    def count(self, flows: Iterable[flow_pb2.Flow], by: Sequence[int]) -> None:
        """Take in single flows."""
        for flow in flows:
            at, counts = flow.time.ToNanoseconds(), counts_of(flow)
            group = flows_pb2.FlowGroup(
                values=values_of(flow, by), flows=1, first_ns=at, last_ns=at
            )
            if counts is not None:
                group.packets, group.bytes = counts.packets, counts.bytes
            self._add(group)

    def note(self, budget: flows_pb2.LossBudget) -> None:
        """Take in what a node did not see."""
        self._budgets.append(budget)

    def _add(self, group: flows_pb2.FlowGroup) -> None:
        key = tuple(group.values)
        known = self._groups.get(key)
        if known is None:
            self._groups[key] = group
            return
        known.flows += group.flows
        known.packets += group.packets
        known.bytes += group.bytes
        known.first_ns = min(known.first_ns, group.first_ns)
        known.last_ns = max(known.last_ns, group.last_ns)

    def answer(self, most: int, missing: Sequence[str]) -> flows_pb2.AggregateFlowsResponse:
        """All of it, most flows first."""
        limit = min(most or MOST, MOST)
        sizes = [(-group.flows, key) for key, group in self._groups.items()]
        sizes.sort()
        rest = sizes[limit:]
        return flows_pb2.AggregateFlowsResponse(
            groups=[self._groups[key] for _, key in sizes[:limit]],
            other_groups=self._other[0] + len(rest),
            other_flows=self._other[1] + sum(-size for size, _ in rest),
            budgets=self._budgets,
            missing_nodes=missing,
        )
