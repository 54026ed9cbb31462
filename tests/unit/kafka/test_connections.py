"""A client and a broker with the proxy between them, on real sockets of the loopback device."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from cilium.proxy.v1 import proxy_pb2
from cilium_core.policy.l7 import KafkaRule, L7Kind, Redirect
from cilium_core.proxying.reporting import Reporter
from flow import flow_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kafka_proxy import connections
from kafka_proxy.budgets import Budget
from kafka_proxy.connections import Connection, Counters
from kafka_proxy.gates import Gate

from tests.unit.kafka.messages import (
    API_VERSIONS,
    FETCH,
    METADATA,
    PRODUCE,
    framed,
    metadata,
    parse_response,
    produce,
    request,
    response,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIMIT_S = 20
ORDERS = (KafkaRule(topic="orders"),)


def gate(*rules: KafkaRule, **more: Any) -> Gate:
    return Gate(9999, Redirect(False, L7Kind.KAFKA, kafka=rules, **more))


class Broker:
    """The far end: what arrived, and a writer for what it says."""

    def __init__(self) -> None:
        self.connected = asyncio.Event()
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.connected.set()

    async def request(self) -> bytes:
        size = int.from_bytes(await self.reader.readexactly(4), "big")
        return await self.reader.readexactly(size)


class Scene:
    """A connection of a client through the proxy to a broker."""

    def __init__(self, broker: Broker, reader: asyncio.StreamReader, writer: Any) -> None:
        self.broker = broker
        self.reader, self.writer = reader, writer
        self.counters = Counters()
        self.budget = Budget(connections.MAX_REQUEST)
        self.reporter = Reporter(L7Kind.KAFKA)
        self.ended = asyncio.Event()

    def send(self, *requests: bytes) -> None:
        for one in requests:
            self.writer.write(framed(one))

    async def receive(self) -> bytes:
        head = await self.reader.readexactly(4)
        return head + await self.reader.readexactly(int.from_bytes(head, "big"))

    async def correlation_ids(self, count: int) -> list[int]:
        return [int.from_bytes((await self.receive())[4:8], "big") for _ in range(count)]

    @property
    def records(self) -> list[proxy_pb2.Record]:
        return [proxy_pb2.Record.FromString(one) for one in self.reporter._waiting]

    @property
    def told(self) -> list[tuple[str, str, str, str, int]]:
        return [
            (
                flow_pb2.L7FlowType.Name(one.l7.type),
                one.l7.kafka.api_key,
                one.l7.kafka.topic,
                flow_pb2.Verdict.Name(one.verdict),
                one.l7.kafka.error_code,
            )
            for one in self.records
        ]

    async def broken(self) -> bool:
        """Whether the proxy ends the connection with a reset."""
        try:
            while await self.reader.read(1000):
                pass
        except ConnectionResetError:
            return True
        return False


@asynccontextmanager
async def between(gate: Gate, *, refused: bool = False) -> AsyncIterator[Scene]:
    broker = Broker()
    far = await asyncio.start_server(broker.accept, "127.0.0.1", 0)
    place = far.sockets[0].getsockname()

    async def dial(*_: Any, **__: Any) -> Any:
        if refused:
            raise ConnectionRefusedError("nobody there")
        return await asyncio.open_connection(*place)

    made: list[Scene] = []
    ready = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ready.wait()
        scene = made[0]
        await Connection(
            gate, (reader, writer), scene.reporter, scene.budget, scene.counters, dial=dial
        ).serve()
        scene.ended.set()

    near = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with asyncio.timeout(LIMIT_S), near, far:
        client = await asyncio.open_connection(*near.sockets[0].getsockname())
        made.append(Scene(broker, *client))
        ready.set()
        if not refused:
            await broker.connected.wait()
        try:
            yield made[0]
        finally:
            made[0].writer.transport.abort()
            if not refused:
                broker.writer.transport.abort()
            await made[0].ended.wait()


async def test_an_allowed_request_and_its_response_pass_as_they_are() -> None:
    async with between(gate(*ORDERS)) as scene:
        asked, said = produce("orders"), response(PRODUCE, 9)
        scene.send(asked)
        assert asked == await scene.broker.request()
        scene.broker.writer.write(said)
        assert said == await scene.receive()
        assert scene.told == [
            ("REQUEST", "produce", "orders", "FORWARDED", 0),
            ("RESPONSE", "produce", "orders", "FORWARDED", 0),
        ]
        request_record, response_record = scene.records
        assert request_record.l7.latency_ns == 0
        assert response_record.l7.latency_ns > 0
        assert response_record.l7.kafka.api_version == 9
        assert response_record.proxy_port == 9999


async def test_a_refused_request_is_answered_and_the_connection_goes_on() -> None:
    async with between(gate(*ORDERS)) as scene:
        scene.send(produce("secret", correlation_id=1), produce("orders", correlation_id=2))
        correlation_id, content = parse_response(PRODUCE, 9, await scene.receive())
        (topic,) = content["responses"]
        assert (
            correlation_id, topic["name"], topic["partition_responses"][0]["error_code"],
        ) == (1, "secret", 29)  # fmt: skip
        assert produce("orders", correlation_id=2) == await scene.broker.request()
        scene.broker.writer.write(response(PRODUCE, 9, 2))
        assert await scene.correlation_ids(1) == [2]
        assert scene.told[0] == ("REQUEST", "produce", "secret", "DROPPED", 29)
        assert scene.counters.requests == {"dropped": 1, "forwarded": 1}


async def test_answers_wait_for_the_responses_to_the_requests_before_them() -> None:
    async with between(gate(*ORDERS)) as scene:
        names = ["orders", "secret", "secret", "orders", "secret"]
        scene.send(*(produce(name, correlation_id=n) for n, name in enumerate(names)))
        await scene.broker.request()
        await scene.broker.request()
        scene.broker.writer.write(response(PRODUCE, 9, 0) + response(PRODUCE, 9, 3))
        assert await scene.correlation_ids(5) == [0, 1, 2, 3, 4]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    plan=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30),
    cuts=st.lists(st.integers(1, 90), min_size=1, max_size=10),
)
def test_any_pipeline_in_any_pieces_is_answered_in_order(
    plan: list[tuple[bool, bool]], cuts: list[int]
) -> None:
    """`plan` says of each request whether it is allowed and whether it wants an answer."""

    async def run() -> None:
        async with between(gate(*ORDERS)) as scene:
            stream = b"".join(
                framed(produce("orders" if ok else "x", correlation_id=number, acks=int(wants)))
                for number, (ok, wants) in enumerate(plan)
            )
            at = turn = 0
            while at < len(stream):
                size = cuts[turn % len(cuts)]
                scene.writer.write(stream[at : at + size])
                await scene.writer.drain()
                await asyncio.sleep(0)
                at, turn = at + size, turn + 1
            for number, (ok, wants) in enumerate(plan):
                if ok:
                    got = await scene.broker.request()
                    assert number == int.from_bytes(got[4:8], "big")
                    if wants:
                        scene.broker.writer.write(response(PRODUCE, 9, number))
            expected = [number for number, (_, wants) in enumerate(plan) if wants]
            assert expected == await scene.correlation_ids(len(expected))

    asyncio.run(run())


async def test_a_refused_question_about_topics_still_tells_of_the_brokers() -> None:
    async with between(gate(*ORDERS)) as scene:
        scene.send(metadata("secret", "orders", correlation_id=4), metadata("orders"))
        assert metadata(correlation_id=4) == await scene.broker.request()
        assert metadata("orders") == await scene.broker.request()
        broker = {"node_id": 7, "host": "b", "port": 9092, "rack": None}
        scene.broker.writer.write(response(METADATA, 9, 4, brokers=[broker], cluster_id="c"))
        correlation_id, content = parse_response(METADATA, 9, await scene.receive())
        assert (4, "c", [broker]) == (correlation_id, content["cluster_id"], content["brokers"])
        assert [(one["name"], one["error_code"]) for one in content["topics"]] == [
            ("secret", 29),
            ("orders", 29),
        ]
        scene.broker.writer.write(response(METADATA, 9))
        assert await scene.correlation_ids(1) == [1]
        assert [one[:4] for one in scene.told] == [
            ("REQUEST", "metadata", "secret", "DROPPED"),
            ("REQUEST", "metadata", "orders", "DROPPED"),
            ("REQUEST", "metadata", "orders", "FORWARDED"),
            ("RESPONSE", "metadata", "orders", "FORWARDED"),
        ]


@pytest.mark.parametrize(
    ("rules", "version"),
    [((KafkaRule(frozenset({PRODUCE})),), 9), ((KafkaRule(client_id="x"),), 9), (ORDERS, 0)],
)
async def test_brokers_are_not_asked_what_no_rule_allows(
    rules: tuple[KafkaRule, ...], version: int
) -> None:
    async with between(gate(*rules)) as scene:
        scene.send(metadata("secret", version=version))
        _, content = parse_response(METADATA, version, await scene.receive())
        assert (content["brokers"], [t["error_code"] for t in content["topics"]]) == ([], [29])


async def test_a_refusal_stands_though_the_broker_talks_nonsense() -> None:
    async with between(gate(*ORDERS)) as scene:
        scene.send(metadata("secret"))
        await scene.broker.request()
        scene.broker.writer.write(framed(b"\0\0\0\1\0\xff"))
        _, content = parse_response(METADATA, 9, await scene.receive())
        assert [one["error_code"] for one in content["topics"]] == [29]


async def test_a_write_without_acknowledgement_is_refused_in_silence() -> None:
    async with between(gate(*ORDERS)) as scene:
        scene.send(produce("secret", acks=0), produce("orders", acks=0), metadata("orders"))
        assert produce("orders", acks=0) == await scene.broker.request()
        assert metadata("orders") == await scene.broker.request()
        scene.broker.writer.write(response(METADATA, 9))
        assert await scene.correlation_ids(1) == [1]
        assert scene.told[0][3] == "DROPPED"


async def test_versions_that_the_broker_offers_are_limited_where_something_is_enforced() -> None:
    keys = [{"api_key": FETCH, "min_version": 0, "max_version": 17}]
    said = response(API_VERSIONS, 3, api_keys=keys)
    for chosen, highest in ((gate(*ORDERS, KafkaRule()), 12), (gate(allow_all=True), 17)):
        async with between(chosen) as scene:
            scene.send(request(API_VERSIONS, 3))
            await scene.broker.request()
            scene.broker.writer.write(said)
            _, content = parse_response(API_VERSIONS, 3, await scene.receive())
            assert [highest] == [one["max_version"] for one in content["api_keys"]]


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        framed(b""),
        framed(b"short"),
        b"\xff\xff\xff\xff",
        b"\x7f\xff\xff\xff" + b"x" * 100,
        (connections.MAX_REQUEST + 1).to_bytes(4, "big"),
        framed(b"\0\0\0\2\0\0\0\1\xff\xff\0\1"),
        framed(metadata("orders") + b"\0"),
    ],
)
async def test_what_cannot_be_judged_never_reaches_the_broker(garbage: bytes) -> None:
    async with between(gate(*ORDERS)) as scene:
        scene.writer.write(garbage)
        assert await scene.broken()
        await scene.ended.wait()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await scene.broker.request()
        (verdict,) = [one[3] for one in scene.told]
        assert verdict in ("ERROR", "DROPPED")
        assert scene.counters.garbage["client"] + scene.counters.requests["dropped"] == 1


async def test_requests_before_garbage_were_judged_by_themselves() -> None:
    async with between(gate(*ORDERS)) as scene:
        scene.send(metadata("orders"))
        scene.writer.write(b"\xff" * 8)
        assert metadata("orders") == await scene.broker.request()
        assert await scene.broken()


@pytest.mark.parametrize("more", [{"allow_all": True}, {"audit": True}])
async def test_where_nothing_is_enforced_anything_passes(more: dict[str, bool]) -> None:
    async with between(gate(*ORDERS, **more)) as scene:
        scene.writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await scene.broker.reader.readexactly(18) == b"GET / HTTP/1.1\r\n\r\n"
        scene.broker.writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        assert await scene.reader.readexactly(19) == b"HTTP/1.1 200 OK\r\n\r\n"
        assert scene.counters.garbage["client"] == 1


async def test_a_server_that_speaks_first_is_heard_where_nothing_is_enforced() -> None:
    async with between(gate(allow_all=True)) as scene:
        scene.broker.writer.write(b"220 hi")
        assert await scene.reader.readexactly(6) == b"220 hi"
    async with between(gate(*ORDERS)) as scene:
        scene.broker.writer.write(b"220 hi")
        assert await scene.broken()
        assert scene.counters.garbage["server"] == 1


async def test_an_audited_request_passes_and_is_told() -> None:
    async with between(gate(*ORDERS, audit=True)) as scene:
        scene.send(produce("secret"))
        assert produce("secret") == await scene.broker.request()
        scene.broker.writer.write(response(PRODUCE, 9))
        assert await scene.correlation_ids(1) == [1]
        assert scene.told[0][3] == "AUDIT"


async def test_a_response_to_no_request_ends_the_connection() -> None:
    async with between(gate(*ORDERS)) as scene:
        scene.send(metadata("orders", correlation_id=5))
        await scene.broker.request()
        scene.broker.writer.write(response(METADATA, 9, 6))
        assert await scene.broken()


async def test_a_write_of_an_old_version_passes_rules_without_topics_answered_or_not() -> None:
    old = b"\0\0\0\2\0\0\0\7\xff\xff\0\0"
    async with between(gate(KafkaRule(frozenset({PRODUCE, METADATA})))) as scene:
        scene.send(old, metadata("a", correlation_id=8), old)
        assert old == await scene.broker.request()
        scene.broker.writer.write(response(METADATA, 9, 8) + framed(b"\0\0\0\7rest"))
        assert await scene.correlation_ids(2) == [8, 7]


async def test_errors_of_the_broker_are_told() -> None:
    async with between(gate(*ORDERS)) as scene:
        scene.send(metadata("orders"))
        await scene.broker.request()
        scene.broker.writer.write(
            response(METADATA, 9, topics=[{"name": "orders", "error_code": 3}])
        )
        await scene.receive()
        assert scene.told[1] == ("RESPONSE", "metadata", "orders", "FORWARDED", 3)


async def test_a_large_response_passes_piece_by_piece() -> None:
    async with between(gate(*ORDERS)) as scene:
        scene.send(request(FETCH, 12, 3))
        await scene.broker.request()
        size = 40 << 20
        scene.broker.writer.write((size + 4).to_bytes(4, "big") + b"\0\0\0\3")
        sending = asyncio.create_task(write_all(scene.broker.writer, size))
        await scene.reader.readexactly(8)
        left = size
        while left:
            left -= len(await scene.reader.read(1 << 20))
        await sending


async def write_all(writer: asyncio.StreamWriter, size: int) -> None:
    for _ in range(size // (1 << 20)):
        writer.write(bytes(1 << 20))
        await writer.drain()


async def test_large_requests_wait_for_room_and_give_it_back() -> None:
    async with between(gate(*ORDERS)) as scene:
        data = [{"name": "orders", "partition_data": [{"index": 0, "records": bytes(5 << 20)}]}]
        whole = request(PRODUCE, 9, 1, acks=1, topic_data=data)
        free = scene.budget.free
        await scene.budget.take(free)
        scene.send(whole)
        arriving = asyncio.create_task(scene.broker.request())
        await asyncio.sleep(0.05)
        assert not arriving.done()
        scene.budget.give(free)
        assert whole == await arriving
        scene.broker.writer.write(response(PRODUCE, 9))
        await scene.receive()
        assert scene.budget.free == free


async def test_only_so_many_requests_are_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_PENDING", 3)
    async with between(gate(*ORDERS)) as scene:
        scene.send(*(metadata("orders", correlation_id=n) for n in range(10)))
        for _ in range(3):
            await scene.broker.request()
        fourth = asyncio.create_task(scene.broker.request())
        await asyncio.sleep(0.05)
        assert not fourth.done()
        scene.broker.writer.write(response(METADATA, 9, 0))
        await fourth
        for number in range(1, 10):
            scene.broker.writer.write(response(METADATA, 9, number))
            if number < 7:
                await scene.broker.request()
        assert list(range(10)) == await scene.correlation_ids(10)


async def test_a_client_that_has_said_all_still_gets_its_answers() -> None:
    async with between(gate(*ORDERS)) as scene:
        scene.send(metadata("orders"))
        scene.writer.write_eof()
        await scene.broker.request()
        assert await scene.broker.reader.read() == b""
        scene.broker.writer.write(response(METADATA, 9))
        scene.broker.writer.write_eof()
        assert await scene.correlation_ids(1) == [1]
        assert await scene.reader.read() == b""


async def test_a_broker_that_is_not_there_resets_the_client() -> None:
    async with between(gate(*ORDERS), refused=True) as scene:
        assert await scene.broken()
        assert scene.counters.unreachable == 1


async def test_each_topic_has_a_record_of_its_own_but_not_without_end() -> None:
    async with between(gate(*ORDERS)) as scene:
        scene.send(produce(*(f"t{n}" for n in range(40))))
        await scene.receive()
        assert [f"t{n}" for n in range(16)] == [one[2] for one in scene.told]
