"""Fragments: judged by the ports of the first one, each with a defined fate."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import pytest
from cilium_core import abi
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.bpf.harness import TC_OK, TC_REDIRECT, TC_SHOT
from tests.bpf.scenes import (
    ALLOW,
    BLUE,
    INGRESS,
    NODE,
    RED,
    UDP_PROTO,
    WORLD,
    drops,
    of_type,
    port_rule,
)

if TYPE_CHECKING:
    from tests.bpf.scenes import Inhabitant, Scene

SIZE = 64
"""Bytes of each fragment, a multiple of eight."""


def pieces(
    scene: Scene, whole: Any, number: int = 99, proto: int = UDP_PROTO, size: int = SIZE
) -> list[Any]:
    """A packet cut into fragments."""
    layer = whole[IP] if scene.family == 4 else whole[1]
    body = bytes(layer.payload)
    found: list[Any] = []
    for at in range(0, len(body), size):
        more = at + size < len(body)
        part = Raw(body[at : at + size])
        fields = {"src": layer.src, "dst": layer.dst}
        ethernet = Ether(src=whole.src, dst=whole.dst)
        if scene.family == 4:
            flags = "MF" if more else 0
            header = IP(**fields, id=number, flags=flags, frag=at // 8, proto=proto, ttl=64)
            found.append(ethernet / header / part)
        else:
            header = layer.__class__(**fields, nh=44, hlim=64)
            extension = IPv6ExtHdrFragment(nh=proto, offset=at // 8, m=int(more), id=number)
            found.append(ethernet / header / extension / part)
    return found


def datagram(scene: Scene, source: Inhabitant, target: Inhabitant, dport: int = 53) -> Any:
    packet = scene.udp(source, target, dport=dport, payload=bytes(range(180)))
    return Ether(bytes(packet))


def test_every_fragment_of_an_allowed_datagram_is_delivered(scene: Scene) -> None:
    scene.rules(BLUE, {port_rule(INGRESS, RED, UDP_PROTO, 53): ALLOW})
    cut = pieces(scene, datagram(scene, RED, BLUE))
    assert len(cut) == 3
    assert [scene.send(RED, part).verdict for part in cut] == [TC_REDIRECT] * 3
    assert scene.connection().tx_packets == 3


def test_fragments_come_out_as_they_went_in(scene: Scene) -> None:
    for part in pieces(scene, datagram(scene, RED, BLUE)):
        run = scene.send(RED, part)
        ahead = 14 + (20 if scene.family == 4 else 40)
        assert run.packet[ahead:] == bytes(part)[ahead:]


def test_no_fragment_of_a_denied_datagram_is_delivered(scene: Scene) -> None:
    scene.rules(BLUE, {port_rule(INGRESS, RED, UDP_PROTO, 53): ALLOW})
    for part in pieces(scene, datagram(scene, RED, BLUE, dport=54)):
        run = scene.send(RED, part)
        assert (run.verdict, drops(run)) == (TC_SHOT, [133])


def test_a_later_fragment_without_the_first_has_its_own_reason(scene: Scene) -> None:
    for part in pieces(scene, datagram(scene, RED, BLUE))[1:]:
        run = scene.send(RED, part)
        assert (run.verdict, drops(run)) == (TC_SHOT, [175])


def test_fragments_of_another_datagram_do_not_help(scene: Scene) -> None:
    whole = datagram(scene, RED, BLUE)
    scene.send(RED, pieces(scene, whole, number=1)[0])
    assert drops(scene.send(RED, pieces(scene, whole, number=2)[1])) == [175]


def test_a_fragment_that_reaches_back_into_the_header_is_invalid(scene: Scene) -> None:
    cut = pieces(scene, datagram(scene, RED, BLUE), size=8)
    assert scene.send(RED, cut[0]).verdict == TC_REDIRECT
    assert drops(scene.send(RED, cut[1])) == [134]


def test_a_first_fragment_too_short_for_its_header_is_truncated(scene: Scene) -> None:
    whole = Ether(bytes(scene.tcp(RED, BLUE, payload=bytes(64))))
    (first, *_) = pieces(scene, whole, proto=6, size=16)
    assert drops(scene.send(RED, first)) == [135]


def test_the_answer_to_a_fragmented_datagram_is_a_reply(scene: Scene) -> None:
    scene.rules(RED, {}, abi.ENDPOINT_ENFORCE_INGRESS)
    for part in pieces(scene, datagram(scene, RED, BLUE)):
        scene.send(RED, part)
    answer = Ether(bytes(scene.udp(BLUE, RED, 53, 40000, payload=bytes(180))))
    runs = [scene.send(BLUE, part) for part in pieces(scene, answer)]
    assert [run.verdict for run in runs] == [TC_REDIRECT] * 3


def test_a_fragmented_echo_is_followed_by_its_identifier(scene: Scene) -> None:
    scene.rules(BLUE, {port_rule(INGRESS, RED, scene.icmp, scene.request): ALLOW})
    scene.rules(RED, {}, abi.ENDPOINT_ENFORCE_INGRESS)
    for reply, source, target in ((False, RED, BLUE), (True, BLUE, RED)):
        whole = Ether(bytes(scene.echo(source, target, reply=reply, payload=bytes(180))))
        cut = pieces(scene, whole, proto=scene.icmp)
        runs = [scene.send(source, part) for part in cut]
        assert [run.verdict for run in runs] == [TC_REDIRECT] * len(cut)


def test_events_of_fragments_say_so_and_have_the_ports(scene: Scene) -> None:
    scene.configure(aggregation=0)
    cut = pieces(scene, datagram(scene, RED, BLUE))
    for part in cut:
        event = of_type(scene.send(RED, part), abi.EVENT_TRACE)[-1]
        assert event.flags & abi.EVENT_FRAGMENT
        assert (event.source_port, event.destination_port) == (40000, 53)


def test_a_fragmented_datagram_is_masqueraded_whole(scene: Scene) -> None:
    packet = scene.udp(RED, WORLD, 1024, payload=bytes(range(180)))
    cut = [scene.leave(part) for part in pieces(scene, Ether(bytes(packet)))]
    assert [run.verdict for run in cut] == [TC_OK] * 3
    ahead = 14 + (20 if scene.family == 4 else 48)
    body = b"".join(run.packet[ahead:] for run in cut)
    source = ipaddress.ip_address(scene.address(NODE))
    for run in cut:
        assert source.packed in run.packet[:54]
    # then the datagram put together again is right
    whole = scene.ip(NODE, WORLD) / UDP(body)
    given = whole[UDP].chksum
    del whole[UDP].chksum
    assert given == Ether(bytes(whole))[UDP].chksum
    assert whole[UDP].sport >= 32768


def test_a_fragmented_answer_is_restored_whole(scene: Scene) -> None:
    packet = scene.udp(RED, WORLD, 1024)
    scene.send(RED, packet)
    outside = Ether(scene.leave(packet).packet).sport
    answer = scene.udp(WORLD, NODE, 53, outside, payload=bytes(180))
    for part in pieces(scene, Ether(bytes(answer))):
        run = scene.arrive(part)
        assert run.verdict == TC_REDIRECT
        assert scene.parse(run.packet)[1].dst == scene.address(RED)


@pytest.mark.parametrize("offset", [0, 8])
def test_a_lone_last_fragment_at_the_start_is_a_whole_packet(scene6: Scene, offset: int) -> None:
    body = bytes(Ether(bytes(scene6.udp(RED, BLUE)))[UDP])
    extension = IPv6ExtHdrFragment(nh=17, offset=offset, m=0, id=5)
    run = scene6.send(RED, scene6.ip(RED, BLUE) / extension / Raw(body))
    assert (run.verdict, drops(run)) == ((TC_REDIRECT, []) if not offset else (TC_SHOT, [175]))


def test_a_fragment_inside_a_fragment_is_an_invalid_extension(scene6: Scene) -> None:
    packet = (
        scene6.ip(RED, BLUE)
        / IPv6ExtHdrFragment(m=1, id=1)
        / IPv6ExtHdrFragment(m=1, id=2)
        / UDP()
        / Raw(bytes(32))
    )
    assert drops(scene6.send(RED, packet)) == [156]


def test_neighbour_messages_in_fragments_are_forbidden(scene6: Scene) -> None:
    from scapy.layers.inet6 import ICMPv6ND_NS

    packet = scene6.ip(RED, BLUE) / IPv6ExtHdrFragment(m=0, id=1) / ICMPv6ND_NS(tgt=BLUE.ipv6)
    assert drops(scene6.send(RED, packet)) == [176]


def test_an_error_in_fragments_is_not_supported(scene4: Scene) -> None:
    from scapy.layers.inet import ICMP

    packet = scene4.ip(RED, BLUE, flags="MF") / ICMP(type=3, code=3) / Raw(bytes(64))
    assert drops(scene4.send(RED, packet)) == [157]
