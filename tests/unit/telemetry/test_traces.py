"""Calls between the programs are spans of one trace, whatever client and server they go through."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cilium_core import traces
from cilium_core.errors import NotFoundError
from cilium_core.serving.grpc_server import GrpcServer
from cilium_core.serving.packed import PackedServer
from cilium_core.serving.packed.calls import stream, unary
from cilium_core.settings import TelemetrySettings
from cilium_core.telemetry import collectors
from grpc_health.v1 import health_pb2, health_pb2_grpc
from peer import peer_pb2
from peer.peer_pb2_grpc import PeerServicer, PeerStub, add_PeerServicer_to_server
from relay import relay_pb2

from tests.unit.collecting import LIMIT_S, Collector, attributes, collecting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

NOTIFY = "peer.Peer/Notify"


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    monkeypatch.setattr(collectors, "_WAIT_S", 0.05)
    async with collecting() as made:
        settings = replace(TelemetrySettings(), otlp_endpoint=made.address)
        traces.begin(settings, service="program", node="n1")
        try:
            yield made
        finally:
            await asyncio.to_thread(traces.end)


class Peers(PeerServicer):
    """Tells of one peer; of none, but an error, when that is what is asked for."""

    def __init__(self, onward: Callable[[], Any] | None = None) -> None:
        self.onward = onward

    async def Notify(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        if self.onward is not None:
            await self.onward()
        else:
            raise NotFoundError("nobody here")
        yield peer_pb2.ChangeNotification(name="a")


@asynccontextmanager
async def plain_server(onward: Callable[[], Any] | None = None) -> AsyncIterator[str]:
    server = GrpcServer()
    server.add("peer.Peer", add_PeerServicer_to_server, Peers(onward))
    port = server.listen_tcp("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@asynccontextmanager
async def packed_server(onward: Callable[[], Any] | None = None) -> AsyncIterator[str]:
    async def notify(_request: peer_pb2.NotifyRequest, call: Any) -> None:
        if onward is None:
            raise NotFoundError("nobody here")
        await onward()
        await call.send(peer_pb2.ChangeNotification(name="a"))

    server = PackedServer()
    server.add("peer.Peer", {"Notify": stream(notify, peer_pb2.NotifyRequest)})
    port = await server.listen_tcp("127.0.0.1:0")
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def ask(address: str) -> list[str]:
    async with grpc.aio.insecure_channel(
        address, interceptors=traces.client_interceptors()
    ) as channel:
        answers = PeerStub(channel).Notify(peer_pb2.NotifyRequest())
        return [answer.name async for answer in answers]


async def nothing() -> None: ...


def by_kind(spans: list[tuple[str, Any]]) -> dict[int, Any]:
    return {span.kind: span for _, span in spans}


SERVER, CLIENT = 2, 3


@pytest.mark.parametrize("serving", [plain_server, packed_server])
async def test_a_call_is_a_span_at_both_ends(collector: Collector, serving: Any) -> None:
    async with serving(nothing) as address:
        assert await ask(address) == ["a"]
        ends = by_kind(await collector.spans(2))

    server, client = ends[SERVER], ends[CLIENT]
    assert (server.name, client.name) == (NOTIFY, NOTIFY)
    assert server.trace_id == client.trace_id
    assert server.parent_span_id == client.span_id
    assert attributes(client.attributes) == {
        "rpc.system": "grpc",
        "rpc.service": "peer.Peer",
        "rpc.method": "Notify",
        "rpc.grpc.status_code": 0,
    }


@pytest.mark.parametrize("serving", [plain_server, packed_server])
async def test_what_a_handler_asks_belongs_to_the_call_that_it_answers(
    collector: Collector, serving: Any
) -> None:
    async with plain_server(nothing) as behind, serving(lambda: ask(behind)) as address:
        assert await ask(address) == ["a"]
        spans = [span for _, span in await collector.spans(4)]

    assert len({span.trace_id for span in spans}) == 1
    parents = {span.span_id: span.parent_span_id for span in spans}
    (first,) = [span for span in spans if not span.parent_span_id]
    last = next(span for span in spans if span.span_id not in parents.values())
    chain = [last.span_id]
    while parents[chain[-1]]:
        chain.append(parents[chain[-1]])
    assert len(chain) == 4
    assert chain[-1] == first.span_id


@pytest.mark.parametrize("serving", [plain_server, packed_server])
async def test_a_call_that_fails_says_how(collector: Collector, serving: Any) -> None:
    async with serving() as address:
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(address)
        ends = by_kind(await collector.spans(2))

    for span in ends.values():
        assert attributes(span.attributes)["rpc.grpc.status_code"] == 5
    assert (ends[CLIENT].status.code, ends[CLIENT].status.message) == (2, "nobody here")
    assert ends[SERVER].status.code == 0  # the client's mistake, not the server's


async def test_blocking_clients_tell_of_their_calls(collector: Collector) -> None:
    def block(address: str) -> list[str]:
        with grpc.insecure_channel(address) as opened:
            channel = traces.traced(opened)
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            return [one.name for one in PeerStub(channel).Notify(peer_pb2.NotifyRequest())]

    async with plain_server(nothing) as address:
        assert await asyncio.to_thread(block, address) == ["a"]
        spans = await collector.spans(2)
    assert {span.name for _, span in spans} == {NOTIFY}  # and none of the health check


async def test_a_stream_that_the_client_leaves_ends_its_spans(collector: Collector) -> None:
    called = asyncio.Event()

    async def wait() -> None:
        called.set()
        await asyncio.Event().wait()

    async with (
        plain_server(wait) as address,
        grpc.aio.insecure_channel(address, interceptors=traces.client_interceptors()) as channel,
    ):
        call = PeerStub(channel).Notify(peer_pb2.NotifyRequest())
        reading = asyncio.ensure_future(call.read())
        await asyncio.wait_for(called.wait(), LIMIT_S)
        call.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        ends = by_kind(await collector.spans(2))
    for span in ends.values():
        assert attributes(span.attributes)["rpc.grpc.status_code"] == 1


async def test_a_command_is_the_root_of_what_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    async with collecting() as made:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{made.address}")
        monkeypatch.setenv("TRACEPARENT", f"00-{'ab' * 16}-{'cd' * 8}-01")
        async with plain_server(nothing) as address:

            def run() -> None:
                with (
                    traces.command("hubble", "hubble list peers"),
                    grpc.insecure_channel(address) as opened,
                ):
                    list(PeerStub(traces.traced(opened)).Notify(peer_pb2.NotifyRequest()))

            await asyncio.to_thread(run)
            spans = [span for name, span in await made.spans(2) if name == "hubble"]
    command = next(span for span in spans if span.name == "hubble list peers")
    assert command.parent_span_id.hex() == "cd" * 8
    assert {span.trace_id.hex() for span in spans} == {"ab" * 16}


def test_a_command_whose_collector_is_away_says_nothing_of_it_and_ends_soon(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"unix:{tmp_path}/none.sock")
    started = time.monotonic()
    with traces.command("hubble", "hubble list"):
        pass
    assert time.monotonic() - started < LIMIT_S / 2
    assert capfd.readouterr() == ("", "")


async def test_no_share_begins_no_trace() -> None:
    settings = replace(TelemetrySettings(), otlp_endpoint="127.0.0.1:1", otlp_trace_ratio=0.0)
    traces.begin(settings, service="x")
    assert not traces.is_told(NOTIFY)
    assert (traces.client_interceptors(), traces.server_interceptors()) == ((), ())


def test_without_a_collector_nothing_of_opentelemetry_is_imported() -> None:
    script = (
        "import sys\n"
        "from cilium_core.serving import programs, grpc_server, packed\n"
        "grpc_server.GrpcServer\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


async def test_one_answer_calls_are_told_as_streams_are(collector: Collector) -> None:
    async def nodes(_request: Any, _call: Any) -> relay_pb2.NodeStatusEvent:
        return relay_pb2.NodeStatusEvent(message="m")

    server = PackedServer()
    server.add("a.B", {"C": unary(nodes, peer_pb2.NotifyRequest)})
    port = await server.listen_tcp("127.0.0.1:0")
    async with grpc.aio.insecure_channel(
        f"127.0.0.1:{port}", interceptors=traces.client_interceptors()
    ) as channel:
        call = channel.unary_unary("/a.B/C", peer_pb2.NotifyRequest.SerializeToString)
        await call(peer_pb2.NotifyRequest())
        spans = await collector.spans(2)
    await server.stop(0)
    assert {span.kind for _, span in spans} == {SERVER, CLIENT}
