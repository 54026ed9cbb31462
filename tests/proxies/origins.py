"""An HTTP/1.1 server that tells what reached it, and a client that says exactly what it is told."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import ssl
from collections.abc import Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.namespaces import SERVER, Namespaces, connected, listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_WEBSOCKET = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
DISCONNECTS = (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError)


@dataclass(frozen=True)
class Answer:
    """A response; `body` is decoded JSON where the server sent some."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def seen(self) -> dict[str, Any]:
        """What the server says it got."""
        document: dict[str, Any] = json.loads(self.body)
        return document


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            request, *lines = head.strip().split("\r\n")
            headers = [line.split(": ", 1) for line in lines if ": " in line]
            named = dict(headers)
            if named.get("upgrade") == "websocket":
                await _echo(named["sec-websocket-key"], reader, writer)
                return
            if length := int(named.get("content-length", 0)):
                await reader.readexactly(length)
            seen = {
                "request": request,
                "headers": headers,
                "client": writer.get_extra_info("peername")[0],
                "server_name": getattr(writer.get_extra_info("ssl_object"), "seen_name", None),
            }
            body = json.dumps(seen).encode()
            status = named.get("answer-with", "200")
            writer.write(f"HTTP/1.1 {status} OK\r\ncontent-length: {len(body)}\r\n\r\n".encode())
            writer.write(body)
            await writer.drain()
    except DISCONNECTS:
        pass
    finally:
        writer.close()


async def _echo(key: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    digest = hashlib.sha1(key.encode() + _WEBSOCKET, usedforsecurity=False).digest()
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        b"sec-websocket-accept: " + base64.b64encode(digest) + b"\r\n\r\n"
    )
    while data := await reader.read(1000):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def serving(
    namespaces: Namespaces, *ports: int, tls: ssl.SSLContext | None = None
) -> AsyncIterator[None]:
    """Serve these ports in the server's namespace, in both families."""
    servers = [
        await asyncio.start_server(
            _answer, sock=listening(namespaces.server, port, family), ssl=tls
        )
        for port in ports
        for family in (4, 6)
    ]
    try:
        yield
    finally:
        for server in servers:
            server.close()


async def say(
    namespaces: Namespaces,
    data: bytes,
    *,
    port: int = 80,
    family: int = 4,
    tls: ssl.SSLContext | None = None,
    name: str | None = None,
) -> Answer:
    """Send bytes to the server and read one response.

    Raises `ConnectionError` or `IncompleteReadError` when the connection ends before it.
    """
    sock = await connected(namespaces.client, SERVER[family], port)
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(sock=sock, ssl=tls, server_hostname=name)
        try:
            writer.write(data)
            return await read_answer(reader)
        finally:
            writer.close()


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Read one response."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status, *lines = head.strip().split("\r\n")
    headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}
    code = int(status.split()[1])
    body = b""
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    return Answer(code, headers, body)


async def call(
    namespaces: Namespaces,
    method: str = "GET",
    path: str = "/",
    *headers: str,
    host: str = "web",
    **how: Any,
) -> Answer:
    """One request over a connection of its own."""
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}", *headers]
    return await say(namespaces, ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"), **how)
