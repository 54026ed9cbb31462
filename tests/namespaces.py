"""A client, a node and a server in network namespaces of their own, for tests of proxies.

What the data plane does in eBPF, nftables does here: connections of the client are handed to the
proxy's listeners by TPROXY, and so is what the server answers to the client's address, which the
proxy speaks under. Only packets are steered; all else is the real thing.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENT = {4: "10.91.1.2", 6: "fd91:1::2"}
SERVER = {4: "10.91.2.2", 6: "fd91:2::2"}
NODE = {4: "10.91.2.1", 6: "fd91:2::1"}
"""What the server sees the node as."""

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
            subprocess.run(["ip", "netns", "add", namespace], check=True)
        try:
            for line in _SETUP.strip().splitlines():
                command = line.format(client=self.client, node=self.node, server=self.server)
                subprocess.run(command.split(), check=True)
        except subprocess.CalledProcessError:
            self.close()
            raise

    def steer(self, ports: dict[int, int]) -> None:
        """Hand connections to these ports of the server to these ports of the node's loopback."""
        rules = "\n".join(
            f'    iif "c0" meta nfproto {family} tcp dport {port} tproxy {kind} to {host}:{proxy} '
            "meta mark set 0x200 accept"
            for port, proxy in ports.items()
            for family, kind, host in (("ipv4", "ip", "127.0.0.1"), ("ipv6", "ip6", "[::1]"))
        )
        self.load(_RULES.format(redirects=rules))

    def load(self, rules: str) -> None:
        """Have nothing but these rules of nftables on the node."""
        command = ["ip", "netns", "exec", self.node, "nft", "-f", "-"]
        subprocess.run(command, input=f"flush ruleset\n{rules}", text=True, check=True)

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


def udp(namespace: str, family: int, address: tuple[str, int] | None = None) -> socket.socket:
    """A datagram socket in a namespace, bound if an address is given; not blocking."""
    with inside(namespace):
        made = socket.socket(_FAMILIES[family], socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    if address is not None:
        made.bind(address)
    return made


def listening(namespace: str, port: int, family: int = 4, host: str | None = None) -> socket.socket:
    """A listening socket in a namespace; not blocking."""
    with inside(namespace):
        made = socket.socket(_FAMILIES[family], socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == 6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind((host or ("0.0.0.0" if family == 4 else "::"), port))
    made.listen(128)
    made.setblocking(False)
    return made


async def connected(namespace: str, host: str, port: int, limit_s: float = 5.0) -> socket.socket:
    """A connected socket in a namespace; not blocking."""
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
