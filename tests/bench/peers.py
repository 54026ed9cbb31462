"""The networks we are compared with, built from what the kernel brings: routing, vxlan, nftables.

Each has two nodes joined by a bridge, like the lab, with two pods on the first node and one on the
second. They live in namespaces of their own, named `bench-…`, and leave nothing behind.
"""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PORT = 5001

# The policy of the comparison: one client may reach the servers on one port; everything else is
# dropped; replies pass. Traffic that leaves the pods' network is masqueraded.
NFT = """
table inet pods {{
    set clients {{ type ipv4_addr . ipv4_addr . inet_service; elements = {{ {allowed} }} }}
    chain forward {{
        type filter hook forward priority 0; policy drop;
        ct state established,related accept
        ip saddr . ip daddr . tcp dport @clients accept
    }}
    chain postrouting {{
        type nat hook postrouting priority 100;
        ip saddr 10.88.0.0/16 ip daddr != 10.88.0.0/16 masquerade
    }}
}}
"""


@dataclass(frozen=True)
class Pair:
    """Where a client runs, where its server runs, and the server's address."""

    client: str
    server: str
    address: str


@dataclass(frozen=True)
class Network:
    """A pair on one node, and a pair across two."""

    name: str
    local: Pair
    remote: Pair


def run(*command: str, stdin: str | None = None) -> str:
    """Run a command; its error output is part of the exception when it fails."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def inside(namespace: str, *command: str) -> list[str]:
    """The command line that runs a command in a network namespace."""
    return ["nsenter", f"--net=/run/netns/{namespace}", *command]


@contextmanager
def kernel_network(name: str, *, nftables: bool) -> Iterator[Network]:
    """Plain veth, routing and vxlan; with `nftables` also the policy and masquerade."""
    prefix = f"bench-{name}"
    fabric, nodes = f"{prefix}-fabric", [f"{prefix}-node1", f"{prefix}-node2"]
    pods = {f"{prefix}-a": (0, 2), f"{prefix}-b": (0, 3), f"{prefix}-c": (1, 2)}
    spaces = [fabric, *nodes, *pods]
    try:
        for space in spaces:
            run("ip", "netns", "add", space)
            run(*inside(space, "ip", "link", "set", "lo", "up"))
        run(*inside(fabric, "ip", "link", "add", "br0", "type", "bridge"))
        run(*inside(fabric, "ip", "link", "set", "br0", "up"))
        for number, node in enumerate(nodes):
            _node(fabric, node, number)
        for pod, (number, host) in pods.items():
            _pod(nodes[number], pod, number, host)
        if nftables:
            allowed = ", ".join(f"10.88.0.2 . {to} . {PORT}" for to in ("10.88.0.3", "10.88.1.2"))
            for node in nodes:
                run(*inside(node, "nft", "-f", "-"), stdin=NFT.format(allowed=allowed))
        a, b, c = pods
        yield Network(name, Pair(a, b, "10.88.0.3"), Pair(a, c, "10.88.1.2"))
    finally:
        for space in spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)


def _node(fabric: str, node: str, number: int) -> None:
    other = 1 - number
    run(
        *inside(fabric, "ip", "link", "add", f"n{number}", "type", "veth"),
        *("peer", "name", "eth0", "netns", node),
    )
    run(*inside(fabric, "ip", "link", "set", f"n{number}", "master", "br0", "up"))
    run(*inside(node, "ip", "address", "add", f"192.0.2.{number + 1}/24", "dev", "eth0"))
    run(*inside(node, "ip", "link", "set", "eth0", "up"))
    run(*inside(node, "sysctl", "-qw", "net.ipv4.ip_forward=1"))
    run(
        *inside(node, "ip", "link", "add", "vx0", "mtu", "1450", "type", "vxlan", "id", "88"),
        *("dstport", "8472", "local", f"192.0.2.{number + 1}", "remote", f"192.0.2.{other + 1}"),
    )
    run(*inside(node, "ip", "address", "add", f"10.89.0.{number + 1}/24", "dev", "vx0"))
    run(*inside(node, "ip", "link", "set", "vx0", "up"))
    run(*inside(node, "ip", "route", "add", f"10.88.{other}.0/24", "via", f"10.89.0.{other + 1}"))


def _pod(node: str, pod: str, number: int, host: int) -> None:
    device, address = f"v{host}", f"10.88.{number}.{host}"
    run(
        *inside(node, "ip", "link", "add", device, "type", "veth"),
        *("peer", "name", "eth0", "netns", pod),
    )
    run(*inside(node, "ip", "link", "set", device, "up"))
    run(*inside(node, "ip", "address", "add", "169.254.1.1/32", "dev", device))
    run(*inside(node, "ip", "route", "add", f"{address}/32", "dev", device))
    run(*inside(pod, "ip", "address", "add", f"{address}/32", "dev", "eth0"))
    run(*inside(pod, "ip", "link", "set", "eth0", "up"))
    run(*inside(pod, "ip", "route", "add", "169.254.1.1", "dev", "eth0", "scope", "link"))
    run(
        *inside(pod, "ip", "route", "add", "default", "via", "169.254.1.1"),
        *("dev", "eth0", "mtu", "1450"),
    )
