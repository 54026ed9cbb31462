from __future__ import annotations

import asyncio
import socket
import stat
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from cilium.operator.v1 import operator_pb2 as pb
from cilium.operator.v1 import operator_pb2_grpc
from cilium_core.errors import ConflictError, InvalidError, NotFoundError, UnavailableError
from cilium_core.serving.grpc_server import GrpcServer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAME = "cilium.operator.v1.OperatorService"


class Servicer(operator_pb2_grpc.OperatorServiceServicer):
    def __init__(self, answer: Callable[[], Any]) -> None:
        self.answer = answer

    async def GetStatus(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        return self.answer()


def serve(path: Path, answer: Callable[[], Any] = pb.GetStatusResponse) -> GrpcServer:
    server = GrpcServer()
    server.add(NAME, operator_pb2_grpc.add_OperatorServiceServicer_to_server, Servicer(answer))
    server.listen_unix(path)
    return server


@pytest.fixture
def sock(tmp_path: Path) -> Path:
    return tmp_path / "run" / "test.sock"


def mode_of(path: Path) -> int | None:
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else None


async def status_of(path: Path) -> tuple[grpc.StatusCode, str | None]:
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        stub = operator_pb2_grpc.OperatorServiceStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetStatus(pb.GetStatusRequest())
        return caught.value.code(), caught.value.details()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFoundError("no node n1"), grpc.StatusCode.NOT_FOUND),
        (InvalidError("bad"), grpc.StatusCode.INVALID_ARGUMENT),
        (UnavailableError("etcd is down"), grpc.StatusCode.UNAVAILABLE),
    ],
)
async def test_a_domain_error_becomes_its_status(
    sock: Path, error: Exception, code: grpc.StatusCode
) -> None:
    def fail() -> None:
        raise error

    server = serve(sock, fail)
    await server.start()
    try:
        assert await status_of(sock) == (code, str(error))
    finally:
        await server.stop(0)


async def test_the_text_of_an_error_is_no_longer_than_clients_take(sock: Path) -> None:
    def fail() -> None:
        raise InvalidError("no port: " + "x" * 40_000)

    server = serve(sock, fail)
    await server.start()
    code, text = await status_of(sock)
    await server.stop()
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert text is not None
    assert text.startswith("no port: xx")
    assert text.endswith("more characters)")


async def test_a_bug_is_internal_and_tells_no_details(sock: Path) -> None:
    server = serve(sock, lambda: {"a": 1}["secret"])
    await server.start()
    try:
        code, details = await status_of(sock)
        assert code == grpc.StatusCode.INTERNAL
        assert "secret" not in str(details)
    finally:
        await server.stop(0)


async def test_health_and_reflection_are_served(sock: Path) -> None:
    server = serve(sock)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{sock}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest(service=NAME))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            await server.set_serving(NAME, serving=False)
            answer = await health.Check(health_pb2.HealthCheckRequest(service=NAME))
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING

            reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
            call = reflection.ServerReflectionInfo(
                iter([reflection_pb2.ServerReflectionRequest(list_services="")])
            )
            listed = [s.name async for m in call for s in m.list_services_response.service]
            assert NAME in listed
    finally:
        await server.stop(0)


async def test_the_socket_is_for_owner_and_group_and_goes_at_stop(sock: Path) -> None:
    server = serve(sock)
    await server.start()
    assert mode_of(sock) == 0o660
    await server.stop(0)
    assert mode_of(sock) is None


async def test_a_stale_socket_is_replaced_and_a_live_one_is_not(sock: Path) -> None:
    sock.parent.mkdir()
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(sock))
    stale.close()

    server = serve(sock)
    await server.start()
    try:
        with pytest.raises(ConflictError, match="another process serves"):
            serve(sock)
    finally:
        await server.stop(0)


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        async def listen() -> None:
            GrpcServer().listen_tcp(address)

        with pytest.raises(UnavailableError, match=f"cannot listen on {address}"):
            asyncio.run(listen())


@pytest.mark.parametrize(
    ("method", "body", "code"),
    [
        (f"/{NAME}/GetStatus", b"\xff\xff", grpc.StatusCode.INTERNAL),
        ("/grpc.health.v1.Health/Check", b"\xff\xff", grpc.StatusCode.INTERNAL),
        (
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            b"\xff\xff",
            grpc.StatusCode.INTERNAL,
        ),
        ("/grpc.health.v1.Health/List", b"", grpc.StatusCode.UNIMPLEMENTED),
    ],
)
async def test_a_request_that_means_nothing_is_told_so(
    sock: Path, method: str, body: bytes, code: grpc.StatusCode
) -> None:
    server = serve(sock)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{sock}") as channel:
            call: Any = channel.unary_unary(method)
            with pytest.raises(grpc.aio.AioRpcError, match=r"malformed|not implemented") as caught:
                await call(body)
            assert caught.value.code() == code
    finally:
        await server.stop(0)
