# SPDX-License-Identifier: Apache-2.0
"""A few calls of the lab's etcd through its HTTP and JSON gateway.

`lab pod add` is one short process; importing grpc would take longer than everything else it does.
Sockets are opened inside the fabric namespace, where etcd listens. Whatever runs for long uses
`cilium_core.kvstore` instead.
"""

from __future__ import annotations

import json
import socket
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any

from cilium_cli.errors import UnreachableError
from cilium_cli.lab import namespaces
from cilium_cli.lab.layouts import ETCD_PORT, FABRIC_IPV4

if TYPE_CHECKING:
    from cilium_cli.lab.layouts import Layout

_TIMEOUT_S = 5.0


class Gateway:
    """etcd's gateway, one kept-alive connection."""

    def __init__(self, lab: Layout) -> None:
        self._lab = lab
        self._connection: socket.socket | None = None

    def put(self, pairs: dict[str, bytes]) -> None:
        """Write all pairs in one transaction."""
        writes = [
            {"requestPut": {"key": _text(key.encode()), "value": _text(value)}}
            for key, value in pairs.items()
        ]
        self._post("/v3/kv/txn", {"success": writes})

    def delete(self, keys: list[str]) -> None:
        """Remove the keys in one transaction; absent ones are fine."""
        writes = [{"requestDeleteRange": {"key": _text(key.encode())}} for key in keys]
        self._post("/v3/kv/txn", {"success": writes})

    def get(self, key: str) -> bytes | None:
        """Return the value of the key."""
        found = self._post("/v3/kv/range", {"key": _text(key.encode())}).get("kvs")
        return b64decode(found[0]["value"]) if found else None

    def healthy(self) -> bool:
        """Whether etcd answers and has a leader; never raises."""
        try:
            self._post("/v3/kv/range", {"key": _text(b"health")})
        except UnreachableError:
            return False
        return True

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        payload = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: etcd\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(payload)}\r\n\r\n"
        )
        try:
            if self._connection is None:
                self._connection = self._connect()
            self._connection.sendall(head.encode() + payload)
            status, answer = _receive(self._connection)
        except (OSError, ValueError) as error:
            self.close()
            raise UnreachableError(
                f"etcd of lab {self._lab.name} does not answer: {error}",
                f"`cilium lab status --lab {self._lab.name}` and `cilium lab logs etcd` tell more",
            ) from error
        decoded: dict[str, Any] = json.loads(answer)
        if status != 200:
            raise UnreachableError(
                f"etcd of lab {self._lab.name} refuses {path}: {decoded.get('error', status)}"
            )
        return decoded

    def _connect(self) -> socket.socket:
        with namespaces.entered(self._lab.fabric_netns):
            connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        connection.settimeout(_TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            connection.connect((FABRIC_IPV4, ETCD_PORT))
        except OSError:
            connection.close()
            raise
        return connection


def _text(data: bytes) -> str:
    return b64encode(data).decode()


def _receive(connection: socket.socket) -> tuple[int, bytes]:
    """Read one response: a Content-Length body or a chunked one."""
    reader = connection.makefile("rb")
    with reader:
        status = int(reader.readline().split()[1])
        headers = {}
        while (line := reader.readline()) not in {b"\r\n", b""}:
            name, _, value = line.partition(b":")
            headers[name.strip().lower()] = value.strip()
        if headers.get(b"transfer-encoding") == b"chunked":
            body = b""
            while size := int(reader.readline(), 16):
                body += reader.read(size)
                reader.readline()
            reader.readline()
            return status, body
        return status, reader.read(int(headers.get(b"content-length", b"0")))
