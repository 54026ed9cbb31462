"""Lines and JSON objects of `cilium monitor`, from events as the data plane writes them."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

from cilium_cli import events
from cilium_core import abi, drops

OFFSET = 1_700_000_000_000_000_000


def record(**fields: Any) -> bytes:
    """An event of a TCP packet from 10.0.1.15:40112 to 10.0.2.9:8080, changed as told."""
    values: dict[str, Any] = {
        "time_ns": 5,
        "type": abi.EVENT_TRACE,
        "proto": 6,
        "endpoint": 774,
        "flags": abi.EVENT_L3 | abi.EVENT_L4,
        "src_identity": 41201,
        "dst_identity": 41377,
        "ifindex": 23,
        "saddr": ipaddress.ip_address("10.0.1.15").packed,
        "daddr": ipaddress.ip_address("10.0.2.9").packed,
        "sport": socket.htons(40112),
        "dport": socket.htons(8080),
        "tcp_flags": 0x02,
    }
    return abi.pack("event", **(values | fields))


def line(**fields: Any) -> str:
    (event,) = events.parse(record(**fields), OFFSET)
    return events.line(event)


def test_a_packet_on_its_way_into_a_pod() -> None:
    text = line(subtype=abi.TRACE_TO_LXC, dst_id=774, reason=abi.REASON_NEW)

    assert text.startswith("-> endpoint 774 flow 0x")
    assert text.endswith(
        " , identity 41201->41377 state new ifindex 23 orig-ip 10.0.1.15: "
        "10.0.1.15:40112 -> 10.0.2.9:8080 tcp SYN"
    )


def test_a_packet_out_of_a_pod_names_that_pod() -> None:
    assert line(subtype=abi.TRACE_FROM_LXC).startswith("<- endpoint 774 flow 0x")


def test_a_packet_to_the_stack_has_no_endpoint() -> None:
    assert line(subtype=abi.TRACE_TO_STACK).startswith("-> stack flow 0x")


def test_a_drop_tells_reason_endpoint_and_source_line() -> None:
    text = line(type=abi.EVENT_DROP, subtype=133, dst_id=774, file=abi.FILE_LXC, line=119)

    assert text.startswith("xx drop (Policy denied) flow 0x")
    assert " to endpoint 774, ifindex 23, file lxc.c:119, , identity 41201->41377: " in text


def test_a_drop_in_a_shared_header_names_the_header() -> None:
    assert "file lib/policy.h:86," in line(
        type=abi.EVENT_DROP, subtype=133, file=abi.FILE_POLICY, line=86
    )


def test_a_verdict_names_the_peer_of_its_direction() -> None:
    denied = {"type": abi.EVENT_POLICY_VERDICT, "verdict": -133, "match": abi.MATCH_NONE}

    ingress = line(**denied, flags=abi.EVENT_L3 | abi.EVENT_L4 | abi.EVENT_INGRESS)
    egress = line(**denied, flags=abi.EVENT_L3 | abi.EVENT_L4 | abi.EVENT_EGRESS)

    assert "local EP ID 774, remote ID 41201, proto 6, ingress, action deny" in ingress
    assert "local EP ID 774, remote ID 41377, proto 6, egress, action deny" in egress
    assert "match none, 10.0.1.15:40112 -> 10.0.2.9:8080 tcp SYN" in ingress


def test_verdicts_are_allow_redirect_deny_and_audit() -> None:
    def action(verdict: int, flags: int = 0) -> str:
        (event,) = events.parse(
            record(type=abi.EVENT_POLICY_VERDICT, verdict=verdict, flags=flags), OFFSET
        )
        return str(events.document(event)["action"])

    assert [action(0), action(10001), action(-133), action(-133, abi.EVENT_AUDITED)] == [
        "allow",
        "redirect",
        "deny",
        "audit",
    ]


def test_ipv6_addresses_stand_in_brackets() -> None:
    text = line(
        flags=abi.EVENT_L3 | abi.EVENT_L4 | abi.EVENT_IPV6,
        saddr=ipaddress.ip_address("fd00::1").packed,
        daddr=ipaddress.ip_address("fd00::2").packed,
        tcp_flags=0x12,
    )

    assert text.endswith("[fd00::1]:40112 -> [fd00::2]:8080 tcp SYN, ACK")


def test_icmp_is_told_by_its_type() -> None:
    assert line(proto=1, sport=socket.htons(8), dport=0).endswith(
        "10.0.1.15 -> 10.0.2.9 icmp EchoRequest"
    )


def test_a_packet_without_readable_addresses_is_told_by_its_frame() -> None:
    text = line(
        type=abi.EVENT_DROP,
        subtype=130,
        flags=abi.EVENT_ETHERNET,
        smac=b"\x02\0\0\0\0\1",
        dmac=b"\x02\0\0\0\0\2",
        ethertype=socket.htons(0x88CC),
    )

    assert text.endswith("02:00:00:00:00:01 -> 02:00:00:00:00:02 ethertype 0x88cc")


def test_both_directions_of_events_of_one_packet_share_the_flow_number() -> None:
    first, second = events.parse(
        record(subtype=abi.TRACE_FROM_LXC) + record(subtype=abi.TRACE_TO_LXC), OFFSET
    )

    assert events.flow_hash(first) == events.flow_hash(second)


def test_a_batch_cut_short_yields_its_whole_events() -> None:
    whole = record() * 2

    assert len(list(events.parse(whole[:-1], OFFSET))) == 1


def test_the_json_object_of_a_drop() -> None:
    (event,) = events.parse(
        record(type=abi.EVENT_DROP, subtype=133, file=abi.FILE_LXC, line=7, bytes=60, packets=1),
        OFFSET,
    )

    document = events.document(event)

    assert document["type"] == "drop"
    assert document["reason"] == "Policy denied"
    assert document["file"] == {"name": "lxc.c", "line": 7}
    assert document["source"] == "10.0.1.15"
    assert document["time"].startswith("2023-11-14T22:13:20")


def _translation(point: int) -> bytes:
    return record(
        type=abi.EVENT_TRACE_SOCK,
        subtype=point,
        saddr=b"",
        daddr=ipaddress.ip_address("10.96.4.20").packed,
        dport=socket.htons(80),
        orig_saddr=(512201).to_bytes(8, "little") + (9471).to_bytes(8, "little"),
    )


def test_a_translation_at_a_socket_tells_its_point_and_whose_socket_it_is() -> None:
    (event,) = events.parse(_translation(abi.XLATE_PRE_FORWARD), OFFSET)

    assert events.line(event) == (
        "[pre-xlate-fwd] cgroup_id: 9471 sock_cookie: 512201, dst [10.96.4.20]:80 tcp"
    )


def test_the_json_object_of_a_translation() -> None:
    (event,) = events.parse(_translation(abi.XLATE_POST_REVERSE), OFFSET)

    document = events.document(event)

    assert document["type"] == "trace-sock"
    assert document["xlatePoint"] == "post-xlate-rev"
    assert (document["sockCookie"], document["cgroupId"]) == (512201, 9471)
    assert (document["destination"], document["destinationPort"]) == ("10.96.4.20", 80)


def test_a_drop_of_the_kernel_names_its_reason() -> None:
    code = next(n for n, why in drops.kernel_drops.items() if why.name == "NETFILTER_DROP")
    text = line(type=abi.EVENT_DROP, subtype=255, file=abi.FILE_KERNEL, line=code)

    assert text.startswith("xx drop (Dropped by the kernel) flow 0x")
    assert "kernel NETFILTER_DROP (A rule of netfilter (iptables, nftables) dropped it)" in text


def test_debug_events_are_told_in_words() -> None:
    text = line(
        type=abi.EVENT_DEBUG,
        subtype=abi.DEBUG_LOCAL_DELIVERY,
        src_identity=774,
        dst_identity=41201,
        cookie=1,
        ifindex=0xAB,
    )

    assert text == (
        "CPU 01: MARK 0xab FROM 774 DEBUG: Attempting local delivery for container id 774 from "
        "seclabel 41201"
    )
    shown = line(type=abi.EVENT_CAPTURE, subtype=abi.DEBUG_CAPTURE_SNAT_POST)
    assert shown.startswith("-- capture at snat-post flow 0x")
