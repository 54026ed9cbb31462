"""A client, a node and a server in network namespaces of their own; the node has an Envoy.

What the data plane does in eBPF, nftables does here: connections of the client to certain ports
are handed to the proxy's listeners by TPROXY, and so is what the server answers to the client's
address, which the proxy speaks under. Only packets are steered; all else is the real thing.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import subprocess
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cilium.proxy.v1 import proxy_pb2
from cilium_agent.proxies.envoy import bootstrap
from cilium_agent.proxies.envoy.backend import EnvoyBackend
from cilium_agent.proxies.envoy.options import EnvoyOptions
from cilium_agent.proxies.facade import Proxies
from cilium_agent.proxies.ports import PortTable
from cilium_agent.proxies.secrets import Secrets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from cilium_core.policy.l7 import L7Kind, Redirect

CLIENT = {4: "10.91.1.2", 6: "fd91:1::2"}
SERVER = {4: "10.91.2.2", 6: "fd91:2::2"}
NODE = {4: "10.91.2.1", 6: "fd91:2::1"}

_CLONE_NEWNET = 0x40000000
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

_SETUP = """
ip -n {node} link add c0 type veth peer name eth0 netns {client}
ip -n {node} link add s0 type veth peer name eth0 netns {server}
ip -n {node} link set lo up
ip -n {client} link set lo up
ip -n {server} link set lo up
ip -n {node} addr add 10.91.1.1/24 dev c0
ip -n {node} addr add 10.91.2.1/24 dev s0
ip -n {node} -6 addr add fd91:1::1/64 dev c0 nodad
ip -n {node} -6 addr add fd91:2::1/64 dev s0 nodad
ip -n {client} addr add 10.91.1.2/24 dev eth0
ip -n {client} -6 addr add fd91:1::2/64 dev eth0 nodad
ip -n {server} addr add 10.91.2.2/24 dev eth0
ip -n {server} -6 addr add fd91:2::2/64 dev eth0 nodad
ip -n {node} link set c0 up
ip -n {node} link set s0 up
ip -n {client} link set eth0 up
ip -n {server} link set eth0 up
ip -n {client} route add default via 10.91.1.1
ip -n {client} -6 route add default via fd91:1::1
ip -n {server} route add default via 10.91.2.1
ip -n {server} -6 route add default via fd91:2::1
ip -n {node} rule add fwmark 0x200/0xf00 lookup 2004
ip -n {node} -6 rule add fwmark 0x200/0xf00 lookup 2004
ip -n {node} route add local default dev lo table 2004
ip -n {node} -6 route add local default dev lo table 2004
"""

_RULES = """
table inet steering {{
  chain incoming {{
    type filter hook prerouting priority mangle; policy accept;
    meta l4proto tcp socket transparent 1 meta mark set 0x200 accept
{redirects}
  }}
  chain leaving {{
    type filter hook postrouting priority mangle; policy accept;
    oif "s0" tcp flags syn / syn,ack meta mark 0xa00 counter accept
    oif "s0" tcp flags syn / syn,ack meta mark 0xb00 counter accept
    oif "s0" tcp flags syn / syn,ack counter drop
  }}
}}
"""


class Namespaces:
    """Three namespaces; `steer` decides which ports of the server lead through the proxy."""

    def __init__(self, name: str) -> None:
        self.client, self.node, self.server = (f"{name}-{part}" for part in "cns")
        for namespace in (self.client, self.node, self.server):
            _run("ip", "netns", "add", namespace)
        for line in _SETUP.strip().splitlines():
            _run(*line.format(client=self.client, node=self.node, server=self.server).split())

    def steer(self, ports: dict[int, int]) -> None:
        """Hand connections to these ports of the server to these ports of the node's loopback."""
        rules = "\n".join(
            f'    iif "c0" meta nfproto {family} tcp dport {port} tproxy {kind} to {host}:{proxy} '
            "meta mark set 0x200 accept"
            for port, proxy in ports.items()
            for family, kind, host in (("ipv4", "ip", "127.0.0.1"), ("ipv6", "ip6", "[::1]"))
        )
        command = ["ip", "netns", "exec", self.node, "nft", "-f", "-"]
        script = "flush ruleset\n" + _RULES.format(redirects=rules)
        subprocess.run(command, input=script, text=True, check=True)

    def close(self) -> None:
        """Remove the namespaces."""
        for namespace in (self.client, self.node, self.server):
            subprocess.run(["ip", "netns", "del", namespace], check=False)


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """What this thread makes belongs to a namespace. No await inside."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open("rb") as own:
        with Path(f"/run/netns/{namespace}").open("rb") as other:
            if libc.setns(other.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        try:
            yield
        finally:
            libc.setns(own.fileno(), _CLONE_NEWNET)


def listening(namespace: str, port: int, family: int = 4) -> socket.socket:
    """A listening socket in a namespace."""
    with inside(namespace):
        made = socket.socket(_FAMILIES[family], socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == 6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind(("0.0.0.0" if family == 4 else "::", port))
    made.listen(128)
    made.setblocking(False)
    return made


async def connected(namespace: str, host: str, port: int, limit_s: float = 5.0) -> socket.socket:
    """A connected socket in a namespace."""
    with inside(namespace):
        made = socket.socket(_FAMILIES[6 if ":" in host else 4], socket.SOCK_STREAM)
    made.setblocking(False)
    try:
        async with asyncio.timeout(limit_s):
            await asyncio.get_running_loop().sock_connect(made, (host, port))
    except BaseException:
        made.close()
        raise
    return made


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


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
