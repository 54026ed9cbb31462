"""Connection tracking: one entry a connection, its states, lifetimes and counters."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from cilium_core import abi
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
)
from scapy.packet import Raw

from tests.bpf.harness import TC_REDIRECT, TC_SHOT
from tests.bpf.scenes import (
    ALLOW,
    BLUE,
    EGRESS,
    GREEN,
    INGRESS,
    RED,
    TCP_PROTO,
    UDP_PROTO,
    WORLD,
    drops,
    of_type,
    port_rule,
)

if TYPE_CHECKING:
    from tests.bpf.scenes import Inhabitant, Scene


def now_s() -> int:
    return int(time.clock_gettime(time.CLOCK_MONOTONIC))


def reason_of(run: object) -> list[int]:
    """Connection state that the run's to-* traces report."""
    return [event.reason for event in of_type(run, abi.EVENT_TRACE)]  # type: ignore[arg-type]


def lifetime(scene: Scene) -> int:
    """Rounded to what the clock's second may blur."""
    left = scene.connection().expires_s - now_s()
    return next(known for known in (10, 60, 8000) if abs(known - left) <= 2)


def tcp(scene: Scene, *flags: str) -> None:
    """A conversation of red, who starts it, with blue: < marks blue's segments."""
    for each in flags:
        if each.startswith("<"):
            scene.send(BLUE, scene.tcp(BLUE, RED, 80, 40000, flags=each[1:]))
        else:
            scene.send(RED, scene.tcp(RED, BLUE, flags=each))


def test_both_directions_share_one_entry(scene: Scene) -> None:
    tcp(scene, "S", "<SA", "A", "<A")
    found = scene.connection()
    assert (str(found.source), found.source_port) == (scene.address(RED), 40000)
    assert (str(found.destination), found.destination_port) == (scene.address(BLUE), 80)
    assert (found.source_identity, found.destination_identity) == (RED.identity, BLUE.identity)
    assert found.flags & abi.CT_OUT
    assert found.flags & abi.CT_IN


@pytest.mark.parametrize(("first", "second"), [(RED, BLUE), (BLUE, RED)])
def test_the_initiator_is_who_spoke_first(
    scene: Scene, first: Inhabitant, second: Inhabitant
) -> None:
    scene.configure(aggregation=0)
    opened = scene.send(first, scene.udp(first, second))
    answered = scene.send(second, scene.udp(second, first, 53, 40000))
    again = scene.send(first, scene.udp(first, second))
    assert str(scene.connection().source) == scene.address(first)
    assert [reason_of(run)[-1] for run in (opened, answered, again)] == [
        abi.REASON_NEW,
        abi.REASON_REPLY,
        abi.REASON_ESTABLISHED,
    ]


def test_packets_and_bytes_are_counted_by_direction(scene: Scene) -> None:
    there, back = scene.udp(RED, BLUE, payload=bytes(10)), scene.udp(BLUE, RED, 53, 40000)
    for _ in range(3):
        scene.send(RED, there)
    scene.send(BLUE, back)
    found = scene.connection()
    assert (found.tx_packets, found.tx_bytes) == (3, 3 * len(bytes(there)))
    assert (found.rx_packets, found.rx_bytes) == (1, len(bytes(back)))


def test_a_syn_alone_lives_for_a_minute(scene: Scene) -> None:
    tcp(scene, "S", "<SA")
    assert lifetime(scene) == 60
    assert not scene.connection().flags & abi.CT_SEEN_NON_SYN


def test_an_established_connection_lives_for_hours(scene: Scene) -> None:
    tcp(scene, "S", "<SA", "A")
    assert lifetime(scene) == 8000
    assert scene.connection().flags & abi.CT_SEEN_NON_SYN


def test_one_fin_closes_one_side_only(scene: Scene) -> None:
    tcp(scene, "S", "<SA", "A", "FA")
    assert lifetime(scene) == 8000
    assert scene.connection().flags & abi.CT_TX_CLOSING
    assert not scene.connection().flags & abi.CT_RX_CLOSING


def test_two_fins_leave_ten_seconds(scene: Scene) -> None:
    tcp(scene, "S", "<SA", "A", "FA", "<FA", "A")
    assert lifetime(scene) == 10


@pytest.mark.parametrize("reset", ["RA", "<R"])
def test_a_reset_of_either_side_leaves_ten_seconds(scene: Scene, reset: str) -> None:
    tcp(scene, "S", "<SA", "A", reset)
    assert lifetime(scene) == 10


def test_other_protocols_live_for_a_minute(scene: Scene) -> None:
    scene.send(RED, scene.udp(RED, BLUE))
    assert lifetime(scene) == 60


def test_lifetimes_come_from_the_configuration(scene: Scene) -> None:
    scene.configure(ct_timeout_any_s=8000)
    scene.send(RED, scene.udp(RED, BLUE))
    assert lifetime(scene) == 8000


def test_a_syn_on_a_closed_connection_opens_a_new_one(scene: Scene) -> None:
    tcp(scene, "S", "<SA", "A", "FA", "<FA")
    scene.send(RED, scene.tcp(RED, BLUE))
    assert scene.connection().tx_packets == 1
    assert lifetime(scene) == 60


def test_a_syn_of_the_other_side_on_a_closed_connection_is_its_own(scene: Scene) -> None:
    tcp(scene, "S", "<SA", "A", "RA", "<S")
    assert str(scene.connection().source) == scene.address(BLUE)


def test_a_syn_on_a_closed_connection_asks_policy(scene: Scene) -> None:
    # given a closed connection of blue, which red may not be spoken to by
    scene.rules(RED, {}, abi.ENDPOINT_ENFORCE_INGRESS)
    tcp(scene, "S", "<SA", "A", "RA")
    # when blue tries the same ports in the other direction, then it is a new connection
    run = scene.send(BLUE, scene.tcp(BLUE, RED, 80, 40000, flags="S"))
    assert drops(run) == [133]


def test_an_expired_entry_is_no_connection(scene: Scene) -> None:
    scene.configure(ct_timeout_any_s=0)
    scene.rules(RED, {}, abi.ENDPOINT_ENFORCE_INGRESS)
    scene.send(RED, scene.udp(RED, BLUE))
    # when its second is over, then the answer is judged as a packet of its own
    table = scene.plane.maps["CT_ANY4" if scene.family == 4 else "CT_ANY6"]
    ((key, value),) = table.items()
    entry = abi.unpack("ct_entry", value)
    entry.lifetime = now_s() - 2
    table.set(key, abi.as_bytes(entry))
    run = scene.send(BLUE, scene.udp(BLUE, RED, 53, 40000))
    assert drops(run) == [133]


def test_an_answer_passes_where_a_request_would_not(scene: Scene) -> None:
    scene.rules(RED, {}, abi.ENDPOINT_ENFORCE_INGRESS)
    scene.send(RED, scene.udp(RED, BLUE))
    assert scene.send(BLUE, scene.udp(BLUE, RED, 53, 40000)).verdict == TC_REDIRECT
    assert drops(scene.send(BLUE, scene.udp(BLUE, RED, 53, 40001))) == [133]


def test_echo_is_tracked_by_identifier(scene: Scene) -> None:
    scene.rules(RED, {}, abi.ENDPOINT_ENFORCE_INGRESS)
    scene.send(RED, scene.echo(RED, BLUE, 7))
    assert scene.connection().source_port == 7
    assert scene.send(BLUE, scene.echo(BLUE, RED, 7, reply=True)).verdict == TC_REDIRECT
    assert drops(scene.send(BLUE, scene.echo(BLUE, RED, 8, reply=True))) == [133]


def test_an_echo_request_is_no_answer_to_one_with_the_same_identifier(scene: Scene) -> None:
    scene.rules(RED, {}, abi.ENDPOINT_ENFORCE_INGRESS)
    scene.send(RED, scene.echo(RED, BLUE, 7))
    assert drops(scene.send(BLUE, scene.echo(BLUE, RED, 7))) == [133]


def unreachable(scene: Scene, source: Inhabitant, target: Inhabitant, quoted: Any) -> Any:
    """Port unreachable about a packet that target has sent."""
    inner = quoted[1].copy()
    error = ICMP(type=3, code=3) if scene.family == 4 else ICMPv6DestUnreach(code=4)
    return scene.ip(source, target) / error / Raw(bytes(inner)[:64])


def test_an_icmp_error_about_a_connection_is_related_to_it(scene: Scene) -> None:
    scene.rules(RED, {}, abi.ENDPOINT_ENFORCE_INGRESS)
    asked = scene.udp(RED, BLUE)
    scene.send(RED, asked)
    run = scene.send(BLUE, unreachable(scene, BLUE, RED, asked))
    assert (run.verdict, reason_of(run)) == (TC_REDIRECT, [abi.REASON_RELATED])


def test_an_icmp_error_from_the_tunnel_is_related(scene: Scene) -> None:
    scene.rules(RED, {}, abi.ENDPOINT_ENFORCE_INGRESS)
    asked = scene.tcp(RED, GREEN)
    scene.send(RED, asked)
    run = scene.tunnel(unreachable(scene, GREEN, RED, asked))
    assert (run.verdict, reason_of(run)) == (TC_REDIRECT, [abi.REASON_RELATED])


def test_a_router_on_the_way_may_send_the_error(scene: Scene) -> None:
    scene.rules(RED, {}, abi.ENDPOINT_ENFORCE_INGRESS)
    asked = scene.tcp(RED, WORLD)
    scene.send(RED, asked)
    router = "203.0.113.1" if scene.family == 4 else "2001:db8:1::1"
    exceeded = ICMP(type=11) if scene.family == 4 else ICMPv6TimeExceeded()
    packet = scene.ip(router, RED) / exceeded / Raw(bytes(asked[1])[:64])
    assert scene.arrive(packet).verdict == TC_REDIRECT


def test_an_icmp_error_about_nothing_known_is_judged_by_policy(scene: Scene) -> None:
    scene.rules(RED, {}, abi.ENDPOINT_ENFORCE_INGRESS)
    run = scene.send(BLUE, unreachable(scene, BLUE, RED, scene.udp(RED, BLUE)))
    assert (run.verdict, drops(run)) == (TC_SHOT, [133])


def test_a_pod_cannot_send_errors_about_the_connections_of_others(scene: Scene) -> None:
    scene.rules(RED, {}, abi.ENDPOINT_ENFORCE_INGRESS)
    asked = scene.tcp(RED, GREEN)
    scene.send(RED, asked)
    assert drops(scene.send(BLUE, unreachable(scene, BLUE, RED, asked))) == [133]


def test_an_error_that_quotes_nonsense_is_judged_by_policy(scene: Scene) -> None:
    scene.rules(RED, {}, abi.ENDPOINT_ENFORCE_INGRESS)
    error = ICMP(type=3, code=3) if scene.family == 4 else ICMPv6DestUnreach(code=4)
    for quote in (b"", b"\x45", bytes(64), b"\xff" * 64):
        packet = scene.ip(BLUE, RED) / error / Raw(quote)
        assert scene.send(BLUE, packet).verdict == TC_SHOT


def test_an_error_makes_no_connection(scene: Scene) -> None:
    scene.send(BLUE, unreachable(scene, BLUE, RED, scene.udp(RED, BLUE)))
    assert scene.connections() == []


def test_path_mtu_messages_pass_whatever_the_policy(scene: Scene) -> None:
    scene.rules(RED, {}, abi.ENDPOINT_ENFORCE_INGRESS)
    if scene.family == 4:
        packet = scene.ip(WORLD, RED) / ICMP(type=3, code=4, nexthopmtu=1400)
        packet /= Raw(bytes(IP(src=RED.ipv4, dst=WORLD.ipv4) / UDP()))
    else:
        packet = scene.ip(WORLD, RED) / ICMPv6PacketTooBig(mtu=1400)
        packet /= Raw(bytes(IPv6(src=RED.ipv6, dst=WORLD.ipv6) / UDP()))
    assert scene.arrive(packet).verdict == TC_REDIRECT


def test_a_revoked_rule_stops_the_established_connection(scene: Scene) -> None:
    scene.rules(BLUE, {port_rule(INGRESS, RED): ALLOW})
    tcp(scene, "S", "<SA", "A")
    assert scene.send(RED, scene.tcp(RED, BLUE, flags="A")).verdict == TC_REDIRECT
    scene.plane.policy.replace(BLUE.endpoint, {})
    for flags in ("A", "PA", "S"):
        run = scene.send(RED, scene.tcp(RED, BLUE, flags=flags))
        assert (run.verdict, drops(run)) == (TC_SHOT, [133])


def test_a_revoked_connection_does_not_come_back_through_the_other_side(scene: Scene) -> None:
    # given a connection that is refused in the middle of the server's answer
    scene.rules(BLUE, {port_rule(INGRESS, RED): ALLOW})
    tcp(scene, "S", "<SA", "A")
    scene.plane.policy.replace(BLUE.endpoint, {})
    # when both sides go on, whoever is first
    for _ in range(2):
        assert scene.send(BLUE, scene.tcp(BLUE, RED, 80, 40000, flags="PA")).verdict == TC_SHOT
        assert scene.send(RED, scene.tcp(RED, BLUE, flags="A")).verdict == TC_SHOT
    # then it is still red's connection, and nobody's packets pass
    assert str(scene.connection().source) == scene.address(RED)


def test_a_refused_packet_does_not_keep_its_connection_alive(scene: Scene) -> None:
    scene.rules(BLUE, {port_rule(INGRESS, RED): ALLOW})
    tcp(scene, "S", "<SA", "A")
    scene.plane.policy.replace(BLUE.endpoint, {})
    before = scene.connection()
    tcp(scene, "A", "<A", "FA")
    assert scene.connection() == before


def test_a_connection_that_is_allowed_again_goes_on(scene: Scene) -> None:
    rules = {port_rule(INGRESS, RED): ALLOW}
    scene.rules(BLUE, rules)
    tcp(scene, "S", "<SA", "A")
    scene.plane.policy.replace(BLUE.endpoint, {})
    tcp(scene, "A")
    scene.plane.policy.replace(BLUE.endpoint, rules)
    assert scene.send(BLUE, scene.tcp(BLUE, RED, 80, 40000, flags="A")).verdict == TC_REDIRECT
    assert scene.send(RED, scene.tcp(RED, BLUE, flags="A")).verdict == TC_REDIRECT


def test_a_revoked_rule_stops_the_answers_too(scene: Scene) -> None:
    scene.rules(BLUE, {port_rule(INGRESS, RED, UDP_PROTO, 53): ALLOW})
    scene.rules(RED, {port_rule(EGRESS, BLUE, UDP_PROTO, 53): ALLOW})
    scene.send(RED, scene.udp(RED, BLUE))
    scene.plane.policy.replace(BLUE.endpoint, {})
    assert scene.send(BLUE, scene.udp(BLUE, RED, 53, 40000)).verdict == TC_SHOT


def test_a_changed_policy_that_still_allows_keeps_the_connection(scene: Scene) -> None:
    scene.rules(BLUE, {port_rule(INGRESS, RED): ALLOW})
    tcp(scene, "S", "<SA", "A")
    scene.plane.policy.replace(BLUE.endpoint, {port_rule(INGRESS, 0, TCP_PROTO, 0, 8): ALLOW})
    assert scene.send(BLUE, scene.tcp(BLUE, RED, 80, 40000, flags="A")).verdict == TC_REDIRECT
    run = scene.send(RED, scene.tcp(RED, BLUE, flags="A"))
    assert (run.verdict, of_type(run, abi.EVENT_POLICY_VERDICT)) == (TC_REDIRECT, [])
    assert scene.connection().tx_packets == 3


def test_an_established_packet_looks_no_policy_up(scene: Scene) -> None:
    scene.rules(BLUE, {port_rule(INGRESS, RED): ALLOW})
    tcp(scene, "S", "<SA", "A")
    # given rules that vanish behind the data plane's back
    scene.plane.maps["POLICY"].delete((BLUE.endpoint).to_bytes(4, "little"))
    assert scene.send(RED, scene.tcp(RED, BLUE, flags="A")).verdict == TC_REDIRECT
    assert drops(scene.send(RED, scene.tcp(RED, BLUE, 40001))) == [203]


def test_an_address_with_a_new_owner_is_judged_anew(scene: Scene) -> None:
    # given a connection of red, whose address then belongs to somebody of no rights
    from dataclasses import replace

    scene.rules(BLUE, {port_rule(INGRESS, RED): ALLOW})
    tcp(scene, "S", "<SA", "A")
    scene.enforce(replace(RED, identity=6666), 0)
    run = scene.send(RED, scene.tcp(RED, BLUE, flags="A"))
    assert (run.verdict, drops(run)) == (TC_SHOT, [133])


def test_sctp_is_tracked_by_its_ports(scene: Scene) -> None:
    from scapy.layers.sctp import SCTP, SCTPChunkInit

    packet = scene.ip(RED, BLUE) / SCTP(sport=1, dport=2) / SCTPChunkInit()
    assert scene.send(RED, packet).verdict == TC_REDIRECT
    assert (scene.connection().proto, scene.connection().destination_port) == (132, 2)


def test_a_full_table_forgets_old_connections_and_takes_new_ones(scene: Scene) -> None:
    size = scene.plane.maps["CT_ANY4"].spec.max_entries
    packet = bytearray(bytes(scene.udp(RED, BLUE)))
    at = 14 + (20 if scene.family == 4 else 40)
    for port in range(1, size * 2):
        packet[at : at + 2] = port.to_bytes(2, "big")
        assert scene.send(RED, bytes(packet)).verdict == TC_REDIRECT
    assert 0 < len(scene.connections()) <= size
