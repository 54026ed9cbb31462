"""What a program that enforces redirects looks like to the rest of the agent.

There is one backend per program: Envoy, dns-proxy, kafka-proxy. It is told the whole of what it has
to enforce whenever that changes, and converges by itself: it starts its program with the first
redirect, adopts one that an earlier agent left, and tries again what failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from cilium_core.policy.l7 import L7Kind, Redirect

from cilium_agent.proxies.supervising import ProgramStatus

if TYPE_CHECKING:
    from collections.abc import Collection


@dataclass(frozen=True)
class BackendStatus:
    """How a backend fares.

    `acknowledged` are the redirects that the program says it enforces, `errors` says why others
    are not (yet). `program` is None until it was needed. `details` are lines for people.
    """

    name: str
    program: ProgramStatus | None = None
    connected: bool = False
    acknowledged: frozenset[Redirect] = frozenset()
    errors: Mapping[Redirect, str] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)


class Backend(Protocol):
    """One program. All calls come from the event loop."""

    @property
    def kinds(self) -> Collection[L7Kind]:
        """The kinds of redirects that it enforces."""

    async def start(self) -> None:
        """Adopt what an earlier agent left. The first `want` may come before or after."""

    async def stop(self) -> None:
        """The agent ends; the program goes on."""

    def want(self, ports: Mapping[Redirect, int]) -> None:
        """Enforce exactly these, each on its port of 127.0.0.1 and ::1."""

    async def settled(self, redirects: Collection[Redirect]) -> None:
        """Return once each of these is enforced, or was refused for good."""

    def port_taken(self, redirect: Redirect) -> bool:
        """Whether the program cannot bind the redirect's port."""

    def status(self) -> BackendStatus:
        """How it fares now."""
