# SPDX-License-Identifier: Apache-2.0
"""Writes data plane events as the lines and JSON objects of `cilium monitor`. Pure.

The layout of an event comes from bpf/lib/abi.h by way of `cilium_core.abi`.
"""

from __future__ import annotations

import ipaddress
import socket
import zlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from cilium_core import abi, drops
from cilium_core.debug_texts import debug_text

if TYPE_CHECKING:
    from collections.abc import Iterator

TYPES = {
    "drop": abi.EVENT_DROP,
    "debug": abi.EVENT_DEBUG,
    "capture": abi.EVENT_CAPTURE,
    "trace": abi.EVENT_TRACE,
    "policy-verdict": abi.EVENT_POLICY_VERDICT,
    "trace-sock": abi.EVENT_TRACE_SOCK,
}
"""Event types by the name `--type` takes."""

_TYPE_NAMES = {number: name for name, number in TYPES.items()}

_POINTS = {
    abi.TRACE_TO_LXC: ("->", "endpoint", "to-endpoint"),
    abi.TRACE_TO_PROXY: ("->", "proxy", "to-proxy"),
    abi.TRACE_TO_HOST: ("->", "host", "to-host"),
    abi.TRACE_TO_STACK: ("->", "stack", "to-stack"),
    abi.TRACE_TO_OVERLAY: ("->", "overlay", "to-overlay"),
    abi.TRACE_FROM_LXC: ("<-", "endpoint", "from-endpoint"),
    abi.TRACE_FROM_PROXY: ("<-", "proxy", "from-proxy"),
    abi.TRACE_FROM_HOST: ("<-", "host", "from-host"),
    abi.TRACE_FROM_STACK: ("<-", "stack", "from-stack"),
    abi.TRACE_FROM_OVERLAY: ("<-", "overlay", "from-overlay"),
    abi.TRACE_FROM_NETWORK: ("<-", "network", "from-network"),
    abi.TRACE_TO_NETWORK: ("->", "network", "to-network"),
}
_STATES = {
    abi.REASON_NEW: "new",
    abi.REASON_ESTABLISHED: "established",
    abi.REASON_REPLY: "reply",
    abi.REASON_RELATED: "related",
    abi.REASON_UNKNOWN: "unknown",
}
_MATCHES = {
    abi.MATCH_NONE: "none",
    abi.MATCH_L3_ONLY: "L3-Only",
    abi.MATCH_L3_L4: "L3-L4",
    abi.MATCH_L4_ONLY: "L4-Only",
    abi.MATCH_ALL: "all",
    abi.MATCH_L3_PROTO: "L3-Proto",
    abi.MATCH_PROTO_ONLY: "Proto-Only",
}
_TRANSLATIONS = {
    abi.XLATE_PRE_FORWARD: "pre-xlate-fwd",
    abi.XLATE_POST_FORWARD: "post-xlate-fwd",
    abi.XLATE_PRE_REVERSE: "pre-xlate-rev",
    abi.XLATE_POST_REVERSE: "post-xlate-rev",
}
_FIRST_HEADER = 100
"""Sources with higher numbers are headers that the programs share."""
_FILES = {
    member.value: (
        f"lib/{member.name[5:].lower()}.h"
        if member.value > _FIRST_HEADER
        else f"{member.name[5:].lower()}.c"
    )
    for member in abi.enum("source_file")
}
_CAPTURE_POINTS = {
    member.value: member.name.removeprefix("DEBUG_CAPTURE_").lower().replace("_", "-")
    for member in abi.enum("debug_capture_point")
}
_TCP_FLAGS = (
    (0x02, "SYN"),
    (0x10, "ACK"),
    (0x04, "RST"),
    (0x01, "FIN"),
    (0x08, "PSH"),
    (0x20, "URG"),
    (0x40, "ECE"),
    (0x80, "CWR"),
)
_ICMP4 = {0: "EchoReply", 3: "DestinationUnreachable", 8: "EchoRequest", 11: "TimeExceeded"}
_ICMP6 = {
    1: "DestinationUnreachable",
    2: "PacketTooBig",
    3: "TimeExceeded",
    128: "EchoRequest",
    129: "EchoReply",
}


class Event(NamedTuple):
    """One event in the terms the lines need."""

    time_ns: int
    """Since the epoch."""
    raw: Any
    """The `struct event` (a cffi struct; its buffer must outlive it)."""

    @property
    def type(self) -> str:
        """Name as `--type` takes it."""
        return _TYPE_NAMES.get(self.raw.type, str(self.raw.type))


def parse(records: bytes, clock_offset_ns: int) -> Iterator[Event]:
    """Cut a batch into events; a rest shorter than an event is ignored."""
    size = abi.sizeof("event")
    array = abi.ffi.new("struct event[]", len(records) // size)
    abi.ffi.memmove(array, records[: len(array) * size], len(array) * size)
    for index in range(len(array)):
        yield Event(array[index].time_ns + clock_offset_ns, array[index])


def flow_hash(event: Event) -> int:
    """Return a number that all events of one packet direction share."""
    raw = event.raw
    buffer = abi.ffi.buffer
    words = bytes(buffer(raw.saddr)) + bytes(buffer(raw.daddr))
    ports = bytes((raw.proto, raw.sport & 255, raw.sport >> 8, raw.dport & 255, raw.dport >> 8))
    return zlib.crc32(words + ports)


def address(event: Event, field: str) -> str:
    """Return an address field as text."""
    octets = bytes(abi.ffi.buffer(getattr(event.raw, field)))
    if event.raw.flags & abi.EVENT_IPV6:
        return str(ipaddress.IPv6Address(octets))
    return str(ipaddress.IPv4Address(octets[:4]))


def tuple_text(event: Event) -> str:
    """Return `10.0.1.15:40112 -> 10.0.2.9:8080 tcp SYN`, or what of it is known."""
    raw = event.raw
    if not raw.flags & abi.EVENT_L3:
        if raw.flags & abi.EVENT_ETHERNET:
            ethertype = socket.ntohs(raw.ethertype)
            return f"{_mac(raw.smac)} -> {_mac(raw.dmac)} ethertype 0x{ethertype:04x}"
        return "(headers not readable)"
    source, destination = address(event, "saddr"), address(event, "daddr")
    if not raw.flags & abi.EVENT_L4:
        return f"{source} -> {destination} {_protocol(raw.proto)}"
    if raw.proto in {1, 58}:
        names = _ICMP4 if raw.proto == 1 else _ICMP6
        kind = socket.ntohs(raw.sport)
        return f"{source} -> {destination} {_protocol(raw.proto)} {names.get(kind, f'type {kind}')}"
    left, right = (
        f"[{text}]:{socket.ntohs(port)}" if ":" in text else f"{text}:{socket.ntohs(port)}"
        for text, port in ((source, raw.sport), (destination, raw.dport))
    )
    flags = ", ".join(name for bit, name in _TCP_FLAGS if raw.tcp_flags & bit)
    tail = f" {flags}" if raw.proto == 6 and flags else ""
    return f"{left} -> {right} {_protocol(raw.proto)}{tail}"


def _protocol(number: int) -> str:
    names = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}
    return names.get(number, f"protocol {number}")


def _mac(octets: Any) -> str:
    return bytes(abi.ffi.buffer(octets)).hex(":")


def line(event: Event, *, verbose: bool = False) -> str:
    """Return the line of one event."""
    raw = event.raw
    text = _line(event)
    if not verbose:
        return text
    when = datetime.fromtimestamp(event.time_ns / 1e9, UTC).strftime("%H:%M:%S.%f")
    return f"{when} EP {raw.endpoint} {raw.packets} packets {raw.bytes} bytes: {text}"


def _line(event: Event) -> str:
    raw = event.raw
    flow = f"flow 0x{flow_hash(event):x}"
    identities = f"identity {raw.src_identity}->{raw.dst_identity}"
    if raw.type == abi.EVENT_DROP:
        to = f" to endpoint {raw.dst_id}," if raw.dst_id else ""
        if raw.file == abi.FILE_KERNEL:
            why = drops.kernel_drop(raw.line)
            place = f"kernel {why.name} ({why.text})"
        else:
            place = f"file {_FILES.get(raw.file, 'file ' + str(raw.file))}:{raw.line}"
        return (
            f"xx drop ({drops.text(raw.subtype)}) {flow}{to} ifindex {raw.ifindex}, "
            f"{place}, , {identities}: {tuple_text(event)}"
        )
    if raw.type == abi.EVENT_POLICY_VERDICT:
        ingress = bool(raw.flags & abi.EVENT_INGRESS)
        remote = raw.src_identity if ingress else raw.dst_identity
        return (
            f"Policy verdict log: {flow} local EP ID {raw.endpoint}, remote ID {remote}, "
            f"proto {raw.proto}, {'ingress' if ingress else 'egress'}, action {_action(raw)}, "
            f"auth: disabled, match {_MATCHES.get(raw.match, raw.match)}, {tuple_text(event)}"
        )
    if raw.type == abi.EVENT_TRACE:
        arrow, place, _ = _POINTS.get(raw.subtype, ("??", f"point {raw.subtype}", ""))
        whom = f" {raw.dst_id}" if place in {"endpoint", "proxy"} and arrow == "->" else ""
        if place == "endpoint" and arrow == "<-":
            whom = f" {raw.endpoint}"
        origin = bytes(abi.ffi.buffer(raw.orig_saddr))
        orig = address(event, "orig_saddr" if any(origin) else "saddr")
        return (
            f"{arrow} {place}{whom} {flow} , {identities} state "
            f"{_STATES.get(raw.reason, raw.reason)} ifindex {raw.ifindex} orig-ip {orig}: "
            f"{tuple_text(event)}"
        )
    if raw.type == abi.EVENT_TRACE_SOCK:
        cookie, cgroup = _socket(raw)
        place = f"[{address(event, 'daddr')}]:{socket.ntohs(raw.dport)}"
        return (
            f"[{_translation(raw)}] cgroup_id: {cgroup} sock_cookie: {cookie}, "
            f"dst {place} {_protocol(raw.proto)}"
        )
    if raw.type == abi.EVENT_DEBUG:
        said = debug_text(raw.subtype, raw.src_identity, raw.dst_identity)
        return f"CPU {raw.cookie:02}: MARK 0x{raw.ifindex:x} FROM {raw.endpoint} DEBUG: {said}"
    if raw.type == abi.EVENT_CAPTURE:
        place = _CAPTURE_POINTS.get(raw.subtype, f"point {raw.subtype}")
        return f"-- capture at {place} {flow}, {identities}: {tuple_text(event)}"
    return f"{event.type} event of endpoint {raw.endpoint}: {tuple_text(event)}"


def _socket(raw: Any) -> tuple[int, int]:
    """Cookie of the socket and id of the cgroup of a translation."""
    octets = bytes(abi.ffi.buffer(raw.orig_saddr))
    return int.from_bytes(octets[:8], "little"), int.from_bytes(octets[8:], "little")


def _translation(raw: Any) -> str:
    return _TRANSLATIONS.get(raw.subtype, f"point {raw.subtype}")


def _action(raw: Any) -> str:
    if raw.verdict < 0:
        return "audit" if raw.flags & abi.EVENT_AUDITED else "deny"
    return "redirect" if raw.verdict > 0 else "allow"


def document(event: Event) -> dict[str, Any]:
    """Return the JSON object of one event."""
    raw = event.raw
    found: dict[str, Any] = {
        "type": event.type,
        "time": datetime.fromtimestamp(event.time_ns / 1e9, UTC).isoformat(),
        "endpoint": raw.endpoint,
        "srcIdentity": raw.src_identity,
        "dstIdentity": raw.dst_identity,
        "ifindex": raw.ifindex,
        "packets": raw.packets,
        "bytes": raw.bytes,
        "summary": tuple_text(event),
    }
    if raw.type == abi.EVENT_TRACE_SOCK:
        cookie, cgroup = _socket(raw)
        del found["summary"], found["packets"], found["bytes"], found["ifindex"]
        return found | {
            "xlatePoint": _translation(raw),
            "sockCookie": cookie,
            "cgroupId": cgroup,
            "destination": address(event, "daddr"),
            "destinationPort": socket.ntohs(raw.dport),
            "protocol": _protocol(raw.proto),
        }
    if raw.type == abi.EVENT_DEBUG:
        del found["summary"], found["packets"], found["bytes"], found["ifindex"]
        del found["srcIdentity"], found["dstIdentity"]
        said = debug_text(raw.subtype, raw.src_identity, raw.dst_identity)
        return found | {"message": said, "mark": raw.ifindex, "cpu": raw.cookie}
    if raw.flags & abi.EVENT_L3:
        found |= {"source": address(event, "saddr"), "destination": address(event, "daddr")}
    if raw.type == abi.EVENT_TRACE:
        found["observationPoint"] = _POINTS.get(raw.subtype, ("", "", str(raw.subtype)))[2]
        found["state"] = _STATES.get(raw.reason, str(raw.reason))
    elif raw.type == abi.EVENT_DROP:
        found["reason"] = drops.text(raw.subtype)
        if raw.file == abi.FILE_KERNEL:
            found["kernelReason"] = drops.kernel_drop(raw.line).name
        else:
            found["file"] = {"name": _FILES.get(raw.file, str(raw.file)), "line": raw.line}
    elif raw.type == abi.EVENT_POLICY_VERDICT:
        found["direction"] = "ingress" if raw.flags & abi.EVENT_INGRESS else "egress"
        found["action"] = _action(raw)
        found["match"] = _MATCHES.get(raw.match, str(raw.match))
    return found
