"""Masquerade: out with the node's address, back with the pod's, and every checksum right."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cilium_core import abi
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, UDPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6, in6_chksum
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from tests.bpf.harness import TC_OK, TC_REDIRECT, TC_SHOT
from tests.bpf.scenes import (
    BLUE,
    GREEN,
    NODE,
    OTHER_NODE,
    RED,
    SCTP_PROTO,
    WORLD,
    drops,
    of_type,
    traces,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cilium_agent.datapath.models import NatEntry

    from tests.bpf.scenes import Scene

PORT = 40000
MARK_SNAT_DONE = 0x0300


def layer3(scene: Scene, packet: Any) -> Any:
    return scene.parse(bytes(packet))[IP if scene.family == 4 else IPv6]


def source(scene: Scene, packet: bytes) -> str:
    return str(layer3(scene, packet).src)


def target(scene: Scene, packet: bytes) -> str:
    return str(layer3(scene, packet).dst)


def checksums(packet: bytes) -> list[int]:
    """Every checksum of the packet, outermost first."""
    found = []
    layer: Packet | None = Ether(packet)
    while layer:
        found += [layer.fields[name] for name in ("chksum", "cksum") if name in layer.fields]
        layer = layer.payload or None
    return found


def assert_checksums_right(scene: Scene, packet: bytes) -> None:
    """Compare the checksums in the packet with those of one built anew."""
    fresh = Ether(packet)
    for layer in (IP if scene.family == 4 else IPv6, TCP, UDP, ICMP):
        if layer in fresh and "chksum" in fresh[layer].fields:
            del fresh[layer].chksum
    for name in ("ICMPv6EchoRequest", "ICMPv6EchoReply", "ICMPv6DestUnreach"):
        if name in fresh:
            del fresh[name].cksum
    assert checksums(bytes(fresh)) == checksums(packet)


def nat(scene: Scene, direction: int) -> list[NatEntry]:
    return [entry for entry in scene.plane.nat.dump() if entry.direction == direction]


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_pods_packet_leaves_with_the_nodes_address_and_its_own_port(
    scene: Scene, kind: str
) -> None:
    run = scene.leave(getattr(scene, kind)(RED, WORLD, PORT))
    assert run.verdict == TC_OK
    assert source(scene, run.packet) == scene.address(NODE)
    assert Ether(run.packet).sport == PORT
    assert_checksums_right(scene, run.packet)


def test_a_mapping_is_two_entries(scene: Scene) -> None:
    scene.leave(scene.tcp(RED, WORLD, PORT))
    (there,), (back,) = nat(scene, abi.NAT_OUT), nat(scene, abi.NAT_IN)
    assert (str(there.source), there.source_port) == (scene.address(RED), PORT)
    assert (str(there.to_address), there.to_port) == (scene.address(NODE), PORT)
    assert (str(back.source), str(back.destination)) == (
        scene.address(WORLD),
        scene.address(NODE),
    )
    assert (str(back.to_address), back.to_port) == (scene.address(RED), PORT)


def test_the_same_connection_keeps_its_mapping(scene: Scene) -> None:
    first = scene.leave(scene.tcp(RED, WORLD, 1024))
    second = scene.leave(scene.tcp(RED, WORLD, 1024, flags="A"))
    assert Ether(first.packet).sport == Ether(second.packet).sport >= 32768
    assert len(nat(scene, abi.NAT_OUT)) == 1


def test_a_port_outside_the_range_is_replaced(scene: Scene) -> None:
    scene.configure(nat_port_min=50000, nat_port_max=50009)
    run = scene.leave(scene.udp(RED, WORLD, 1024))
    assert 50000 <= Ether(run.packet).sport <= 50009
    assert_checksums_right(scene, run.packet)


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_port_that_another_pod_has_is_replaced(scene: Scene, kind: str) -> None:
    ports = {
        Ether(scene.leave(getattr(scene, kind)(pod, WORLD, PORT)).packet).sport
        for pod in (RED, BLUE)
    }
    assert len(ports) == 2
    assert len(nat(scene, abi.NAT_IN)) == 2


def test_the_same_port_serves_connections_with_different_peers(scene: Scene) -> None:
    elsewhere = "203.0.113.9" if scene.family == 4 else "2001:db8::9"
    for pod, peer in ((RED, WORLD.name), (BLUE, elsewhere)):
        address = scene.address(WORLD) if peer == WORLD.name else peer
        assert Ether(scene.leave(scene.udp(pod, address, PORT)).packet).sport == PORT


def test_every_port_of_the_range_is_found_before_giving_up(scene: Scene) -> None:
    scene.configure(nat_port_min=50000, nat_port_max=50007)
    ports = set()
    for port in range(1000, 1008):
        ports.add(Ether(scene.leave(scene.udp(RED, WORLD, port)).packet).sport)
    assert ports == set(range(50000, 50008))
    run = scene.leave(scene.udp(RED, WORLD, 2000))
    assert (run.verdict, drops(run)) == (TC_SHOT, [167])


def deliver_back(scene: Scene, sent: bytes) -> bytes:
    out = Ether(sent)
    if TCP in out:
        answer = scene.tcp(WORLD, source(scene, sent), out.dport, out.sport, flags="SA")
    else:
        answer = scene.udp(WORLD, source(scene, sent), out.dport, out.sport)
    run = scene.arrive(answer)
    assert (run.verdict, drops(run)) == (TC_REDIRECT, [])
    return run.packet


@pytest.mark.parametrize("port", [PORT, 1024])
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_an_answer_gets_the_pods_address_and_port_back(scene: Scene, kind: str, port: int) -> None:
    packet = getattr(scene, kind)(RED, WORLD, port)
    scene.send(RED, packet)
    received = deliver_back(scene, scene.leave(packet).packet)
    assert (target(scene, received), Ether(received).dport) == (scene.address(RED), port)
    assert Ether(received).dst == RED.mac
    assert_checksums_right(scene, received)


def test_an_answer_is_a_reply_for_policy(scene: Scene) -> None:
    scene.rules(RED, {}, abi.ENDPOINT_ENFORCE_INGRESS)
    packet = scene.tcp(RED, WORLD, PORT)
    scene.send(RED, packet)
    deliver_back(scene, scene.leave(packet).packet)


def test_what_nobody_asked_for_is_left_to_the_node(scene: Scene) -> None:
    packet = scene.tcp(WORLD, NODE, 80, PORT)
    run = scene.arrive(packet)
    assert (run.verdict, run.packet) == (TC_OK, bytes(packet))


@pytest.mark.parametrize("number", [PORT, 5])
def test_echo_is_translated_by_identifier(scene: Scene, number: int) -> None:
    request = scene.echo(RED, WORLD, number)
    scene.send(RED, request)
    sent = scene.leave(request).packet
    outside = scene.parse(sent)[2].id
    assert (outside == number) == (number >= 32768)
    assert_checksums_right(scene, sent)
    back = scene.arrive(scene.echo(WORLD, NODE, outside, reply=True))
    assert back.verdict == TC_REDIRECT
    assert (target(scene, back.packet), scene.parse(back.packet)[2].id) == (
        scene.address(RED),
        number,
    )
    assert_checksums_right(scene, back.packet)


def test_an_unasked_echo_answer_is_not_translated(scene: Scene) -> None:
    run = scene.leave(scene.echo(RED, WORLD, reply=True))
    assert (run.verdict, drops(run)) == (TC_SHOT, [168])


def quote_of(scene: Scene, packet: bytes) -> bytes:
    """What a router quotes of a packet: the headers."""
    return bytes(layer3(scene, packet))[:48]


@pytest.mark.parametrize("port", [PORT, 1024])
def test_an_error_about_a_translated_packet_is_restored_inside(scene: Scene, port: int) -> None:
    packet = scene.udp(RED, WORLD, port)
    scene.send(RED, packet)
    sent = scene.leave(packet).packet
    error = ICMP(type=3, code=3) if scene.family == 4 else ICMPv6DestUnreach(code=4)
    run = scene.arrive(scene.ip(WORLD, NODE) / error / Raw(quote_of(scene, sent)))
    received = scene.parse(run.packet)
    assert (run.verdict, target(scene, run.packet)) == (TC_REDIRECT, scene.address(RED))
    inner = received[3]
    assert (inner.src, inner.payload.sport) == (scene.address(RED), port)
    assert of_type(run, abi.EVENT_TRACE)[0].reason == abi.REASON_RELATED
    if scene.family == 4:
        assert isinstance(inner, IPerror)
        assert isinstance(inner.payload, UDPerror)
        raw = bytes(received[IP])
        assert Ether(bytes(Ether() / IP(raw)))[IP].chksum == fresh4(raw[:20])
        assert ones_sum(raw[20:]) == 0xFFFF
        assert ones_sum(raw[28:48]) == 0xFFFF
    else:
        whole = received[IPv6]
        body = bytes(whole.payload)
        assert checksum6(whole) == int.from_bytes(body[2:4], "big")


def checksum6(packet: Any) -> int:
    """What the ICMPv6 checksum of an IPv6 packet should be."""
    body = bytes(packet.payload)
    compute: Any = in6_chksum
    return int(compute(58, packet, body[:2] + bytes(2) + body[4:]))


def ones_sum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def fresh4(header: bytes) -> int:
    return ~ones_sum(header[:10] + bytes(2) + header[12:]) & 0xFFFF


def test_an_error_of_a_pod_quotes_what_the_peer_knows(scene: Scene) -> None:
    # given an answer that reached red's translated port
    asked = scene.udp(RED, WORLD, 1024)
    scene.send(RED, asked)
    sent = scene.leave(asked).packet
    received = deliver_back(scene, sent)
    # when red refuses it
    error = ICMP(type=3, code=3) if scene.family == 4 else ICMPv6DestUnreach(code=4)
    refusal = scene.ip(RED, WORLD) / error / Raw(quote_of(scene, received))
    assert scene.send(RED, refusal).verdict == TC_OK
    # then the world reads of the node and of the port it has spoken to
    run = scene.leave(refusal)
    out = scene.parse(run.packet)
    assert (run.verdict, source(scene, run.packet)) == (TC_OK, scene.address(NODE))
    assert (out[3].dst, out[3].payload.dport) == (scene.address(NODE), Ether(sent).sport)
    if scene.family == 4:
        assert ones_sum(bytes(out[IP])[20:]) == 0xFFFF
    else:
        body = bytes(out[IPv6].payload)
        assert checksum6(out[IPv6]) == int.from_bytes(body[2:4], "big")


def test_an_error_of_a_pod_about_nothing_translated_stays_here(scene: Scene) -> None:
    error = ICMP(type=3, code=3) if scene.family == 4 else ICMPv6DestUnreach(code=4)
    packet = scene.ip(RED, WORLD) / error / Raw(quote_of(scene, bytes(scene.udp(WORLD, RED))))
    assert drops(scene.leave(packet)) == [167]


def test_sctp_keeps_its_port_and_checksum(scene: Scene) -> None:
    packet = scene.ip(RED, WORLD) / SCTP(sport=1024, dport=9) / Raw(bytes(8))
    run = scene.leave(packet)
    assert source(scene, run.packet) == scene.address(NODE)
    assert bytes(layer3(scene, run.packet).payload) == bytes(layer3(scene, packet).payload)


def test_sctp_whose_port_is_taken_is_not_translated(scene: Scene) -> None:
    for pod, expected in ((RED, []), (BLUE, [168])):
        run = scene.leave(scene.ip(pod, WORLD) / SCTP(sport=1024, dport=9) / Raw(bytes(8)))
        assert drops(run) == expected
    assert all(entry.proto == SCTP_PROTO for entry in scene.plane.nat.dump())


def test_a_udp_packet_without_checksum_stays_without(scene4: Scene) -> None:
    packet = scene4.udp(RED, WORLD, 1024)
    packet[UDP].chksum = 0
    assert Ether(scene4.leave(packet).packet)[UDP].chksum == 0


@pytest.mark.parametrize("who", [GREEN, OTHER_NODE, WORLD])
def test_only_who_does_not_know_the_pods_sees_the_node(scene: Scene, who: object) -> None:
    peer = next(each for each in (GREEN, OTHER_NODE, WORLD) if each is who)
    run = scene.leave(scene.tcp(RED, peer, PORT))
    expected = RED if peer is GREEN else NODE
    assert source(scene, run.packet) == scene.address(expected)


def test_an_answer_of_a_pod_keeps_the_address_that_was_asked(scene: Scene) -> None:
    scene.arrive(scene.tcp(WORLD, RED, 50000, 80))
    answer = scene.tcp(RED, WORLD, 80, 50000, flags="SA")
    run = scene.send(RED, answer)
    assert run.mark == MARK_SNAT_DONE
    assert source(scene, scene.leave(answer, mark=run.mark).packet) == scene.address(RED)


def test_masquerade_can_be_switched_off(scene: Scene) -> None:
    scene.configure(masquerade_ipv4=False, masquerade_ipv6=False)
    run = scene.leave(scene.tcp(RED, WORLD))
    assert (run.verdict, source(scene, run.packet)) == (TC_OK, scene.address(RED))
    assert list(scene.plane.nat.dump()) == []


def test_the_nodes_own_packets_leave_as_they_are(scene: Scene) -> None:
    packet = scene.tcp(NODE, WORLD, PORT)
    run = scene.leave(packet)
    assert (run.verdict, run.packet) == (TC_OK, bytes(packet))
    assert list(scene.plane.nat.dump()) == []


def test_the_node_gives_way_where_a_pod_has_its_port(scene: Scene) -> None:
    scene.leave(scene.udp(RED, WORLD, PORT))
    sent = scene.leave(scene.udp(NODE, WORLD, PORT)).packet
    assert source(scene, sent) == scene.address(NODE)
    assert Ether(sent).sport != PORT
    assert_checksums_right(scene, sent)
    answer = scene.arrive(scene.udp(WORLD, NODE, 53, Ether(sent).sport))
    assert (answer.verdict, Ether(answer.packet).dport) == (TC_OK, PORT)
    assert target(scene, answer.packet) == scene.address(NODE)
    assert_checksums_right(scene, answer.packet)


def test_a_lost_half_of_a_mapping_is_mended(scene: Scene) -> None:
    table = scene.plane.maps["SNAT4" if scene.family == 4 else "SNAT6"]
    name = "nat_key4" if scene.family == 4 else "nat_key6"
    packet = scene.udp(RED, WORLD, 1024)
    scene.send(RED, packet)
    sent = scene.leave(packet).packet
    for direction in (abi.NAT_IN, abi.NAT_OUT):
        (key,) = [key for key, _ in table.items() if abi.unpack(name, key).direction == direction]
        table.delete(key)
        if direction == abi.NAT_IN:
            assert Ether(scene.leave(packet).packet).sport == Ether(sent).sport
        else:
            deliver_back(scene, sent)
        assert len(list(scene.plane.nat.dump())) == 2


def test_a_kept_port_outlives_the_half_that_knows_it(scene: Scene) -> None:
    table = scene.plane.maps["SNAT4" if scene.family == 4 else "SNAT6"]
    name = "nat_key4" if scene.family == 4 else "nat_key6"
    packet = scene.udp(RED, WORLD, PORT)
    scene.leave(packet)
    (key,) = [key for key, _ in table.items() if abi.unpack(name, key).direction == abi.NAT_OUT]
    table.delete(key)
    assert Ether(scene.leave(packet).packet).sport == PORT
    assert len(list(scene.plane.nat.dump())) == 2


def test_an_answer_for_a_pod_that_is_gone_is_stale(scene: Scene) -> None:
    sent = scene.leave(scene.udp(RED, WORLD, PORT)).packet
    scene.plane.endpoints.delete(RED.endpoint)
    run = scene.arrive(scene.udp(WORLD, NODE, 53, Ether(sent).sport))
    assert (run.verdict, drops(run)) == (TC_SHOT, [151])


def test_the_trace_of_a_translated_packet_keeps_the_original_source(scene: Scene) -> None:
    scene.configure(aggregation=0)
    run = scene.leave(scene.udp(RED, WORLD, PORT))
    (event,) = of_type(run, abi.EVENT_TRACE)
    assert event.subtype == abi.TRACE_TO_NETWORK
    assert event.source == scene.address(NODE)
    assert event.orig_saddr.startswith(ipaddress.ip_address(scene.address(RED)).packed)


# ---- with a real node in the namespace: sockets and routes ----


def _route(scene: Scene, device: int) -> None:
    from pyroute2 import IPRoute

    for sysctl in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        (Path("/proc/sys/net") / sysctl).write_text("1")
    for name in ("all", "default", RED.name):
        (Path("/proc/sys/net/ipv4/conf") / name / "forwarding").write_text("1")
    with IPRoute() as netlink:
        for address, length in ((NODE.ipv4, 24), (NODE.ipv6, 64)):
            netlink.addr("replace", index=device, address=address, prefixlen=length, flags=0x02)
        netlink.route("replace", dst="default", gateway="172.30.0.1", oif=device)
        netlink.route("replace", dst="default", gateway="fd00:30::1", oif=device, family=10)


def _unroute(device: int) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        netlink.flush_addr(index=device)
        netlink.flush_routes(oif=device)


@pytest.fixture
def routed(scene: Scene) -> Iterator[Scene]:
    """The scene with routes of the node to the world, by eth0."""
    scene.plane.device(RED.name)
    device = scene.plane.device("eth0")
    scene.plane.namespace.call(_route, scene, device)
    yield scene
    scene.plane.namespace.call(_unroute, device)


def test_a_packet_to_the_world_leaves_by_the_nodes_routes(routed: Scene) -> None:
    hops: dict[str, Any] = {"ttl" if routed.family == 4 else "hlim": 64}
    run = routed.send(RED, routed.tcp(RED, WORLD, **hops))
    assert (run.verdict, traces(run)) == (TC_REDIRECT, [abi.TRACE_TO_NETWORK])
    out = layer3(routed, run.packet)
    assert (out.ttl if routed.family == 4 else out.hlim) == 63


def test_the_stack_answers_for_a_packet_at_its_last_hop(routed: Scene) -> None:
    hops: dict[str, Any] = {"ttl" if routed.family == 4 else "hlim": 1}
    run = routed.send(RED, routed.tcp(RED, WORLD, **hops))
    assert (run.verdict, traces(run)) == (TC_OK, [abi.TRACE_TO_STACK])


def test_a_port_of_a_socket_of_the_node_is_not_taken(routed: Scene) -> None:
    def bind() -> socket.socket:
        family = socket.AF_INET if routed.family == 4 else socket.AF_INET6
        held = socket.socket(family, socket.SOCK_DGRAM)
        held.bind((routed.address(NODE), PORT))
        return held

    held = routed.plane.namespace.call(bind)
    try:
        assert Ether(routed.leave(routed.udp(RED, WORLD, PORT)).packet).sport != PORT
    finally:
        held.close()
    assert Ether(routed.leave(routed.udp(BLUE, WORLD, PORT)).packet).sport == PORT


def test_debug_events_show_the_packet_with_its_new_source(scene: Scene) -> None:
    scene.configure(debug_events=True)
    (shown,) = of_type(scene.leave(scene.udp(RED, WORLD, PORT)), abi.EVENT_CAPTURE)
    assert shown.subtype == abi.DEBUG_CAPTURE_SNAT_POST
    assert (shown.source, shown.source_port) == (scene.address(NODE), PORT)
