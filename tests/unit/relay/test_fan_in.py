"""Flows of many nodes through one relay."""

import asyncio
import time

import grpc
import pytest
from cilium.flows.v1 import flows_pb2, flows_pb2_grpc
from hubble_relay.collecting import _newest
from observer import observer_pb2, observer_pb2_grpc
from relay import relay_pb2

from tests.unit.relay.fakes import FakeNode, Stream, cluster, eventually, response

SECOND_NS = 1_000_000_000


def nodes_in(folder, *names, **facts):
    return [FakeNode(name, f"{folder}/{name}.sock", **facts) for name in names]


def interleaved(nodes, count=50):
    """Give every node flows in turn, in the past; tell all times."""
    start = time.time_ns() - 100 * SECOND_NS
    times = [start + index * 1_000 for index in range(count * len(nodes))]
    for index, node in enumerate(nodes):
        node.flows = times[index :: len(nodes)]
    return times


def flows(**fields):
    return observer_pb2.GetFlowsRequest(**fields)


async def test_flows_of_all_nodes_come_complete_and_in_the_order_of_time(tmp_path):
    nodes = nodes_in(tmp_path, "a", "b", "c")
    times = interleaved(nodes)
    async with cluster(tmp_path, *nodes) as (_, channel):
        stream = await Stream(channel, flows()).end()

    assert stream.times == times
    assert stream.states == [(relay_pb2.NODE_CONNECTED, ["a", "b", "c"], "")]
    assert stream.error is None


async def test_number_counts_per_node(tmp_path):
    nodes = nodes_in(tmp_path, "a", "b")
    times = interleaved(nodes)
    async with cluster(tmp_path, *nodes) as (_, channel):
        stream = await Stream(channel, flows(number=3)).end()

    assert stream.times == times[-6:]


async def test_a_node_without_batches_is_asked_for_single_flows(tmp_path):
    nodes = [*nodes_in(tmp_path, "new"), *nodes_in(tmp_path, "old", old=True)]
    times = interleaved(nodes)
    async with cluster(tmp_path, *nodes) as (relay, channel):
        first = await Stream(channel, flows()).end()
        second = await Stream(channel, flows()).end()

        assert first.times == second.times == times
        assert {one.name: one.batches for one in relay.pool.connections} == {
            "new": True,
            "old": False,
        }


async def test_our_own_clients_get_batches(tmp_path):
    nodes = nodes_in(tmp_path, "a", "b")
    times = interleaved(nodes)
    async with cluster(tmp_path, *nodes) as (_, channel):
        stub = flows_pb2_grpc.FlowsServiceStub(channel)
        batches = [batch async for batch in stub.GetFlowBatches(flows())]

    told = [at for batch in batches for at in batch.times_ns]
    parsed = [
        observer_pb2.GetFlowsResponse.FromString(one)
        for batch in batches
        for one in batch.responses
    ]
    assert told == [0, *times]  # the node state comes first and without a time of its own
    assert [one.time.ToNanoseconds() for one in parsed if one.HasField("flow")] == times


async def test_an_erroring_node_is_told_of_and_the_others_go_on(tmp_path):
    good, bad = nodes_in(tmp_path, "a", "b")
    bad.error = (grpc.StatusCode.RESOURCE_EXHAUSTED, "too much")
    times = interleaved([good, bad])
    async with cluster(tmp_path, good, bad) as (_, channel):
        stream = await Stream(channel, flows()).end()

    assert stream.times == times
    text = "rpc error: code = ResourceExhausted desc = too much"
    assert stream.states[-1] == (relay_pb2.NODE_ERROR, ["b"], text)
    assert stream.error is None


async def test_equal_errors_are_told_once_with_all_nodes(tmp_path):
    nodes = nodes_in(tmp_path, "a", "b", error=(grpc.StatusCode.UNKNOWN, "invalid filter: x"))
    async with cluster(tmp_path, *nodes) as (_, channel):
        stream = await Stream(channel, flows()).end()

    [(state, names, message)] = stream.states[1:]
    assert (state, sorted(names), message) == (
        relay_pb2.NODE_ERROR,
        ["a", "b"],
        "invalid filter: x",
    )


async def test_a_stalled_node_holds_the_others_back_for_the_drain_timeout_only(tmp_path):
    good, stalled = nodes_in(tmp_path, "a", "b")
    stalled.stalled = True
    good.flows = [1 * SECOND_NS, 2 * SECOND_NS]
    async with cluster(tmp_path, good, stalled, sort_buffer_drain_timeout=0.2) as (_, channel):
        began = time.monotonic()
        stream = Stream(channel, flows())
        await eventually(lambda: len(stream.times) == 2)

        assert 0.15 < time.monotonic() - began < 5
        await stream.cancel()


async def test_a_node_that_hangs_altogether_ends_with_an_error_that_says_so(tmp_path, monkeypatch):
    class Hanging(FakeNode):
        async def ServerStatus(self, request, context):  # noqa: N802  the name of the service
            await asyncio.Event().wait()

    monkeypatch.setattr("hubble_relay.connections._PROBE_TIMEOUT_S", 0.2)
    monkeypatch.setattr("hubble_relay.connections._PROBE_EVERY_S", 0.3)
    node = Hanging("a", f"{tmp_path}/a.sock", stalled=True)
    async with cluster(tmp_path, node) as (_, channel):
        stream = await Stream(channel, flows()).end()

    text = "the node takes connections but does not answer"
    assert stream.states[-1] == (relay_pb2.NODE_ERROR, ["a"], text)


async def test_following_goes_on_when_a_node_vanishes_and_takes_it_up_again_without_doubles(
    tmp_path,
):
    staying, leaving = nodes_in(tmp_path, "a", "b")
    interleaved([staying, leaving], count=3)
    async with cluster(tmp_path, staying, leaving) as (_, channel):
        stream = Stream(channel, flows(follow=True, number=10))
        await eventually(lambda: len(stream.times) == 6)

        await leaving.stop()
        staying.observe()
        await eventually(lambda: len(stream.times) == 7)
        leaving.observe()
        await leaving.start()
        began = time.monotonic()
        await eventually(lambda: len(stream.times) == 8)

        assert time.monotonic() - began < 5
        assert leaving.requests[-1].number == 0
        staying.observe()
        leaving.observe()
        await eventually(lambda: len(stream.times) == 10)
        assert len(set(stream.times)) == 10
        assert stream.states[-1][:2] in ((relay_pb2.NODE_ERROR, ["b"]), stream.states[0][:2])
        await stream.cancel()


async def test_following_takes_up_nodes_that_join(tmp_path):
    first, later = nodes_in(tmp_path, "a", "b")
    async with cluster(tmp_path, first) as (_, channel):
        stream = Stream(channel, flows(follow=True))
        await eventually(lambda: stream.states != [])
        await later.start()
        first.tell(later.added())
        await eventually(lambda: later.requests != [])
        later.observe()
        await eventually(lambda: len(stream.times) == 1)

        await stream.cancel()
        await later.stop()


async def test_a_slow_trickle_is_not_held_back(tmp_path):
    nodes = nodes_in(tmp_path, "a", "b", "c")
    async with cluster(tmp_path, *nodes) as (_, channel):
        stream = Stream(channel, flows(follow=True))
        await eventually(lambda: all(node.requests for node in nodes))
        for index in range(3):
            nodes[index].observe()
            began = time.monotonic()
            await eventually(lambda wanted=index + 1: len(stream.times) == wanted)
            assert time.monotonic() - began < 2.5

        await stream.cancel()


async def test_following_ends_once_every_node_has_passed_the_end_of_the_range(tmp_path):
    class Ending(FakeNode):
        async def _batches(self, request, context):
            self.requests.append(request)
            yield self.flows

    nodes = [Ending(name, f"{tmp_path}/{name}.sock") for name in ("a", "b")]
    times = interleaved(nodes)
    request = flows(follow=True)
    request.until.GetCurrentTime()
    async with cluster(tmp_path, *nodes) as (_, channel):
        stream = await Stream(channel, request).end()

    assert stream.times == times


async def test_a_client_that_leaves_ends_the_streams_of_the_nodes(tmp_path):
    [node] = nodes_in(tmp_path, "a")
    left = asyncio.Event()

    async def answers(request, context):
        try:
            yield [1]
            await asyncio.Event().wait()
        finally:
            left.set()

    node._batches = answers
    async with cluster(tmp_path, node) as (_, channel):
        stream = Stream(channel, flows(follow=True))
        await eventually(lambda: len(stream.times) == 1)
        await stream.cancel()

        async with asyncio.timeout(5):
            await left.wait()


async def test_metadata_of_the_client_reaches_the_nodes(tmp_path):
    [node] = nodes_in(tmp_path, "a")
    async with cluster(tmp_path, node) as (_, channel):
        await Stream(channel, flows(), metadata=(("authorization", "Basic eDp5"),)).end()

    assert ("authorization", "Basic eDp5") in node.metadata


async def test_first_with_follow_is_refused(tmp_path):
    async with cluster(tmp_path, *nodes_in(tmp_path, "a")) as (_, channel):
        stream = await Stream(channel, flows(first=True, follow=True)).end()

    assert stream.error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert stream.error.details() == "first cannot be specified with follow"


async def test_an_unreachable_node_is_told_of_at_the_start(tmp_path):
    good, gone = nodes_in(tmp_path, "a", "b")
    good.flows = [1]
    async with cluster(tmp_path, good, gone) as (relay, channel):
        await gone.stop()
        await eventually(lambda: any(not one.available for one in relay.pool.connections))
        stream = await Stream(channel, flows()).end()

    assert stream.states == [
        (relay_pb2.NODE_CONNECTED, ["a"], ""),
        (relay_pb2.NODE_UNAVAILABLE, ["b"], ""),
    ]
    assert stream.times == [1]


async def events(channel, method, **fields):
    stub = observer_pb2_grpc.ObserverStub(channel)
    request = getattr(observer_pb2, f"{method}Request")(**fields)
    return [one async for one in getattr(stub, method)(request)]


@pytest.mark.parametrize("method", ["GetAgentEvents", "GetDebugEvents"])
async def test_events_of_all_nodes_come_in_the_order_of_time(tmp_path, method):
    nodes = nodes_in(tmp_path, "a", "b")
    times = interleaved(nodes)
    async with cluster(tmp_path, *nodes) as (_, channel):
        told = await events(channel, method)
        last = await events(channel, method, number=1)

    assert [one.time.ToNanoseconds() for one in told] == times
    assert {one.node_name for one in told} == {"a", "b"}
    assert [one.node_name for one in last] == ["a", "b"]


async def test_nodes_that_cannot_tell_their_events_are_named_at_the_end(tmp_path):
    good, bad = nodes_in(tmp_path, "a", "b")
    good.flows, bad.error = [1], (grpc.StatusCode.RESOURCE_EXHAUSTED, "too much")
    told = []
    async with cluster(tmp_path, good, bad) as (_, channel):
        stub = observer_pb2_grpc.ObserverStub(channel)
        call = stub.GetAgentEvents(observer_pb2.GetAgentEventsRequest())
        told.append((await call.read()).node_name)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()

    assert told == ["a"]
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    text = "rpc error: code = ResourceExhausted desc = too much"
    assert raised.value.details() == f"events are missing of b: {text}"


async def count(channel):
    request = flows_pb2.AggregateFlowsRequest(by=[flows_pb2.DIMENSION_VERDICT])
    return await flows_pb2_grpc.FlowsServiceStub(channel).AggregateFlows(request)


async def test_counts_of_nodes_are_added_up_and_those_of_foreign_ones_made_here(tmp_path):
    new, old, gone = nodes_in(tmp_path, "new", "old", "gone")
    new.flows, old.flows, old.old = [1, 5], [3], True
    gone.error = (grpc.StatusCode.UNAVAILABLE, "away")
    async with cluster(tmp_path, new, old, gone) as (_, channel):
        answer = await count(channel)

    groups = {tuple(one.values): one for one in answer.groups}
    assert {key: one.flows for key, one in groups.items()} == {
        ("FORWARDED",): 2,
        ("VERDICT_UNKNOWN",): 1,
    }
    counted = groups["FORWARDED",]
    assert (counted.packets, counted.bytes, counted.first_ns, counted.last_ns) == (4, 60, 1, 5)
    assert {one.node_name: one.lost_in_kernel for one in answer.budgets} == {"new": 2, "old": 0}
    assert list(answer.missing_nodes) == ["gone"]


async def test_a_count_that_makes_no_sense_is_refused_as_by_a_node(tmp_path):
    nodes = nodes_in(tmp_path, "a", error=(grpc.StatusCode.UNKNOWN, "invalid filter: x"))
    async with cluster(tmp_path, *nodes) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError, match="invalid filter: x"):
            await count(channel)


def test_losses_do_not_say_how_far_a_node_has_told():
    lost = observer_pb2.GetFlowsResponse(node_name="a")
    lost.lost_events.num_events_lost = 3
    lost.time.FromNanoseconds(99)
    flow = response("a", 7)

    payloads = [flow.SerializeToString(), lost.SerializeToString()]

    assert _newest([7, 99], payloads) == 7
    assert _newest([99], payloads[1:]) == 0
