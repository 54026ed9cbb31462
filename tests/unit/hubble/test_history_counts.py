"""Counts that reach back: what history and ring say together is what single flows say."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from cilium.flows.v1 import flows_pb2, flows_pb2_grpc
from cilium_core.flow_dimensions import NAMES, values_of
from flow import flow_pb2
from hubble_relay.app import Relay
from hubble_relay.settings import RelaySettings
from hubble_server.flows.naming import Namer
from hubble_server.flows.querying import Query
from hubble_server.history.counting import count
from hubble_server.history.layout import parts_of
from hubble_server.history.walking import Asked
from observer import observer_pb2, observer_pb2_grpc
from peer import peer_pb2

from tests.unit.hubble.conftest import Server, running
from tests.unit.hubble.loads import traffic
from tests.unit.hubble.pipelines import NODE
from tests.unit.hubble.test_history import Kept, strange_flows
from tests.unit.relay.fakes import FakeNode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

BY = ("source", "destination", "port", "verdict", "policy", "protocol")


def ask(
    kept: Kept, *by: str, query: Query | None = None, asked: Asked | None = None
) -> flows_pb2.AggregateFlowsResponse:
    query = query or Query()
    asked = asked or Asked(since_ns=query.since_ns, until_ns=query.until_ns)
    namer = Namer(NODE, kept.directory)
    return count(kept.history, kept.store, query, asked, [NAMES[one] for one in by], 0, namer)


def counted(flows: list[flow_pb2.Flow], *by: str) -> Counter[tuple[str, ...]]:
    numbers = [NAMES[one] for one in by]
    return Counter(values_of(flow, numbers) for flow in flows)


def told(answer: flows_pb2.AggregateFlowsResponse) -> dict[tuple[str, ...], int]:
    return {tuple(group.values): group.flows for group in answer.groups}


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "history")


@pytest.mark.parametrize(
    "allow", [[], [flow_pb2.FlowFilter(verdict=[flow_pb2.DROPPED])]], ids=["all", "dropped"]
)
def test_files_journal_and_ring_are_counted_as_their_flows_one_by_one(
    kept: Kept, allow: list[flow_pb2.FlowFilter]
) -> None:
    for seed in range(3):
        strange_flows(kept, seed)
        if seed < 2:
            kept.history.step()
        if seed < 1:
            kept.complete()
    query = Query(filters=kept.filters(allow))
    answer = ask(kept, *BY, query=query, asked=Asked(whitelist=allow))
    assert told(answer) == counted(kept.flows(query), *BY)


def test_counts_keep_to_the_times_asked_for(kept: Kept) -> None:
    kept.feed(traffic(200, 4))
    kept.complete()
    kept.feed(traffic(200, 4, 2))
    flows = kept.flows()
    times = [flow.time.ToNanoseconds() for flow in flows]
    answer = ask(kept, "verdict", query=Query(since_ns=times[150], until_ns=times[299]))
    assert told(answer) == counted(flows[150:300], "verdict")
    assert min(group.first_ns for group in answer.groups) == times[150]
    assert max(group.last_ns for group in answer.groups) == times[299]
    (budget,) = answer.budgets
    assert not budget.covered_from_ns
    (budget,) = ask(kept, query=Query(since_ns=times[0] - 1)).budgets
    assert budget.covered_from_ns == times[0]


def test_what_the_history_lacks_is_in_the_budget(kept: Kept) -> None:
    kept.feed(traffic(300, 4))
    kept.complete()
    kept.feed(traffic(10, 4), lost={0: 7})
    kept.feed(traffic(1, 4))
    kept.complete()
    damaged = parts_of(kept.path)[0][0].path
    damaged.write_bytes(damaged.read_bytes()[:-3])
    (budget,) = ask(kept, "verdict").budgets
    assert (budget.lost_in_kernel, budget.lost_in_history) == (7, 300)


def test_counts_of_what_was_removed_say_where_they_begin(kept: Kept) -> None:
    for seed in range(2):
        kept.feed(traffic(50, 4, seed))
        kept.complete()
    parts_of(kept.path)[0][0].path.unlink()
    kept.history._parts.pop(1)
    answer = ask(kept)
    assert sum(told(answer).values()) == 50
    assert answer.budgets[0].covered_from_ns == kept.flows()[50].time.ToNanoseconds()


async def test_a_relay_answers_from_the_histories_of_its_nodes(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "hubble_history_dir": tmp_path / "past",
        "hubble_event_buffer_capacity": 255,
    }
    async with running(tmp_path, **settings) as server, behind_a_relay(server, tmp_path) as channel:
        for seed in range(5):
            await server.feed_flows(traffic(1200, 4, seed))
        flows = [one.flow for one in await server.get(number=6000, first=True)]
        assert len({flow.uuid for flow in flows}) == 6000
        observer = observer_pb2_grpc.ObserverStub(channel)
        for request in (
            observer_pb2.GetFlowsRequest(since=flows[3].time),
            observer_pb2.GetFlowsRequest(number=5997),
        ):
            found = [one async for one in observer.GetFlows(request)]
            assert [one.flow for one in found if one.HasField("flow")] == flows[3:]
        request = flows_pb2.AggregateFlowsRequest(by=[NAMES[one] for one in BY])
        request.flows.since.CopyFrom(flows[3].time)
        answer = await flows_pb2_grpc.FlowsServiceStub(channel).AggregateFlows(request)
        assert told(answer) == counted(flows[3:], *BY)


@asynccontextmanager
async def behind_a_relay(server: Server, folder: Path) -> AsyncIterator[grpc.aio.Channel]:
    socket = server.app._settings.socket_path
    book = FakeNode("book", f"{folder}/book.sock")
    await book.start()
    book.tell(
        peer_pb2.ChangeNotification(
            name="node1", address=f"unix://{socket}", type=peer_pb2.PEER_ADDED
        )
    )
    relay = Relay(
        RelaySettings(
            peer_service=(book.address,),
            listen_address=(f"unix://{folder}/relay.sock",),
            health_listen_address="",
            disable_client_tls=True,
        )
    )
    await relay.start()
    try:
        async with grpc.aio.insecure_channel(f"unix://{folder}/relay.sock") as channel:
            await server.until(lambda: any(one.available for one in relay.pool.connections))
            yield channel
    finally:
        await relay.stop()
        await book.stop()
