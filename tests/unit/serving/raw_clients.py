"""A client of observer.Observer that speaks HTTP/2 by hand, and so may do what none should."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SERVICE = "observer.Observer"
LIMIT_S = 30.0


class Raw:
    """A client that speaks HTTP/2 by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.h2 = H2Connection(H2Configuration(validate_outbound_headers=False))
        self.h2.initiate_connection()
        self.flush()

    @classmethod
    async def connect(cls, path: str) -> Raw:
        return cls(*await asyncio.open_unix_connection(path))

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    def begin(self, method: str = "ServerStatus", *, path: bool = True) -> int:
        """Open a stream, and give its number."""
        headers = [(":method", "POST"), (":scheme", "http"), (":authority", "x")]
        headers += [(":path", f"/{SERVICE}/{method}")] if path else []
        headers += [("te", "trailers"), ("content-type", "application/grpc")]
        number = self.h2.get_next_available_stream_id()
        self.h2.send_headers(number, headers)
        return number

    async def settled(self) -> None:
        """Wait for the server's settings, after which there is room for many streams."""
        async for _ in self.events():
            if self.h2.remote_settings.max_concurrent_streams > 1000:
                return

    async def call(self, method: str, request: bytes) -> None:
        """Send one whole request; answers are left unread."""
        framed = b"\0" + len(request).to_bytes(4, "big") + request
        self.h2.send_data(self.begin(method), framed, end_stream=True)
        self.flush()
        await self.writer.drain()

    async def events(self) -> AsyncIterator[Any]:
        """What the server says, until it hangs up."""
        async with asyncio.timeout(LIMIT_S):
            while data := await self._reader.read(65_536):
                for event in self.h2.receive_data(data):
                    yield event
                self.flush()

    async def statuses(self, count: int) -> list[tuple[str, str]]:
        """Codes and texts with which calls end."""
        found: list[tuple[str, str]] = []
        async for event in self.events():
            headers = {bytes(key): bytes(value) for key, value in getattr(event, "headers", [])}
            if b"grpc-status" in headers:
                text = headers.get(b"grpc-message", b"").decode()
                found.append((headers[b"grpc-status"].decode(), text))
            if len(found) == count:
                break
        return found

    async def ending(self) -> ErrorCodes | None:
        """Why the server ended the connection; None when it only hung up."""
        code = None
        try:
            async for event in self.events():
                if isinstance(event, ConnectionTerminated):
                    code = ErrorCodes(event.error_code)
        except ConnectionError:
            pass
        return code

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


@asynccontextmanager
async def raw(path: str) -> AsyncIterator[Raw]:
    client = await Raw.connect(path)
    try:
        yield client
    finally:
        await client.close()
