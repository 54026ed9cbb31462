"""What held at a moment: states are kept beside the flows, and told as they were then."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from cilium.flows.v1 import states_pb2, states_pb2_grpc
from cilium.metadata.v1 import metadata_pb2
from cilium_core.access.limits import METADATA_KEY
from hubble_server.history import statelog
from hubble_server.history.statelog import StateLimits, StateLog
from hubble_server.history.states import Moment, answers, segments_of, state_at

from tests.unit.hubble.conftest import running
from tests.unit.hubble.loads import snapshot
from tests.unit.hubble.test_history_counts import behind_a_relay
from tests.unit.relay.fakes import FakeNode, cluster, eventually

if TYPE_CHECKING:
    from pathlib import Path

make = metadata_pb2.Update
S = 10**9


class Clock:
    """A clock that is set by hand."""

    now_s = 1_000_000.0

    def time_ns(self) -> int:
        return int(self.now_s * S)

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(statelog, "time", made)
    return made


def pods(moment: Moment) -> list[str]:
    return [endpoint.pod_name for endpoint in moment.state.of("endpoint")]


def endpoint(number: int) -> metadata_pb2.Update:
    return make(endpoint=metadata_pb2.Endpoint(id=number, pod_name=f"pod-{number}"))


def test_each_moment_shows_what_the_agent_had_told_by_then(tmp_path: Path, clock: Clock) -> None:
    log = StateLog(tmp_path, StateLimits())
    log.replace([*snapshot(2), endpoint(7)])
    log.step()
    clock.now_s += 10
    log.update(endpoint(8))
    log.step()
    clock.now_s += 10
    log.update(make(endpoint_deleted=7))
    log.update(make(agent_event=metadata_pb2.AgentEvent()))
    log.step()
    at = [int((1_000_000 + after) * S) for after in (0, 9, 10, 25)]
    told = [state_at(tmp_path, one) for one in at]
    both = ["pod-0", "pod-1"]
    assert [pods(one) for one in told] == [
        [*both, "pod-7"], [*both, "pod-7"], [*both, "pod-7", "pod-8"], [*both, "pod-8"],
    ]  # fmt: skip
    assert [one.told_ns for one in told] == [at[0], at[0], at[2], at[0] + 20 * S]
    assert state_at(tmp_path, at[0] - 1).told_ns == 0
    assert state_at(tmp_path, at[0] - 1).kept_from_ns == at[0]
    (head, *rest) = answers("default/node1", told[0])
    assert [policy.name for policy in head.policies] == ["rule1", "rule2"]
    assert [one.id for message in rest for one in message.identities] == [1000, 1001]


def test_a_new_segment_explains_itself_and_old_ones_go(tmp_path: Path, clock: Clock) -> None:
    log = StateLog(tmp_path, StateLimits(segment_s=60, max_age_s=150))
    log.replace([endpoint(1)])
    log.step()
    for minute in range(5):
        clock.now_s += 61
        log.update(endpoint(2 + minute))
        log.step()
    segments = segments_of(tmp_path)
    assert [segment.number for segment in segments] == [3, 4, 5, 6]
    assert pods(state_at(tmp_path, segments[0].first_ns)) == ["pod-1", "pod-2", "pod-3"]
    log._limits = replace(log._limits, max_bytes=1)
    clock.now_s += 61
    log.step()
    assert [segment.number for segment in segments_of(tmp_path)] == [7]


def test_a_note_says_that_nothing_changed_while_the_agent_is_there(
    tmp_path: Path, clock: Clock
) -> None:
    there = True
    log = StateLog(tmp_path, StateLimits(), lambda: there)
    log.replace([endpoint(1)])
    log.step()
    began_ns = int(clock.now_s * S)
    clock.now_s += 31
    log.step()
    assert state_at(tmp_path, began_ns + 40 * S).told_ns == began_ns + 31 * S
    there = False
    clock.now_s += 31
    log.step()
    assert state_at(tmp_path, began_ns + 90 * S).told_ns == began_ns + 31 * S


@pytest.mark.parametrize("cut", [1, 30])
def test_what_was_being_written_at_a_crash_does_not_count(
    tmp_path: Path, clock: Clock, cut: int
) -> None:
    log = StateLog(tmp_path, StateLimits())
    log.replace([endpoint(1)])
    log.step()
    log.update(endpoint(2))
    log.step()
    (segment,) = segments_of(tmp_path)
    os.truncate(segment.path, segment.path.stat().st_size - cut)
    assert pods(state_at(tmp_path, int(clock.now_s * S))) == ["pod-1"]
    again = StateLog(tmp_path, StateLimits())
    clock.now_s += 1
    again.replace([endpoint(3)])
    again.step()
    assert pods(state_at(tmp_path, int(clock.now_s * S))) == ["pod-3"]
    assert pods(state_at(tmp_path, int(clock.now_s * S) - S)) == ["pod-1"]


def test_a_full_disk_loses_the_moments_but_not_the_state(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = StateLog(tmp_path, StateLimits())
    log.replace([endpoint(1)])
    log.step()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(statelog.os, "pwrite", full)
        for number in (2, 3):
            clock.now_s += 1
            log.update(endpoint(number))
            log.step()
    assert pods(state_at(tmp_path, int(clock.now_s * S))) == ["pod-1"]
    clock.now_s += 1
    log.step()
    assert pods(state_at(tmp_path, int(clock.now_s * S))) == ["pod-1", "pod-2", "pod-3"]


def test_of_a_moment_that_came_twice_the_second_counts(tmp_path: Path, clock: Clock) -> None:
    log = StateLog(tmp_path, StateLimits())
    log.replace([endpoint(1)])
    log.step()
    clock.now_s += 100
    log.update(endpoint(2))
    log.step()
    clock.now_s -= 60
    log.update(endpoint(3))
    log.step()
    assert pods(state_at(tmp_path, int(clock.now_s * S))) == ["pod-1", "pod-2", "pod-3"]
    assert pods(state_at(tmp_path, int(clock.now_s * S) - 1)) == ["pod-1"]


async def test_servers_and_relays_tell_a_state_of_the_past(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"hubble_history_dir": tmp_path / "past"}
    async with running(tmp_path, **settings) as server, behind_a_relay(server, tmp_path) as channel:
        await server.until(lambda: bool(segments_of(tmp_path / "past")))
        at_ns = segments_of(tmp_path / "past")[0].first_ns
        server.app.update(make(endpoint_deleted=1))
        request = states_pb2.GetStateRequest(at_ns=at_ns)
        for where in (server.channel, channel):
            stub = states_pb2_grpc.StateServiceStub(where)
            whole = states_pb2.NodeState()
            async for message in stub.GetState(request):
                whole.MergeFrom(message)
            assert whole.local_node.name == "node1"
            assert [one.pod_name for one in whole.endpoints] == [f"pod-{n}" for n in range(4)]
            assert [one.name for one in whole.policies] == ["rule1", "rule2"]
            assert whole.told_ns == at_ns
            part = states_pb2.NodeState()
            async for message in stub.GetState(request, metadata=[(METADATA_KEY, "ns1")]):
                part.MergeFrom(message)
            assert {one.namespace for one in part.endpoints} == {"ns1"}
            assert {one.id for one in part.identities} == {one.identity for one in part.endpoints}
            assert not part.policies
            assert part.local_node == metadata_pb2.LocalNode(name="node1", cluster="default")
            assert not any(one.addresses for one in part.peers)
    async with running(tmp_path) as server:
        stub = states_pb2_grpc.StateServiceStub(server.channel)
        (told,) = [one async for one in stub.GetState(states_pb2.GetStateRequest())]
        assert told.note == "states are not kept here; set hubble-history-dir"


async def test_a_relay_names_nodes_that_tell_nothing(tmp_path: Path) -> None:
    foreign = FakeNode("foreign", f"{tmp_path}/foreign.sock")
    away = FakeNode("away", f"{tmp_path}/away.sock")
    async with cluster(tmp_path, foreign, away) as (relay, channel):
        await away.stop()
        await eventually(
            lambda: sum(connection.available for connection in relay.pool.connections) == 1
        )
        stub = states_pb2_grpc.StateServiceStub(channel)
        told = [one async for one in stub.GetState(states_pb2.GetStateRequest())]
    assert {one.node_name: one.note for one in told} == {
        "foreign": "cannot tell states",
        "away": "did not answer",
    }
