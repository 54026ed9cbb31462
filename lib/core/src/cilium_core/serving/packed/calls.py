"""One call of a client: its request, and messages going back, many to a frame.

`Call` is the only place that reaches into grpclib's streams: grpclib sends one message at a time,
which is what this package exists to avoid.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import DecodeError, Message
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from h2.connection import ConnectionInputs
from h2.stream import StreamInputs

from cilium_core.serving.packed.quotas import MAX_REQUEST_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from h2.connection import H2Connection

    from cilium_core.access import Limits
    from cilium_core.serving.packed.quotas import Calls, Requests

__all__ = ["Call", "CallError", "Method", "Status", "dialogue", "pack", "stream", "unary"]

_SLOW_S = 1.0
"""How long a client may not read before what waits for it counts."""

_PREFIX_BYTES = 5
_MOST_UNSENT = 256 << 10

Request = TypeVar("Request", bound=Message)

CallError = GRPCError
"""Ends a call with a status; takes a Status and the message for the client."""


class Call:
    """A call in progress. Used by the one task that handles it."""

    def __init__(self, stream: Any, requests: Requests, calls: Calls) -> None:
        self._stream = stream
        self._requests = requests
        self._calls = calls
        self._frames = stream._stream
        self.limits: Limits | None = None
        """What the client may see, set by the server's guard; None is all."""
        self.held: Callable[[], int] = int
        """Bytes that wait for the client beside those that are being sent."""

    @property
    def client(self) -> str:
        """Who calls, for counting: subject of a certificate, an address, or `unix`."""
        return str(self._frames.connection.client)

    @property
    def peer(self) -> str:
        """Address of the client, for logs; empty on a unix socket."""
        address = self._stream.peer.addr()
        return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else ""

    @property
    def is_local(self) -> bool:
        """Whether the client came through a unix socket."""
        used = self._frames._transport.get_extra_info("socket")
        return used is not None and used.family == socket.AF_UNIX

    @property
    def certificate(self) -> dict[str, Any]:
        """What the client's certificate says, as `ssl.SSLSocket.getpeercert`; empty without."""
        return self._stream.peer.cert() or {}

    @property
    def metadata(self) -> dict[str, str]:
        """What the client sent along with the call; binary values (`-bin` keys) are left out."""
        sent = self._stream.metadata or {}
        return {key: value for key, value in sent.items() if isinstance(value, str)}

    async def receive(self, kind: type[Request]) -> Request | None:
        """Next message of the client, None when there are no more. Raises CallError."""
        prefix = await self._read(_PREFIX_BYTES)
        if not prefix:
            return None
        if prefix[0]:
            raise CallError(Status.UNIMPLEMENTED, "compressed requests are not supported")
        size = int.from_bytes(prefix[1:], "big")
        if size > MAX_REQUEST_BYTES:
            raise CallError(
                Status.RESOURCE_EXHAUSTED,
                f"the request has {size} bytes, and {MAX_REQUEST_BYTES} is the most",
            )
        async with self._requests.room(self.client, size):
            data = await self._read(size)
        try:
            return kind.FromString(data)
        except DecodeError as error:
            raise CallError(
                Status.INTERNAL, f"the request is no {kind.DESCRIPTOR.full_name}: {error}"
            ) from error

    async def _read(self, size: int) -> bytes:
        """Bytes of the client, empty at its end. Raises CallError when it ends before them."""
        try:
            return bytes(await self._frames.recv_data(size))
        except AssertionError as error:  # what grpclib says of an early end
            raise CallError(Status.INTERNAL, "the client ended within a request") from error

    async def start(self) -> None:
        """Send the headers now, so that the client knows the stream is open."""
        if not self._stream._send_initial_metadata_done:
            await self._stream.send_initial_metadata()

    async def send(self, message: Message) -> None:
        """Send one message."""
        await self.send_many((message.SerializeToString(),))

    async def send_many(self, messages: Sequence[bytes]) -> None:
        """Send messages that are encoded already. As `send_packed`."""
        await self.send_packed(pack(messages))

    async def send_packed(self, data: bytes) -> None:
        """Send what `pack` made of messages.

        Waits while the client's window or the socket is full, so a slow client holds no more
        memory than these messages. Other tasks get a turn after each call. Raises ExhaustedError
        when too much waits for the client already.
        """
        await self.start()
        await self._send(data)
        self._stream._send_message_done = True
        await asyncio.sleep(0)

    async def _send(self, data: bytes) -> None:
        """Send bytes in as few frames and writes as windows allow."""
        frames = self._frames
        connection = frames.connection
        h2 = frames._h2_connection
        transport = frames._transport
        view = memoryview(data)
        position, unsent = 0, 0
        made: list[bytes | memoryview] = []
        while position < len(view):
            window = h2.local_flow_control_window(frames.id)
            if window <= 0 or not connection.write_ready.is_set() or unsent >= _MOST_UNSENT:
                if made:
                    transport.write(b"".join((h2.data_to_send(), *made)))
                    made, unsent = [], 0
                await self._room(window, len(view) - position)
                continue
            size = min(window, h2.max_outbound_frame_size, len(view) - position)
            made.append(_data_head(h2, frames.id, size))
            made.append(view[position : position + size])
            position += size
            unsent += size
        if made:
            transport.write(b"".join((h2.data_to_send(), *made)))
        frames.data_sent += len(view)
        connection.data_sent += len(view)
        connection.data_send_process()

    async def _room(self, window: int, unsent: int) -> None:
        """Wait until something can be sent. Raises ExhaustedError where too much waits."""
        frames = self._frames

        async def wait() -> None:
            if window <= 0:
                await frames.window_updated.wait()
            await frames.connection.write_ready.wait()

        if window <= 0:
            frames.window_updated.clear()
        try:
            async with asyncio.timeout(_SLOW_S):
                await wait()
        except TimeoutError:
            with self._calls.unsent(self.client, unsent + self.held()):
                await wait()


def _data_head(h2: H2Connection, stream_id: int, size: int) -> bytes:
    """The head of a frame with data, accounted for as `H2Connection.send_data` does.

    That copies the data three times, which would be a seventh of what it costs to send flows.
    Raises ProtocolError when the stream is closed.
    """
    h2.state_machine.process_input(ConnectionInputs.SEND_DATA)
    stream_ = h2.streams[stream_id]
    stream_.state_machine.process_input(StreamInputs.SEND_DATA)
    h2.outbound_flow_control_window -= size
    stream_.outbound_flow_control_window -= size
    return struct.pack(">IBI", size << 8, 0, stream_id)


def pack(messages: Sequence[bytes]) -> bytes:
    """Messages with their gRPC prefixes, one after the other."""
    parts: list[bytes] = []
    for message in messages:
        parts.append(len(message).to_bytes(_PREFIX_BYTES, "big"))
        parts.append(message)
    return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Method:
    """How one method of a service is served."""

    handle: Callable[[Call], Awaitable[None]]


async def _request(call: Call, kind: type[Request]) -> Request:
    request = await call.receive(kind)
    if request is None:
        raise CallError(Status.INTERNAL, "the call ended before its request came")
    return request


def unary(
    function: Callable[[Request, Call], Awaitable[Message]], request: type[Request]
) -> Method:
    """A method with one request and one response."""

    async def handle(call: Call) -> None:
        await call.send(await function(await _request(call, request), call))

    return Method(handle)


def stream(function: Callable[[Request, Call], Awaitable[None]], request: type[Request]) -> Method:
    """A method with one request, whose function sends any number of responses."""

    async def handle(call: Call) -> None:
        await function(await _request(call, request), call)

    return Method(handle)


def dialogue(function: Callable[[Call], Awaitable[None]]) -> Method:
    """A method whose function receives and sends as it likes."""
    return Method(function)
