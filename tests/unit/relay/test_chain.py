"""A limited client, a relay and real hubble-servers, with TLS between all of them."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import grpc.aio
import pytest
from cilium.flows.v1 import flows_pb2, flows_pb2_grpc
from hubble_relay import app
from hubble_relay.app import Relay
from hubble_relay.settings import RelaySettings
from observer import observer_pb2, observer_pb2_grpc
from peer import peer_pb2
from relay import relay_pb2

from tests.certificates import Authority
from tests.unit.hubble.conftest import running
from tests.unit.hubble.loads import traffic
from tests.unit.relay.fakes import LIMIT_S, FakeNode, Stream, eventually

AT_NODES = 'clients: [{names: [relay], namespaces: ["*"]}]'
AT_RELAY = "clients: [{names: [ada], namespaces: [ns0]}]"
OURS = {("ns0", "ns0"), ("ns0", "ns1"), ("ns1", "ns0")}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("pki"))


@asynccontextmanager
async def node(folder, authority, name, rules=AT_NODES):
    """A hubble-server that only its relay may ask; gives it and what peer services say of it."""
    folder.mkdir()
    server_name = f"{name}.default.hubble-grpc.cilium.io"
    certificate, key = authority.issue(server_name)
    (folder / "rules.yaml").write_text(rules)
    settings = {
        "hubble_listen_address": "127.0.0.1:0",
        "hubble_disable_tls": False,
        "hubble_tls_cert_file": certificate,
        "hubble_tls_key_file": key,
        "hubble_tls_client_ca_files": (authority.certificate,),
        "hubble_access_file": folder / "rules.yaml",
    }
    async with running(folder, **settings) as server:
        await server.feed_flows(traffic(200, pods=4, seed=len(name)))
        yield (
            server,
            peer_pb2.ChangeNotification(
                name=name,
                address=f"127.0.0.1:{server.app.tcp_port}",
                type=peer_pb2.PEER_ADDED,
                tls=peer_pb2.TLS(server_name=server_name),
            ),
        )


@asynccontextmanager
async def relay_over(folder, authority, *peers, own=None):
    """A relay with rules over nodes with TLS; gives it and a channel of a limited client.

    `own` are the certificate and key that it shows to nodes.
    """
    told = FakeNode("told", f"{folder}/peers.sock")
    (folder / "rules.yaml").write_text(AT_RELAY)
    certificate, key = authority.issue("relay")
    relay = Relay(
        RelaySettings(
            peer_service=(told.address,),
            listen_address=("127.0.0.1:0",),
            health_listen_address="",
            access_file=folder / "rules.yaml",
            tls_relay_server_cert_file=certificate,
            tls_relay_server_key_file=key,
            tls_relay_client_ca_files=(authority.certificate,),
            tls_hubble_client_cert_file=(own or (certificate, key))[0],
            tls_hubble_client_key_file=(own or (certificate, key))[1],
            tls_hubble_server_ca_files=(authority.certificate,),
        )
    )
    own_certificate, own_key = authority.issue("ada")
    credentials = grpc.ssl_channel_credentials(
        authority.certificate.read_bytes(), own_key.read_bytes(), own_certificate.read_bytes()
    )
    async with AsyncExitStack() as stack:
        await told.start()
        stack.push_async_callback(told.stop)
        told.tell(*peers)
        await relay.start()
        stack.push_async_callback(relay.stop)
        target = f"127.0.0.1:{relay.ports[0]}"
        channel = await stack.enter_async_context(grpc.aio.secure_channel(target, credentials))
        await eventually(
            lambda: (
                len(relay.pool.connections) == len(peers)
                and all(one.settled for one in map(State, relay.pool.connections))
            )
        )
        yield relay, channel


class State:
    """What is known of a connection."""

    def __init__(self, connection):
        self.settled = connection.channel is None or connection.state in (
            grpc.ChannelConnectivity.READY,
            grpc.ChannelConnectivity.TRANSIENT_FAILURE,
        )


async def test_limits_hold_from_the_client_to_the_nodes(tmp_path, authority):
    async with (
        node(tmp_path / "a", authority, "a") as (_, first),
        node(tmp_path / "bb", authority, "bb") as (_, second),
        relay_over(tmp_path, authority, first, second) as (_, channel),
    ):
        stream = await Stream(channel, observer_pb2.GetFlowsRequest()).end()
        flows = [one.flow for one in stream.responses if one.HasField("flow")]
        by = [flows_pb2.DIMENSION_SOURCE_NAMESPACE, flows_pb2.DIMENSION_DESTINATION_NAMESPACE]
        counted = await flows_pb2_grpc.FlowsServiceStub(channel).AggregateFlows(
            flows_pb2.AggregateFlowsRequest(by=by)
        )
        namespaces = await observer_pb2_grpc.ObserverStub(channel).GetNamespaces(
            observer_pb2.GetNamespacesRequest()
        )

    assert stream.states == [(relay_pb2.NODE_CONNECTED, ["a", "bb"], "")]
    assert {(one.source.namespace, one.destination.namespace) for one in flows} == OURS
    assert {tuple(one.values) for one in counted.groups} == OURS
    assert sum(one.flows for one in counted.groups) == len(flows)
    assert [one.namespace for one in namespaces.namespaces] == ["ns0"]


async def test_a_peer_that_is_not_who_it_should_be_is_not_believed(tmp_path, authority):
    stranger = Authority(tmp_path, "stranger")
    async with (
        node(tmp_path / "a", authority, "a") as (_, good),
        node(tmp_path / "b", authority, "b") as (_, misnamed),
        node(tmp_path / "c", stranger, "c") as (_, unknown),
    ):
        misnamed.tls.server_name = "x.default.hubble-grpc.cilium.io"
        async with relay_over(tmp_path, authority, good, misnamed, unknown) as (_, channel):
            stream = await Stream(channel, observer_pb2.GetFlowsRequest(number=1)).end()

    assert stream.states == [
        (relay_pb2.NODE_CONNECTED, ["a"], ""),
        (relay_pb2.NODE_UNAVAILABLE, ["b", "c"], ""),
    ]
    assert len(stream.times) == 1


async def test_a_node_that_does_not_know_the_relay_is_told_of(tmp_path, authority):
    async with (
        node(tmp_path / "a", authority, "a", rules="clients: []") as (_, peer),
        relay_over(tmp_path, authority, peer) as (_, channel),
    ):
        stream = await Stream(channel, observer_pb2.GetFlowsRequest()).end()

    [_, (state, names, message)] = stream.states
    assert (state, names) == (relay_pb2.NODE_ERROR, ["a"])
    assert "PermissionDenied desc = client relay may see no namespace" in message


async def test_a_certificate_that_is_renewed_is_shown_to_nodes(tmp_path, authority, monkeypatch):
    monkeypatch.setattr(app, "_CERTIFICATE_INTERVAL_S", 0.05)
    old = Authority(tmp_path, "old").issue("relay")
    async with (
        node(tmp_path / "a", authority, "a") as (_, peer),
        relay_over(tmp_path, authority, peer, own=old) as (_, channel),
    ):
        refused = await Stream(channel, observer_pb2.GetFlowsRequest(number=1)).end()
        for ours, renewed in zip(old, authority.issue("relay"), strict=True):
            ours.write_bytes(renewed.read_bytes())
        accepted = refused
        async with asyncio.timeout(LIMIT_S):
            while not accepted.times:
                accepted = await Stream(channel, observer_pb2.GetFlowsRequest(number=1)).end()

    assert refused.times == []
    assert len(accepted.times) == 1
