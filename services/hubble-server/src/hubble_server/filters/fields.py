"""One function for each field of flow.FlowFilter that is arithmetic on columns.

A function takes the field's values, which have been checked, and returns a test of columns.
Records have the same columns as other flows, and the few fields beside them are `RECORD_FIELDS`.
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from flow import flow_pb2

from hubble_server.encoding.pieces import known_reason
from hubble_server.encoding.texts import ICMPV4, ICMPV6, SCTP, TCP, TCP_FLAG_BITS, UDP
from hubble_server.filters.addresses import address_mask
from hubble_server.filters.columns import Columns, Mask, table
from hubble_server.flows.columns import (
    L7_DNS,
    L7_HTTP,
    L7_KINDS,
    L7_NONE,
    REPLY_NO,
    REPLY_UNKNOWN,
    REPLY_YES,
    without_packets,
)

Test = Callable[[Columns], Mask]

_PORTS = 65_536
_PORT_PROTOCOLS = table((TCP, UDP, SCTP), 256)
_PROTOCOL_NUMBERS = {
    "icmp": (ICMPV4, ICMPV6),
    "icmpv4": (ICMPV4,),
    "icmpv6": (ICMPV6,),
    "tcp": (TCP,),
    "udp": (UDP,),
    "sctp": (SCTP,),
}


def is_record(block: Columns) -> Mask:
    """Flows with a record."""
    found: Mask = block["l7"] != L7_NONE
    return found


def is_record_of(kinds: Iterable[int]) -> Test:
    """Flows with a record that may be of all these kinds at once; `L7_NONE` is any kind."""
    wanted = set(kinds) - {L7_NONE}
    if not wanted:
        return is_record
    if len(wanted) > 1:
        return Columns.none
    (kind,) = wanted
    return lambda block: block["l7"] == kind


def constant(holds: bool) -> Test:
    """A field that is the same for all flows of this server."""
    return Columns.all if holds else Columns.none


def _ip(column: str) -> Callable[[Iterable[str]], Test]:
    return lambda values: address_mask(values, column)


def _port(column: str) -> Callable[[Iterable[str]], Test]:
    def build(values: Iterable[str]) -> Test:
        ports = table(map(int, values), _PORTS)

        def test(block: Columns) -> Mask:
            found: Mask = ports.take(block[column])
            found &= _PORT_PROTOCOLS.take(block["protocol"])
            found &= block.has_l4
            return found

        return test

    return build


def _protocol(values: Iterable[str]) -> Test:
    numbers = [number for value in values for number in _PROTOCOL_NUMBERS.get(value.lower(), ())]
    known = table(numbers, 256)
    records = table((L7_KINDS[name] for name in map(str.lower, values) if name in L7_KINDS), 256)
    return lambda block: (known.take(block["protocol"]) & block.has_l4) | records.take(block["l7"])


def _ip_version(values: Iterable[int]) -> Test:
    versions = table(values, 3)

    def test(block: Columns) -> Mask:
        return versions.take(np.where(block.has_ip, block.is_ipv6 + np.uint8(flow_pb2.IPv4), 0))

    return test


def _tcp_flags(values: Iterable[flow_pb2.TCPFlags]) -> Test:
    names = [[field.name for field, is_set in each.ListFields() if is_set] for each in values]
    wanted = [sum(TCP_FLAG_BITS[name] for name in each) for each in names if "NS" not in each]

    def test(block: Columns) -> Mask:
        flags, found = block["tcp_flags"], block.none()
        for bits in wanted:
            found |= (flags & np.uint8(bits)) == bits
        found &= block["protocol"] == TCP
        found &= ~without_packets(block)
        found &= block.has_l4
        found &= ~is_record(block)
        return found

    return test


def _small(column: str) -> Callable[[Iterable[int]], Test]:
    def build(values: Iterable[int]) -> Test:
        wanted = table(values, 256)
        return lambda block: wanted.take(block[column])

    return build


def _drop_reason(values: Iterable[int]) -> Test:
    wanted = frozenset(values)
    codes = table((code for code in range(256) if known_reason(code) in wanted), 256)

    def test(block: Columns) -> Mask:
        dropped: Mask = block["verdict"] == flow_pb2.DROPPED
        return codes.take(block["drop_reason"]) & dropped

    return test


def _event_type(values: Iterable[flow_pb2.EventTypeFilter]) -> Test:
    wanted = [(each.type, each.sub_type if each.match_sub_type else None) for each in values]

    def test(block: Columns) -> Mask:
        types, subtypes, found = block["type"], block["subtype"], block.none()
        for kind, subtype in wanted:
            one: Mask = types == kind if kind else block.all()
            if subtype is not None:
                one &= subtypes == subtype
            found |= one
        return found

    return test


def _reply(values: Iterable[bool]) -> Test:
    wanted = frozenset(values)
    replies = table(
        (code for code, yes in ((REPLY_NO, False), (REPLY_YES, True)) if yes in wanted), 3
    )

    def test(block: Columns) -> Mask:
        reply = block["reply"]
        found: Mask = replies.take(reply)
        if False in wanted:
            # A dropped flow does not say whether it is a reply, and counts as none.
            found |= (reply == REPLY_UNKNOWN) & (block["verdict"] == flow_pb2.DROPPED)
        return found

    return test


def _uuid(values: Iterable[str]) -> Test:
    keys = []
    for value in values:
        try:
            parsed = uuids.UUID(value)
        except ValueError:
            continue
        if str(parsed) == value:
            high, low = np.frombuffer(parsed.bytes, dtype="<u8")
            keys.append((high, low))

    def test(block: Columns) -> Mask:
        found = block.none()
        for high, low in keys:
            found |= (block["uuid_high"] == high) & (block["uuid_low"] == low)
        return found

    return test


FIELDS: dict[str, Callable[[Any], Test]] = {
    "uuid": _uuid,
    "source_ip": _ip("source"),
    "source_ip_xlated": _ip("translated"),
    "destination_ip": _ip("destination"),
    "source_port": _port("source_port"),
    "destination_port": _port("destination_port"),
    "protocol": _protocol,
    "ip_version": _ip_version,
    "tcp_flags": _tcp_flags,
    "verdict": _small("verdict"),
    "traffic_direction": _small("direction"),
    "drop_reason_desc": _drop_reason,
    "event_type": _event_type,
    "reply": _reply,
    "encrypted": lambda values: constant(False in values),
    "ip_trace_id": lambda values: constant(0 in values),
}
"""Fields tested on columns alone."""

RECORD_FIELDS = {
    "dns_query": L7_DNS,
    "http_header": L7_HTTP,
    "http_method": L7_HTTP,
    "http_path": L7_HTTP,
    "http_status_code": L7_HTTP,
    "http_url": L7_HTTP,
    "trace_id": L7_NONE,
}
"""Fields that only records have, in their messages alone; with the one kind of record that does."""
