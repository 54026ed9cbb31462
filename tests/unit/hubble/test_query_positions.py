"""Which events a query starts with, hands out, and ends at."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cilium.metadata.v1 import metadata_pb2
from flow import flow_pb2
from hubble_server.flows.querying import AGENT_EVENTS, Cursor, Query
from hubble_server.flows.store import SPARE_SLOTS

from tests.unit.hubble.loads import event, join
from tests.unit.hubble.pipelines import Pipeline

LENGTH = 20


@pytest.fixture
def pipeline() -> Pipeline:
    """Flows whose source port tells their place, 0 to 19; odd ones are dropped."""
    made = Pipeline(capacity=63)
    made.feed(numbered(range(LENGTH)))
    return made


def numbered(numbers: Any) -> Any:
    return join(
        [
            event(type=4 - 3 * (number % 2), subtype=133 * (number % 2), proto=6, sport=number + 1)
            for number in numbers
        ]
    )


def places(flows: list[flow_pb2.Flow]) -> list[int]:
    return [flow.l4.TCP.source_port - 1 for flow in flows]


def time_of(pipeline: Pipeline, place: int) -> int:
    return int(pipeline.store.block(place, place + 1)["time_ns"][0])


DROPPED = flow_pb2.FlowFilter(verdict=[flow_pb2.DROPPED])


@pytest.mark.parametrize(
    ("query", "filtered", "expected"),
    [
        ({}, False, range(20)),
        ({"number": 3}, False, [17, 18, 19]),
        ({"number": 100}, False, range(20)),
        ({"number": 3}, True, [15, 17, 19]),
        ({"first": True, "number": 3}, False, [0, 1, 2]),
        ({"first": True, "number": 3}, True, [1, 3, 5]),
        ({"since": 15}, False, range(15, 20)),
        ({"since": 15, "number": 2}, False, [15, 16]),
        ({"since": 15, "until": 17}, False, [15, 16, 17]),
        ({"first": True, "since": 15, "number": 2}, False, [15, 16]),
        ({"until": 4}, False, range(5)),
        ({"until": 4, "number": 18}, False, [2, 3, 4]),
        ({"until": 4, "number": 2}, False, []),
        ({"follow": True}, False, [19]),
        ({"follow": True, "number": 3}, False, [17, 18, 19]),
        ({"follow": True, "number": 2}, True, [17, 19]),
        ({"follow": True, "since": 18}, False, [18, 19]),
        ({"follow": True, "since": 15, "until": 16}, False, [15, 16]),
    ],
)
def test_start_and_end(
    pipeline: Pipeline, query: dict[str, Any], filtered: bool, expected: Any
) -> None:
    if "since" in query:
        query["since_ns"] = time_of(pipeline, query.pop("since"))
    if "until" in query:
        query["until_ns"] = time_of(pipeline, query.pop("until"))
    if filtered:
        query["filters"] = pipeline.filters([DROPPED])
    assert list(expected) == places(pipeline.flows(Query(**query)))


def test_following_hands_out_what_comes_later(pipeline: Pipeline) -> None:
    cursor = Cursor(pipeline.store, Query(follow=True, number=1))
    (run,) = cursor.read().runs
    assert isinstance(run, dict)
    assert run["source_port"].tolist() == [20]
    assert not cursor.read()
    assert not cursor.ended
    pipeline.feed(numbered([20, 21]))
    (run,) = cursor.read().runs
    assert isinstance(run, dict)
    assert run["source_port"].tolist() == [21, 22]


def test_following_ends_when_an_event_after_until_shows_up(pipeline: Pipeline) -> None:
    until = time_of(pipeline, 19)
    cursor = Cursor(pipeline.store, Query(follow=True, until_ns=until))
    cursor.read()
    assert not cursor.ended
    pipeline.feed(numbered([20]))
    cursor.read()
    assert cursor.ended


def test_losses_bypass_filters_and_are_not_counted(pipeline: Pipeline) -> None:
    pipeline.feed(numbered([20]), lost={1: 7})
    pipeline.feed(numbered([21]))
    nothing = pipeline.filters([flow_pb2.FlowFilter(source_pod=["no/such"])])
    (response,) = pipeline.responses(Query(filters=nothing))
    lost = response.lost_events
    assert (lost.source, lost.num_events_lost) == (flow_pb2.PERF_EVENT_RING_BUFFER, 7)
    assert lost.cpu.value == 1
    kinds = [each.WhichOneof("response_types") for each in pipeline.responses(Query(number=2))]
    assert kinds == ["flow", "lost_events", "flow"]


def test_agent_events_are_counted_when_looking_back_without_a_filter(pipeline: Pipeline) -> None:
    started = flow_pb2.AgentEvent(type=flow_pb2.AGENT_STARTED)
    agent_event = metadata_pb2.AgentEvent(event=started)
    pipeline.tell(metadata_pb2.Update(agent_event=agent_event))
    assert places(pipeline.flows(Query(number=2))) == [19]
    cursor = Cursor(pipeline.store, Query(kinds=AGENT_EVENTS))
    ((_, _, message),) = cursor.read().runs
    assert started == message


def test_the_last_agent_events_are_found_between_any_number_of_flows(pipeline: Pipeline) -> None:
    for revision in range(5):
        update = flow_pb2.PolicyUpdateNotification(revision=revision)
        told = flow_pb2.AgentEvent(type=flow_pb2.POLICY_UPDATED, policy_update=update)
        agent_event = metadata_pb2.AgentEvent(event=told)
        pipeline.tell(metadata_pb2.Update(agent_event=agent_event))
        pipeline.feed(numbered(range(10)))
    cursor = Cursor(pipeline.store, Query(number=3, kinds=AGENT_EVENTS))
    assert [message.policy_update.revision for _, _, message in cursor.read().runs] == [2, 3, 4]


def test_the_oldest_flows_are_overwritten() -> None:
    pipeline = Pipeline(capacity=15)
    pipeline.feed(numbered(range(40)))
    assert list(range(25, 40)) == places(pipeline.flows())
    assert len(pipeline.store) == 15


def test_an_overtaken_reader_is_told_how_many_events_it_missed() -> None:
    pipeline = Pipeline(capacity=15)
    pipeline.feed(numbered(range(4)))
    cursor = Cursor(pipeline.store, Query(follow=True, number=4))
    flood = SPARE_SLOTS + 15
    pipeline.feed(np.repeat(numbered([7]), flood))
    missed, read = 0, 0
    while not cursor.at_end:
        found = cursor.read()
        missed += found.lost
        read += sum(len(run["kind"]) for run in found.runs if isinstance(run, dict))
    assert missed > 0
    assert 4 + flood == missed + read


def test_a_query_over_the_seam_of_the_ring_finds_everything_in_order() -> None:
    pipeline = Pipeline(capacity=63)
    slots = pipeline.store.slots
    pipeline.feed(np.repeat(numbered([5]), slots - 10))
    pipeline.feed(numbered(range(40)))
    assert list(range(40)) == places(pipeline.flows(Query(number=40)))
    assert places(pipeline.flows(Query(number=4, filters=pipeline.filters([DROPPED])))) == [
        33,
        35,
        37,
        39,
    ]
