# SPDX-License-Identifier: Apache-2.0
"""Readiness of a container that has just been started: its readinessProbe, until it succeeds once.

What a kubelet goes on to ask for as long as the pod lives is asked here only at its start; later
`cilium lab pod ready` says it. Probes are sent from the pod's own namespace to its loopback
address.
"""

from __future__ import annotations

import socket
import time
from typing import Any, NamedTuple

from cilium_cli.lab import namespaces

_LIMIT_S = 30.0
_ANSWER_S = 1.0
_POLL_S = 0.02
_BELOW = 400
"""First status that is no success."""


class Probe(NamedTuple):
    """A TCP connection to a port, and with a path the request made over it."""

    port: int
    path: str

    def wait(self, netns: str) -> bool:
        """Return True once it succeeds in the namespace, False after half a minute."""
        deadline = time.monotonic() + _LIMIT_S
        while not self._succeeds(netns):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def _succeeds(self, netns: str) -> bool:
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with namespaces.entered(netns):
                connection = socket.socket(family, socket.SOCK_STREAM)
            with connection:
                connection.settimeout(_ANSWER_S)
                try:
                    connection.connect((address, self.port))
                    return not self.path or self._request(connection)
                except OSError:
                    continue
        return False

    def _request(self, connection: socket.socket) -> bool:
        connection.sendall(f"GET {self.path} HTTP/1.0\r\nHost: pod\r\n\r\n".encode())
        words = connection.recv(64).split()
        return len(words) > 1 and words[1].isdigit() and int(words[1]) < _BELOW


def readiness(container: dict[str, Any]) -> Probe | None:
    """Return the probe of a container; None when it is ready as soon as it runs."""
    probe = container.get("readinessProbe") or {}
    for kind in ("tcpSocket", "httpGet"):
        target = probe.get(kind)
        if isinstance(target, dict):
            path = str(target.get("path") or "/") if kind == "httpGet" else ""
            port = _number(target.get("port"), container)
            return Probe(port, path) if port else None
    return None


def _number(port: object, container: dict[str, Any]) -> int:
    """The number of a port given by number or by its name in the container; 0 for none."""
    if isinstance(port, int):
        return port
    named = {one.get("name"): one.get("containerPort") for one in container.get("ports") or ()}
    found = named.get(port)
    return found if isinstance(found, int) else 0
