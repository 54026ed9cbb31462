"""The ports that are served, and the gate that stands at each.

A port has a UDP and a TCP socket on the loopback address of each family. When its redirect changes,
the sockets stay and the gate is replaced between two messages.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cilium_core.proxying.transparent import LOOPBACKS, usable
from cilium_core.telemetry import get_logger

from dns_proxy.gates import Gate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cilium_core.policy.l7 import Redirect

    from dns_proxy.datagrams import Datagrams
    from dns_proxy.streams import Streams

log = get_logger()


@dataclass(eq=False)
class _Port:
    gate: Gate
    datagrams: list[socket.socket] = field(default_factory=list)
    servers: list[asyncio.Server] = field(default_factory=list)


class Ports:
    """What is listened on."""

    def __init__(self, datagrams: Datagrams, streams: Streams) -> None:
        self._datagrams = datagrams
        self._streams = streams
        self._ports: dict[int, _Port] = {}
        self._families = frozenset(host for host in LOOPBACKS if usable(host))

    def __len__(self) -> int:
        return len(self._ports)

    async def reconcile(self, wanted: Mapping[int, Redirect]) -> dict[int, str]:
        """Serve exactly these ports; returns those that cannot be, and why."""
        for number in self._ports.keys() - wanted.keys():
            self._close(self._ports.pop(number))
        errors: dict[int, str] = {}
        for number, redirect in wanted.items():
            port = self._ports.get(number)
            if port is None:
                try:
                    self._ports[number] = await self._open(number, redirect)
                except OSError as error:
                    errors[number] = f"port {number}: {error.strerror or error}"
                    log.error("port not served", port=number, error=str(error))
            elif port.gate.redirect != redirect:
                port.gate = Gate(number, redirect)
        return errors

    async def _open(self, number: int, redirect: Redirect) -> _Port:
        port = _Port(Gate(number, redirect))
        try:
            for host in LOOPBACKS:
                if host in self._families:
                    port.datagrams.append(self._datagrams.listen(host, number, lambda: port.gate))
                    port.servers.append(await self._streams.listen(host, number, lambda: port.gate))
        except OSError:
            self._close(port)
            raise
        return port

    def _close(self, port: _Port) -> None:
        for sock in port.datagrams:
            self._datagrams.stop(sock)
        for server in port.servers:
            server.close()

    def close(self) -> None:
        """Serve nothing any more."""
        for port in self._ports.values():
            self._close(port)
        self._ports.clear()
