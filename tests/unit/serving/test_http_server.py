from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from cilium_core.serving.http_server import HttpServer, Request, Response
from cilium_core.serving.observability import observability_server
from cilium_core.telemetry import Health, Registry, counter

if TYPE_CHECKING:
    from pathlib import Path


async def exchange(path: Path, data: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(data)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def echo(request: Request) -> Response:
    return Response(200, json.dumps([request.method, request.path, request.query]).encode())


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /echo?a=1 HTTP/1.1\r\n\r\n", 200),
        (b"POST /echo HTTP/1.1\r\n\r\n", 405),
        (b"GET /other HTTP/1.1\r\n\r\n", 404),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nContent-Length: \xb2\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", 413),
        (b"GET /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"GET /echo HTTP/1.1\r\nX: " + b"y" * 20000 + b"\r\n\r\n", 431),
    ],
)
async def test_each_kind_of_request_has_its_status(
    tmp_path: Path, data: bytes, status: int
) -> None:
    server = HttpServer()
    server.route("GET", "/echo", echo)
    await server.listen_unix(tmp_path / "http.sock")
    try:
        answer = await exchange(tmp_path / "http.sock", data)
        assert answer.split()[1] == str(status).encode()
        if status == 200:
            assert answer.endswith(b'["GET", "/echo", "a=1"]')
    finally:
        await server.stop()


async def test_a_failing_handler_is_a_500_and_the_server_goes_on(tmp_path: Path) -> None:
    async def broken(_request: Request) -> Response:
        raise RuntimeError("bug")

    server = HttpServer()
    server.route("GET", "/broken", broken)
    await server.listen_unix(tmp_path / "http.sock")
    try:
        for _ in range(2):
            answer = await exchange(tmp_path / "http.sock", b"GET /broken HTTP/1.1\r\n\r\n")
            assert b" 500 " in answer
            assert b"bug" not in answer
    finally:
        await server.stop()


async def test_healthz_tells_what_fails_and_metrics_are_shown(tmp_path: Path) -> None:
    health, registry = Health(), Registry()
    trouble = {"text": ""}
    health.add("kvstore", lambda: trouble["text"])
    runs = counter("test_runs_total", "Runs.", "outcome", registry=registry)
    runs.add(2, 'o"k')
    server = observability_server(health, registry=registry)
    await server.listen_unix(tmp_path / "http.sock")
    try:
        answer = await exchange(tmp_path / "http.sock", b"GET /healthz HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK")
        trouble["text"] = "no endpoint answers"
        answer = await exchange(tmp_path / "http.sock", b"GET /healthz HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"no endpoint answers" in answer
        answer = await exchange(tmp_path / "http.sock", b"GET /metrics HTTP/1.1\r\n\r\n")
        assert b'# TYPE test_runs_total counter\ntest_runs_total{outcome="o\\"k"} 2\n' in answer
    finally:
        await server.stop()
