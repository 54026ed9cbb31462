"""Flows explained through a relay."""

import grpc
import pytest
from cilium.flows.v1 import explain_pb2, explain_pb2_grpc
from cilium_core.access import METADATA_KEY
from flow import flow_pb2

from tests.unit.relay.fakes import FakeNode, cluster, eventually


@pytest.fixture
def nodes(tmp_path):
    return [FakeNode(name, f"{tmp_path}/{name}.sock") for name in ("a", "bb", "ccc")]


async def explained(channel, *filters, metadata=()):
    request = explain_pb2.ExplainFlowRequest()
    request.flows.whitelist.extend(filters)
    stub = explain_pb2_grpc.ExplanationServiceStub(channel)
    return await stub.ExplainFlow(request, metadata=metadata)


async def test_the_newest_flow_of_all_nodes_is_explained_by_the_node_that_saw_it(nodes, tmp_path):
    nodes[0].flows, nodes[1].flows = [10, 20], [30, 5]
    async with cluster(tmp_path, *nodes) as (_, channel):
        answer = await explained(channel)

    assert answer.node_name == "bb"
    assert answer.flow.time.ToNanoseconds() == 30
    assert not answer.missing_nodes


async def test_the_node_of_the_client_tells_what_was_asked_at_its_socket(nodes, tmp_path):
    nodes[0].flows, nodes[1].flows = [30], [20]
    nodes[1].translated = "shop/cart"
    async with cluster(tmp_path, *nodes) as (_, channel):
        answer = await explained(channel, flow_pb2.FlowFilter(uuid=["u"]))

    assert (answer.node_name, answer.translation.service) == ("a", "shop/cart")
    (asked,) = nodes[1].requests[-1].whitelist
    assert (list(asked.source_ip), list(asked.destination_port)) == (["10.0.0.1"], ["80"])


async def test_a_flow_that_no_node_has_is_not_found_and_who_is_silent_is_named(nodes, tmp_path):
    async with cluster(tmp_path, *nodes) as (relay, channel):
        await nodes[2].stop()
        await eventually(lambda: not relay.pool.connections[2].available)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await explained(channel, flow_pb2.FlowFilter(uuid=["u"]))

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == (
        "none of 3 nodes has such a flow, or no longer; ccc did not answer"
    )


async def test_a_node_that_fails_is_named_where_it_may_have_a_newer_flow(nodes, tmp_path):
    nodes[0].flows = [10]
    nodes[1].error = (grpc.StatusCode.INTERNAL, "broken")
    async with cluster(tmp_path, *nodes) as (_, channel):
        newest = await explained(channel, flow_pb2.FlowFilter(source_port=["1"]))
        one = await explained(channel, flow_pb2.FlowFilter(uuid=["u"]))

    assert list(newest.missing_nodes) == ["bb"]
    assert not one.missing_nodes


async def test_a_flow_of_a_peer_that_cannot_explain_tells_what_it_says_itself(nodes, tmp_path):
    nodes[1].old, nodes[1].flows = True, [7, 8]
    async with cluster(tmp_path, *nodes) as (_, channel):
        answer = await explained(channel)

    assert answer.node_name == "bb"
    assert answer.flow.time.ToNanoseconds() == 8
    assert answer.conclusion == "There is no verdict."
    assert answer.notes == ["Policies were not asked: bb is a server of a kind that cannot tell."]


async def test_a_refused_request_is_refused_to_the_client(nodes, tmp_path):
    nodes[0].error = (grpc.StatusCode.UNKNOWN, "invalid filter")
    async with cluster(tmp_path, nodes[0]) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await explained(channel)

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "invalid filter"


async def test_nodes_are_told_what_a_client_is_limited_to(nodes, tmp_path):
    nodes[0].flows = [1]
    async with cluster(tmp_path, nodes[0]) as (_, channel):
        await explained(channel, metadata=((METADATA_KEY, "shop"),))

    assert (METADATA_KEY, "shop") in nodes[0].metadata
    assert [list(one.source_pod) for one in nodes[0].requests[0].whitelist] == [["shop/"], []]
