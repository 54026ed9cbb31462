"""Who the peers are, and how they are dialled."""

import asyncio

import grpc
import pytest
from hubble_relay.connections import ClientTls, Pool, dial
from hubble_relay.peers import Directory, Peer, PeerWatcher, dial_target
from hubble_relay.statuses import ErrorGathering
from peer import peer_pb2

from tests.unit.relay.fakes import FakeNode, cluster, eventually


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("unix:///run/hubble.sock", "unix:///run/hubble.sock"),
        ("/run/hubble.sock", "unix:///run/hubble.sock"),
        ("10.1.1.1", "10.1.1.1:4244"),
        ("fd00::1", "[fd00::1]:4244"),
        ("[fd00::1]", "[fd00::1]:4244"),
        ("10.1.1.1:5000", "10.1.1.1:5000"),
        ("[fd00::1]:5000", "[fd00::1]:5000"),
        ("node.example:4244", "node.example:4244"),
        ("", ""),
        ("node", ""),
        ("node:port", ""),
        (":4244", ""),
        ("10.1.1.1:99999", ""),
        ("fd00::1::2:80", ""),
    ],
)
def test_addresses_are_completed_or_refused(address, target):
    assert dial_target(address) == target


def test_the_directory_is_the_union_of_what_services_tell():
    directory = Directory()
    seen = []
    directory.on_change(lambda peers: seen.append(sorted(peers)))

    directory.upsert("one", Peer("a", "192.0.2.1", None))
    directory.upsert("two", Peer("a", "192.0.2.1", None))
    directory.upsert("two", Peer("b", "192.0.2.2", None))
    directory.delete("one", "a")
    directory.delete("two", "a")
    directory.keep_only("two", set())

    assert seen == [[], ["a"], ["a", "b"], ["b"], []]


def test_the_newest_address_counts():
    directory = Directory()
    directory.upsert("one", Peer("a", "192.0.2.1", None))
    directory.upsert("two", Peer("a", "192.0.2.22", None))
    directory.upsert("three", Peer("b", "192.0.2.33", None))

    assert directory.peers["a"].address == "192.0.2.22"


def test_a_service_that_knows_no_address_yet_does_not_overrule_one_that_does():
    directory = Directory()
    directory.upsert("one", Peer("a", "192.0.2.1", None))
    directory.upsert("two", Peer("a", "", None))

    assert directory.peers["a"].address == "192.0.2.1"
    directory.delete("one", "a")
    assert directory.peers["a"].address == ""


async def test_peers_are_kept_while_their_service_is_away_and_forgotten_if_not_named_again(
    tmp_path,
):
    node = FakeNode("a", f"{tmp_path}/a.sock")
    gone = peer_pb2.ChangeNotification(name="b", address="192.0.2.1", type=peer_pb2.PEER_ADDED)
    await node.start()
    node.tell(node.added(), gone)
    directory = Directory()
    watcher = PeerWatcher(
        node.address, directory, lambda target: dial(target, None, None), 0.5, settle_s=0.2
    )
    task = asyncio.create_task(watcher.run())
    try:
        await eventually(lambda: sorted(directory.peers) == ["a", "b"])
        await node.stop()
        await eventually(lambda: not directory.connected)
        assert sorted(directory.peers) == ["a", "b"]

        node.peers.remove(gone)
        await node.start()
        await eventually(lambda: sorted(directory.peers) == ["a"])
        node.tell(node.added(peer_pb2.PEER_DELETED))
        await eventually(lambda: not directory.peers)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await node.stop()


async def test_a_peer_that_moves_is_dialled_anew_and_others_keep_their_connection(tmp_path):
    staying, moving = (FakeNode(name, f"{tmp_path}/{name}.sock") for name in ("a", "b"))
    async with cluster(tmp_path, staying, moving) as (relay, _):
        before = relay.pool.connections
        await moving.stop()
        moving.socket = f"{tmp_path}/moved.sock"
        await moving.start()
        staying.tell(moving.added(peer_pb2.PEER_UPDATED))
        await eventually(lambda: relay.pool.connections[1] is not before[1])
        await eventually(lambda: relay.pool.connections[1].state is grpc.ChannelConnectivity.READY)

        assert relay.pool.connections[0] is before[0]


@pytest.mark.parametrize(
    ("tls", "peer", "problem"),
    [
        (
            None,
            Peer("a", "192.0.2.1:4244", "a.default.hubble-grpc.cilium.io"),
            "unexpected TLS ServerName a.default.hubble-grpc.cilium.io for 192.0.2.1:4244",
        ),
        (
            ClientTls(),
            Peer("a", "192.0.2.1:4244", None),
            "missing TLS ServerName for 192.0.2.1:4244",
        ),
        (None, Peer("a", "", None), "the address '' of a cannot be dialled"),
    ],
)
async def test_a_peer_that_cannot_be_dialled_is_unavailable_and_says_why(tls, peer, problem):
    pool = Pool(tls)
    pool.replace({"a": peer})

    [connection] = pool.connections

    assert (connection.available, connection.problem) == (False, problem)
    await pool.close()


async def test_a_node_that_takes_connections_and_answers_nothing_is_dialled_afresh(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("hubble_relay.connections._PROBE_TIMEOUT_S", 0.2)
    monkeypatch.setattr("hubble_relay.connections._PROBE_EVERY_S", 0.1)

    class Hanging(FakeNode):
        async def ServerStatus(self, request, context):  # noqa: N802  the name of the service
            await asyncio.Event().wait()

    node = Hanging("a", f"{tmp_path}/a.sock")
    await node.start()
    pool = Pool(None)
    pool.replace({"a": Peer("a", node.address, None)})
    try:
        [before] = pool.connections
        await eventually(lambda: pool.connections[0] is not before)
    finally:
        await pool.close()
        await node.stop()


def test_equal_errors_are_gathered_for_a_while_from_the_first():
    errors = ErrorGathering(window_s=10)

    assert errors.wait_s(0) is None
    assert errors.add("x", "a", 0) is None
    assert errors.add("x", "b", 9) is None
    assert errors.wait_s(9) == 1
    assert errors.wait_s(11) == 0
    assert errors.flush() == ("x", ["a", "b"])
    assert errors.flush() is None


def test_another_error_lets_the_one_before_go():
    errors = ErrorGathering()
    errors.add("x", "a", 0)

    assert errors.add("y", "b", 1) == ("x", ["a"])
    assert errors.flush() == ("y", ["b"])
