"""The packed server speaks gRPC like any other, only with fewer frames."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cilium_core.errors import InvalidError, NotFoundError, UnavailableError
from cilium_core.serving.packed import Call, CallError, PackedServer, Status, stream, unary
from cilium_core.serving.packed.quotas import MAX_REQUEST_BYTES
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded, TrailersReceived
from observer import observer_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SERVICE = "observer.Observer"


class Behaviour:
    """A service whose streams do what the request's number says."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.blocked = 0

    async def get_flows(self, request: pb.GetFlowsRequest, call: Call) -> None:
        names = (pb.GetFlowsResponse(node_name=str(n)) for n in range(request.number))
        await call.send_many([each.SerializeToString() for each in names])
        if request.follow:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise

    async def status(self, _request: pb.ServerStatusRequest, call: Call) -> Any:
        raise_ = {"invalid": InvalidError, "missing": NotFoundError, "bug": ZeroDivisionError}
        asked = call.metadata.get("raise", "")
        if asked == "status":
            raise CallError(Status.UNKNOWN, "bare text")
        if asked:
            raise raise_[asked](f"{asked} it is")
        return pb.ServerStatusResponse(version=call.metadata.get("say", ""))


@pytest.fixture
def behaviour() -> Behaviour:
    return Behaviour()


@pytest.fixture
async def server(behaviour: Behaviour) -> AsyncIterator[PackedServer]:
    made = PackedServer(metadata={"x-version": "7"})
    made.add(
        SERVICE,
        {
            "GetFlows": stream(behaviour.get_flows, pb.GetFlowsRequest),
            "ServerStatus": unary(behaviour.status, pb.ServerStatusRequest),
        },
    )
    yield made
    await made.stop()


@pytest.fixture
async def channel(server: PackedServer, tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    path = tmp_path / "x.sock"
    await server.listen_unix(path)
    async with grpc.aio.insecure_channel(f"unix:{path}") as made:
        yield made


def get_flows(channel: grpc.aio.Channel, **request: Any) -> Any:
    method = channel.unary_stream(
        f"/{SERVICE}/GetFlows", response_deserializer=pb.GetFlowsResponse.FromString
    )
    return method(pb.GetFlowsRequest(**request).SerializeToString())


def status(channel: grpc.aio.Channel, **metadata: str) -> Any:
    method = channel.unary_unary(
        f"/{SERVICE}/ServerStatus", response_deserializer=pb.ServerStatusResponse.FromString
    )
    return method(b"", metadata=tuple(metadata.items()))


async def test_messages_arrive_in_order_and_whole_across_many_windows(
    channel: grpc.aio.Channel,
) -> None:
    call = get_flows(channel, number=50_000)
    found = [response.node_name async for response in call]
    assert [str(n) for n in range(50_000)] == found
    assert await call.code() == grpc.StatusCode.OK
    assert dict(await call.initial_metadata())["x-version"] == "7"


async def test_many_messages_share_a_frame(server: PackedServer, tmp_path: Path) -> None:
    path = tmp_path / "y.sock"
    await server.listen_unix(path)
    request = pb.GetFlowsRequest(number=100).SerializeToString()
    frames, trailers = await asyncio.to_thread(raw_call, path, request)
    assert len(frames) == 1
    assert len(frames[0]) > 100 * 5
    assert (b"grpc-status", b"0") in trailers


def raw_call(path: Path, request: bytes, size: int | None = None) -> tuple[list[bytes], Any]:
    """One call by hand; returns the data frames and the trailers."""
    h2 = H2Connection(H2Configuration())
    h2.initiate_connection()
    headers = [(":method", "POST"), (":scheme", "http"), (":path", f"/{SERVICE}/GetFlows")]
    headers += [(":authority", "x"), ("te", "trailers"), ("content-type", "application/grpc")]
    h2.send_headers(1, headers)
    length = len(request) if size is None else size
    h2.send_data(1, b"\0" + length.to_bytes(4, "big") + request, end_stream=size is None)
    frames: list[bytes] = []
    trailers: Any = []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(path))
        while True:
            connection.sendall(h2.data_to_send())
            for event in h2.receive_data(connection.recv(65536)):
                if isinstance(event, DataReceived):
                    frames.append(event.data)
                elif isinstance(event, TrailersReceived) or (
                    hasattr(event, "headers") and b"grpc-status" in dict(event.headers)
                ):
                    trailers = event.headers
                if isinstance(event, StreamEnded):
                    return frames, trailers


async def test_a_request_of_absurd_size_is_refused_before_it_is_read(
    server: PackedServer, tmp_path: Path
) -> None:
    path = tmp_path / "y.sock"
    await server.listen_unix(path)
    _, trailers = await asyncio.to_thread(raw_call, path, b"x", MAX_REQUEST_BYTES + 1)
    assert (b"grpc-status", str(Status.RESOURCE_EXHAUSTED.value).encode()) in trailers


async def test_a_cancelled_call_ends_its_handler(
    channel: grpc.aio.Channel, behaviour: Behaviour
) -> None:
    call = get_flows(channel, number=1, follow=True)
    await call.read()
    call.cancel()
    await asyncio.wait_for(behaviour.cancelled.wait(), 30)


async def test_a_client_that_hangs_up_ends_its_handler(
    server: PackedServer, behaviour: Behaviour, tmp_path: Path
) -> None:
    path = tmp_path / "y.sock"
    await server.listen_unix(path)
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        await get_flows(channel, number=1, follow=True).read()
    await asyncio.wait_for(behaviour.cancelled.wait(), 30)


@pytest.mark.parametrize(
    ("asked", "code", "text"),
    [
        ("invalid", grpc.StatusCode.INVALID_ARGUMENT, "invalid it is"),
        ("missing", grpc.StatusCode.NOT_FOUND, "missing it is"),
        ("status", grpc.StatusCode.UNKNOWN, "bare text"),
        ("bug", grpc.StatusCode.INTERNAL, "internal error; see the server's log"),
    ],
)
async def test_errors_become_codes(
    channel: grpc.aio.Channel, asked: str, code: grpc.StatusCode, text: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await status(channel, **{"raise": asked})
    assert (code, text) == (caught.value.code(), caught.value.details())


async def test_metadata_of_the_client_reaches_the_handler(channel: grpc.aio.Channel) -> None:
    assert (await status(channel, say="hello")).version == "hello"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/some.Service/Do", "unknown service some.Service"),
        ("/observer.Observer/Do", "unknown method Do for service observer.Observer"),
    ],
)
async def test_a_method_nobody_serves_is_unimplemented(
    channel: grpc.aio.Channel, path: str, text: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(path)(b"")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details() == text


async def test_an_address_in_use_is_an_error_that_names_it(server: PackedServer) -> None:
    port = await server.listen_tcp("127.0.0.1:0")
    with pytest.raises(UnavailableError, match=f"cannot listen on 127.0.0.1:{port}"):
        await server.listen_tcp(f"127.0.0.1:{port}")


async def test_health_is_watched(server: PackedServer, channel: grpc.aio.Channel) -> None:
    server.health.set("a", serving=False)
    states = health_pb2.HealthCheckResponse
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="a"))
    assert (await watch.read()).status == states.NOT_SERVING
    server.health.set("a", serving=True)
    assert (await watch.read()).status == states.SERVING
    unknown = health_pb2.HealthCheckRequest(service="b")
    assert (
        await health_pb2_grpc.HealthStub(channel).Watch(unknown).read()
    ).status == states.SERVICE_UNKNOWN
    watch.cancel()


async def test_reflection_describes_itself_in_both_versions(channel: grpc.aio.Channel) -> None:
    for version in ("v1", "v1alpha"):
        name = f"grpc.reflection.{version}.ServerReflection"
        method = channel.stream_stream(
            f"/{name}/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        ask = reflection_pb2.ServerReflectionRequest
        questions = [
            ask(file_containing_symbol=name),
            ask(file_by_filename="no/such.proto"),
            ask(all_extension_numbers_of_type="observer.Node"),
        ]
        described, missing, extensions = [answer async for answer in method(iter_(questions))]
        assert len(described.file_descriptor_response.file_descriptor_proto) == 1
        assert Status.NOT_FOUND.value == missing.error_response.error_code
        assert extensions.all_extension_numbers_response.base_type_name == "observer.Node"


async def iter_(values: list[Any]) -> AsyncIterator[Any]:
    for value in values:
        yield value


async def test_a_stopped_server_hangs_up(server: PackedServer, tmp_path: Path) -> None:
    path = tmp_path / "y.sock"
    await server.listen_unix(path)
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        call = get_flows(channel, number=1, follow=True)
        await call.read()
        await server.stop()
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
    assert not path.exists()
