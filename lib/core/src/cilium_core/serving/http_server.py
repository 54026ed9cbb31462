"""A small HTTP/1.1 server on asyncio streams, for health, metrics and the CNI socket.

One request per connection, bodies with Content-Length only, strict limits. It exists because
importing a web framework costs 0.4 s of CPU per process, which ten agents starting together on
two cores feel; anything public or complicated speaks gRPC instead.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from cilium_core.errors import UnavailableError
from cilium_core.serving.sockets import claim_unix_path, file_mode, split_address
from cilium_core.telemetry.logs import get_logger

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable
    from pathlib import Path

_HEAD_LIMIT = 16 * 1024
_BODY_LIMIT = 4 * 1024 * 1024
_READ_TIMEOUT_S = 10.0

log = get_logger()


@dataclass(frozen=True, slots=True)
class Request:
    """A request; header names in lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """An answer."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"


class _BadRequestError(Exception):
    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class HttpServer:
    """Routes by exact method and path. Owned by one event loop."""

    def __init__(self) -> None:
        self._routes: dict[tuple[str, str], Callable[[Request], Awaitable[Response]]] = {}
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._sockets: list[Path] = []

    def route(
        self, method: str, path: str, handler: Callable[[Request], Awaitable[Response]]
    ) -> None:
        """Serve `method path` with `handler`; an exception in it becomes a 500."""
        self._routes[method, path] = handler

    async def listen_tcp(self, address: str, tls: ssl.SSLContext | None = None) -> int:
        """Serve on `host:port` (port 0 chooses one), with TLS if given, and return the port.

        Raises UnavailableError when the address cannot be bound.
        """
        host, port = split_address(address)
        try:
            server = await asyncio.start_server(
                self._accept,
                host or None,
                port,
                limit=_HEAD_LIMIT,
                reuse_address=True,
                ssl=tls,
            )
        except OSError as error:
            raise UnavailableError(f"cannot listen on {address}: {error}") from error
        self._servers.append(server)
        bound: int = server.sockets[0].getsockname()[1]
        return bound

    async def listen_unix(self, path: Path, mode: int = 0o660) -> None:
        """Serve on a unix socket, replacing a stale one. Raises as `claim_unix_path`."""
        claim_unix_path(path)
        with file_mode(mode):
            server = await asyncio.start_unix_server(self._accept, str(path), limit=_HEAD_LIMIT)
        self._servers.append(server)
        self._sockets.append(path)

    async def stop(self, grace_s: float = 1.0) -> None:
        """Stop listening, give running requests `grace_s`, then cut them off."""
        for server in self._servers:
            server.close()
        for path in self._sockets:
            path.unlink(missing_ok=True)
        if self._connections:
            _done, pending = await asyncio.wait(self._connections, timeout=grace_s)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        self._servers.clear()
        self._sockets.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio runs this in a task
        self._connections.add(task)
        try:
            response = await self._answer(reader)
            reason = HTTPStatus(response.status).phrase
            head = (
                f"HTTP/1.1 {response.status} {reason}\r\n"
                f"Content-Type: {response.content_type}\r\n"
                f"Content-Length: {len(response.body)}\r\n"
                "Connection: close\r\n\r\n"
            )
            writer.write(head.encode() + response.body)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away; there is nobody left to tell
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> Response:
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S):
                request = await _read_request(reader)
        except _BadRequestError as error:
            return Response(error.status, f"{error}\n".encode(), "text/plain; charset=utf-8")
        except TimeoutError:
            return Response(HTTPStatus.REQUEST_TIMEOUT, b"", "text/plain")
        handler = self._routes.get((request.method, request.path))
        if handler is None:
            known = any(path == request.path for _method, path in self._routes)
            missing = HTTPStatus.METHOD_NOT_ALLOWED if known else HTTPStatus.NOT_FOUND
            return Response(missing, f"{missing.phrase}\n".encode(), "text/plain")
        try:
            return await handler(request)
        except Exception:
            log.exception("http handler failed", method=request.method, path=request.path)
            return Response(HTTPStatus.INTERNAL_SERVER_ERROR, b"internal error\n", "text/plain")


async def _read_request(reader: asyncio.StreamReader) -> Request:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise _BadRequestError(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request head is too large"
        ) from None
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise _BadRequestError(HTTPStatus.BAD_REQUEST, "not an HTTP/1.1 request line")
    headers: dict[str, str] = {}
    for line in lines[1:-2]:
        name, colon, value = line.partition(":")
        if not colon:
            raise _BadRequestError(HTTPStatus.BAD_REQUEST, "a header line has no colon")
        headers[name.strip().lower()] = value.strip()
    if "transfer-encoding" in headers:
        raise _BadRequestError(HTTPStatus.LENGTH_REQUIRED, "send Content-Length, not chunks")
    length = headers.get("content-length", "0")
    if not length.isdecimal():
        raise _BadRequestError(HTTPStatus.BAD_REQUEST, "Content-Length is not a number")
    if int(length) > _BODY_LIMIT:
        raise _BadRequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body is too large")
    body = await reader.readexactly(int(length))
    path, _mark, query = words[1].partition("?")
    return Request(words[0], path, query, headers, body)
