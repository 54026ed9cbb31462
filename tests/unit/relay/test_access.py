"""Limited clients of a relay: what nodes are asked for them, and what they are told."""

from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from cilium.flows.v1 import flows_pb2, flows_pb2_grpc
from cilium_core.access import METADATA_KEY
from cilium_core.settings import SettingsError, load
from flow import flow_pb2
from hubble_relay.settings import PREFIX, RelaySettings
from observer import observer_pb2, observer_pb2_grpc

from tests.certificates import Authority
from tests.unit.relay.fakes import FakeNode, cluster

RULES = "clients: [{names: [ada], namespaces: [shared]}]"
OURS = [
    flow_pb2.FlowFilter(source_pod=["shared/"]),
    flow_pb2.FlowFilter(destination_pod=["shared/"]),
]


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("pki"))


@asynccontextmanager
async def limited(folder, authority, *nodes, rules=RULES):
    """A relay with rules; gives a channel of the client that is limited by them."""
    rules_file = folder / "rules.yaml"
    rules_file.write_text(rules)
    certificate, key = authority.issue("relay")
    settings = {
        "access_file": rules_file,
        "tls_relay_server_cert_file": certificate,
        "tls_relay_server_key_file": key,
        "tls_relay_client_ca_files": (authority.certificate,),
        "listen_address": (f"unix://{folder}/relay.sock", "127.0.0.1:0"),
    }
    async with cluster(folder, *nodes, **settings) as (relay, _):
        certificate, key = authority.issue("ada")
        credentials = grpc.ssl_channel_credentials(
            authority.certificate.read_bytes(), key.read_bytes(), certificate.read_bytes()
        )
        async with grpc.aio.secure_channel(f"127.0.0.1:{relay.ports[0]}", credentials) as channel:
            yield channel


def two_nodes(folder):
    """A node of ours, and one that knows nothing of batches and limits."""
    return [
        FakeNode("ours", f"{folder}/ours.sock", flows=[1, 3]),
        FakeNode("foreign", f"{folder}/foreign.sock", flows=[2, 4], old=True),
    ]


async def test_nodes_are_asked_for_no_more_than_the_client_may_see(tmp_path, authority):
    nodes = two_nodes(tmp_path)
    async with limited(tmp_path, authority, *nodes) as channel:
        call = observer_pb2_grpc.ObserverStub(channel).GetFlows(
            observer_pb2.GetFlowsRequest(number=7), metadata=((METADATA_KEY, "shared,other"),)
        )
        times = [one.time.ToNanoseconds() async for one in call if one.HasField("flow")]

    assert times == [1, 2, 3, 4]
    for node in nodes:
        assert list(node.requests[-1].whitelist) == OURS
        assert node.requests[-1].number == 7
        assert [value for key, value in node.metadata if key == METADATA_KEY] == ["shared"]


async def test_what_is_counted_is_limited_on_nodes_of_either_kind(tmp_path, authority):
    nodes = two_nodes(tmp_path)
    async with limited(tmp_path, authority, *nodes) as channel:
        await flows_pb2_grpc.FlowsServiceStub(channel).AggregateFlows(
            flows_pb2.AggregateFlowsRequest(by=[flows_pb2.DIMENSION_VERDICT])
        )

    assert [list(node.requests[-1].whitelist) for node in nodes] == [OURS, OURS]


async def test_events_of_nodes_that_know_no_limits_are_left_out(tmp_path, authority):
    nodes = two_nodes(tmp_path)
    async with limited(tmp_path, authority, *nodes) as channel:
        stub = observer_pb2_grpc.ObserverStub(channel)
        agent = [one async for one in stub.GetAgentEvents(observer_pb2.GetAgentEventsRequest())]
        debug = [one async for one in stub.GetDebugEvents(observer_pb2.GetDebugEventsRequest())]

    assert (agent, debug) == ([], [])


async def test_namespaces_and_nodes_are_shown_as_far_as_they_concern_the_client(
    tmp_path, authority
):
    async with limited(tmp_path, authority, *two_nodes(tmp_path)) as channel:
        stub = observer_pb2_grpc.ObserverStub(channel)
        namespaces = await stub.GetNamespaces(observer_pb2.GetNamespacesRequest())
        nodes = await stub.GetNodes(observer_pb2.GetNodesRequest())

    assert [one.namespace for one in namespaces.namespaces] == ["shared"]
    assert [(one.name, one.address) for one in nodes.nodes] == [("foreign", ""), ("ours", "")]


async def test_what_the_client_may_not_see_is_refused_before_nodes_are_asked(tmp_path, authority):
    nodes = two_nodes(tmp_path)
    asked = flow_pb2.FlowFilter(source_pod=["a/"], destination_pod=["b/"])
    async with limited(tmp_path, authority, *nodes) as channel:
        call = observer_pb2_grpc.ObserverStub(channel).GetFlows(
            observer_pb2.GetFlowsRequest(whitelist=[asked])
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()

    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert "may see namespace shared only" in caught.value.details()
    assert [node.requests for node in nodes] == [[], []]


async def test_clients_that_no_rule_names_are_refused(tmp_path, authority):
    rules = "clients: [{names: [bob], namespaces: [shared]}]"
    async with limited(tmp_path, authority, *two_nodes(tmp_path), rules=rules) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await observer_pb2_grpc.ObserverStub(channel).ServerStatus(
                observer_pb2.ServerStatusRequest()
            )

    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_unlimited_clients_cannot_widen_what_nodes_think_of_them(tmp_path):
    nodes = two_nodes(tmp_path)
    async with cluster(tmp_path, *nodes) as (_, channel):
        stub = observer_pb2_grpc.ObserverStub(channel)
        _ = [one async for one in stub.GetFlows(observer_pb2.GetFlowsRequest())]

    assert [key for node in nodes for key, _ in node.metadata if key == METADATA_KEY] == []
    assert [len(node.requests[-1].whitelist) for node in nodes] == [0, 0]


async def test_filters_that_are_too_much_work_reach_no_node(tmp_path):
    nodes = two_nodes(tmp_path)
    giant = [flow_pb2.FlowFilter(verdict=[flow_pb2.DROPPED])] * 3000
    async with cluster(tmp_path, *nodes) as (_, channel):
        call = observer_pb2_grpc.ObserverStub(channel).GetFlows(
            observer_pb2.GetFlowsRequest(whitelist=giant)
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()

    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert [node.requests for node in nodes] == [[], []]


def test_rules_without_certificates_are_refused_before_anything_runs(tmp_path):
    flags = ["--access-file", str(tmp_path), "--disable-server-tls"]
    with pytest.raises(SettingsError, match="access-file: needs to know its clients"):
        load(RelaySettings, flags, {}, prefix=PREFIX)
