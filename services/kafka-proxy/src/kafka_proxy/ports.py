"""The ports that are served, and the connections of each.

A port listens on the loopback address of each family that the node speaks. When its redirect
changes, its connections end: what was negotiated on them fits the old rules.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, cast

from cilium_core.proxying.transparent import LOOPBACKS, listener, mark_of, usable
from cilium_core.telemetry import get_logger

from kafka_proxy.budgets import Budget
from kafka_proxy.connections import MAX_REQUEST, Connection, Counters, dial
from kafka_proxy.gates import Gate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cilium_core.policy.l7 import Redirect
    from cilium_core.proxying.reporting import Reporter

log = get_logger()

MAX_CONNECTIONS: Final = 8192
MAX_PER_CLIENT: Final = 1024
MAX_HELD: Final = 2 * MAX_REQUEST
"""Bytes of requests that are held at once."""


@dataclass(eq=False)
class _Port:
    gate: Gate
    servers: list[asyncio.Server] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class Ports:
    """What is listened on."""

    def __init__(self, reporter: Reporter, hosts: Sequence[str] = LOOPBACKS) -> None:
        """`hosts` is where ports are listened on."""
        self._reporter = reporter
        self._ports: dict[int, _Port] = {}
        self._hosts = [host for host in hosts if host not in LOOPBACKS or usable(host)]
        self._budget = Budget(MAX_HELD)
        self._clients: Counter[str] = Counter()
        self.counters = Counters()
        self.turned_away = 0
        """Connections above the limits."""

    def __len__(self) -> int:
        return len(self._ports)

    @property
    def connections(self) -> int:
        """Connections of clients."""
        return sum(len(port.tasks) for port in self._ports.values())

    async def reconcile(self, wanted: Mapping[int, Redirect]) -> dict[int, str]:
        """Serve exactly these ports; returns those that cannot be, and why."""
        for number in self._ports.keys() - wanted.keys():
            await self._close(self._ports.pop(number))
        errors: dict[int, str] = {}
        for number, redirect in wanted.items():
            port = self._ports.get(number)
            if port is not None and port.gate.redirect.ingress != redirect.ingress:
                await self._close(self._ports.pop(number))
                port = None
            if port is None:
                try:
                    self._ports[number] = await self._open(number, redirect)
                except OSError as error:
                    errors[number] = f"port {number}: {error.strerror or error}"
                    log.error("port not served", port=number, error=str(error))
            elif port.gate.redirect != redirect:
                port.gate = Gate(number, redirect)
                await _end(port)
        return errors

    async def _open(self, number: int, redirect: Redirect) -> _Port:
        port = _Port(Gate(number, redirect))

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(port, reader, writer)

        mark = mark_of(ingress=redirect.ingress)
        try:
            for host in self._hosts:
                sock = listener(host, number, socket.SOCK_STREAM, mark=mark)
                port.servers.append(await asyncio.start_server(accepted, sock=sock))
        except OSError:
            await self._close(port)
            raise
        return port

    async def _serve(
        self, port: _Port, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        peer = writer.get_extra_info("peername")
        host = peer[0] if peer else ""
        if not peer or self.connections >= MAX_CONNECTIONS or self._clients[host] >= MAX_PER_CLIENT:
            self.turned_away += 1
            writer.transport.abort()
            return
        task = cast("asyncio.Task[None]", asyncio.current_task())
        port.tasks.add(task)
        self._clients[host] += 1
        try:
            connection = Connection(
                port.gate, (reader, writer), self._reporter, self._budget, self.counters, dial=dial
            )
            await connection.serve()
        except asyncio.CancelledError:
            # asyncio's streams take a cancelled handler for a failed one, and say so
            if not writer.is_closing():
                writer.transport.abort()
        finally:
            port.tasks.discard(task)
            self._clients[host] -= 1
            if not self._clients[host]:
                del self._clients[host]

    async def _close(self, port: _Port) -> None:
        for server in port.servers:
            server.close()
        await _end(port)

    async def close(self) -> None:
        """Serve nothing any more."""
        for port in self._ports.values():
            await self._close(port)
        self._ports.clear()


async def _end(port: _Port) -> None:
    tasks = list(port.tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
