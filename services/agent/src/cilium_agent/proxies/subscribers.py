"""Our own proxies as backends: programs that subscribe to their redirects over `proxies.sock`.

The program keeps a copy of what it was told, so that it serves its ports when the agent is away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cilium_agent.proxies.backends import BackendStatus
from cilium_agent.proxies.supervising import Program, Supervisor

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from cilium_core.policy.l7 import L7Kind, Redirect

    from cilium_agent.proxies.serving import RedirectBoard


class Subscriber:
    """A proxy of ours: dns-proxy or kafka-proxy."""

    def __init__(
        self, kind: L7Kind, board: RedirectBoard, command: tuple[str, ...], directory: Path
    ) -> None:
        """`directory` holds the program's log and pid file."""
        self._kind = kind
        self._board = board
        self._ports: Mapping[Redirect, int] = {}
        self._supervisor = Supervisor(Program(f"{kind.value}-proxy", command), directory)

    @property
    def kinds(self) -> Collection[L7Kind]:
        """The one kind that it enforces."""
        return (self._kind,)

    async def start(self) -> None:
        """Adopt what an earlier agent left."""
        if self._ports or self._supervisor.left_running():
            self._supervisor.start()

    async def stop(self) -> None:
        """The agent ends; the program goes on."""
        await self._supervisor.detach()

    def want(self, ports: Mapping[Redirect, int]) -> None:
        """Enforce exactly these."""
        self._ports = dict(ports)
        self._board.publish({port: redirect for redirect, port in ports.items()})
        if ports:
            self._supervisor.start()

    async def settled(self, redirects: Collection[Redirect]) -> None:
        """Return once each of these is served or was refused."""
        ports = [self._ports[one] for one in redirects if one in self._ports]
        await self._board.settled(ports)

    def port_taken(self, redirect: Redirect) -> bool:
        """Whether the program cannot listen on the redirect's port."""
        return self._ports.get(redirect) in self._board.errors

    def status(self) -> BackendStatus:
        """How it fares now."""
        errors = self._board.errors
        return BackendStatus(
            name=f"{self._kind.value}-proxy",
            program=self._supervisor.status if self._supervisor.started else None,
            connected=self._board.connected,
            acknowledged=frozenset(
                one for one, port in self._ports.items() if self._board.serves(port)
            ),
            errors={one: errors[port] for one, port in self._ports.items() if port in errors},
        )
