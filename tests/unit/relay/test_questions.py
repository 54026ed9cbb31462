"""Health, states, nodes and namespaces through a relay."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from observer import observer_pb2, observer_pb2_grpc
from relay import relay_pb2

from tests.unit.relay.fakes import FakeNode, cluster, eventually


@pytest.fixture
def nodes(tmp_path):
    return [FakeNode(name, f"{tmp_path}/{name}.sock") for name in ("a", "bb", "ccc")]


async def health(channel, service):
    stub = health_pb2_grpc.HealthStub(channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def test_states_of_the_nodes_add_up(nodes, tmp_path):
    nodes[0].flows = [1, 2, 3]
    async with cluster(tmp_path, *nodes) as (_, channel):
        stub = observer_pb2_grpc.ObserverStub(channel)
        call = stub.ServerStatus(observer_pb2.ServerStatusRequest())
        status = await call
        headers = dict(await call.initial_metadata())

    assert (status.num_flows, status.max_flows, status.seen_flows) == (3, 300, 6)
    assert (status.uptime_ns, status.flows_rate) == (3, 1.5)
    assert status.num_connected_nodes.value == 3
    assert status.HasField("num_unavailable_nodes")
    assert status.num_unavailable_nodes.value == 0
    assert status.version.startswith("hubble-relay v")
    assert headers["hubble-relay-version"] in status.version


async def test_nodes_that_fail_or_are_gone_are_told_apart(nodes, tmp_path):
    async with cluster(tmp_path, *nodes) as (relay, channel):
        nodes[1].error = (grpc.StatusCode.INTERNAL, "broken")
        await nodes[2].stop()
        await eventually(lambda: not relay.pool.connections[2].available)
        stub = observer_pb2_grpc.ObserverStub(channel)
        listed = (await stub.GetNodes(observer_pb2.GetNodesRequest())).nodes
        status = await stub.ServerStatus(observer_pb2.ServerStatusRequest())

    assert [(node.name, node.state) for node in listed] == [
        ("a", relay_pb2.NODE_CONNECTED),
        ("bb", relay_pb2.NODE_ERROR),
        ("ccc", relay_pb2.NODE_UNAVAILABLE),
    ]
    assert listed[0].version == "node v1"
    assert listed[0].address == nodes[0].address
    assert all(node.HasField("tls") and not node.tls.enabled for node in listed)
    assert status.num_connected_nodes.value == 1
    assert list(status.unavailable_nodes) == ["bb", "ccc"]


async def test_namespaces_are_the_sorted_union(nodes, tmp_path):
    async with cluster(tmp_path, *nodes) as (_, channel):
        stub = observer_pb2_grpc.ObserverStub(channel)
        found = (await stub.GetNamespaces(observer_pb2.GetNamespacesRequest())).namespaces

    assert [(one.cluster, one.namespace) for one in found] == [
        ("", "shared"),
        ("c", "a"),
        ("c", "bb"),
        ("c", "ccc"),
    ]


async def test_health_follows_the_peers(nodes, tmp_path):
    [node] = nodes[:1]
    async with cluster(tmp_path, node) as (relay, channel):
        serving = health_pb2.HealthCheckResponse.SERVING
        assert await health(channel, "") == serving
        assert await health(channel, "hubble.server.Observer") == serving

        await node.stop()
        await eventually(lambda: not relay.ready)
        relay._tell_health()
        assert await health(channel, "hubble.server.Observer") != serving

        await node.start()
        await eventually(lambda: relay.ready)


async def test_a_relay_without_any_peer_is_up_but_not_serving(nodes, tmp_path):
    async with cluster(tmp_path, nodes[0]) as (relay, channel):
        relay.pool.replace({})
        assert await health(channel, "") != health_pb2.HealthCheckResponse.SERVING

        stub = observer_pb2_grpc.ObserverStub(channel)
        answers = [one async for one in stub.GetFlows(observer_pb2.GetFlowsRequest())]
        assert answers == []


async def test_what_a_relay_does_not_serve_is_unimplemented(nodes, tmp_path):
    async with cluster(tmp_path, nodes[0]) as (_, channel):
        call = channel.unary_unary("/peer.Peer/Notify")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(b"")

    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert raised.value.details() == "unknown service peer.Peer"
