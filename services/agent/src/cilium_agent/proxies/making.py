"""Putting the proxies of a node together."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cilium_core.policy.l7 import L7Kind

from cilium_agent.proxies.envoy.backend import EnvoyBackend
from cilium_agent.proxies.facade import Proxies
from cilium_agent.proxies.ports import PortTable, is_free
from cilium_agent.proxies.secrets import Secrets
from cilium_agent.proxies.subscribers import Subscriber

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cilium_agent.proxies.envoy.options import EnvoyOptions
    from cilium_agent.proxies.records import Sink
    from cilium_agent.proxies.serving import RedirectBoard

PROGRAMS: Mapping[L7Kind, str] = {
    L7Kind.DNS: "cilium-dns-proxy",
    L7Kind.KAFKA: "cilium-kafka-proxy",
}


def make_proxies(
    state_dir: Path,
    *,
    boards: Mapping[L7Kind, RedirectBoard],
    sink: Sink,
    options: EnvoyOptions,
    ports: range = range(10000, 20001),
) -> Proxies:
    """The proxies of the node with this state directory.

    `boards` are what our own proxies subscribe to, `sink` takes what Envoy saw.
    """
    directory = state_dir / "proxies"
    secrets = Secrets()
    own = [
        Subscriber(
            kind, board, (_program(PROGRAMS[kind]), "--state-dir", str(state_dir)), directory
        )
        for kind, board in boards.items()
    ]
    envoy = EnvoyBackend(state_dir, options, secrets=secrets, sink=sink)

    def free(port: int) -> bool:
        return is_free(port, ipv6=options.ipv6)

    table = PortTable(state_dir / "proxy_ports_state.json", ports, free=free)
    return Proxies(table, [envoy, *own], secrets)


def _program(name: str) -> str:
    """A program that was installed together with this one, else the one on PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name
