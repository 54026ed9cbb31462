"""A client, a node with an Envoy, and a server, in network namespaces of their own."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cilium.proxy.v1 import proxy_pb2
from cilium_agent.proxies.envoy import bootstrap
from cilium_agent.proxies.envoy.backend import EnvoyBackend
from cilium_agent.proxies.envoy.options import EnvoyOptions
from cilium_agent.proxies.facade import Proxies
from cilium_agent.proxies.ports import PortTable
from cilium_agent.proxies.secrets import Secrets

from tests.namespaces import Namespaces, inside

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from cilium_core.policy.l7 import L7Kind, Redirect


@dataclass
class Seen:
    """Collects records, as the agent's sink does."""

    records: list[proxy_pb2.Record] = field(default_factory=list)

    def take(self, kind: L7Kind, records: Sequence[proxy_pb2.Record], lost: int = 0) -> None:
        """Take over a batch."""
        assert lost == 0
        assert kind.value in ("http", "tls")
        self.records.extend(records)


class Node:
    """The proxies of the node."""

    def __init__(self, namespaces: Namespaces, state_dir: Path, **options: Any) -> None:
        binary = state_dir / "envoy-in-namespace"
        real = bootstrap.find_binary(EnvoyOptions())
        binary.write_text(f'#!/bin/sh\nexec ip netns exec {namespaces.node} {real} "$@"\n')
        binary.chmod(0o755)
        self.namespaces = namespaces
        self.state_dir = state_dir
        quick = {"binary": str(binary), "concurrency": 1, "log_flush_s": 0.05}
        self.options = EnvoyOptions(**{**quick, **options})
        self.seen = Seen()
        self.secrets: Secrets
        self.start_parts()

    def start_parts(self) -> None:
        """Make the agent's side, as a new agent does."""
        self.secrets = Secrets()
        self.envoy = EnvoyBackend(
            self.state_dir, self.options, secrets=self.secrets, sink=self.seen
        )

        def free(port: int) -> bool:
            with inside(self.namespaces.node):
                return ports_free(port)

        from cilium_agent.proxies.ports import is_free as ports_free

        self.ports = PortTable(self.state_dir / "ports.json", range(10000, 10200), free=free)
        self.proxies = Proxies(self.ports, [self.envoy], self.secrets)

    async def enforce(self, redirects: dict[int, Redirect]) -> None:
        """Send the server's ports through redirects."""
        ports = await self.proxies.realise(list(redirects.values()), limit_s=20.0)
        status = self.proxies.status()
        wanted = set(redirects.values())
        errors = [one.error for one in status.redirects if one.error and one.redirect in wanted]
        assert not errors, errors
        self.namespaces.steer({port: ports[one] for port, one in redirects.items()})

    def log(self) -> str:
        """What Envoy wrote."""
        path = self.state_dir / "proxies" / "envoy.log"
        return path.read_text() if path.exists() else ""


@asynccontextmanager
async def running(state_dir: Path, **options: Any) -> AsyncIterator[Node]:
    """Namespaces and a node; Envoy starts with the first redirect."""
    namespaces = Namespaces(f"tC-{os.getpid()}-{id(state_dir) % 1000}")
    try:
        node = Node(namespaces, state_dir, **options)
        await node.proxies.start()
        try:
            yield node
        finally:
            await node.envoy.terminate()
            await node.proxies.stop()
    finally:
        namespaces.close()
