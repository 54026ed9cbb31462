"""The pieces a flow's bytes are put together from, each made once and then found by its key.

A piece is a field of flow.Flow, or a group of small fields that depend on the same few columns.
Everything here is a pure function from a key to bytes; caching is the encoder's.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from cilium_core import abi, drops
from flow import flow_pb2

from hubble_server.encoding import texts
from hubble_server.encoding.wire import (
    message_field,
    number_field,
    tag,
    text_field,
    texts_field,
)
from hubble_server.facts import EMITTER_NAME, VERSION, NodeFacts
from hubble_server.flows.columns import (
    FILE_KERNEL,
    REPLY_UNKNOWN,
    REPLY_YES,
    TYPE_CAPTURE,
    TYPE_DROP,
    TYPE_SOCK,
    TYPE_TRACE,
)

if TYPE_CHECKING:
    from collections.abc import Container

    from hubble_server.metadata.rows import EndpointRow, InterfaceRow, RulesRow, ServiceRow

FIELDS = {field.name: field.number for field in flow_pb2.Flow.DESCRIPTOR.fields}
"""Numbers of the fields of flow.Flow."""

MARKS = (
    "emitter", "verdict", "drop_reason", "Type", "node_name", "node_labels", "reply", "event_type",
    "traffic_direction", "policy_match_type", "trace_observation_point", "trace_reason", "file",
    "drop_reason_desc", "is_reply", "debug_capture_point", "sock_xlate_point",
)  # fmt: skip
"""The small fields that `marks` makes."""

SOCKET_FIELDS = ("socket_cookie", "cgroup_id")
"""The fields that `socket` makes."""

AT_SOCKET = 1 << 15
"""Beside the flags of an event: it is one of a socket, with no packet behind it."""

KERNEL_DROP_SHIFT = 4
"""Where the kernel's reason for a drop (8 bits) stands beside the flags that a summary needs."""

_TO_ENDPOINT = abi.constants["TRACE_TO_LXC"]
_VXLAN_PORT = 8472
_HOST_VNI = abi.constants["ID_REMOTE_NODE"]


def marks(
    wanted: Container[str],
    node: NodeFacts,
    *,
    kind: int,
    subtype: int,
    verdict: int,
    drop_reason: int,
    reply: int,
    direction: int,
    match: int,
    trace_reason: int,
    file: int,
    line: int,
) -> bytes:
    """Fields that say what kind of event a flow is, and those that are the same for all."""
    is_trace = kind == TYPE_TRACE
    point = subtype if is_trace else 0
    if is_trace and subtype == _TO_ENDPOINT:
        point = flow_pb2.TO_ENDPOINT
    emitter = text_field(1, EMITTER_NAME) + text_field(2, VERSION)
    flow_type = flow_pb2.SOCK if kind == TYPE_SOCK else flow_pb2.L3_L4
    is_reply = b""
    if reply != REPLY_UNKNOWN:
        is_reply = message_field(FIELDS["is_reply"], number_field(1, reply == REPLY_YES))
    position = b""
    if kind == TYPE_DROP and file:
        place = text_field(1, texts.file_name(file)) + number_field(2, line)
        if file == FILE_KERNEL:
            place = text_field(1, f"kernel:{drops.kernel_drop(line).name}")
        position = message_field(FIELDS["file"], place)
    made = {
        "emitter": message_field(FIELDS["emitter"], emitter),
        "verdict": number_field(FIELDS["verdict"], verdict),
        "drop_reason": number_field(FIELDS["drop_reason"], drop_reason),
        "Type": number_field(FIELDS["Type"], flow_type),
        "node_name": text_field(FIELDS["node_name"], node.qualified_name),
        "node_labels": texts_field(FIELDS["node_labels"], node.labels),
        "reply": number_field(FIELDS["reply"], reply == REPLY_YES),
        "event_type": message_field(
            FIELDS["event_type"], number_field(1, kind) + number_field(2, subtype)
        ),
        "traffic_direction": number_field(FIELDS["traffic_direction"], direction),
        "policy_match_type": number_field(FIELDS["policy_match_type"], match),
        "trace_observation_point": number_field(FIELDS["trace_observation_point"], point),
        "trace_reason": number_field(FIELDS["trace_reason"], trace_reason),
        "file": position,
        "drop_reason_desc": number_field(FIELDS["drop_reason_desc"], known_reason(drop_reason)),
        "is_reply": is_reply,
        "debug_capture_point": number_field(
            FIELDS["debug_capture_point"], subtype if kind == TYPE_CAPTURE else 0
        ),
        "sock_xlate_point": number_field(
            FIELDS["sock_xlate_point"], subtype if kind == TYPE_SOCK else 0
        ),
    }
    return b"".join(made[name] for name in MARKS if name in wanted)


def known_reason(code: int) -> int:
    """Value of drop_reason_desc for a drop code: 0 for one the API has no name for."""
    return code if code in flow_pb2.DropReason.values() else 0


def ethernet(source: bytes, destination: bytes) -> bytes:
    """Field ethernet."""
    return message_field(
        FIELDS["ethernet"],
        text_field(1, texts.mac_text(source)) + text_field(2, texts.mac_text(destination)),
    )


def ip(source: bytes, destination: bytes, translated: bytes, *, is_ipv6: bool) -> bytes:
    """Field IP; `translated` is all zero when the source was not translated."""
    payload = text_field(1, texts.address_text(source, is_ipv6))
    payload += text_field(2, texts.address_text(destination, is_ipv6))
    payload += number_field(3, flow_pb2.IPv6 if is_ipv6 else flow_pb2.IPv4)
    if any(translated):
        payload += text_field(5, texts.address_text(translated, is_ipv6))
    return message_field(FIELDS["IP"], payload)


def l4(protocol: int, first: int, second: int, tcp_flags: int | None) -> bytes:
    """Field l4; nothing for a protocol that flow.Layer4 has no place for.

    `tcp_flags`, of SCTP the type of the first chunk, is None where no packet was seen.
    """
    pair = number_field(1, first) + number_field(2, second)
    if protocol == texts.TCP:
        flags = b"" if tcp_flags is None else _tcp_flags(tcp_flags)
        return message_field(FIELDS["l4"], message_field(1, pair + flags))
    if protocol == texts.SCTP:
        pair += number_field(3, texts.SCTP_CHUNKS.get(tcp_flags or 0, flow_pb2.UNSUPPORTED))
    place = {texts.UDP: 2, texts.ICMPV4: 3, texts.ICMPV6: 4, texts.SCTP: 5}.get(protocol)
    return b"" if place is None else message_field(FIELDS["l4"], message_field(place, pair))


@functools.cache
def _tcp_flags(flags: int) -> bytes:
    """Field flags of flow.TCP."""
    bits = b"".join(
        number_field(number, bool(flags & texts.TCP_FLAG_BITS[field.name]))
        for number, field in flow_pb2.TCPFlags.DESCRIPTOR.fields_by_number.items()
        if field.name in texts.TCP_FLAG_BITS
    )
    return message_field(3, bits)


def endpoint(row: EndpointRow) -> bytes:
    """Payload of a flow.Endpoint."""
    return b"".join(
        (
            number_field(1, row.id),
            number_field(2, row.identity),
            text_field(3, row.namespace),
            texts_field(4, row.labels),
            text_field(5, row.pod_name),
            *(
                message_field(6, text_field(1, each.name) + text_field(2, each.kind))
                for each in row.workloads
            ),
            text_field(7, row.cluster_name),
        )
    )


def service(field: str, row: ServiceRow) -> bytes:
    """Field source_service or destination_service; nothing without a service."""
    if not row.name:
        return b""
    return message_field(FIELDS[field], text_field(1, row.name) + text_field(2, row.namespace))


def socket(wanted: Container[str], cookie: int, cgroup: int) -> bytes:
    """Fields that say whose socket an address was translated at."""
    values = zip(SOCKET_FIELDS, (cookie, cgroup), strict=True)
    return b"".join(number_field(FIELDS[name], value) for name, value in values if name in wanted)


def interface(row: InterfaceRow) -> bytes:
    """Field interface; nothing when the flow was seen on no device."""
    if not row.ifindex:
        return b""
    return message_field(
        FIELDS["interface"], number_field(1, row.ifindex) + text_field(2, row.name)
    )


def policies(wanted: Container[str], rules: RulesRow, *, egress: bool, denied: bool) -> bytes:
    """Fields that name the rules behind a verdict, and what they want logged."""
    field = ("egress" if egress else "ingress") + ("_denied_by" if denied else "_allowed_by")
    made = b""
    if field in wanted:
        made = b"".join(message_field(FIELDS[field], policy) for policy in rules.policies)
    if "policy_log" in wanted:
        made += texts_field(FIELDS["policy_log"], rules.log)
    return made


def tunnel(node_ipv4: str, peer: bytes, identity: int, *, outward: bool) -> bytes:
    """Field tunnel: the outer headers, as far as the data plane tells them."""
    other = texts.address_text(peer.ljust(16, b"\0"), is_ipv6=False)
    source, destination = (node_ipv4, other) if outward else (other, node_ipv4)
    outer = text_field(1, source) + text_field(2, destination) + number_field(3, flow_pb2.IPv4)
    vni = _HOST_VNI if identity == abi.constants["ID_HOST"] else identity
    return message_field(
        FIELDS["tunnel"],
        number_field(1, flow_pb2.Tunnel.VXLAN)
        + message_field(2, outer)
        + message_field(3, message_field(2, number_field(2, _VXLAN_PORT)))
        + number_field(4, vni),
    )


def proxy_port(port: int) -> bytes:
    """Field proxy_port."""
    return number_field(FIELDS["proxy_port"], port)


def summary(flags: int, protocol: int, first: int, second: int, tcp_flags: int) -> bytes:
    """Field Summary; `flags` are those of the event, AT_SOCKET and a reason of the kernel's."""
    if flags & AT_SOCKET:
        return text_field(FIELDS["Summary"], texts.socket_summary(protocol))
    names = abi.constants
    text = texts.summary(
        has_ip=bool(flags & names["EVENT_L3"]),
        has_l4=bool(flags & names["EVENT_L4"]),
        is_ipv6=bool(flags & names["EVENT_IPV6"]),
        protocol=protocol,
        first=first,
        second=second,
        flags=tcp_flags,
    )
    if reason := flags >> KERNEL_DROP_SHIFT:
        why = drops.kernel_drop(reason)
        text = f"{text}; {why.name}: {why.text}"
    return text_field(FIELDS["Summary"], text)


def length_tag(field: str) -> bytes:
    """Tag of a field of flow.Flow that has a length."""
    return tag(FIELDS[field], length_delimited=True)
