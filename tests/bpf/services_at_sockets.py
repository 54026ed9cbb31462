"""Real sockets in a cgroup of the case, with the programs at it and services in the maps.

A process in the cgroup makes the sockets and hands them over: a socket belongs to the cgroup and to
the namespace it was made in, whoever uses it. Everything is on the loopback device of a namespace,
which is the pod or the node that asks.
"""

from __future__ import annotations

import array
import contextlib
import ipaddress
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from cilium_agent.datapath import netlink as nl
from cilium_agent.datapath import sockets
from cilium_agent.datapath.serviceaddresses import bit_of
from cilium_core import abi
from pyroute2 import IPRoute

from tests.bpf.nodes import path_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.bpf.harness import Namespace, Plane

STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
SERVICE = {4: "10.96.0.10", 6: "fd00:96::10"}
BACKENDS = {4: ("10.244.0.1", "10.244.0.2"), 6: ("fd00:244::1", "fd00:244::2")}
NODE = {4: "172.30.0.11", 6: "fd00:30::11"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
ANY = {4: "0.0.0.0", 6: "::"}
MAPPED = "::ffff:"
SO_COOKIE = 57
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
LIMIT_S = 5.0
_MAKER = """
import array, ctypes, os, socket, sys
channel = socket.socket(fileno=int(sys.argv[1]))
while asked := channel.recv(4096):
    path, family, kind, proto = asked.decode().split("\\0")
    with open(path) as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0x40000000):
            raise OSError(ctypes.get_errno(), "setns")
    made = socket.socket(int(family), int(kind), int(proto))
    fds = array.array("i", [made.fileno()])
    channel.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    made.close()
    channel.send(b".")
"""


class Group:
    """A cgroup with a process in it that makes sockets."""

    def __init__(self, name: str, parent: Path | None = None) -> None:
        self.path = (parent or sockets.cgroup_mount()) / name
        self.path.mkdir()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.settimeout(LIMIT_S)
        self._maker = subprocess.Popen(
            [sys.executable, "-c", _MAKER, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        (self.path / "cgroup.procs").write_text(str(self._maker.pid))

    def socket(
        self, namespace: Namespace, family: int, kind: int = socket.SOCK_STREAM, proto: int = 0
    ) -> socket.socket:
        """Make a socket of the group in a namespace."""
        asked = "\0".join(map(str, (path_of(namespace), int(family), int(kind), proto)))
        self._channel.send(asked.encode())
        _, ancillary, *_ = self._channel.recvmsg(1, socket.CMSG_SPACE(4))
        fds = array.array("i", ancillary[0][2])
        self._channel.recv(1)  # nobody else holds it any more
        made = socket.socket(fileno=fds[0])
        made.settimeout(LIMIT_S)
        return made

    def close(self) -> None:
        """End the process and remove the group."""
        self._channel.close()
        self._maker.wait(LIMIT_S)
        self.path.rmdir()


class Services:
    """Writes services to the maps the way the agent does: slots, backends, then the frontend."""

    def __init__(self, plane: Plane) -> None:
        self._maps = plane.maps
        self._slot = 0
        self._id = 0
        self._backends: dict[tuple[str, int, int], int] = {}

    def add(
        self,
        frontend: tuple[str, int],
        backends: Iterable[tuple[str, int]] = (),
        proto: int = TCP,
        flags: int = 0,
        affinity_s: int = 0,
        scope: int = 0,
    ) -> int:
        """Add a frontend; returns its id."""
        self._id += 1
        ids = [self.backend(backend, proto) for backend in backends]
        first, self._slot = self._slot, self._slot + len(ids)
        for at, number in enumerate(ids):
            self._maps["LB_SLOTS"].set(_u32(first + at), _u32(number))
            member = abi.pack("lb_member", backend=number, rev_nat=self._id)
            self._maps["LB_MEMBERS"].set(member, _u32(1))
        address, port = ipaddress.ip_address(frontend[0]), socket.htons(frontend[1])
        reverse = abi.pack(
            "lb_frontend", addr=address.packed, port=port, proto=proto, family=_family(address)
        )
        self._maps["LB_REVERSE_NAT"].set(_u32(self._id), reverse)
        service = abi.pack(
            "lb_service",
            first=first,
            count=len(ids),
            rev_nat=self._id,
            flags=flags | (abi.LB_AFFINITY if affinity_s else 0),
            affinity_timeout=affinity_s,
        )
        key = key_of(frontend, proto, scope)
        word, bit = bit_of(key)
        held = self._maps["LB_ADDRESSES"]
        known = int.from_bytes(held.get(_u32(word)) or b"", "little")
        held.set(_u32(word), _u32(known | 1 << bit))
        self._maps[f"LB{address.version}_SERVICES"].set(key, service)
        return self._id

    def backend(self, at: tuple[str, int], proto: int, state: int = 1) -> int:
        """Write a backend; returns its id."""
        address = ipaddress.ip_address(at[0])
        number = self._backends.setdefault((*at, proto), len(self._backends) + 1)
        row = abi.pack(
            "lb_backend",
            addr=address.packed,
            port=socket.htons(at[1]),
            proto=proto,
            state=state,
            family=_family(address),
        )
        self._maps["LB_BACKENDS"].set(_u32(number), row)
        return number

    def remove(self, frontend: tuple[str, int], proto: int = TCP, scope: int = 0) -> None:
        """Remove a frontend."""
        version = ipaddress.ip_address(frontend[0]).version
        self._maps[f"LB{version}_SERVICES"].delete(key_of(frontend, proto, scope))


def key_of(frontend: tuple[str, int], proto: int, scope: int = 0) -> bytes:
    """Key of a frontend; port 0 is the address as a whole."""
    address, port = ipaddress.ip_address(frontend[0]), socket.htons(frontend[1])
    proto = proto if port else 0
    if address.version == 4:
        number = int.from_bytes(address.packed, "little")
        return abi.pack("lb_key4", addr=number, port=port, proto=proto, scope=scope)
    return abi.pack("lb_key6", addr=address.packed, port=port, proto=proto, scope=scope)


def give_addresses(namespace: Namespace, addresses: Iterable[str]) -> None:
    """Put addresses on the loopback device of a namespace, which goes up."""

    def put() -> None:
        with IPRoute() as netlink:
            netlink.link("set", index=1, state="up")
            nl.write_sysctl("net/ipv6/conf/lo/disable_ipv6", 0)
            for text in addresses:
                address = ipaddress.ip_address(text)
                more = {"flags": 2} if address.version == 6 else {}
                netlink.addr(
                    "replace", index=1, address=text, prefixlen=address.max_prefixlen, **more
                )

    namespace.call(put)


def listener(namespace: Namespace, at: tuple[str, int], kind: int = socket.SOCK_STREAM) -> Any:
    """A server's socket in a namespace, of no cgroup of the case."""
    family = socket.AF_INET6 if ":" in at[0] else socket.AF_INET

    def make() -> socket.socket:
        made = socket.socket(family, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(at)
        if kind == socket.SOCK_STREAM:
            made.listen()
        made.settimeout(LIMIT_S)
        return made

    return namespace.call(make)


def cookie_of(namespace: Namespace) -> int:
    """Cookie of a namespace."""
    return int(namespace.call(sockets.own_cookie))


def _family(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> int:
    return int(abi.FAMILY_IPV4 if address.version == 4 else abi.FAMILY_IPV6)


def _u32(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)


def unique(name: str) -> str:
    """A name no other run has."""
    return f"{name}-{os.getpid()}"


class Bench:
    """A pod, a group of processes, and services for them."""

    def __init__(self, plane: Plane, group: Group, root: Path, pod: Namespace) -> None:
        self.plane, self.group, self.root, self.pod = plane, group, root, pod
        self.services = Services(plane)
        self._open = contextlib.ExitStack()
        plane.configuration.patch(
            flags=abi.CONFIG_LB_REJECT | abi.CONFIG_DROPS | abi.CONFIG_HUBBLE,
            node_port_min=30000,
            node_port_max=32767,
            netns_cookie=0,
        )
        sockets.attach(root, group.path, plane.generation.programs)

    def close(self) -> None:
        self._open.close()
        sockets.detach(self.root)

    def flags(self, *added: int, node: bool = False) -> None:
        """Set flags of the configuration; `node` makes the pod's namespace the node's own."""
        self.plane.configuration.patch(
            flags=abi.CONFIG_DROPS | abi.CONFIG_HUBBLE | sum(added),
            netns_cookie=cookie_of(self.pod) if node else 0,
        )

    def as_node(self) -> None:
        self.plane.configuration.patch(netns_cookie=cookie_of(self.pod))

    def server(self, at: tuple[str, int], kind: int = STREAM) -> socket.socket:
        made: socket.socket = self._open.enter_context(listener(self.pod, at, kind))
        return made

    def servers(self, version: int, kind: int = STREAM, port: int = 8080) -> list[socket.socket]:
        """A server on each of the backends' addresses."""
        return [self.server((address, port), kind) for address in BACKENDS[version]]

    def client(self, version: int, kind: int = STREAM, proto: int = 0) -> socket.socket:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        made: socket.socket = self._open.enter_context(
            self.group.socket(self.pod, family, kind, proto)
        )
        return made

    def cluster_ip(self, version: int, proto: int = TCP, **more: Any) -> tuple[str, int]:
        at = (SERVICE[version], 80)
        self.services.add(at, [(b, 8080) for b in BACKENDS[version]], proto, **more)
        return at


def refused(client: socket.socket, at: tuple[str, int]) -> int | None:
    """Errno of a connection that fails."""
    try:
        client.connect(at)
    except OSError as error:
        return error.errno
    return None


def entries(bench: Bench) -> int:
    return len(list(bench.plane.maps["LB_SOCKETS"].items()))
