# SPDX-License-Identifier: Apache-2.0
"""Speaks HTTP and JSON with the agent over its unix socket.

Written on the socket itself: http.client and what it imports would double the plugin's start. One
request a connection; the agent answers with a Content-Length body and closes.
"""

import json
import time
from socket import AF_UNIX, SOCK_STREAM, socket

from cilium_cni.errors import INTERNAL, AgentUnreachable, CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5


class Agent:
    """The agent behind a socket path."""

    def __init__(self, socket_path: str) -> None:
        self._path = socket_path

    def call(
        self,
        method: str,
        path: str,
        body: "dict[str, Any] | None" = None,
        *,
        patience_s: float = 0.0,
        timeout_s: float = 30.0,
    ) -> "dict[str, Any]":
        """Send one request and return the decoded answer.

        Tries to connect for `patience_s` (an agent that restarts is back within seconds) and waits
        `timeout_s` for the answer. Raises AgentUnreachable, or CNIError with the agent's own code
        when it refuses.
        """
        payload = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        )
        with self._connect(patience_s) as connection:
            connection.settimeout(timeout_s)
            try:
                connection.sendall(head.encode() + payload)
                status, answer = _receive(connection)
            except OSError as error:
                raise AgentUnreachable(self._path, str(error)) from error
            except ValueError as error:
                raise AgentUnreachable(self._path, f"its answer is not HTTP: {error}") from error
        return _decode(status, answer)

    def _connect(self, patience_s: float) -> socket:
        deadline = time.monotonic() + patience_s
        pause_s = _FIRST_PAUSE_S
        while True:
            connection = socket(AF_UNIX, SOCK_STREAM)
            try:
                connection.connect(self._path)
            except OSError as error:
                connection.close()
                if time.monotonic() + pause_s > deadline:
                    raise AgentUnreachable(self._path, error.strerror or str(error)) from error
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            else:
                return connection


def _receive(connection: socket) -> tuple[int, bytes]:
    """Read one response; raises ValueError when it is cut short or not HTTP."""
    data = bytearray()
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            raise ValueError("the connection closed before the headers ended")
        data += piece
    head, _, body = bytes(data).partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    status = int(lines[0].split(" ")[1])
    length = None
    for line in lines[1:]:
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-length":
            length = int(value)
    while length is None or len(body) < length:
        piece = connection.recv(65536)
        if not piece:
            if length is None:
                break
            raise ValueError(f"{len(body)} of {length} bytes arrived")
        body += piece
    return status, body


def _decode(status: int, body: bytes) -> "dict[str, Any]":
    try:
        answer = json.loads(body) if body.strip() else {}
    except ValueError:
        answer = {"details": body[:200].decode("utf-8", "replace")}
    if not isinstance(answer, dict):
        answer = {"details": str(answer)}
    if 200 <= status < 300:
        return answer
    code = answer.get("code")
    raise CNIError(
        code if isinstance(code, int) and code > 0 else INTERNAL,
        str(answer.get("msg") or f"the agent answered with HTTP status {status}"),
        str(answer.get("details") or ""),
    )
