"""Services in XDP: what tc has begun turns round in the driver, all else is left to tc."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cilium_core import abi
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN

from tests.bpf.harness import XDP_DROP, XDP_PASS
from tests.bpf.scenes import GREEN, NODE, OTHER_NODE, RED, WORLD
from tests.bpf.services_from_outside import (
    CLIENT_PORT,
    NODE_PORT,
    frontend,
    on,
    serve,
)
from tests.bpf.test_masquerade import _route, _unroute, assert_checksums_right
from tests.bpf.test_nodeport import ask, back_from_green, ends, request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bpf.harness import Run
    from tests.bpf.scenes import Scene

XDP_TX = 3
GATEWAY_MAC, NODE_MAC = "02:00:00:00:aa:01", "02:00:00:00:aa:12"
KINDS = ["tcp", "udp"]


def _neighbours(device: int, scene: Scene) -> None:
    from pyroute2 import IPRoute

    near = (("172.30.0.1", GATEWAY_MAC), ("fd00:30::1", GATEWAY_MAC), (OTHER_NODE.ipv4, NODE_MAC))
    with IPRoute() as netlink:
        netlink.link("set", index=device, mtu=1500)
        for address, mac in near:
            family = 10 if ":" in address else 2
            netlink.neigh(
                "replace", dst=address, lladdr=mac, ifindex=device, state=0x80, family=family
            )
    Path("/proc/sys/net/ipv4/conf/eth0/forwarding").write_text("1")


@pytest.fixture
def fast(scene: Scene) -> Iterator[Scene]:
    """The scene with acceleration, routes and neighbours on eth0."""
    scene.plane.device(RED.name)
    device = scene.plane.device("eth0")
    scene.plane.namespace.call(_route, scene, device)
    scene.plane.namespace.call(_neighbours, device, scene)
    on(scene, acceleration="testing-only")
    yield scene
    scene.plane.namespace.call(_unroute, device)


def drive(scene: Scene, packet: Any) -> Run:
    """A packet arrives at the driver."""
    return scene.plane.run("cil_xdp_entry", packet, device="eth0")


def begin(scene: Scene, kind: str, **fields: Any) -> bytes:
    """A connection begins in tc; how its packets leave for the backend."""
    sent = ask(scene, kind, **fields).packet
    back_from_green(scene, sent, kind)
    return ask(scene, kind, flags="A", **fields).packet


def inside(scene: Scene, packet: bytes) -> Any:
    """What an encapsulated packet holds, after a look at what it is wrapped in."""
    outer = Ether(packet)
    assert (outer.dst, outer[IP].src, outer[IP].dst) == (NODE_MAC, NODE.ipv4, OTHER_NODE.ipv4)
    assert (outer[UDP].dport, outer[UDP].chksum, outer[IP].len) == (8472, 0, len(packet) - 14)
    fresh = outer.copy()
    del fresh[IP].chksum
    assert Ether(bytes(fresh))[IP].chksum == outer[IP].chksum
    tunnelled = VXLAN(bytes(outer[UDP].payload))
    assert tunnelled.vni == abi.ID_WORLD
    return Ether(bytes(tunnelled.payload))


@pytest.mark.parametrize("port", [CLIENT_PORT, 1024])
@pytest.mark.parametrize("kind", KINDS)
def test_a_packet_of_a_connection_leaves_by_the_tunnel_as_tc_would_send_it(
    fast: Scene, kind: str, port: int
) -> None:
    serve(fast, frontend(fast, GREEN, proto=kind.upper()))
    slow = begin(fast, kind, sport=port)
    run = drive(fast, request(fast, kind, flags="A", sport=port))
    assert run.verdict == XDP_TX
    assert bytes(inside(fast, run.packet)) == bytes(Ether(slow))
    assert fast.plane.counter(0, abi.DIR_EGRESS) > 0


def answer(scene: Scene, sent: bytes, kind: str, flags: str = "A", vni: int = 1003) -> Any:
    """What the other node sends back through the tunnel."""
    source, sport, target, dport = ends(scene, sent)
    if kind == "tcp":
        inner = scene.tcp(target, source, dport, sport, flags=flags, payload=b"answer")
    else:
        inner = scene.udp(target, source, dport, sport)
    outer = IP(src=OTHER_NODE.ipv4, dst=NODE.ipv4) / UDP(sport=50000, dport=8472, chksum=0)
    return Ether(src=NODE_MAC) / outer / VXLAN(vni=vni, flags=8) / inner


@pytest.mark.parametrize("port", [CLIENT_PORT, 1024])
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_leaves_the_tunnel_for_the_client(fast: Scene, kind: str, port: int) -> None:
    serve(fast, frontend(fast, GREEN, proto=kind.upper()))
    slow = begin(fast, kind, sport=port)
    run = drive(fast, answer(fast, slow, kind))
    assert run.verdict == XDP_TX
    node, world = fast.address(NODE), fast.address(WORLD)
    assert ends(fast, run.packet) == (node, NODE_PORT, world, port)
    assert Ether(run.packet).dst == GATEWAY_MAC
    layer = Ether(run.packet)[IP if fast.family == 4 else IPv6]
    assert (layer.ttl if fast.family == 4 else layer.hlim) == 63
    assert_checksums_right(fast, run.packet)


def test_without_the_option_nothing_is_accelerated(fast: Scene) -> None:
    serve(fast, frontend(fast, GREEN))
    begin(fast, "tcp")
    on(fast)
    assert drive(fast, request(fast, flags="A")).verdict == XDP_PASS


@pytest.mark.parametrize("flags", ["S", "SA", "FA", "R", "RA"])
def test_what_begins_or_ends_a_connection_is_for_tc(fast: Scene, flags: str) -> None:
    serve(fast, frontend(fast, GREEN))
    slow = begin(fast, "tcp")
    packet = request(fast, flags=flags)
    run = drive(fast, packet)
    assert (run.verdict, run.packet) == (XDP_PASS, bytes(packet))
    assert drive(fast, answer(fast, slow, "tcp", flags)).verdict == XDP_PASS


def test_what_nobody_has_begun_is_for_tc(fast: Scene) -> None:
    serve(fast, frontend(fast, GREEN))
    assert drive(fast, request(fast, flags="A")).verdict == XDP_PASS


def test_a_backend_of_this_node_is_for_tc(fast: Scene) -> None:
    serve(fast, frontend(fast, RED))
    ask(fast)
    ask(fast, flags="A")
    assert drive(fast, request(fast, flags="A")).verdict == XDP_PASS


def test_a_packet_too_big_for_the_tunnel_is_for_tc(fast: Scene) -> None:
    serve(fast, frontend(fast, GREEN))
    begin(fast, "tcp")
    header = 40 if fast.family == 4 else 60
    for size, expected in ((1450, XDP_TX), (1451, XDP_PASS)):
        packet = fast.tcp(
            WORLD, NODE, CLIENT_PORT, NODE_PORT, flags="A", payload=bytes(size - header)
        )
        assert drive(fast, packet).verdict == expected


def test_tc_sees_a_connection_again_to_renew_it(fast: Scene) -> None:
    serve(fast, frontend(fast, GREEN))
    begin(fast, "tcp")
    table = fast.plane.maps["CT_TCP4" if fast.family == 4 else "CT_TCP6"]
    ((key, value),) = [
        row
        for row in table.items()
        if abi.unpack(f"ct_key{fast.family}", row[0]).kind == abi.CT_SERVICE
    ]
    entry = abi.unpack("ct_entry", value)
    entry.lifetime -= 10
    table.set(key, abi.as_bytes(entry))
    assert drive(fast, request(fast, flags="A")).verdict == XDP_PASS
    ask(fast, flags="A")
    assert drive(fast, request(fast, flags="A")).verdict == XDP_TX


def test_an_answer_that_claims_to_be_of_a_host_is_for_tc(fast: Scene) -> None:
    serve(fast, frontend(fast, GREEN))
    slow = begin(fast, "tcp")
    assert drive(fast, answer(fast, slow, "tcp", vni=abi.ID_HOST)).verdict == XDP_PASS


def test_a_refused_source_is_not_accelerated(fast: Scene) -> None:
    serve(fast, frontend(fast, GREEN))
    begin(fast, "tcp")
    fast.plane.configuration.patch(rate_limit_pps=1, rate_limit_burst=1)
    verdicts = [drive(fast, request(fast, flags="A")).verdict for _ in range(2)]
    assert verdicts == [XDP_TX, XDP_DROP]
