"""Relays and nodes of other makers: they find and understand ours, and ours theirs."""

from __future__ import annotations

import dataclasses
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cilium.metadata.v1 import metadata_pb2
from hubble_relay.app import Relay
from hubble_relay.peers import Peer
from hubble_relay.settings import RelaySettings
from observer import observer_pb2, observer_pb2_grpc
from peer import peer_pb2, peer_pb2_grpc

from tests.certificates import Authority
from tests.unit.hubble.conftest import Server, running
from tests.unit.hubble.loads import traffic
from tests.unit.relay.fakes import FakeNode, Stream, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NODE_NAME = "node1.default.hubble-grpc.cilium.io"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("relays"))


@asynccontextmanager
async def node(folder: Path, authority: Authority) -> AsyncIterator[Server]:
    """A node that wants certificates, and announces itself at its address."""
    certificate, key = authority.issue("node", NODE_NAME)
    settings: dict[str, Any] = {
        "hubble_listen_address": "127.0.0.1:0",
        "hubble_disable_tls": False,
        "hubble_tls_cert_file": certificate,
        "hubble_tls_key_file": key,
        "hubble_tls_client_ca_files": (authority.certificate,),
    }
    async with running(folder, **settings) as server:
        peers = server.app.peers
        peers._settings = dataclasses.replace(peers._settings, port=server.app.tcp_port)
        here = {"name": "node1", "cluster": "default", "addresses": ["127.0.0.1"]}
        changes = (
            metadata_pb2.Update(local_node=metadata_pb2.LocalNode(**here)),
            metadata_pb2.Update(node=metadata_pb2.Node(**here)),
        )
        for change in changes:
            server.app.update(change)
        await server.feed_flows(traffic(700, pods=4))
        yield server


async def told(channel: grpc.aio.Channel) -> peer_pb2.ChangeNotification:
    """The peer that a node says it is, once it has its address."""
    call = peer_pb2_grpc.PeerStub(channel).Notify(peer_pb2.NotifyRequest(), timeout=30)
    async for change in call:
        if change.address.startswith("127.0.0.1:"):
            call.cancel()
            return change
    raise AssertionError("the node has not told its address")


async def test_a_foreign_relay_is_told_of_a_node_and_gets_its_flows(
    tmp_path: Path, authority: Authority
) -> None:
    certificate, key = authority.issue("relay")
    async with node(tmp_path, authority) as server:
        peer = await told(server.channel)
        assert (peer.name, peer.tls.server_name) == ("node1", NODE_NAME)
        credentials = grpc.ssl_channel_credentials(
            authority.certificate.read_bytes(), key.read_bytes(), certificate.read_bytes()
        )
        # it names the peer as the certificate does, and passes on what its client said of itself
        options = [("grpc.ssl_target_name_override", peer.tls.server_name)]
        async with grpc.aio.secure_channel(peer.address, credentials, options) as channel:
            stub = observer_pb2_grpc.ObserverStub(channel)
            metadata = (("traceparent", f"00-{'ab' * 16}-{'01' * 8}-01"), ("hubble-x", "y"))
            status = await stub.ServerStatus(observer_pb2.ServerStatusRequest(), metadata=metadata)
            for request in ({}, {"number": 20}, {"number": 7, "first": True}):
                call = stub.GetFlows(observer_pb2.GetFlowsRequest(**request), metadata=metadata)
                assert "hubble-server-version" in dict(await call.initial_metadata())
                assert [answer async for answer in call] == await server.get(**request)
    assert status.num_flows == 700
    assert not status.HasField("num_connected_nodes")


async def test_our_relay_serves_a_foreign_node_beside_one_that_it_was_told_of(
    tmp_path: Path, authority: Authority
) -> None:
    certificate, key = authority.issue("relay")
    foreign = FakeNode("foreign", f"{tmp_path}/foreign.sock", flows=[1, 2, 3], old=True)
    async with node(tmp_path, authority) as server:
        await foreign.start()
        relay = Relay(
            RelaySettings(
                peer_service=(f"unix://{server.app._settings.socket_path}",),
                listen_address=(f"unix://{tmp_path}/relay.sock",),
                health_listen_address="",
                disable_server_tls=True,
                tls_hubble_client_cert_file=certificate,
                tls_hubble_client_key_file=key,
                tls_hubble_server_ca_files=(authority.certificate,),
            )
        )
        await relay.start()
        relay.directory.upsert("told", Peer("foreign", foreign.address, None))
        try:
            await eventually(lambda: sum(one.available for one in relay.pool.connections) == 2)
            async with grpc.aio.insecure_channel(f"unix://{tmp_path}/relay.sock") as channel:
                found = await Stream(channel, observer_pb2.GetFlowsRequest()).end()
        finally:
            await relay.stop()
            await foreign.stop()
        flows = await server.get()
    assert found.error is None
    assert found.times == [1, 2, 3, *(answer.time.ToNanoseconds() for answer in flows)]
    assert [sorted(names) for _, names, _ in found.states] == [["foreign", "node1"]]
