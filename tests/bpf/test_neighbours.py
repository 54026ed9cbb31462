"""The pods' gateway answers ARP and neighbour discovery, and nothing else speaks for others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet6 import (
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrHopByHop,
    RouterAlert,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from tests.bpf.harness import TC_REDIRECT, TC_SHOT
from tests.bpf.scenes import BLUE, RED, ROUTER, WORLD, drops

if TYPE_CHECKING:
    from tests.bpf.scenes import Scene

BROADCAST = "ff:ff:ff:ff:ff:ff"
SOLICITED_ROUTER = "ff02::1:ff00:fe"


def who_has(target: str, source: str = RED.ipv4) -> Ether:
    return Ether(src=RED.mac, dst=BROADCAST) / ARP(op=1, hwsrc=RED.mac, psrc=source, pdst=target)


def solicitation(
    target: str, source: str = RED.ipv6, *, option: bool = True, hops: int = 255
) -> Ether:
    packet = (
        Ether(src=RED.mac, dst="33:33:ff:00:00:fe")
        / IPv6(src=source, dst=SOLICITED_ROUTER, hlim=hops)
        / ICMPv6ND_NS(tgt=target)
    )
    return packet / ICMPv6NDOptSrcLLAddr(lladdr=RED.mac) if option else packet


@pytest.mark.parametrize("target", [ROUTER.ipv4, BLUE.ipv4, WORLD.ipv4])
def test_arp_for_anybody_is_answered_with_the_host_sides_mac(scene4: Scene, target: str) -> None:
    run = scene4.send(RED, who_has(target))
    answer = Ether(run.packet)
    assert (run.verdict, run.events) == (TC_REDIRECT, [])
    assert (answer.src, answer.dst) == (RED.node_mac, RED.mac)
    assert (answer[ARP].op, answer[ARP].hwsrc, answer[ARP].psrc) == (2, RED.node_mac, target)
    assert (answer[ARP].hwdst, answer[ARP].pdst) == (RED.mac, RED.ipv4)


def test_arp_for_the_pods_own_address_finds_no_duplicate(scene4: Scene) -> None:
    assert scene4.send(RED, who_has(RED.ipv4)).verdict == TC_SHOT


def test_arp_with_somebody_elses_address_is_a_spoof(scene4: Scene) -> None:
    run = scene4.send(RED, who_has(ROUTER.ipv4, source=BLUE.ipv4))
    assert (run.verdict, drops(run)) == (TC_SHOT, [132])


def test_an_arp_answer_of_a_pod_goes_nowhere(scene4: Scene) -> None:
    claim = Ether(src=RED.mac, dst=BROADCAST) / ARP(
        op=2, hwsrc=RED.mac, psrc=BLUE.ipv4, pdst=ROUTER.ipv4
    )
    assert scene4.send(RED, claim).verdict == TC_SHOT


@pytest.mark.parametrize("length", [1, 20, 27])
def test_a_truncated_arp_is_an_invalid_packet(scene4: Scene, length: int) -> None:
    run = scene4.send(RED, bytes(who_has(ROUTER.ipv4))[: 14 + length])
    assert (run.verdict, drops(run)) == (TC_SHOT, [134])


def test_arp_of_another_kind_of_network_is_an_invalid_packet(scene4: Scene) -> None:
    packet = who_has(ROUTER.ipv4)
    packet[ARP].hwtype = 6
    assert drops(scene4.send(RED, packet)) == [134]


@pytest.mark.parametrize("option", [True, False], ids=["with-option", "without"])
def test_a_solicitation_for_the_router_is_answered(scene6: Scene, *, option: bool) -> None:
    run = scene6.send(RED, solicitation(ROUTER.ipv6, option=option))
    answer = Ether(run.packet)
    assert (run.verdict, run.events) == (TC_REDIRECT, [])
    assert (answer.src, answer.dst) == (RED.node_mac, RED.mac)
    assert (answer[IPv6].src, answer[IPv6].dst) == (ROUTER.ipv6, RED.ipv6)
    assert (answer[IPv6].hlim, answer[IPv6].plen) == (255, 32)
    assert answer[ICMPv6ND_NA].tgt == ROUTER.ipv6
    assert (answer[ICMPv6ND_NA].S, answer[ICMPv6ND_NA].O) == (1, 1)
    assert answer[ICMPv6NDOptDstLLAddr].lladdr == RED.node_mac


def test_the_checksum_of_an_answer_is_right(scene6: Scene) -> None:
    answer = Ether(scene6.send(RED, solicitation(ROUTER.ipv6)).packet)
    given = answer[ICMPv6ND_NA].cksum
    del answer[ICMPv6ND_NA].cksum
    assert given == Ether(bytes(answer))[ICMPv6ND_NA].cksum


def test_a_solicitation_from_the_link_local_address_is_answered(scene6: Scene) -> None:
    run = scene6.send(RED, solicitation(ROUTER.ipv6, source="fe80::ff:fe00:1"))
    assert run.verdict == TC_REDIRECT
    assert Ether(run.packet)[IPv6].dst == "fe80::ff:fe00:1"


def test_a_solicitation_with_somebody_elses_address_is_a_spoof(scene6: Scene) -> None:
    assert drops(scene6.send(RED, solicitation(ROUTER.ipv6, source=BLUE.ipv6))) == [132]


@pytest.mark.parametrize("source", [RED.ipv6, "::"])
def test_a_solicitation_for_the_pods_own_address_finds_no_duplicate(
    scene6: Scene, source: str
) -> None:
    run = scene6.send(RED, solicitation(RED.ipv6, source=source))
    assert (run.verdict, run.events) == (TC_SHOT, [])


def test_a_solicitation_that_was_routed_is_an_invalid_packet(scene6: Scene) -> None:
    assert drops(scene6.send(RED, solicitation(ROUTER.ipv6, hops=64))) == [134]


def test_a_truncated_solicitation_is_an_invalid_packet(scene6: Scene) -> None:
    packet = IPv6(src=RED.ipv6, dst=SOLICITED_ROUTER, nh=58, hlim=255) / Raw(b"\x87" + bytes(15))
    run = scene6.send(RED, Ether(src=RED.mac, dst=RED.node_mac) / packet)
    assert (run.verdict, drops(run)) == (TC_SHOT, [134])


@pytest.mark.parametrize("message", [ICMPv6ND_RA(), ICMPv6ND_Redirect()])
def test_what_only_a_router_may_say_is_forbidden(scene6: Scene, message: object) -> None:
    packet = Ether(src=RED.mac, dst=RED.node_mac) / IPv6(src="fe80::1", dst="ff02::1") / message
    run = scene6.send(RED, packet)
    assert (run.verdict, drops(run)) == (TC_SHOT, [176])


def test_what_a_pod_tells_its_link_ends_here_without_an_event(scene6: Scene) -> None:
    ethernet = Ether(src=RED.mac, dst="33:33:00:00:00:02")
    chatter = [
        ethernet / IPv6(src="fe80::1", dst="ff02::2", hlim=255) / ICMPv6ND_RS(),
        ethernet / IPv6(src=RED.ipv6, dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt=RED.ipv6),
        ethernet
        / IPv6(src="::", dst="ff02::16", hlim=1)
        / IPv6ExtHdrHopByHop(options=[RouterAlert()])
        / ICMPv6MLReport2(),
    ]
    for packet in chatter:
        run = scene6.send(RED, packet)
        assert (run.verdict, run.events) == (TC_SHOT, [])
    assert scene6.plane.counter(201) == len(chatter)


def test_neighbour_messages_do_not_come_out_of_the_tunnel(scene6: Scene) -> None:
    from tests.bpf.scenes import GREEN

    packet = scene6.ip(GREEN, BLUE) / ICMPv6ND_NA(tgt=GREEN.ipv6)
    assert drops(scene6.tunnel(packet)) == [176]
