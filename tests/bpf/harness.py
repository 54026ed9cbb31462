"""Runs the data plane's programs on crafted packets, in a network namespace of its own.

One `Plane` holds all maps and programs; every case gets it emptied, which leaves it as fresh maps
would be. Programs run by prog-test-run in a thread that has left the host's network namespace, so
that a packet can have come in on a device of the case, and the process stays where it was.
"""

from __future__ import annotations

import ctypes
import ipaddress
import mmap
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cilium_agent.datapath import compiling, loading, maps, specs, syscalls
from cilium_agent.datapath.configuring import Configuration, fields
from cilium_agent.datapath.counters import Counters
from cilium_agent.datapath.endpoints import Endpoints
from cilium_agent.datapath.ipcache import Ipcache
from cilium_agent.datapath.models import NodeConfig, ServiceConfig
from cilium_agent.datapath.policies import Policies
from cilium_agent.datapath.services import Services
from cilium_agent.datapath.tracking import Nat, Tracking
from cilium_core import abi, drops

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

TC_OK, TC_SHOT, TC_REDIRECT = 0, 2, 7
XDP_DROP, XDP_PASS = 1, 2

_SIZES = {
    "cilium_lxc": 256,
    "cilium_devices": 256,
    "cilium_ipcache_v2": 1024,
    "cilium_policy": 256,
    "cilium_ct4_global": 1024,
    "cilium_ct_any4_global": 1024,
    "cilium_ct6_global": 1024,
    "cilium_ct_any6_global": 1024,
    "cilium_snat_v4_external": 1024,
    "cilium_snat_v6_external": 1024,
    "cilium_ipv4_frag_datagrams": 256,
    "cilium_ipv6_frag_datagrams": 256,
    "cilium_ratelimit": 256,
    "cilium_lb4_services_v2": 1024,
    "cilium_lb6_services_v2": 1024,
    "cilium_lb_slots": 4096,
    "cilium_lb_backends": 1024,
    "cilium_lb_reverse_nat": 2048,
    "cilium_lb_maglev": 251,
    "cilium_lb_affinity": 1024,
    "cilium_lb_affinity_match": 2048,
    "cilium_lb4_source_range": 1024,
    "cilium_lb6_source_range": 1024,
    "cilium_lb_reverse_sk": 1024,
}
_NOT_EMPTIED = {
    "CAPTURES",
    "CAPTURE_LOSSES",
    "EVENTS",
    "EVENT_HEADS",
    "KERNEL_DROP_PACE",
    "SCRATCH",
}
"""Rings are read on, and scratch room holds nothing from one packet to the next."""
_CLONE_NEWNET = 0x40000000
_SKB = {
    "mark": 8,
    "priority": 32,
    "ingress_ifindex": 36,
    "ifindex": 40,
    "tc_index": 44,
    "cb": 48,
    "tstamp": 152,
    "wire_len": 160,
    "gso_segs": 164,
    "gso_size": 176,
}
"""Offsets of the fields of struct __sk_buff that a case may look at or start with."""
_SKB_SIZE = 192


@dataclass(frozen=True)
class Run:
    """What a program did with a packet."""

    verdict: int
    packet: bytes
    context: bytes
    duration_ns: int
    events: list[Event]

    @property
    def mark(self) -> int:
        """The packet's mark afterwards."""
        return self.field("mark")

    def field(self, name: str, index: int = 0) -> int:
        """A field of the packet's context afterwards."""
        return int(struct.unpack_from("<I", self.context, _SKB[name] + 4 * index)[0])


class Event:
    """A decoded record of the events ring; other attributes are fields of struct event."""

    def __init__(self, data: bytes) -> None:
        self.raw = abi.unpack("event", data)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.raw, name)
        return value if isinstance(value, int) else bytes(abi.ffi.buffer(value))

    def _address(self, data: bytes) -> str:
        ip = data if self.flags & abi.EVENT_IPV6 else data[:4]
        return str(ipaddress.ip_address(ip))

    @property
    def source(self) -> str:
        """Source address."""
        return self._address(self.saddr)

    @property
    def destination(self) -> str:
        """Destination address."""
        return self._address(self.daddr)

    @property
    def source_port(self) -> int:
        """Source port in host order."""
        return int.from_bytes(self.raw.sport.to_bytes(2, "little"), "big")

    @property
    def destination_port(self) -> int:
        """Destination port in host order."""
        return int.from_bytes(self.raw.dport.to_bytes(2, "little"), "big")

    @property
    def drop(self) -> str:
        """Text of the drop reason."""
        return drops.text(self.subtype)

    def __repr__(self) -> str:
        kind = abi.enum("event_type")(self.type).name
        ports = f"{self.source}:{self.source_port} -> {self.destination}:{self.destination_port}"
        return f"<{kind} {self.subtype} {ports} {abi.as_dict(self.raw)}>"


class Namespace:
    """A thread that lives in a network namespace of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, initializer=self._leave)

    @staticmethod
    def _leave() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "unshare")

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Run a function inside and return its result."""
        return self._thread.submit(function, *arguments, **named).result()

    def close(self) -> None:
        """End the thread; the kernel removes the namespace with its devices."""
        self._thread.shutdown()


class EventRing:
    """Reads what programs write to the ring of events, from a position of its own."""

    def __init__(self, opened: maps.Maps) -> None:
        self._slots = _mapped(opened["EVENTS"])
        self._heads = _mapped(opened["EVENT_HEADS"])
        self._size = abi.sizeof("event")
        self._stride = abi.sizeof("event_head")
        self._read = [self._written(cpu) for cpu in range(len(self._heads) // self._stride)]
        self.lost = 0

    def _written(self, cpu: int) -> int:
        return int(struct.unpack_from("<Q", self._heads, cpu * self._stride)[0])

    def read(self) -> list[Event]:
        """Every record since the last read, in order of time."""
        found: list[Event] = []
        for cpu, position in enumerate(self._read):
            head = self._written(cpu)
            first = max(position, head - abi.EVENT_RING_SIZE)
            self.lost += first - position
            for number in range(first, head):
                slot = cpu * abi.EVENT_RING_SIZE + number % abi.EVENT_RING_SIZE
                at = slot * self._size
                found.append(Event(self._slots[at : at + self._size]))
                assert found[-1].sequence == (number << 1 | 1) & 0xFFFFFFFF
            self._read[cpu] = head
        return sorted(found, key=lambda event: event.time_ns)

    def skip(self) -> None:
        """Forget what was written so far."""
        self._read = [self._written(cpu) for cpu in range(len(self._read))]
        self.lost = 0

    def close(self) -> None:
        """Let go of the memory."""
        self._slots.close()
        self._heads.close()


def _mapped(held: maps.Map) -> mmap.mmap:
    size = -(-held.spec.max_entries * held.value_size // mmap.PAGESIZE) * mmap.PAGESIZE
    return mmap.mmap(held.fd, size, mmap.MAP_SHARED, mmap.PROT_READ)


class Plane:
    """All maps and programs of the data plane, for one case at a time."""

    def __init__(
        self, cache: Path, folder: Path | None = None, sizes: Mapping[str, int] | None = None
    ) -> None:
        """`sizes` are entries of maps that shall be larger than most cases need, by pin name."""
        folder = folder or specs.bpf_folder()
        self.specs = specs.read_maps(folder, _SIZES | dict(sizes or {}))
        self.maps = maps.open_maps(self.specs, None)
        self.templates = compiling.compile_all(folder, cache)
        self.generation = loading.load(
            self.templates, self.maps, self.specs, specs.read_calls(folder), None
        )
        self.namespace = Namespace()
        self.ring = EventRing(self.maps)
        self._devices: dict[str, int] = {}
        self.services = Services(self.maps, maglev_seed=ServiceConfig().maglev_seed)
        self.reset()

    def reset(self) -> None:
        """Empty every map and forget the events, as if all had just been made."""
        self.ring.skip()
        self.services.erase()
        for held in self.maps:
            if held.spec.name in _NOT_EMPTIED:
                continue
            if held.spec.type == syscalls.MAP_TYPES["ARRAY"]:
                held.set(bytes(4), bytes(held.value_size))
            else:
                held.delete_many([key for key, _ in held.items()])
        self.endpoints = Endpoints(self.maps)
        self.ipcache = Ipcache(self.maps)
        self.policy = Policies(self.maps, self.endpoints)
        self.conntrack = Tracking(self.maps)
        self.nat = Nat(self.maps)
        self.metrics = Counters(self.maps)
        self.configuration = Configuration(self.maps)
        self.configure()

    def configure(self, config: NodeConfig | None = None, **changed: Any) -> None:
        """Write the node's configuration; `changed` are fields of struct config."""
        self.configuration.patch(**{**fields(config or NodeConfig()), **changed})

    def device(self, name: str) -> int:
        """Index of a device of that name in the namespace, made when there is none."""
        if name not in self._devices:
            self._devices[name] = self.namespace.call(_make_device, name)
        return self._devices[name]

    def run(
        self,
        program: str,
        packet: bytes | Any,
        *,
        device: str | None = None,
        ifindex: int = 0,
        mark: int = 0,
        repeat: int = 1,
        **context: int | list[int],
    ) -> Run:
        """Run a program on a packet (bytes, or anything bytes() takes, such as scapy's).

        `device` or `ifindex` says where the packet is; `context` sets further fields of the
        packet's context, e.g. cb=[1, 2]. Events that it wrote are in the result.
        """
        if device is not None:
            ifindex = self.device(device)
        data = bytes(packet)
        given = _context(program, data, ifindex=ifindex, mark=mark, **context)
        done = self.namespace.call(
            syscalls.run_packet, self.generation.programs[program], data, given, repeat
        )
        return Run(done.verdict, done.packet, done.context, done.duration_ns, self.ring.read())

    def durations(
        self, program: str, packet: bytes, times: int, *, device: str, **context: int | list[int]
    ) -> list[int]:
        """Run a program on a packet many times; the nanoseconds of each run."""
        given = _context(program, packet, ifindex=self.device(device), **context)
        number = self.generation.programs[program]
        durations: list[int] = self.namespace.call(
            syscalls.packet_durations, number, packet, given, times
        )
        return durations

    def counter(self, reason: int, direction: int = 0) -> int:
        """Packets counted under a reason; direction 0 is all."""
        return sum(
            row.packets
            for row in self.metrics.dump()
            if row.reason == reason and direction in (0, row.direction)
        )

    def close(self) -> None:
        """Let go of everything."""
        self.ring.close()
        self.services.close()
        self.policy.close()
        self.generation.close()
        self.maps.close()
        self.namespace.close()


def _context(program: str, packet: bytes, *, ifindex: int, **fields: int | list[int]) -> bytes:
    """The struct xdp_md or __sk_buff that a run starts from."""
    if program.startswith("cil_xdp"):
        return struct.pack("<IIIIII", 0, len(packet), 0, ifindex, 0, 0) if ifindex else b""
    return _skb(ifindex=ifindex, **fields)


def _skb(**values: int | list[int]) -> bytes:
    context = bytearray(_SKB_SIZE)
    for name, value in values.items():
        words = value if isinstance(value, list) else [value]
        width = "Q" if name == "tstamp" else "I"
        struct.pack_into(f"<{len(words)}{width}", context, _SKB[name], *words)
    return bytes(context)


def _make_device(name: str) -> int:
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        if name == "lo":
            netlink.link("set", index=1, state="up")
            return 1
        netlink.link("add", ifname=name, kind="veth", peer={"ifname": f"{name[:12]}-p"})
        for each in (name, f"{name[:12]}-p"):
            netlink.link("set", index=netlink.link_lookup(ifname=each)[0], state="up")
        return int(netlink.link_lookup(ifname=name)[0])
