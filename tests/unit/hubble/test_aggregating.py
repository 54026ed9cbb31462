"""Counting flows: what columns say is what single flows say, and what was lost is told."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from cilium.flows.v1 import flows_pb2
from cilium_core.flow_dimensions import NAMES, values_of
from flow import flow_pb2
from hubble_server.filters import Filters
from hubble_server.flows.aggregating import Groups, aggregate, count_ring
from hubble_server.flows.grouping import codes_of, joined
from hubble_server.flows.naming import Namer
from hubble_server.flows.querying import Query
from hubble_server.flows.store import SPARE_SLOTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.hubble.loads import names, strange, strange_records, traffic
from tests.unit.hubble.pipelines import NODE, Pipeline

if TYPE_CHECKING:
    from hubble_server.filters.columns import Columns, Mask


def ask(
    pipeline: Pipeline, *by: str, query: Query | None = None, most: int = 0
) -> flows_pb2.AggregateFlowsResponse:
    return aggregate(
        pipeline.store,
        query or Query(),
        [NAMES[name] for name in by],
        most,
        Namer(NODE, pipeline.directory),
        NODE.qualified_name,
    )


def filled(seed: int) -> Pipeline:
    pipeline = Pipeline()
    pipeline.tell(*names(4))
    pipeline.feed(strange(120, seed))
    pipeline.tell(*strange_records(30, seed))
    pipeline.feed(strange(40, seed + 1))
    return pipeline


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 1 << 20),
    by=st.lists(st.sampled_from(sorted(NAMES)), max_size=4, unique=True),
    wanted=st.sampled_from([None, flow_pb2.FlowFilter(verdict=[flow_pb2.DROPPED])]),
)
def test_groups_are_those_of_the_flows_one_by_one(
    seed: int, by: list[str], wanted: flow_pb2.FlowFilter | None
) -> None:
    pipeline = filled(seed)
    query = Query(filters=pipeline.filters([wanted] if wanted else []))

    answer = ask(pipeline, *by, query=query)

    numbers = [NAMES[name] for name in by]
    expected = Counter(values_of(flow, numbers) for flow in pipeline.flows(query))
    assert {tuple(one.values): one.flows for one in answer.groups} == expected
    counts = [one.flows for one in answer.groups]
    assert counts == sorted(counts, reverse=True)


def test_packets_bytes_and_times_are_those_of_the_group() -> None:
    pipeline = Pipeline()
    events = traffic(64, 4)
    events["packets"], events["bytes"] = 3, 100
    pipeline.feed(events)

    (group,) = ask(pipeline).groups
    times = [flow.time.ToNanoseconds() for flow in pipeline.flows()]
    assert (group.flows, group.packets, group.bytes) == (64, 192, 6400)
    assert (group.first_ns, group.last_ns) == (times[0], times[-1])


def test_what_is_left_out_is_counted() -> None:
    pipeline = filled(5)
    whole = ask(pipeline, "source", "port")
    part = ask(pipeline, "source", "port", most=3)

    assert list(part.groups) == list(whole.groups)[:3]
    assert part.other_groups == len(whole.groups) - 3
    assert part.other_flows == sum(one.flows for one in list(whole.groups)[3:])


def test_losses_and_what_is_too_old_are_told() -> None:
    pipeline = Pipeline(capacity=127)
    pipeline.feed(strange(50, 1), lost={0: 7, 1: 2})
    (budget,) = ask(pipeline).budgets
    assert (budget.node_name, budget.lost_in_kernel) == (NODE.qualified_name, 9)
    assert budget.covered_from_ns == 0

    pipeline.feed(strange(200, 2))
    (budget,) = ask(pipeline).budgets
    oldest = pipeline.flows()[0].time.ToNanoseconds()
    assert (budget.covered_from_ns, budget.lost_in_kernel) == (oldest, 0)
    (since,) = ask(pipeline, query=Query(since_ns=oldest)).budgets
    assert since.covered_from_ns == 0


def test_times_bound_what_is_counted() -> None:
    pipeline = filled(9)
    times = [flow.time.ToNanoseconds() for flow in pipeline.flows()]
    query = Query(since_ns=times[10], until_ns=times[19])
    assert [one.flows for one in ask(pipeline, query=query).groups] == [10]


def test_what_is_overwritten_while_it_is_counted_is_told_instead() -> None:
    pipeline = Pipeline(capacity=127)
    pipeline.feed(traffic(127, 4))

    def pass_slowly(columns: Columns) -> Mask:
        pipeline.feed(traffic(SPARE_SLOTS + 10, 4))
        return columns.all()

    answer = ask(pipeline, query=Query(filters=Filters(((pass_slowly,),), ())))

    (budget,) = answer.budgets
    assert [one.flows for one in answer.groups] == [118]
    assert budget.lost_in_ring == 9


def test_groups_counted_apart_add_up() -> None:
    pipelines = [filled(seed) for seed in range(40)]
    by = [NAMES[name] for name in ("source", "policy", "verdict")]
    whole, expected = Groups(by), Counter[tuple[str, ...]]()
    for pipeline in pipelines:
        part, namer = Groups(by), Namer(NODE, pipeline.directory)
        count_ring(pipeline.store, 0, Query(), part, namer, flows_pb2.LossBudget())
        whole.merge(part)
        expected.update(values_of(flow, by) for flow in pipeline.flows())
    answer = whole.answer(flows_pb2.LossBudget(), 0)
    assert {tuple(one.values): one.flows for one in answer.groups} == expected


def test_a_row_may_stand_for_several_flows() -> None:
    pipeline = Pipeline()
    pipeline.feed(traffic(2, 1))
    groups, rows = Groups([]), pipeline.store.block(0, 2)
    groups.count(rows, Namer(NODE, pipeline.directory), np.array([5, 7]), np.array([10, 20]))
    (group,) = groups.answer(flows_pb2.LossBudget(), 0).groups
    assert (group.flows, group.last_ns) == (12, 20)


@given(st.lists(st.lists(st.integers(0, 1 << 40), min_size=3, max_size=3), max_size=50))
def test_codes_keep_the_order_of_what_they_stand_for(rows: list[list[int]]) -> None:
    columns = [np.array([row[at] for row in rows], dtype=np.uint64) for at in range(3)]
    codes = joined(map(codes_of, columns), len(rows))
    ordered = sorted({tuple(row) for row in rows})
    assert [ordered.index(tuple(row)) for row in rows] == codes.codes.tolist()
    assert [tuple(rows[row]) for row in codes.examples()] == ordered


def test_a_full_ring_is_counted_fast_enough_to_be_asked_often() -> None:
    pipeline = Pipeline(capacity=65_535, pods=100)
    for _ in range(17):
        pipeline.feed(traffic(4096, 100))
    started = time.thread_time()
    answer = ask(pipeline, "verdict", "protocol", "port")
    took_s = time.thread_time() - started
    assert sum(one.flows for one in answer.groups) == len(pipeline.store)
    assert took_s < 0.5  # measured at a twentieth of it; a busy machine may take longer
