"""Requests that are meant to hurt: the server says what is wrong, and serves others meanwhile."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cilium.flows.v1 import flows_pb2, flows_pb2_grpc
from flow import flow_pb2
from observer import observer_pb2

from tests.unit.hubble.conftest import running
from tests.unit.hubble.loads import traffic
from tests.unit.serving.raw_clients import LIMIT_S, raw

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.unit.hubble.conftest import Server

Filter = flow_pb2.FlowFilter
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with running(tmp_path, hubble_event_buffer_capacity=16_383) as made:
        for _ in range(4):
            await made.feed_flows(traffic(4000, pods=4))
        yield made


def cel(expression: str) -> flow_pb2.FlowFilter:
    made = Filter()
    made.experimental.cel_expression.append(expression)
    return made


def request(*entries: flow_pb2.FlowFilter, **fields: Any) -> observer_pb2.GetFlowsRequest:
    return observer_pb2.GetFlowsRequest(whitelist=entries, **fields)


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


@pytest.mark.parametrize(
    "entries",
    [
        [Filter()] * 2001,
        [Filter(source_pod=["a/b"] * 20_001)],
        [Filter(destination_ip=["10.0.0.0/8"] * 2001)],
        [Filter(dns_query=["x"] * 201)],
        [cel("true")] * 41,
    ],
)
async def test_filters_that_are_too_much_work_are_refused(
    server: Server, entries: list[flow_pb2.FlowFilter]
) -> None:
    code, text = await refusal(server.observer.GetFlows(request(*entries)).read())
    assert code == EXHAUSTED
    assert "units of work, and 20000 is the most" in text
    counting = flows_pb2.AggregateFlowsRequest(flows=request(*entries))
    own = flows_pb2_grpc.FlowsServiceStub(server.channel)
    assert (await refusal(own.AggregateFlows(counting)))[0] == EXHAUSTED


async def test_a_request_that_is_too_large_is_refused(server: Server) -> None:
    call = server.observer.GetFlows(request(*[Filter(uuid=["x" * 1000])] * 300))
    code, text = await refusal(call.read())
    assert (code, text.endswith("bytes, and 262144 is the most")) == (EXHAUSTED, True)


@pytest.mark.parametrize("expression", ["a{1000}{1000}", "((a{100}){100}){100}", "(" * 5000])
async def test_expressions_that_would_take_much_memory_are_mistakes(
    server: Server, expression: str
) -> None:
    call = server.observer.GetFlows(request(Filter(http_path=[expression])))
    code, text = await refusal(call.read())
    assert code == grpc.StatusCode.UNKNOWN
    assert "error parsing regexp" in text


async def test_texts_of_mistakes_are_no_longer_than_clients_take(server: Server) -> None:
    call = server.observer.GetFlows(request(Filter(http_path=["é" * 40_000 + "("])))
    code, text = await refusal(call.read())
    assert code == grpc.StatusCode.UNKNOWN
    assert "error parsing regexp: missing closing ): `éé" in text
    assert text.endswith("more characters)")


NESTED = "true"
for _depth in range(6):
    NESTED = f"[1,2,3,4,5,6,7,8,9,10].all(x{_depth}, {NESTED})"


@pytest.mark.parametrize(
    "entry",
    [
        Filter(dns_query=["(a+)+" * 20 + "$"] * 100),
        Filter(source_fqdn=["*a" * 40] * 200),
        Filter(source_label=[f"a notin ({','.join(map(str, range(200)))})"] * 500),
        Filter(destination_ip=["10.0.0.0/8", "::/0"] * 900),
        cel(NESTED),
    ],
)
async def test_others_are_served_while_filters_are_much_work(
    server: Server, entry: flow_pb2.FlowFilter
) -> None:
    hostile = [server.observer.GetFlows(request(entry, number=1 << 40)) for _ in range(20)]
    reading = [asyncio.ensure_future(call.read()) for call in hostile]
    try:
        began_s = time.monotonic()
        assert len(await server.get(number=20)) == 20
        live = server.observer.GetFlows(request(follow=True))
        await live.initial_metadata()
        server.feed.put(traffic(1, pods=4))
        assert (await live.read()).HasField("flow")
        assert time.monotonic() - began_s < 20
    finally:
        for call in (*hostile, live):
            call.cancel()
        await asyncio.gather(*reading, return_exceptions=True)


async def lag_s(server: Server) -> float:
    """How long new flows take to a client that follows."""
    live = server.observer.GetFlows(request(follow=True))
    await live.initial_metadata()
    lags = []
    async with asyncio.timeout(LIMIT_S):
        for _ in range(10):
            server.feed.put(traffic(20, pods=4))
            seen = [await live.read() for _ in range(20)]
            lags.append(time.time_ns() - seen[-1].time.ToNanoseconds())
    live.cancel()
    return sorted(lags)[5] / 1e9


async def test_idle_streams_leave_the_others_theirs(server: Server, tmp_path: Path) -> None:
    nobody = request(Filter(source_pod=["no/such"]), follow=True).SerializeToString()
    async with raw(f"{tmp_path}/hubble.sock") as idle:
        await idle.settled()
        for _ in range(200):
            await idle.call("GetFlows", nobody)
        assert await lag_s(server) < 2


async def test_clients_that_do_not_read_cost_others_nothing(server: Server, tmp_path: Path) -> None:
    everything = request(follow=True, number=1 << 40).SerializeToString()
    async with raw(f"{tmp_path}/hubble.sock") as slow:
        await slow.settled()
        for _ in range(50):
            await slow.call("GetFlows", everything)
        assert len(await server.get(number=20)) == 20
        assert await lag_s(server) < 2
