"""Services of other nodes' backends in XDP, against tc and against the kernel's nftables.

By prog-test-run: one packet of a connection, or of its answers, in all the programs that it meets.
What is between tc's (the tunnel device, routing) is not in its figure, while XDP does all of it.

Over veth: a device of a node gets datagrams as a driver hands them over and sends each on, to the
backend through the tunnel (XDP, tc), or with both addresses translated (nftables, whose backend
needs no tunnel). The figure is the time of a packet less that of one that the device drops,
on one processor, from which packets per second follow.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import shutil
import struct
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, cast

from cilium_agent import datapath
from cilium_agent.datapath import netlink as nl
from cilium_agent.datapath import pinning, syscalls
from cilium_agent.datapath.models import EndpointInfo, ServiceConfig
from cilium_core import abi
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN

from tests.bench import report
from tests.bpf.conftest import CACHE
from tests.bpf.harness import Namespace, Plane
from tests.bpf.nodes import CONFIG, V4, Node
from tests.bpf.scenes import GREEN, NODE, OTHER_NODE, RED, Scene
from tests.bpf.services_from_outside import frontend, on, serve
from tests.bpf.test_masquerade import _route
from tests.bpf.test_nodeport import ends, request
from tests.bpf.test_nodeport_xdp import _neighbours, answer, begin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_Step = tuple[str, bytes, dict[str, Any]]
"""A program, its packet, and where that is."""
SAMPLES = 10_000
FRAMES = 200_000
ROUNDS = 5
# `r0 = VERDICT; exit`, in the kernel's instruction encoding.
_RETURN = "b7000000{:02x}0000009500000000000000"
_TC_OK, _XDP_DROP, _XDP_PASS, _XDP_TX = 0, 1, 2, 3
VIP, CLIENT, BACKEND = "203.0.113.80", "198.51.100.7", "10.244.1.3"
_MACS = {"172.30.0.12": "02:00:00:00:00:12", "172.30.0.99": "02:00:00:00:00:99"}


def rows() -> Iterator[report.Row]:
    """Both ways for each family by prog-test-run, then a stream over veth; needs root."""
    plane = Plane(CACHE)
    try:
        for family in (4, 6):
            yield from _alone(Scene(plane, family))
            plane.reset()
    finally:
        plane.close()
    yield from _streams()


def _sender(frame: bytes) -> int:
    """A program that sends each frame as it was, whatever has been made of it the last time."""
    assert len(frame) % 8 == 0
    words = struct.unpack(f"<{len(frame) // 8}Q", frame)

    def instruction(code: int, registers: int, offset: int, value: int) -> bytes:
        return struct.pack("<BBhi", code, registers, offset, value)

    def number(word: int) -> int:
        return word - (1 << 32) if word >> 31 else word

    code = instruction(0x61, 0x12, 0, 0) + instruction(0x61, 0x13, 4, 0)  # r2, r3 = data, end
    code += instruction(0xBF, 0x24, 0, 0) + instruction(0x07, 4, 0, len(frame))  # r4 = r2 + length
    code += instruction(0x2D, 0x34, 3 * len(words), 0)  # past the stores if r4 > r3
    for at, word in enumerate(words):
        low, high = number(word & 0xFFFFFFFF), number(word >> 32)
        code += instruction(0x18, 5, 0, low) + instruction(0, 0, 0, high)
        code += instruction(0x7B, 0x52, 8 * at, 0)
    code += bytes.fromhex(_RETURN.format(_XDP_TX))
    return syscalls.prog_load_raw(syscalls.PROG_TYPES["XDP"], "sender", code)


def _program(kind: str, verdict: int) -> int:
    code = bytes.fromhex(_RETURN.format(verdict))
    return syscalls.prog_load_raw(syscalls.PROG_TYPES[kind], f"returns_{verdict}", code)


# ---- by prog-test-run ----


def _alone(scene: Scene) -> Iterator[report.Row]:
    plane = scene.build().plane
    plane.device(RED.name)
    device = plane.device("eth0")
    plane.namespace.call(_route, scene, device)
    plane.namespace.call(_neighbours, device, scene)
    on(scene, acceleration="testing-only")
    serve(scene, frontend(scene, GREEN))
    sent = begin(scene, "tcp")
    source, sport, target, dport = ends(scene, sent)
    asked = bytes(request(scene, flags="A"))
    inner = bytes(scene.tcp(target, source, dport, sport, flags="A", payload=b"answer"))
    outer = bytes(answer(scene, sent, "tcp"))
    peer = int.from_bytes(ipaddress.IPv4Address(OTHER_NODE.ipv4).packed, "little")
    plane.generation.programs.setdefault("returns", _program("SCHED_CLS", _TC_OK))
    plane.generation.programs.setdefault("cil_xdp_returns", _program("XDP", _XDP_PASS))
    ours: dict[str, Any] = {"device": "eth0"}
    overlay: dict[str, Any] = {"device": "vxlan", "cb": [GREEN.identity, peer]}
    wrapped = plane.run("cil_xdp_entry", asked, **ours).packet
    returned = plane.run("cil_xdp_entry", outer, **ours).packet
    ways: dict[str, tuple[_Step, list[_Step]]] = {
        "to the backend": (
            ("cil_xdp_entry", asked, ours),
            [
                ("cil_from_netdev", asked, ours),
                ("cil_to_overlay", asked, {"device": "vxlan"}),
                ("cil_to_netdev", wrapped, {**ours, "mark": abi.MARK_OVERLAY}),
            ],
        ),
        "to the client": (
            ("cil_xdp_entry", outer, ours),
            [
                ("cil_from_netdev", outer, ours),
                (f"tail_from_overlay_ipv{scene.family}", inner, overlay),
                ("cil_to_netdev", returned, {**ours, "mark": abi.MARK_SNAT_DONE}),
            ],
        ),
    }
    for name, (fast, slow) in ways.items():
        costs, theirs = [], []
        for _ in range(ROUNDS):
            costs.append(_cost(plane, fast, "cil_xdp_returns"))
            theirs.append(sum(_cost(plane, step, "returns") for step in slow))
        title = f"service elsewhere, {name}, IPv{scene.family}, XDP alone"
        yield report.compare(title, "ns/packet", costs, "tc", theirs, "<=", 0.5)


def _cost(plane: Plane, step: _Step, nothing: str) -> float:
    """What one run costs more than that of a program that does nothing."""
    program, packet, where = step

    def once(name: str, how: dict[str, Any]) -> float:
        return float(median(plane.durations(name, packet, SAMPLES, **how)))

    return once(program, where) - once(nothing, {"device": "eth0"})


# ---- over veth ----


def _index(opened: Any, name: str) -> int:
    return int(opened.link_lookup(ifname=name)[0])


class _Bed:
    """A node whose only device gets frames, and which sends what comes of them back there."""

    def __init__(self) -> None:
        self.root = Path("/sys/fs/bpf") / f"bench-{secrets.token_hex(4)}"
        pinning.ensure_bpffs(self.root)
        plane = datapath.Datapath(datapath.DatapathPaths(self.root, CACHE))
        self.node = Node(Namespace(), plane, self.root)
        self.node.add_device("eth0")
        self.node.netlink(self._address)
        self.wire = self.node.netlink(lambda opened: _index(opened, "wire"))
        self._sink = _program("XDP", _XDP_DROP)
        self._pass = _program("XDP", _XDP_PASS)
        self._xdp("wire", self._sink, "native")

    def _address(self, opened: Any) -> None:
        index = _index(opened, "eth0")
        opened.link("set", index=_index(opened, "wire"), state="up")
        opened.addr("add", index=index, address=NODE.ipv4, prefixlen=24)
        for address, mac in _MACS.items():
            opened.neigh("add", dst=address, lladdr=mac, ifindex=index, state=0x80)
        opened.route("add", dst="198.51.100.0/24", gateway="172.30.0.99")
        self.mac = str(nl.link(opened, index).get_attr("IFLA_ADDRESS"))

    def _xdp(self, device: str, program: int, mode: str) -> None:
        self.node.netlink(
            lambda opened: nl.set_xdp(opened, _index(opened, device), program, nl.XDP_FLAGS[mode])
        )

    def take_frames(self) -> None:
        """Let the device hand frames to the stack, as a driver does; a veth has to be told."""
        self._xdp("eth0", self._pass, "native")

    def run(self, *command: str, text: str = "") -> None:
        self.node.call(subprocess.run, command, input=text, text=True, check=True)

    def start(self, acceleration: str) -> None:
        """Serve the address by a pod elsewhere."""
        services = ServiceConfig(nodes=True, maglev_size=251, acceleration=acceleration)
        plane = self.node.plane
        self.node.start(replace(CONFIG, services=services))
        for address in (CONFIG.node_ipv4, CONFIG.router_ipv4):
            plane.endpoints.upsert(
                EndpointInfo(id=0, identity=abi.ID_HOST, flags=abi.ENDPOINT_HOST, ipv4=address)
            )
        plane.ipcache.upsert(
            ipaddress.ip_network(f"{BACKEND}/32"), GREEN.identity, V4("172.30.0.12")
        )
        scene = Scene(cast("Plane", plane), 4)
        self.node.call(
            plane.services.apply, [frontend(scene, GREEN, address=VIP, port=80, proto="UDP")]
        )

    def stop(self) -> None:
        self.node.call(self.node.plane.teardown)

    def close(self) -> None:
        self.node.namespace.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def cost(self, frame: bytes) -> list[float]:
        """Nanoseconds a frame takes, of each round."""
        sender = _sender(frame)

        def send(count: int) -> float:
            started = time.perf_counter()
            self.node.call(syscalls.send_frames, sender, frame, self.wire, count)
            return (time.perf_counter() - started) / count * 1e9

        try:
            self.node.call(_give_way)
            send(1000)
            return [send(FRAMES) for _ in range(ROUNDS)]
        finally:
            os.close(sender)

    def answered(self) -> int:
        """Frames that have come back out of the device."""
        return int(
            self.node.netlink(
                lambda opened: nl.link(opened, _index(opened, "eth0")).get_attr("IFLA_STATS64")[
                    "tx_packets"
                ]
            )
        )


def _give_way() -> None:
    """Keep the calling thread on one processor, where whoever takes its frames goes first."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.setpriority(os.PRIO_PROCESS, 0, 19)


def _question(bed: _Bed) -> bytes:
    ip = IP(src=CLIENT, dst=VIP) / UDP(sport=40001, dport=80) / bytes(22)
    return bytes(Ether(src=_MACS["172.30.0.99"], dst=bed.mac) / ip)


def _answer(bed: _Bed) -> bytes:
    """What the backend's node sends: through the tunnel to the address that it saw."""
    inner = IP(src=BACKEND, dst=str(CONFIG.router_ipv4)) / UDP(sport=8080, dport=40001) / bytes(20)
    outer = IP(src="172.30.0.12", dst=NODE.ipv4) / UDP(sport=50000, dport=8472, chksum=0)
    frame = Ether(src=_MACS["172.30.0.12"], dst=bed.mac) / outer
    return bytes(frame / VXLAN(vni=GREEN.identity, flags=8) / Ether() / inner)


_NFTABLES = f"""
table ip balance {{
  chain service {{
    meta l4proto udp dnat to 172.30.0.12:8080
  }}
  chain before {{
    type nat hook prerouting priority dstnat;
    ip daddr . udp dport vmap {{ {VIP} . 80 : goto service }}
  }}
  chain after {{
    type nat hook postrouting priority srcnat;
    oifname "eth0" masquerade
  }}
}}
"""


def _with_plane(acceleration: str) -> tuple[list[float], list[float]]:
    """Costs of questions and answers."""
    bed = _Bed()
    try:
        bed.start(acceleration)
        if acceleration == "disabled":
            bed.take_frames()
        return tuple(  # type: ignore[return-value]
            _checked_cost(bed, frame) for frame in (_question(bed), _answer(bed))
        )
    finally:
        bed.stop()
        bed.close()


def _checked_cost(bed: _Bed, frame: bytes) -> list[float]:
    before = bed.answered()
    cost = bed.cost(frame)
    got, sent = bed.answered() - before, ROUNDS * FRAMES
    if got < 0.8 * sent:
        raise RuntimeError(f"only {got} of {sent} frames came back")
    # what a device that is too slow loses is no work done
    return [each * sent / got for each in cost]


def _with_nftables() -> list[float]:
    bed = _Bed()
    try:
        bed.take_frames()
        bed.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        bed.run("nft", "-f", "-", text=_NFTABLES)
        return _checked_cost(bed, _question(bed))
    finally:
        bed.close()


def _dropped() -> list[float]:
    bed = _Bed()
    try:
        bed._xdp("eth0", bed._sink, "native")
        return bed.cost(_question(bed))
    finally:
        bed.close()


def _streams() -> Iterator[report.Row]:
    nothing = median(_dropped())

    def net(costs: list[float]) -> list[float]:
        return [cost - nothing for cost in costs]

    asked, answered = (net(costs) for costs in _with_plane("native"))
    slow_asked, slow_answered = (net(costs) for costs in _with_plane("disabled"))
    kernel = net(_with_nftables())
    name = "service elsewhere, {}, IPv4, XDP over veth"
    compared: list[tuple[str, list[float], str, list[float]]] = [
        (name.format("to the backend"), asked, "tc", slow_asked),
        (name.format("to the client"), answered, "tc", slow_answered),
        (name.format("to the backend"), asked, "nftables", kernel),
    ]
    for title, ours, against, theirs in compared:
        yield report.compare(title, "ns/packet", ours, against, theirs, "<=", 0.5)
    rate: Callable[[list[float]], float] = lambda costs: 1e9 / median(costs)  # noqa: E731
    yield report.told(
        name.format("to the backend"), "packets/s", rate(asked), "tc", rate(slow_asked)
    )
    yield report.told(
        name.format("to the backend"), "packets/s", rate(asked), "nftables", rate(kernel)
    )
