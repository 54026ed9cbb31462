from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest
from cilium_core.serving.grpc_server import GrpcServer, ServerTls
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.certificates import Authority

if TYPE_CHECKING:
    from pathlib import Path


async def check(port: int, credentials: grpc.ChannelCredentials) -> int:
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        return int(answer.status)


async def test_mutual_tls_admits_only_clients_of_the_authority(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "other")
    server_certificate, server_key = authority.issue("server")
    ca = authority.certificate.read_bytes()
    server = GrpcServer()
    tls = ServerTls(server_certificate, server_key, client_ca=authority.certificate)
    port = server.listen_tcp("127.0.0.1:0", tls)
    await server.start()
    try:
        certificate, key = authority.issue("client")
        known = grpc.ssl_channel_credentials(ca, key.read_bytes(), certificate.read_bytes())
        assert await check(port, known) == health_pb2.HealthCheckResponse.SERVING
        certificate, key = stranger.issue("foreigner")
        foreign = grpc.ssl_channel_credentials(ca, key.read_bytes(), certificate.read_bytes())
        for credentials in (foreign, grpc.ssl_channel_credentials(ca)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await check(port, credentials)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    finally:
        await server.stop(0)
