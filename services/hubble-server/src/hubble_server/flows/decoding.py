"""From kernel events to flows: a pure function of a batch of events and the names known now.

Runs on the ingest thread, on whole columns; the rules are those of Hubble for each kind of event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from cilium_core import abi
from flow import flow_pb2
from numpy.typing import NDArray

from hubble_server.encoding.texts import TCP, UDP
from hubble_server.flows.columns import (
    FILE_KERNEL,
    FILE_SOCK,
    KIND_FLOW,
    REPLY_NO,
    REPLY_UNKNOWN,
    REPLY_YES,
    TYPE_CAPTURE,
    TYPE_DROP,
    TYPE_SOCK,
    TYPE_TRACE,
    TYPE_VERDICT,
)
from hubble_server.ring.records import EVENT_DTYPE, Events

if TYPE_CHECKING:
    from hubble_server.metadata.directory import Directory

    Halves = tuple[NDArray[np.uint64], NDArray[np.uint64]]

CHUNK: Final = 4096
"""Events decoded at once: small enough to stay in the processor's cache."""

DENIED_BY_RULES: Final = (flow_pb2.POLICY_DENY, flow_pb2.POLICY_DENIED)
"""Drop reasons for which rules are told: those that deny, and those that close the direction."""

_FLAGS = abi.enum("event_flag").__members__
_IPV6 = int(_FLAGS["EVENT_IPV6"])
_L3 = int(_FLAGS["EVENT_L3"])
_L4 = int(_FLAGS["EVENT_L4"])
_AUDITED = int(_FLAGS["EVENT_AUDITED"])
_INGRESS = int(_FLAGS["EVENT_INGRESS"])
_EGRESS = int(_FLAGS["EVENT_EGRESS"])
_TO_PROXY = abi.constants["TRACE_TO_PROXY"]
_REASON_REPLY = abi.constants["REASON_REPLY"]
_REASON_UNKNOWN = abi.constants["REASON_UNKNOWN"]
_FIRST_SRV6_REASON = _REASON_UNKNOWN + 1
_REVERSE_POINTS = (abi.constants["XLATE_PRE_REVERSE"], abi.constants["XLATE_POST_REVERSE"])
_SOCKET_PROTOCOLS = (TCP, UDP)

_WORDS = EVENT_DTYPE.itemsize // 8
_SOURCE = EVENT_DTYPE.fields["saddr"][1] // 8  # type: ignore[index]
_DESTINATION = EVENT_DTYPE.fields["daddr"][1] // 8  # type: ignore[index]
_ORIGINAL = EVENT_DTYPE.fields["orig_saddr"][1] // 8  # type: ignore[index]

_VERDICTS = np.zeros(256, dtype=np.uint8)
_VERDICTS[TYPE_TRACE] = flow_pb2.FORWARDED
_VERDICTS[TYPE_DROP] = flow_pb2.DROPPED
_VERDICTS[TYPE_SOCK] = flow_pb2.TRACED

_IS_FLOW = np.zeros(256, dtype=np.bool_)
_IS_FLOW[[TYPE_DROP, TYPE_CAPTURE, TYPE_TRACE, TYPE_VERDICT, TYPE_SOCK]] = True

# Datapath reasons 0-4 are one less than flow.TraceReason, 5 is unknown, the rest is equal.
_TRACE_REASONS = np.arange(128, dtype=np.uint8)
_TRACE_REASONS[:5] += 1
_TRACE_REASONS[_REASON_UNKNOWN] = 0


def are_flows(events: Events, directory: Directory) -> NDArray[np.bool_]:
    """Which of the events become flows: of those of sockets, the ones of pods of this node."""
    found: NDArray[np.bool_] = _IS_FLOW.take(events["type"])
    at = np.flatnonzero(events["type"] == TYPE_SOCK)
    if len(at):
        is_ipv6 = (events["flags"][at] & _IPV6) != 0
        found[at] = directory.endpoint_addresses(events["endpoint"][at], is_ipv6)[2]
    return found


def is_left_out(events: Events) -> NDArray[np.bool_]:
    """Which of the events that become no flow are of a kind that is known all the same."""
    known: NDArray[np.bool_] = events["type"] == TYPE_SOCK
    return known


def left_out(events: Events) -> int:
    """How many drops of the kernel went untold before those among the events."""
    told = events["file"] == FILE_KERNEL
    return int(events["cookie"][told].sum()) if told.any() else 0


def decode(
    events: Events,
    times_ns: NDArray[np.int64],
    directory: Directory,
    random: np.random.Generator,
) -> dict[str, NDArray[Any]]:
    """Columns of the flows that events (all of kinds that become flows) are.

    `times_ns` are their times since the epoch.
    """
    count = len(events)
    events = np.ascontiguousarray(events)
    words = events.view("<u8").reshape(count, _WORDS)
    types = np.ascontiguousarray(events["type"])
    subtypes = np.ascontiguousarray(events["subtype"])
    flags = np.ascontiguousarray(events["flags"])
    endpoints = np.ascontiguousarray(events["endpoint"])
    is_ipv6 = (flags & _IPV6) != 0
    is_trace = types == TYPE_TRACE
    is_drop = types == TYPE_DROP
    is_verdict = types == TYPE_VERDICT

    source = _address(words, _SOURCE)
    destination = _address(words, _DESTINATION)
    original = _address(words, _ORIGINAL)
    translated = (np.zeros(count, dtype=np.uint64), np.zeros(count, dtype=np.uint64))
    has_original = is_trace & ((original[0] | original[1]) != 0)
    if has_original.any():
        differs = (original[0] != source[0]) | (original[1] != source[1])
        swap = has_original & differs
        translated = (np.where(swap, source[0], 0), np.where(swap, source[1], 0))
        source = (
            np.where(swap, original[0], source[0]),
            np.where(swap, original[1], source[1]),
        )
    ends = _Ends(
        source,
        destination,
        events["sport"].byteswap(),
        events["dport"].byteswap(),
        np.ascontiguousarray(events["src_identity"]),
        np.ascontiguousarray(events["dst_identity"]),
    )
    tcp_flags = events["tcp_flags"]
    refused = np.flatnonzero(is_drop & (events["file"] == FILE_SOCK))
    if len(refused):
        _refused_at_sockets(events, refused, is_ipv6, ends, directory)
    at_sockets = np.flatnonzero(types == TYPE_SOCK)
    if len(at_sockets):
        tcp_flags = np.where(types == TYPE_SOCK, 0, tcp_flags).astype(np.uint8)
        flags = _at_sockets(events, at_sockets, flags, is_ipv6, ends, directory)
        for column, part in zip(translated, original, strict=True):
            column[at_sockets] = part[at_sockets]
    source, destination = ends.source, ends.destination

    source_rows = directory.endpoint_rows(*source, is_ipv6, ends.source_identities)
    destination_rows = directory.endpoint_rows(*destination, is_ipv6, ends.destination_identities)
    directory.seen(source_rows)
    directory.seen(destination_rows)

    reasons = events["reason"] & 0x7F
    is_reply = is_trace & (reasons == _REASON_REPLY)
    known = is_trace & (reasons != _REASON_UNKNOWN) & (reasons < _FIRST_SRV6_REASON)
    source_ids = directory.endpoint_ids(source_rows)
    from_source = endpoints == source_ids
    verdicts = _VERDICTS.take(types)
    drop_reasons = np.where(is_drop, subtypes, 0).astype(np.uint8)
    reply = np.where(known, is_reply * np.uint8(REPLY_YES), REPLY_UNKNOWN).astype(np.uint8)
    outward = np.where(is_trace, (from_source != is_reply) | has_original, from_source)
    told = (endpoints != 0) & (known | is_drop)
    direction = np.where(told, np.where(outward, flow_pb2.EGRESS, flow_pb2.INGRESS), 0).astype(
        np.uint8
    )
    rules = np.zeros(count, dtype=np.uint32)
    at = np.flatnonzero(is_verdict)
    if len(at):
        subtypes[at] = 0
        _verdicts(events[at], at, directory, verdicts, drop_reasons, reply, direction, rules)
    if len(at_sockets):
        verdicts[at_sockets[(subtypes[at_sockets] & 1) == 0]] = flow_pb2.TRANSLATED

    protocols = np.ascontiguousarray(events["proto"])
    # an answer of a service has its frontend in the header, and the backend as the original
    asked = source
    if has_original.any():
        header = _address(words, _SOURCE)
        asked = (
            np.where(has_original, header[0], source[0]),
            np.where(has_original, header[1], source[1]),
        )
    services = _services(
        directory, asked, destination, is_ipv6, ends.source_ports, ends.destination_ports, protocols
    )
    destination_ids = directory.endpoint_ids(destination_rows)
    source_names = directory.names.find(destination_ids, *source, is_ipv6)
    destination_names = directory.names.find(source_ids, *destination, is_ipv6)
    none = np.zeros(count, dtype=np.uint32)
    to_proxy = is_trace & (subtypes == _TO_PROXY)
    on_device = is_trace | (types == TYPE_CAPTURE) | (is_drop & (events["file"] == FILE_KERNEL))
    uuids = random_uuids(random, count)
    return {
        "time_ns": times_ns,
        "uuid_high": uuids[:, 0],
        "uuid_low": uuids[:, 1],
        "source_high": source[0],
        "source_low": source[1],
        "destination_high": destination[0],
        "destination_low": destination[1],
        "translated_high": translated[0],
        "translated_low": translated[1],
        "source_row": source_rows,
        "destination_row": destination_rows,
        "source_service": services[0],
        "destination_service": services[1],
        "source_names": none if source_names is None else source_names,
        "destination_names": none if destination_names is None else destination_names,
        "rules": rules,
        "interface": _interfaces(directory, events["ifindex"], on_device),
        "tunnel_peer": events["tunnel_peer"],
        "bytes": events["bytes"],
        "packets": events["packets"],
        "flags": flags,
        "endpoint": endpoints,
        "source_port": ends.source_ports,
        "destination_port": ends.destination_ports,
        "line": events["line"],
        "ethertype": events["ethertype"].byteswap(),
        "proxy_port": np.where(to_proxy, events["dst_id"], 0).astype(np.uint16),
        "kind": np.full(count, KIND_FLOW, dtype=np.uint8),
        "type": types,
        "subtype": subtypes,
        "trace_reason": np.where(is_trace, _TRACE_REASONS.take(reasons), 0).astype(np.uint8),
        "protocol": protocols,
        "verdict": verdicts,
        "direction": direction,
        "reply": reply,
        "drop_reason": drop_reasons,
        "tcp_flags": tcp_flags,
        "match": np.where(is_verdict, events["match"], 0).astype(np.uint8),
        "file": events["file"],
        "l7": np.zeros(count, dtype=np.uint8),
        "source_mac": _mac(events, "smac"),
        "destination_mac": _mac(events, "dmac"),
    }


@dataclass(slots=True)
class _Ends:
    """Columns about the two ends."""

    source: Halves
    destination: Halves
    source_ports: NDArray[np.uint16]
    destination_ports: NDArray[np.uint16]
    source_identities: NDArray[np.uint32]
    destination_identities: NDArray[np.uint32]


def _at_sockets(
    events: Events,
    at: NDArray[np.intp],
    flags: NDArray[np.uint16],
    is_ipv6: NDArray[np.bool_],
    ends: _Ends,
    directory: Directory,
) -> NDArray[np.uint16]:
    """Fill what is special to events of sockets, those at positions `at`; returns their flags.

    Such an event knows the pod and the other end. On the way back the pod is the destination.
    """
    pods = directory.endpoint_addresses(events["endpoint"][at], is_ipv6[at])[:2]
    backward = np.isin(events["subtype"][at], _REVERSE_POINTS)
    for half, (source, destination) in enumerate(zip(ends.source, ends.destination, strict=True)):
        pod, other = pods[half], destination[at]
        source[at] = np.where(backward, other, pod)
        destination[at] = np.where(backward, pod, other)
    ports = ends.destination_ports[at]
    ends.source_ports[at] = np.where(backward, ports, 0)
    ends.destination_ports[at] = np.where(backward, 0, ports)
    ends.source_identities[at] = ends.destination_identities[at] = 0
    flags = flags.copy()
    flags[at] &= np.uint16(_IPV6 | _L3 | _L4)
    without_ports = ~np.isin(events["proto"][at], _SOCKET_PROTOCOLS)
    flags[at[without_ports]] &= np.uint16(_IPV6 | _L3)
    return flags


def _refused_at_sockets(
    events: Events,
    at: NDArray[np.intp],
    is_ipv6: NDArray[np.bool_],
    ends: _Ends,
    directory: Directory,
) -> None:
    """Fill in the pods whose sockets could not reach a service, events at positions `at`."""
    pods = directory.endpoint_addresses(events["endpoint"][at], is_ipv6[at])[:2]
    unsaid = (ends.source[0][at] | ends.source[1][at]) == 0
    for source, pod in zip(ends.source, pods, strict=True):
        source[at] = np.where(unsaid, pod, source[at])


def _address(words: NDArray[np.uint64], at: int) -> Halves:
    return np.ascontiguousarray(words[:, at]), np.ascontiguousarray(words[:, at + 1])


def _mac(events: Events, name: str) -> NDArray[Any]:
    return np.ascontiguousarray(events[name]).view("V6").ravel()


def _verdicts(
    events: Events,
    at: NDArray[np.intp],
    directory: Directory,
    verdicts: NDArray[np.uint8],
    drop_reasons: NDArray[np.uint8],
    reply: NDArray[np.uint8],
    direction: NDArray[np.uint8],
    rules: NDArray[np.uint32],
) -> None:
    """Fill what is special to policy verdicts, the events at positions `at`."""
    numbers = events["verdict"]
    flags = events["flags"]
    denied = numbers < 0
    audited = (flags & _AUDITED) != 0
    verdicts[at] = np.select(
        [denied, audited, numbers > 0],
        [flow_pb2.DROPPED, flow_pb2.AUDIT, flow_pb2.REDIRECTED],
        flow_pb2.FORWARDED,
    )
    codes = np.where(denied, -numbers, 0)
    drop_reasons[at] = codes
    reply[at] = np.where(denied, REPLY_UNKNOWN, REPLY_NO)
    direction[at] = np.select(
        [(flags & _INGRESS) != 0, (flags & _EGRESS) != 0], [flow_pb2.INGRESS, flow_pb2.EGRESS], 0
    )
    explained = ~denied | np.isin(codes, DENIED_BY_RULES)
    rules[at] = np.where(explained, directory.rules_rows(events["cookie"]), 0)


def _services(
    directory: Directory,
    source: Halves,
    destination: Halves,
    is_ipv6: NDArray[np.bool_],
    source_ports: NDArray[np.uint16],
    destination_ports: NDArray[np.uint16],
    protocols: NDArray[np.uint8],
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    at_source = directory.service_rows(*source, is_ipv6, source_ports, protocols)
    at_destination = directory.service_rows(*destination, is_ipv6, destination_ports, protocols)
    none = np.zeros(len(protocols), dtype=np.uint32)
    return (
        none if at_source is None else at_source,
        none if at_destination is None else at_destination,
    )


def _interfaces(
    directory: Directory, indexes: NDArray[np.uint32], on_device: NDArray[np.bool_]
) -> NDArray[np.uint32]:
    shown = np.where(on_device, indexes, 0).astype(np.uint32)
    return directory.interface_rows(shown)


def random_uuids(random: np.random.Generator, count: int) -> NDArray[np.uint64]:
    """Random version 4 UUIDs, each as two little-endian numbers."""
    words = np.frombuffer(random.bytes(16 * count), dtype="<u8").reshape(count, 2).copy()
    words[:, 0] &= np.uint64(~(0xF0 << 48) & 0xFFFFFFFFFFFFFFFF)
    words[:, 0] |= np.uint64(0x40 << 48)
    words[:, 1] &= np.uint64(~0xC0 & 0xFFFFFFFFFFFFFFFF)
    words[:, 1] |= np.uint64(0x80)
    return words
