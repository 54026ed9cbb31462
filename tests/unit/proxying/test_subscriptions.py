"""A proxy and an agent: what is to be enforced, what was acknowledged, what was reported."""

from __future__ import annotations

import asyncio
import json
import tempfile
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest
from cilium.proxy.v1 import proxy_pb2, proxy_pb2_grpc
from cilium_core.errors import InvalidError
from cilium_core.policy.l7 import DnsRule, KafkaRule, L7Kind, Redirect
from cilium_core.proxying import redirects
from cilium_core.proxying.redirects import Assignment, DnsOptions
from cilium_core.proxying.reporting import Reporter, encode_request
from cilium_core.proxying.subscribing import Subscription, dial
from cilium_core.varints import varint
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.agent_ends import AgentEnd
from tests.unit.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

A = Redirect(ingress=False, kind=L7Kind.DNS, dns=(DnsRule(name="a.test"),))
B = Redirect(ingress=False, kind=L7Kind.DNS, dns=(DnsRule(pattern="*.b.test"),), audit=True)
K = Redirect(
    ingress=True,
    kind=L7Kind.KAFKA,
    kafka=(KafkaRule(frozenset({0, 3}), 2, "client", "topic"), KafkaRule()),
    allow_all=False,
)


class Proxy:
    """The proxy's side."""

    def __init__(self, state_dir: Path, kind: L7Kind = L7Kind.DNS) -> None:
        self.kind = kind
        self.taken: list[Assignment] = []
        self.errors: dict[int, str] = {}
        self.events: list[str] = []
        self.copy = state_dir / "proxies" / "copy.json"
        self.subscription = Subscription(
            kind,
            self.copy,
            self.take_up,
            joined=lambda: self.events.append("joined"),
            left=lambda: self.events.append("left"),
        )
        self.reporter = Reporter(kind, buffer=100)

    async def take_up(self, assignment: Assignment) -> dict[int, str]:
        self.taken.append(assignment)
        return {port: text for port, text in self.errors.items() if port in assignment.redirects}

    @asynccontextmanager
    async def running(self, state_dir: Path) -> AsyncIterator[None]:
        channel = dial(state_dir)
        tasks = [
            asyncio.create_task(self.subscription.run(channel)),
            asyncio.create_task(self.reporter.run(channel)),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await channel.close()


class Agent(AgentEnd):
    """The agent's side."""

    def __init__(self, state_dir: Path) -> None:
        super().__init__(state_dir, L7Kind.DNS, L7Kind.KAFKA)
        self.broken = False

    async def observe(self, observations) -> list[float]:
        return [1.5] * len(observations)

    async def take(self, kind: L7Kind, records, lost: int) -> None:
        assert kind is L7Kind.DNS
        if self.broken:
            raise InvalidError("not now")
        await super().take(kind, records, lost)


@pytest.fixture
def state_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tD-") as path:
        yield Path(path)


@pytest.fixture
async def agent(state_dir: Path) -> AsyncIterator[Agent]:
    agent = Agent(state_dir)
    await agent.start()
    yield agent
    await agent.stop()


async def test_ports_are_served_once_the_proxy_has_acknowledged_them(state_dir, agent):
    proxy = Proxy(state_dir)
    agent.board.publish({10001: A})
    assert await agent.board.served([10001], timeout_s=0.05) == frozenset()

    async with proxy.running(state_dir):
        assert await agent.board.served([10001], timeout_s=10) == {10001}
        agent.board.publish({10001: B, 10002: A})
        assert await agent.board.served([10001, 10002], timeout_s=10) == {10001, 10002}
        assert proxy.taken[-1].redirects == {10001: B, 10002: A}
        agent.board.publish({10002: A})
        await eventually(lambda: proxy.taken[-1].redirects == {10002: A})
        assert agent.board.connected
    await eventually(lambda: not agent.board.connected)
    assert not agent.board.serves(10002)


async def test_a_port_that_cannot_be_served_is_told_until_it_can(state_dir, agent):
    proxy = Proxy(state_dir)
    proxy.errors = {10001: "in use"}
    agent.board.publish({10001: A, 10002: B})
    async with proxy.running(state_dir):
        await eventually(lambda: agent.board.errors == {10001: "in use"})
        assert await agent.board.served([10001, 10002], timeout_s=0.05) == {10002}

        proxy.subscription.tell({})
        assert await agent.board.served([10001, 10002], timeout_s=10) == {10001, 10002}


async def test_options_reach_the_proxy(state_dir, agent):
    proxy = Proxy(state_dir)
    options = DnsOptions(3, 0.25, 7, 0.5)
    async with proxy.running(state_dir):
        await eventually(lambda: proxy.subscription.connected)
        agent.board.publish_options(options)
        await eventually(lambda: proxy.subscription.assignment.dns_options == options)


async def test_what_was_enforced_last_is_enforced_again_without_an_agent(state_dir, agent):
    proxy = Proxy(state_dir)
    agent.board.publish({10001: A, 10002: B})
    async with proxy.running(state_dir):
        await agent.board.served([10001, 10002], timeout_s=10)
        await eventually(proxy.copy.exists)
    await agent.stop()

    again = Proxy(state_dir)
    await again.subscription.restored()
    assert again.taken == [proxy.subscription.assignment]


async def test_a_proxy_goes_on_through_the_agents_absence(state_dir, agent):
    proxy = Proxy(state_dir)
    agent.board.publish({10001: A})
    async with proxy.running(state_dir):
        await agent.board.served([10001], timeout_s=10)
        await agent.stop()
        await eventually(lambda: proxy.events == ["joined", "left"])
        assert proxy.taken[-1].redirects == {10001: A}

        agent.board.publish({10001: B})
        await agent.start()
        assert await agent.board.served([10001], timeout_s=10) == {10001}
        assert proxy.taken[-1].redirects == {10001: B}


async def test_an_agent_that_knows_nothing_closes_the_ports_of_an_earlier_one(state_dir, agent):
    proxy = Proxy(state_dir)
    redirects.save(proxy.copy, Assignment({10001: A}))
    await proxy.subscription.restored()
    async with proxy.running(state_dir):
        await eventually(lambda: proxy.taken[-1].redirects == {})


async def test_the_boards_of_two_kinds_are_apart(state_dir, agent):
    kafka = Proxy(state_dir, L7Kind.KAFKA)
    agent.boards[L7Kind.KAFKA].publish({10009: K})
    agent.board.publish({10001: A})
    async with kafka.running(state_dir):
        assert await agent.boards[L7Kind.KAFKA].served([10009], timeout_s=10)
        assert kafka.taken[-1].redirects == {10009: K}


async def test_a_kind_that_nobody_serves_is_refused(state_dir, agent):
    channel = dial(state_dir)
    stub = proxy_pb2_grpc.ProxyServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError, match="no kind of proxy"):
        await stub.ReportRecords(proxy_pb2.ReportRecordsRequest(kind=0))
    await channel.close()


async def test_records_arrive_in_order_and_once_the_agent_is_there(state_dir, agent):
    proxy = Proxy(state_dir)
    await agent.stop()
    async with proxy.running(state_dir):
        for number in range(50):
            proxy.reporter.add_message(proxy_pb2.Record(time_ns=number))
        await agent.start()
        await eventually(lambda: proxy.reporter.reported == 50)

    assert [record.time_ns for record in agent.records] == list(range(50))
    assert proxy.reporter.waiting == 0


async def test_records_above_the_buffer_are_lost_and_the_agent_is_told_how_many(state_dir, agent):
    proxy = Proxy(state_dir)
    for number in range(130):
        proxy.reporter.add_message(proxy_pb2.Record(time_ns=number))
    async with proxy.running(state_dir):
        await eventually(lambda: agent.lost == 30 and proxy.reporter.waiting == 0)
        proxy.reporter.add_message(proxy_pb2.Record(time_ns=999))
        await eventually(lambda: agent.records[-1].time_ns == 999)

    assert agent.lost == proxy.reporter.lost == 30
    assert len(agent.records) == 101


async def test_a_batch_that_is_not_taken_over_is_sent_again(state_dir, agent):
    proxy = Proxy(state_dir)
    agent.broken = True
    async with proxy.running(state_dir):
        proxy.reporter.add_message(proxy_pb2.Record(time_ns=1))
        with suppress(TimeoutError):
            await eventually(lambda: agent.records, 0.3)
        agent.broken = False
        await eventually(lambda: agent.records)

    assert [record.time_ns for record in agent.records] == [1]


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1))
def test_numbers_are_written_as_protobuf_writes_them(number):
    request = proxy_pb2.ReportRecordsRequest(lost=number).SerializeToString()
    assert request == (b"\x18" + varint(number) if number else b"")


@settings(deadline=None)
@given(st.lists(st.builds(proxy_pb2.Record, time_ns=st.integers(0, 2**62), client=st.binary())))
def test_a_request_of_encoded_records_reads_like_a_whole_one(records):
    encoded = encode_request(L7Kind.DNS, [one.SerializeToString() for one in records], 5)
    expected = proxy_pb2.ReportRecordsRequest(
        kind=proxy_pb2.PROXY_KIND_DNS, records=records, lost=5
    )
    assert proxy_pb2.ReportRecordsRequest.FromString(encoded) == expected


@pytest.mark.parametrize(
    ("kind", "assignment"),
    [
        (L7Kind.DNS, Assignment()),
        (L7Kind.DNS, Assignment({10001: A, 10002: B}, DnsOptions(3, 0.02, 9, 1.0))),
        (L7Kind.KAFKA, Assignment({1: K, 65535: Redirect(True, L7Kind.KAFKA, allow_all=True)})),
    ],
)
def test_a_copy_on_disk_reads_back(tmp_path, kind, assignment):
    redirects.save(tmp_path / "copy.json", assignment)
    assert redirects.load(tmp_path / "copy.json", kind) == assignment
    assert isinstance(json.loads((tmp_path / "copy.json").read_text()), dict)
    assert (tmp_path / "copy.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"{", b"\xff", b'{"redirects": [{"port": 0}]}', b'{"x": 1}'])
def test_a_copy_that_makes_no_sense_is_an_error_with_its_name(tmp_path, content):
    path = tmp_path / "copy.json"
    path.write_bytes(content)
    with pytest.raises(InvalidError, match=r"copy\.json"):
        redirects.load(path, L7Kind.DNS)
    assert redirects.load(tmp_path / "none.json", L7Kind.DNS) is None
