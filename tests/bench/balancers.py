"""The kernel's own load balancers we are compared with: kube-proxy's iptables, and nftables.

Both are loaded into the first node of a network of `peers.py`, where they serve its first pod.
Every service has one address out of SERVICES, PORT, and BACKENDS backends, which are ports of the
second pod. What is loaded is what kube-proxy loads; an `Update` is what it writes when the
backends of one service change.
"""

from __future__ import annotations

import hashlib
import ipaddress
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from tests.bench.peers import PORT, inside, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SERVICES: Final = ipaddress.IPv4Address("10.96.16.1")
"""Address of the first service; the others follow."""
BACKENDS: Final = 2
PODS: Final = "10.88.0.0/16"
IPTABLES: Final = "iptables-legacy-restore"
"""Programs and matches faster here than what translates to nftables."""
BATCH: Final = 500
"""Services in a transaction of nftables, whose time grows with the square of their number."""


class Service(NamedTuple):
    """A service and the addresses and ports of its backends."""

    address: str
    backends: tuple[tuple[str, int], ...]


def services(count: int, server: str) -> list[Service]:
    """As many services with the same backends, ports of one server from PORT on."""
    backends = tuple((server, PORT + number) for number in range(BACKENDS))
    return [Service(str(SERVICES + number), backends) for number in range(count)]


class Balancer(Protocol):
    """Something that services are loaded into."""

    def program(self, table: Sequence[Service]) -> float:
        """Load all services into an empty namespace; seconds it took."""

    def change(self, table: Sequence[Service], number: int) -> float:
        """Load the service at `number` anew, out of a table loaded before; seconds."""


def _timed(namespace: str, *command: str, stdin: str) -> float:
    started = time.perf_counter()
    run(*inside(namespace, *command), stdin=stdin)
    return time.perf_counter() - started


def _chain(kind: str, *names: object) -> str:
    """Name of a chain as kube-proxy builds it: 16 characters of a hash."""
    text = "/".join(str(name) for name in names)
    return f"KUBE-{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16].upper()}"


def _chains_first(lines: Sequence[str]) -> list[str]:
    """Rules may only jump to chains that were declared before."""
    return sorted(lines, key=lambda line: not line.startswith(":"))


class Iptables:
    """The layout of kube-proxy's default mode: a rule for each service, one after the other."""

    def __init__(self, node: str) -> None:
        self._node = node

    def program(self, table: Sequence[Service]) -> float:
        """Load all services into an empty namespace; seconds it took."""
        lines = [
            *("*filter", ":KUBE-FORWARD - [0:0]", ":KUBE-FIREWALL - [0:0]"),
            "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
            "-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT",
            "-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "-A FORWARD -j KUBE-FORWARD",
            *("COMMIT", "*nat"),
        ]
        nat = [
            *self._frame(table),
            "-A PREROUTING -j KUBE-SERVICES",
            "-A OUTPUT -j KUBE-SERVICES",
            "-A POSTROUTING -j KUBE-POSTROUTING",
        ]
        for service in table:
            nat += self._own(service)
        return self._restore(lines + _chains_first(nat))

    def change(self, table: Sequence[Service], number: int) -> float:
        """Load the service at `number` anew; the list of services is always written whole."""
        nat = _chains_first([*self._frame(table), *self._own(table[number])])
        return self._restore(["*nat", *nat])

    def _restore(self, lines: list[str]) -> float:
        text = "\n".join([*lines, "COMMIT", ""])
        return _timed(self._node, IPTABLES, "--wait", "5", "--noflush", "--counters", stdin=text)

    def _frame(self, table: Sequence[Service]) -> Iterator[str]:
        """The chains that all services share, as every update writes them."""
        for chain in ("SERVICES", "NODEPORTS", "POSTROUTING", "MARK-MASQ"):
            yield f":KUBE-{chain} - [0:0]"
        yield "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN"
        yield "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000"
        yield "-A KUBE-POSTROUTING -j MASQUERADE --random-fully"
        yield "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000"
        for service in table:
            chain = _chain("SVC", service.address)
            yield (
                f'-A KUBE-SERVICES -m comment --comment "default/s{service.address} cluster IP"'
                f" -m tcp -p tcp -d {service.address}/32 --dport {PORT} -j {chain}"
            )
        yield "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"

    def _own(self, service: Service) -> Iterator[str]:
        """The chains of one service and of its backends."""
        chain = _chain("SVC", service.address)
        ends = [_chain("SEP", service.address, *backend) for backend in service.backends]
        yield f":{chain} - [0:0]"
        yield (
            f"-A {chain} ! -s {PODS} -m tcp -p tcp -d {service.address}/32 --dport {PORT}"
            " -j KUBE-MARK-MASQ"
        )
        for number, end in enumerate(ends):
            left = len(ends) - number
            chance = f" -m statistic --mode random --probability {1 / left:.10f}"
            yield f"-A {chain}{chance if left > 1 else ''} -j {end}"
        for end, (address, port) in zip(ends, service.backends, strict=True):
            yield f":{end} - [0:0]"
            yield f"-A {end} -s {address}/32 -j KUBE-MARK-MASQ"
            yield f"-A {end} -m tcp -p tcp -j DNAT --to-destination {address}:{port}"


class Nftables:
    """One map from address, protocol and port to the chain of a service."""

    def __init__(self, node: str) -> None:
        self._node = node

    def program(self, table: Sequence[Service]) -> float:
        """Load all services into an empty namespace; seconds it took."""
        lines = [
            "table ip lb {",
            "map services { type ipv4_addr . inet_proto . inet_service : verdict; }",
            "chain services { ip daddr . meta l4proto . th dport vmap @services; }",
            "chain prerouting { type nat hook prerouting priority -100; jump services; }",
            "chain output { type nat hook output priority -100; jump services; }",
            "chain postrouting { type nat hook postrouting priority 100;",
            "meta mark & 0x4000 == 0x4000 masquerade fully-random; }",
        ]
        lines += ["}"]
        took = _timed(self._node, "nft", "-f", "-", stdin="\n".join(lines))
        for first in range(0, len(table), BATCH):
            took += self._load(table[first : first + BATCH])
        return took

    def _load(self, batch: Sequence[Service]) -> float:
        lines = ["table ip lb {"]
        lines += [
            f"chain {self._chain(service)} {{ {'; '.join(self._own(service))}; }}"
            for service in batch
        ]
        elements = ", ".join(
            f"{service.address} . tcp . {PORT} : goto {self._chain(service)}" for service in batch
        )
        lines += ["}", f"add element ip lb services {{ {elements} }}"]
        return _timed(self._node, "nft", "-f", "-", stdin="\n".join(lines))

    def change(self, table: Sequence[Service], number: int) -> float:
        """Load the chain of the service at `number` anew, in one transaction."""
        service = table[number]
        chain = self._chain(service)
        lines = [f"flush chain ip lb {chain}"]
        lines += [f"add rule ip lb {chain} {rule}" for rule in self._own(service)]
        return _timed(self._node, "nft", "-f", "-", stdin="\n".join(lines))

    def _chain(self, service: Service) -> str:
        return f"service-{service.address.replace('.', '-')}"

    def _own(self, service: Service) -> Iterator[str]:
        yield f"ip saddr != {PODS} meta mark set meta mark | 0x4000"
        choices = ", ".join(
            f"{number} : {address} . {port}"
            for number, (address, port) in enumerate(service.backends)
        )
        yield (
            f"meta l4proto tcp dnat ip to numgen random mod {len(service.backends)}"
            f" map {{ {choices} }}"
        )
