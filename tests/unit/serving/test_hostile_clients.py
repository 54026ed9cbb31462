"""Whatever a client does to a packed server, the server stays small and others are served."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cilium_core.serving.packed import Call, PackedServer, Quotas, quotas, stream, unary
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import StreamReset
from observer import observer_pb2 as pb

from tests.unit.serving.raw_clients import LIMIT_S, SERVICE, Raw, raw

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


class Behaviour:
    """A service that answers, waits for ever, or tells much."""

    def __init__(self) -> None:
        self.open = 0

    async def follow(self, request: pb.GetFlowsRequest, call: Call) -> None:
        self.open += 1
        try:
            await call.start()
            if request.number:
                await call.send_many([b"x" * request.number])
            await asyncio.Event().wait()
        finally:
            self.open -= 1

    async def status(self, _request: pb.ServerStatusRequest, _call: Call) -> Any:
        return pb.ServerStatusResponse(version="7")


@asynccontextmanager
async def serving(folder: Path, **limits: int) -> AsyncIterator[tuple[str, Behaviour]]:
    """A server on a unix socket; gives the path and what it does."""
    behaviour = Behaviour()
    server = PackedServer(quotas=Quotas(**limits))
    server.add(
        SERVICE,
        {
            "GetFlows": stream(behaviour.follow, pb.GetFlowsRequest),
            "ServerStatus": unary(behaviour.status, pb.ServerStatusRequest),
        },
    )
    await server.listen_unix(folder / "x.sock")
    try:
        yield str(folder / "x.sock"), behaviour
    finally:
        await server.stop()


async def version(path: str) -> str:
    """What another client is told meanwhile."""
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        method = channel.unary_unary(
            f"/{SERVICE}/ServerStatus", response_deserializer=pb.ServerStatusResponse.FromString
        )
        return str((await method(b"", timeout=LIMIT_S)).version)


@pytest.mark.parametrize(
    ("sent", "code", "text"),
    [
        (b"\0\0\0\0\3\xff\xff\xff", 13, "the request is no observer.ServerStatusRequest"),
        (b"\1\0\0\0\0", 12, "compressed requests are not supported"),
        (b"\0\0\0\1\0abc", 13, "the client ended within a request"),
        (b"\0\0", 13, "the client ended within a request"),
        (b"", 13, "the call ended before its request came"),
        (b"\0\xff\xff\xff\xff", 8, "4294967295 bytes, and 262144 is the most"),
    ],
)
async def test_malformed_requests_get_clear_codes(
    tmp_path: Path, sent: bytes, code: int, text: str
) -> None:
    async with serving(tmp_path) as (path, _), raw(path) as client:
        client.h2.send_data(client.begin(), sent, end_stream=True)
        client.flush()
        [(told, message)] = await client.statuses(1)
        assert (told, text in message) == (str(code), True), message
        assert await version(path) == "7"


async def test_what_is_no_request_ends_its_connection_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as (path, _):
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" * 100, b"\0" * 4096):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(garbage)
            async with asyncio.timeout(LIMIT_S):
                await reader.read()
            writer.close()
        async with raw(path) as client:
            client.begin(path=False)
            client.flush()
            assert await client.ending() == ErrorCodes.PROTOCOL_ERROR
        assert await version(path) == "7"


async def test_frames_of_kinds_that_nobody_knows_are_passed_over(tmp_path: Path) -> None:
    async with serving(tmp_path) as (path, _), raw(path) as client:
        client.writer.write(b"\0\0\2\xbb\0\0\0\0\0hi")
        client.h2.send_data(client.begin(), b"\0\0\0\0\0", end_stream=True)
        client.flush()
        assert await client.statuses(1) == [("0", "")]


async def test_a_flood_of_pings_ends_the_connection(tmp_path: Path) -> None:
    async with serving(tmp_path) as (path, _), raw(path) as client:
        for _ in range(60_000):
            client.h2.ping(b"12345678")
        client.flush()
        assert await client.ending() in (ErrorCodes.ENHANCE_YOUR_CALM, None)
        assert await version(path) == "7"


async def test_streams_that_are_reset_at_once_end_the_connection(tmp_path: Path) -> None:
    async with serving(tmp_path) as (path, behaviour), raw(path) as client:
        for _ in range(4_000):
            client.h2.reset_stream(client.begin("GetFlows"))
        client.flush()
        assert await client.ending() in (ErrorCodes.ENHANCE_YOUR_CALM, None)
        assert behaviour.open == 0
        assert await version(path) == "7"


async def test_one_client_may_not_take_all_calls(tmp_path: Path) -> None:
    request = pb.GetFlowsRequest().SerializeToString()
    async with serving(tmp_path, calls_of_client=20) as (path, behaviour):
        channels = [
            grpc.aio.insecure_channel(f"unix:{path}", [("grpc.use_local_subchannel_pool", 1)])
            for _ in range(3)
        ]
        streams = [
            channel.unary_stream(f"/{SERVICE}/GetFlows")(request)
            for channel in channels
            for _ in range(10)
        ]
        ended = await asyncio.gather(*(refused(each) for each in streams))
        assert (sum(ended), behaviour.open) == (10, 20)
        with pytest.raises(grpc.aio.AioRpcError, match="this client has 20 calls in progress"):
            await version(path)
        await asyncio.gather(*(channel.close() for channel in channels))
        async with asyncio.timeout(LIMIT_S):
            while behaviour.open:  # noqa: ASYNC110 - what is waited for knows no events
                await asyncio.sleep(0.005)
        assert await version(path) == "7"


async def refused(call: Any) -> bool:
    with suppress(grpc.aio.AioRpcError):
        await call.initial_metadata()
    return call.done() and await call.code() == EXHAUSTED


async def test_the_connection_that_is_idle_for_longest_makes_room(tmp_path: Path) -> None:
    async with serving(tmp_path, connections=3) as (path, behaviour):
        busy, idle, newer = [await Raw.connect(path) for _ in range(3)]
        for client in (busy, newer):
            number = client.begin("GetFlows")
            client.h2.send_data(number, b"\0\0\0\0\0", end_stream=True)
            client.flush()
        async with asyncio.timeout(LIMIT_S):
            while behaviour.open < 2:  # noqa: ASYNC110 - what is waited for knows no events
                await asyncio.sleep(0.005)
        assert await version(path) == "7"
        assert await idle.ending() == ErrorCodes.NO_ERROR
        assert behaviour.open == 2
        for client in (busy, idle, newer):
            await client.close()


async def test_a_client_without_end_of_answers_to_read_is_dropped(tmp_path: Path) -> None:
    async with serving(tmp_path) as (path, _):
        reader, writer = await asyncio.open_unix_connection(path)
        h2 = H2Connection(H2Configuration())
        h2.initiate_connection()
        writer.write(h2.data_to_send())
        # each answer is larger than its question, and none is read
        for _ in range(400):
            h2.ping(b"12345678")
        pings = h2.data_to_send()
        async with asyncio.timeout(LIMIT_S):
            with suppress(ConnectionError):
                while True:
                    writer.write(pings)
                    await writer.drain()
        assert reader is not None  # and never read
        writer.close()
        assert await version(path) == "7"


async def test_large_requests_that_do_not_come_hold_room_for_a_while_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "REQUEST_TIMEOUT_S", 0.3)
    async with serving(tmp_path, request_bytes=256 << 10) as (path, _), raw(path) as client:
        for _ in range(2):
            client.h2.send_data(client.begin(), b"\0" + (256 << 10).to_bytes(4, "big") + b"x")
        client.flush()
        assert await version(path) == "7"
        told = await client.statuses(2)
        assert {code for code, _ in told} == {"4"}
        assert "the request of 262144 bytes did not come within 0.3 s" in told[0][1]


async def test_a_reset_stream_is_no_error_of_others(tmp_path: Path) -> None:
    async with serving(tmp_path) as (path, behaviour), raw(path) as client:
        first = client.begin("GetFlows")
        client.h2.send_data(first, b"\0\0\0\0\0", end_stream=True)
        client.h2.reset_stream(first)
        client.h2.send_data(client.begin(), b"\0\0\0\0\0", end_stream=True)
        client.flush()
        async for event in client.events():
            assert not isinstance(event, StreamReset)
            if (b"grpc-status", b"0") in [tuple(one) for one in getattr(event, "headers", [])]:
                break
        assert behaviour.open == 0


async def test_answers_that_wait_for_one_client_are_bounded(tmp_path: Path) -> None:
    request = pb.GetFlowsRequest(number=1_000_000).SerializeToString()
    framed = b"\0" + len(request).to_bytes(4, "big") + request
    async with serving(tmp_path, unsent_of_client=3_500_000) as (path, _), raw(path) as client:
        for _ in range(5):
            client.h2.send_data(client.begin("GetFlows"), framed, end_stream=True)
        client.flush()
        told = await client.statuses(2)
        assert {code for code, _ in told} == {"8"}
        assert "wait for this client to read them, and 3500000 are the most" in told[0][1]
