"""Events: what is written, when, and what aggregation hides."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from cilium_core import abi
from scapy.layers.sctp import SCTP, SCTPChunkInit, SCTPChunkShutdownAck
from scapy.packet import Raw

from tests.bpf.scenes import (
    BLUE,
    GREEN,
    NODE,
    RED,
    ROUTER,
    WORLD,
    drops,
    of_type,
    traces,
)

if TYPE_CHECKING:
    from tests.bpf.scenes import Scene

NONE, LOW, MEDIUM, MAX = 0, 1, 3, 4


def test_without_aggregation_every_packet_is_traced_where_it_comes_and_goes(
    scene: Scene,
) -> None:
    scene.configure(aggregation=NONE)
    for _ in range(3):
        run = scene.send(RED, scene.udp(RED, BLUE))
        assert traces(run) == [abi.TRACE_FROM_LXC, abi.TRACE_TO_LXC]


@pytest.mark.parametrize("level", [LOW, 2])
def test_low_aggregation_hides_where_packets_come_from(scene: Scene, level: int) -> None:
    scene.configure(aggregation=level)
    for _ in range(3):
        assert traces(scene.send(RED, scene.udp(RED, BLUE))) == [abi.TRACE_TO_LXC]


@pytest.mark.parametrize("level", [MEDIUM, MAX])
def test_medium_aggregation_tells_a_connection_once(scene: Scene, level: int) -> None:
    scene.configure(aggregation=level)
    runs = [scene.send(RED, scene.udp(RED, BLUE)) for _ in range(3)]
    assert [traces(run) for run in runs] == [[abi.TRACE_TO_LXC], [], []]


def test_medium_aggregation_tells_each_direction(scene: Scene) -> None:
    scene.send(RED, scene.udp(RED, BLUE))
    reply = scene.send(BLUE, scene.udp(BLUE, RED, 53, 40000))
    (event,) = of_type(reply, abi.EVENT_TRACE)
    assert (event.reason, event.endpoint) == (abi.REASON_REPLY, RED.endpoint)
    assert traces(scene.send(BLUE, scene.udp(BLUE, RED, 53, 40000))) == []


def test_medium_aggregation_tells_the_first_of_each_tcp_flag_in_the_mask(scene: Scene) -> None:
    told = [
        bool(traces(scene.send(RED, scene.tcp(RED, BLUE, flags=flags))))
        for flags in ("S", "A", "PA", "A", "FA", "FA", "RA")
    ]
    assert told == [True, False, False, False, True, False, True]


def test_the_flag_mask_comes_from_the_configuration(scene: Scene) -> None:
    scene.configure(aggregation_flags=0x10)
    told = [
        bool(traces(scene.send(RED, scene.tcp(RED, BLUE, flags=flags))))
        for flags in ("S", "A", "PA", "FA")
    ]
    assert told == [True, True, False, False]


def test_a_long_connection_is_told_at_every_interval(scene: Scene) -> None:
    scene.configure(aggregation_interval_s=60)
    scene.send(RED, scene.udp(RED, BLUE))
    assert traces(scene.send(RED, scene.udp(RED, BLUE))) == []
    # when the last report lies back by the interval
    table = scene.plane.maps["CT_ANY4" if scene.family == 4 else "CT_ANY6"]
    ((key, value),) = table.items()
    entry = abi.unpack("ct_entry", value)
    entry.tx_report -= 60
    table.set(key, abi.as_bytes(entry))
    assert traces(scene.send(RED, scene.udp(RED, BLUE))) == [abi.TRACE_TO_LXC]


def test_a_report_sums_up_what_was_not_told(scene: Scene) -> None:
    one = len(bytes(scene.tcp(RED, BLUE)))
    for flags in ("S", "A", "A", "A"):
        scene.send(RED, scene.tcp(RED, BLUE, flags=flags))
    (event,) = scene.send(RED, scene.tcp(RED, BLUE, flags="FA")).events
    assert (event.packets, event.bytes) == (4, 4 * one)


def test_an_answer_sums_up_its_own_direction(scene: Scene) -> None:
    scene.send(RED, scene.tcp(RED, BLUE))
    (event,) = scene.send(BLUE, scene.tcp(BLUE, RED, 80, 40000, flags="SA")).events
    assert event.packets == 1
    scene.send(BLUE, scene.tcp(BLUE, RED, 80, 40000, flags="A"))
    (event,) = scene.send(BLUE, scene.tcp(BLUE, RED, 80, 40000, flags="FA")).events
    assert event.packets == 2


@pytest.mark.parametrize("level", [NONE, LOW, MEDIUM, MAX])
def test_drops_and_verdicts_are_told_at_every_level(scene: Scene, level: int) -> None:
    scene.configure(aggregation=level)
    scene.rules(BLUE, {}, abi.ENDPOINT_ENFORCE_INGRESS)
    for _ in range(2):
        run = scene.send(RED, scene.tcp(RED, BLUE))
        assert drops(run) == [133]
        assert len(of_type(run, abi.EVENT_POLICY_VERDICT)) == 1


def test_traces_can_be_switched_off_alone(scene: Scene) -> None:
    scene.configure(hubble=False, aggregation=NONE)
    assert scene.send(RED, scene.tcp(RED, BLUE)).events == []
    assert drops(scene.send(RED, scene.tcp(GREEN, BLUE))) == [132]


def test_drop_events_can_be_switched_off_and_are_still_counted(scene: Scene) -> None:
    scene.configure(drop_events=False)
    assert scene.send(RED, scene.tcp(GREEN, BLUE)).events == []
    assert scene.plane.counter(132) == 1


def test_an_event_of_sctp_has_the_type_of_its_first_chunk(scene: Scene) -> None:
    for sport, (chunk, number) in enumerate(
        ((SCTPChunkInit(), 1), (SCTPChunkShutdownAck(), 8), (Raw(b""), 0)), 1
    ):
        run = scene.send(RED, scene.ip(RED, BLUE) / SCTP(sport=sport, dport=2) / chunk)
        assert [event.tcp_flags for event in run.events] == [number]


def test_an_event_has_everything_that_was_parsed(scene: Scene) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    run = scene.send(RED, scene.tcp(RED, BLUE, flags="S"))
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    (event,) = run.events
    assert before <= event.time_ns <= after
    assert (event.source, event.destination) == (scene.address(RED), scene.address(BLUE))
    assert (event.source_port, event.destination_port, event.proto) == (40000, 80, 6)
    assert event.tcp_flags == 0x02
    assert (event.ifindex, event.reason) == (scene.plane.device(RED.name), abi.REASON_NEW)
    assert event.smac.hex(":") == BLUE.node_mac
    assert event.dmac.hex(":") == BLUE.mac
    assert event.ethertype.to_bytes(2, "little") == run.packet[12:14]
    expected = abi.EVENT_L3 | abi.EVENT_L4 | abi.EVENT_ETHERNET
    assert event.flags == expected | (abi.EVENT_IPV6 if scene.family == 6 else 0)


def test_an_icmp_event_has_type_and_code_for_ports(scene: Scene) -> None:
    (event,) = scene.send(RED, scene.echo(RED, BLUE)).events
    assert (event.source_port, event.destination_port) == (scene.request, 0)


def test_a_drop_of_a_malformed_packet_says_only_what_was_parsed(scene: Scene) -> None:
    packet = scene.tcp(RED, BLUE)
    packet.payload.payload.dataofs = 1
    (event,) = of_type(scene.send(RED, packet), abi.EVENT_DROP)
    assert event.flags & abi.EVENT_L3
    assert not event.flags & abi.EVENT_L4
    assert event.source == scene.address(RED)


def test_an_ingress_drop_belongs_to_the_receiver(scene: Scene) -> None:
    scene.rules(BLUE, {}, abi.ENDPOINT_ENFORCE_INGRESS)
    (event,) = of_type(scene.send(RED, scene.tcp(RED, BLUE)), abi.EVENT_DROP)
    assert (event.endpoint, event.dst_id) == (BLUE.endpoint, BLUE.endpoint)
    assert event.flags & abi.EVENT_INGRESS
    assert scene.plane.counter(133, abi.DIR_INGRESS) == 1


def test_an_egress_drop_belongs_to_the_sender(scene: Scene) -> None:
    scene.rules(RED, {}, abi.ENDPOINT_ENFORCE_EGRESS)
    (event,) = of_type(scene.send(RED, scene.tcp(RED, BLUE)), abi.EVENT_DROP)
    assert (event.endpoint, event.dst_id) == (RED.endpoint, 0)
    assert event.flags & abi.EVENT_EGRESS
    assert scene.plane.counter(133, abi.DIR_EGRESS) == 1


def test_each_way_in_has_its_own_trace_point(scene: Scene) -> None:
    scene.configure(aggregation=NONE)
    seen = [
        traces(scene.send(RED, scene.udp(RED, GREEN))),
        traces(scene.tunnel(scene.udp(GREEN, RED))),
        traces(scene.arrive(scene.udp(WORLD, RED))),
        traces(scene.arrive(scene.udp(WORLD, NODE))),
        traces(scene.host_sends(scene.udp(ROUTER, GREEN))),
        traces(scene.stack_sends(RED, scene.udp(ROUTER, RED))),
        traces(scene.leave(scene.udp(NODE, WORLD))),
    ]
    assert seen == [
        [abi.TRACE_FROM_LXC, abi.TRACE_TO_OVERLAY],
        [abi.TRACE_FROM_OVERLAY, abi.TRACE_TO_LXC],
        [abi.TRACE_FROM_NETWORK, abi.TRACE_TO_LXC],
        [abi.TRACE_FROM_NETWORK],
        [abi.TRACE_FROM_HOST, abi.TRACE_TO_OVERLAY],
        [abi.TRACE_FROM_STACK, abi.TRACE_TO_LXC],
        [abi.TRACE_TO_NETWORK],
    ]


def test_debug_events_say_what_becomes_of_each_packet(scene: Scene) -> None:
    scene.configure(debug_events=True)
    for state in (abi.REASON_NEW, abi.REASON_ESTABLISHED):
        run = scene.send(RED, scene.udp(RED, BLUE))
        verdict, delivery = of_type(run, abi.EVENT_DEBUG)
        assert (verdict.subtype, verdict.src_identity) == (abi.DEBUG_CT_VERDICT, state)
        assert (delivery.subtype, delivery.endpoint) == (abi.DEBUG_LOCAL_DELIVERY, BLUE.endpoint)
        assert (delivery.src_identity, delivery.dst_identity) == (BLUE.endpoint, RED.identity)
        (shown,) = of_type(run, abi.EVENT_CAPTURE)
        assert shown.subtype == abi.DEBUG_CAPTURE_DELIVERY
        assert (shown.source, shown.destination_port) == (scene.address(RED), 53)


def test_debug_events_tell_of_a_refusal(scene: Scene) -> None:
    scene.configure(debug_events=True)
    scene.rules(BLUE, {}, abi.ENDPOINT_ENFORCE_INGRESS)
    run = scene.send(RED, scene.udp(RED, BLUE))
    said = {event.subtype: event for event in of_type(run, abi.EVENT_DEBUG)}
    refusal = said[abi.DEBUG_POLICY_DENIED]
    assert (refusal.src_identity, refusal.dst_identity) == (RED.identity, BLUE.identity)
    assert len(drops(run)) == 1
