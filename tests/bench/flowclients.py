"""Clients of GetFlows that do next to nothing, so that what is measured is the server.

They speak as much HTTP/2 as it takes to ask and to count: windows so large that no answer fills
them, and frames looked at by their lengths.
"""

from __future__ import annotations

import selectors
import socket
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import hpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.message import Message

GET_FLOWS = "/observer.Observer/GetFlows"
GET_BATCHES = "/cilium.flows.v1.FlowsService/GetFlowBatches"
AGGREGATE = "/cilium.flows.v1.FlowsService/AggregateFlows"

_DATA, _HEADERS, _SETTINGS, _PING, _WINDOW = 0, 1, 4, 6, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_LARGEST = (1 << 31) - 1
_PREFIX = 5
_LIMIT_S = 120.0


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


@dataclass
class Client:
    """A connection over which one question after the other is asked."""

    path: Path
    keeps: bool = False
    """Keep the messages of answers, not only their number."""
    messages: list[bytes] = field(default_factory=list)
    count: int = 0
    """Messages of the answer so far."""
    ended: bool = False
    _stream: int = -1
    _rest: bytes = b""
    _body: bytearray = field(default_factory=bytearray)
    _encoder: hpack.Encoder = field(default_factory=hpack.Encoder)

    def __post_init__(self) -> None:
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.settimeout(_LIMIT_S)
        self.connection.connect(str(self.path))
        settings = struct.pack(">HI", 4, _LARGEST)
        window = struct.pack(">I", _LARGEST - 65_535)
        self.connection.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + _frame(_SETTINGS, 0, 0, settings)
            + _frame(_WINDOW, 0, 0, window)
        )

    def ask(self, method: str, request: Message) -> None:
        """Begin a call; its answer is counted anew."""
        self._stream += 2
        self.messages, self.count, self.ended = [], 0, False
        self._body.clear()
        headers = [
            (":method", "POST"), (":scheme", "http"), (":path", method), (":authority", "x"),
            ("te", "trailers"), ("content-type", "application/grpc"),
        ]  # fmt: skip
        encoded = request.SerializeToString()
        message = struct.pack(">BI", 0, len(encoded)) + encoded
        self.connection.sendall(
            _frame(_HEADERS, _END_HEADERS, self._stream, self._encoder.encode(headers))
            + _frame(_DATA, _END_STREAM, self._stream, message)
        )

    def take(self) -> None:
        """Take what has come. Raises EOFError when the server has gone."""
        data = self.connection.recv(1 << 20)
        if not data:
            raise EOFError(f"{self.path}: the server closed the connection")
        data = self._rest + data
        position = 0
        while len(data) - position >= 9:
            size = int.from_bytes(data[position : position + 3], "big")
            end = position + 9 + size
            if end > len(data):
                break
            kind, flags = data[position + 3], data[position + 4]
            if kind == _DATA:
                self._body += data[position + 9 : end]
            elif kind == _SETTINGS and not flags & _ACK:
                self.connection.sendall(_frame(_SETTINGS, _ACK, 0, b""))
            elif kind == _PING and not flags & _ACK:
                self.connection.sendall(_frame(_PING, _ACK, 0, data[position + 9 : end]))
            if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
                self.ended = True
            position = end
        self._rest = data[position:]
        self._count()

    def _count(self) -> None:
        body, position = self._body, 0
        while len(body) - position >= _PREFIX:
            start = position + _PREFIX
            end = start + int.from_bytes(body[position + 1 : start], "big")
            if end > len(body):
                break
            if self.keeps:
                self.messages.append(bytes(body[start:end]))
            self.count += 1
            position = end
        del body[:position]

    def answer(self, method: str, request: Message) -> int:
        """Ask, and wait for the whole answer; tells its messages. Raises EOFError, TimeoutError."""
        self.ask(method, request)
        while not self.ended:
            self.take()
        return self.count

    def close(self) -> None:
        """Hang up."""
        self.connection.close()


def answers(clients: Sequence[Client], method: str, request: Message) -> int:
    """Ask with all clients at once; tells the messages of all answers. Raises EOFError."""
    deadline = time.monotonic() + _LIMIT_S
    with selectors.DefaultSelector() as selector:
        for client in clients:
            client.ask(method, request)
            selector.register(client.connection, selectors.EVENT_READ, client)
        while selector.get_map():
            if time.monotonic() > deadline:
                raise TimeoutError("the answers took too long")
            for key, _ in selector.select(1.0):
                key.data.take()
                if key.data.ended:
                    selector.unregister(key.fileobj)
    return sum(client.count for client in clients)
