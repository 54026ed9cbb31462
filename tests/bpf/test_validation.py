"""What is malformed has a drop reason of its own, and is counted; it never gets further."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from tests.bpf.harness import TC_OK, TC_REDIRECT, TC_SHOT
from tests.bpf.scenes import BLUE, RED, drops, traces

if TYPE_CHECKING:
    from tests.bpf.harness import Run
    from tests.bpf.scenes import Scene

IP_AT = 14


def patched(packet: object, offset: int, value: bytes) -> bytes:
    data = bytearray(bytes(packet))  # type: ignore[call-overload]
    data[offset : offset + len(value)] = value
    return bytes(data)


def fixed(packet: bytes) -> bytes:
    """The IPv4 header checksum made right again."""
    header = bytearray(packet[IP_AT : IP_AT + 20])
    header[10:12] = b"\0\0"
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return patched(packet, IP_AT + 10, struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF))


def assert_dropped(scene: Scene, run: Run, reason: int) -> None:
    assert (run.verdict, drops(run)) == (TC_SHOT, [reason])
    assert scene.plane.counter(reason) == 1
    assert scene.connections() == []


def test_a_sound_packet_is_delivered(scene: Scene) -> None:
    run = scene.send(RED, scene.tcp(RED, BLUE))
    assert (run.verdict, drops(run)) == (TC_REDIRECT, [])


def test_a_frame_without_ethertype_is_unsupported_l2(scene4: Scene) -> None:
    frame = Ether(src=RED.mac, dst=RED.node_mac, type=100) / Raw(bytes(100))
    assert_dropped(scene4, scene4.send(RED, frame), 166)


@pytest.mark.parametrize("ethertype", [0x0806 + 1, 0x88CC, 0x8847, 0xFFFF])
def test_an_unknown_ethertype_is_unsupported_l3(scene4: Scene, ethertype: int) -> None:
    frame = Ether(src=RED.mac, dst=RED.node_mac, type=ethertype) / Raw(bytes(60))
    assert_dropped(scene4, scene4.send(RED, frame), 139)


def test_a_vlan_tag_from_a_pod_is_dropped(scene4: Scene) -> None:
    frame = Ether(src=RED.mac, dst=RED.node_mac) / Dot1Q(vlan=5) / IP(src=RED.ipv4) / UDP()
    run = scene4.send(RED, frame)
    assert run.verdict == TC_SHOT
    assert drops(run)[0] in (139, 182)


@pytest.mark.parametrize("length", [0, 1, 10, 19])
def test_a_truncated_ip_header_is_an_invalid_packet(scene: Scene, length: int) -> None:
    # given a frame that prog-test-run takes: it refuses such short packets of a known ethertype
    frame = Ether(src=RED.mac, dst=RED.node_mac, type=0x88B5)
    frame /= Raw(bytes(scene.tcp(RED, BLUE))[IP_AT : IP_AT + length])
    # when the program of the family gets it
    run = scene.plane.run(f"tail_from_container_ipv{scene.family}", frame, device=RED.name)
    # then
    assert_dropped(scene, run, 134)


@pytest.mark.parametrize("length", [0, 1, 7, 13, 19])
def test_a_truncated_tcp_header_is_invalid_for_tracking(scene: Scene, length: int) -> None:
    packet = scene.ip(RED, BLUE) / Raw(bytes(scene.tcp(RED, BLUE)[TCP])[:length])
    packet[1].fields["proto" if scene.family == 4 else "nh"] = 6
    assert_dropped(scene, scene.send(RED, packet), 135)


@pytest.mark.parametrize("length", [0, 3, 7])
def test_a_truncated_udp_header_is_invalid_for_tracking(scene: Scene, length: int) -> None:
    packet = scene.ip(RED, BLUE) / Raw(bytes(scene.udp(RED, BLUE)[UDP])[:length])
    packet[1].fields["proto" if scene.family == 4 else "nh"] = 17
    assert_dropped(scene, scene.send(RED, packet), 135)


@pytest.mark.parametrize("claimed", [0, 7, 9999])
def test_a_udp_length_that_lies_is_invalid_for_tracking(scene: Scene, claimed: int) -> None:
    packet = scene.udp(RED, BLUE)
    packet[UDP].len = claimed
    assert_dropped(scene, scene.send(RED, packet), 135)


@pytest.mark.parametrize("words", [0, 4, 15])
def test_a_tcp_header_length_that_lies_is_invalid_for_tracking(scene: Scene, words: int) -> None:
    packet = scene.tcp(RED, BLUE)
    packet[TCP].dataofs = words
    assert_dropped(scene, scene.send(RED, packet), 135)


@pytest.mark.parametrize("flags", ["", "SF", "SR", "PU", "SFRPAU"])
def test_impossible_tcp_flags_are_invalid_for_tracking(scene: Scene, flags: str) -> None:
    assert_dropped(scene, scene.send(RED, scene.tcp(RED, BLUE, flags=flags)), 135)


@pytest.mark.parametrize("words", [0, 1, 4])
def test_a_bad_header_length_is_an_invalid_packet(scene4: Scene, words: int) -> None:
    packet = fixed(patched(scene4.tcp(RED, BLUE), IP_AT, bytes([0x40 | words])))
    assert_dropped(scene4, scene4.send(RED, packet), 134)


def test_a_header_length_beyond_the_packet_is_an_invalid_packet(scene4: Scene) -> None:
    packet = scene4.ip(RED, BLUE)
    packet[IP].ihl = 15
    assert_dropped(scene4, scene4.send(RED, bytes(packet)), 134)


def test_options_are_carried_along(scene4: Scene) -> None:
    packet = scene4.tcp(RED, BLUE, options=[b"\x01\x01\x01\x01"])
    assert scene4.send(RED, packet).verdict == TC_REDIRECT
    assert scene4.connection().destination_port == 80


@pytest.mark.parametrize("version", [0, 5, 15])
def test_a_wrong_version_is_an_invalid_packet(scene: Scene, version: int) -> None:
    first = bytes(scene.tcp(RED, BLUE))[IP_AT]
    packet = patched(scene.tcp(RED, BLUE), IP_AT, bytes([version << 4 | first & 15]))
    assert_dropped(scene, scene.send(RED, packet), 134)


def test_a_wrong_header_checksum_is_an_invalid_packet(scene4: Scene) -> None:
    packet = scene4.tcp(RED, BLUE, chksum=0x1234)
    assert_dropped(scene4, scene4.send(RED, packet), 134)


@pytest.mark.parametrize("length", [0, 19, 2000])
def test_a_total_length_that_lies_is_an_invalid_packet(scene4: Scene, length: int) -> None:
    packet = scene4.tcp(RED, BLUE, len=length)
    assert_dropped(scene4, scene4.send(RED, packet), 134)


def test_a_payload_length_beyond_the_packet_is_an_invalid_packet(scene6: Scene) -> None:
    assert_dropped(scene6, scene6.send(RED, scene6.tcp(RED, BLUE, plen=2000)), 134)


def test_padding_behind_the_packet_does_no_harm(scene: Scene) -> None:
    packet = bytes(scene.udp(RED, BLUE)) + bytes(30)
    assert scene.send(RED, packet).verdict == TC_REDIRECT


@pytest.mark.parametrize("proto", [4, 47, 50, 99, 255])
def test_an_unknown_protocol_has_its_own_reason(scene: Scene, proto: int) -> None:
    packet = scene.ip(RED, BLUE, **{"proto" if scene.family == 4 else "nh": proto})
    assert_dropped(scene, scene.send(RED, packet / Raw(bytes(40))), 142)


def test_the_icmp_of_the_other_family_is_an_unknown_protocol(scene: Scene) -> None:
    other = 58 if scene.family == 4 else 1
    packet = scene.ip(RED, BLUE, **{"proto" if scene.family == 4 else "nh": other})
    assert_dropped(scene, scene.send(RED, packet / Raw(bytes(40))), 142)


@pytest.mark.parametrize("kind", [2, 5, 9, 10, 15, 42, 255])
def test_an_unknown_icmp_type_has_its_own_reason(scene4: Scene, kind: int) -> None:
    packet = scene4.ip(RED, BLUE) / ICMP(type=kind) / Raw(bytes(8))
    assert_dropped(scene4, scene4.send(RED, packet), 144)


@pytest.mark.parametrize(("kind", "code"), [(3, 16), (11, 2), (12, 3)])
def test_an_unknown_icmp_code_has_its_own_reason(scene4: Scene, kind: int, code: int) -> None:
    packet = scene4.ip(RED, BLUE) / ICMP(type=kind, code=code) / Raw(bytes(28))
    assert_dropped(scene4, scene4.send(RED, packet), 143)


@pytest.mark.parametrize("kind", [0, 5, 100, 138, 150, 255])
def test_an_unknown_icmpv6_type_has_its_own_reason(scene6: Scene, kind: int) -> None:
    packet = scene6.ip(RED, BLUE, nh=58) / Raw(bytes([kind]) + bytes(15))
    assert_dropped(scene6, scene6.send(RED, packet), 146)


def test_an_unknown_icmpv6_code_has_its_own_reason(scene6: Scene) -> None:
    packet = scene6.ip(RED, BLUE) / ICMPv6DestUnreach(code=9) / Raw(bytes(48))
    assert_dropped(scene6, scene6.send(RED, packet), 145)


def test_extension_headers_are_walked_to_the_ports(scene6: Scene) -> None:
    packet = (
        scene6.ip(RED, BLUE)
        / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)])
        / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 12)])
        / TCP(sport=40000, dport=80, flags="S")
    )
    assert scene6.send(RED, packet).verdict == TC_REDIRECT
    assert (scene6.connection().proto, scene6.connection().destination_port) == (6, 80)


def _with_headers(scene: Scene, count: int) -> object:
    packet = scene.ip(RED, BLUE)
    for _ in range(count):
        packet = packet / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)])
    return packet / TCP(sport=40000, dport=80, flags="S")


def test_a_chain_of_six_extension_headers_is_the_longest(scene6: Scene) -> None:
    assert scene6.send(RED, _with_headers(scene6, 6)).verdict == TC_REDIRECT


def test_a_longer_chain_is_an_invalid_extension_header(scene6: Scene) -> None:
    assert_dropped(scene6, scene6.send(RED, _with_headers(scene6, 7)), 156)


def test_hop_by_hop_options_that_come_late_are_invalid(scene6: Scene) -> None:
    packet = scene6.ip(RED, BLUE) / IPv6ExtHdrDestOpt() / IPv6ExtHdrHopByHop() / TCP(flags="S")
    assert_dropped(scene6, scene6.send(RED, packet), 156)


def test_a_route_with_a_stop_ahead_is_an_invalid_extension_header(scene6: Scene) -> None:
    route = IPv6ExtHdrRouting(type=0, segleft=1, addresses=[BLUE.ipv6])
    packet = scene6.ip(RED, BLUE) / route / TCP(flags="S")
    assert_dropped(scene6, scene6.send(RED, packet), 156)


def test_an_extension_header_beyond_the_packet_is_invalid(scene6: Scene) -> None:
    packet = scene6.ip(RED, BLUE, nh=60) / Raw(bytes([6, 200]) + bytes(30))
    assert_dropped(scene6, scene6.send(RED, packet), 156)


def test_no_next_header_is_an_invalid_extension_header(scene6: Scene) -> None:
    packet = scene6.ip(RED, BLUE, nh=59) / Raw(bytes(30))
    assert_dropped(scene6, scene6.send(RED, packet), 156)


def test_group_membership_of_a_pod_ends_here_without_an_event(scene4: Scene) -> None:
    packet = scene4.ip(RED, "224.0.0.22", proto=2) / Raw(bytes(16))
    run = scene4.send(RED, packet)
    assert (run.verdict, run.events) == (TC_SHOT, [])
    assert scene4.plane.counter(199) == 1


@pytest.mark.parametrize("target", ["224.0.0.251", "255.255.255.255", "127.0.0.1", "0.0.0.0"])
def test_a_target_that_is_no_unicast_address_is_unknown(scene4: Scene, target: str) -> None:
    run = scene4.send(RED, scene4.udp(RED, target))
    assert (run.verdict, drops(run)) == (TC_SHOT, [150])


@pytest.mark.parametrize("target", ["ff02::fb", "::1", "::", "fe80::1"])
def test_a_target_that_is_no_global_address_is_unknown(scene6: Scene, target: str) -> None:
    run = scene6.send(RED, scene6.udp(RED, target))
    assert (run.verdict, drops(run)) == (TC_SHOT, [150])


def test_the_stack_may_send_malformed_packets_out_of_the_node(scene: Scene) -> None:
    from tests.bpf.scenes import NODE, OTHER_NODE

    packet = scene.ip(NODE, OTHER_NODE, **{"proto" if scene.family == 4 else "nh": 99})
    run = scene.leave(packet / Raw(bytes(30)))
    assert (run.verdict, run.events) == (TC_OK, [])


def test_a_frame_from_a_device_nobody_owns_is_dropped(scene: Scene) -> None:
    run = scene.plane.run("cil_from_container", scene.tcp(RED, BLUE), device="stranger")
    assert (run.verdict, drops(run), traces(run)) == (TC_SHOT, [203], [])


def test_ipv6_inside_an_ipv4_ethertype_is_an_invalid_packet(scene4: Scene) -> None:
    packet = Ether(src=RED.mac, dst=RED.node_mac, type=0x0800) / Raw(
        bytes(IPv6(src=RED.ipv6, dst=BLUE.ipv6) / TCP())
    )
    assert_dropped(scene4, scene4.send(RED, packet), 134)
