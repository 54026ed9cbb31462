"""From columns to the bytes of observer.GetFlowsResponse, a few microseconds a flow.

An `Encoder` serves one field mask. Whatever repeats from flow to flow is encoded once and found
again by its key; times and UUIDs are written for a whole batch at once; the rest is joining bytes.
A mask that reaches into other fields than source and destination takes the slow way: encode,
parse, mask, serialise.

An encoder is used by one thread at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from cilium_core import abi
from cilium_core.varints import varint
from flow import flow_pb2
from observer import observer_pb2

from hubble_server.encoding import pieces, texts
from hubble_server.encoding.counts import CountPieces
from hubble_server.encoding.masks import Mask, apply_mask
from hubble_server.encoding.wire import (
    PieceCache,
    message_field,
    tag,
    text_field,
    texts_field,
    timestamp,
    timestamps,
    uuids,
)
from hubble_server.flows.columns import (
    FILE_KERNEL,
    TYPE_DROP,
    TYPE_SOCK,
    TYPE_TRACE,
    Batch,
    without_packets,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hubble_server.facts import NodeFacts
    from hubble_server.metadata.directory import Directory

_RESPONSE = observer_pb2.GetFlowsResponse.DESCRIPTOR.fields_by_name
_FLOW_TAG = tag(_RESPONSE["flow"].number, length_delimited=True)
_NODE_NAME = _RESPONSE["node_name"].number
_TIME = _RESPONSE["time"].number

_IPV6 = abi.constants["EVENT_IPV6"]
_L3 = abi.constants["EVENT_L3"]
_L4 = abi.constants["EVENT_L4"]
_ETHERNET = abi.constants["EVENT_ETHERNET"]
_TUNNEL = abi.constants["EVENT_TUNNEL"]
_TO_OVERLAY = abi.constants["TRACE_TO_OVERLAY"]

_ENDS = ("source", "destination")
_RULE_FIELDS = (
    "egress_allowed_by",
    "egress_denied_by",
    "ingress_allowed_by",
    "ingress_denied_by",
    "policy_log",
)


class Encoder:
    """Encodes flows of one node under one mask (None: whole flows)."""

    def __init__(self, node: NodeFacts, directory: Directory, mask: Mask | None = None) -> None:
        self._node = node
        self._directory = directory
        self._mask = mask
        wanted = set(pieces.FIELDS if mask is None else mask)
        reaches_in = {name for name, child in (mask or {}).items() if child is not None}
        self.is_slow = not reaches_in <= set(_ENDS)
        """Whether its mask is put to messages, one by one."""
        self._wanted = set(pieces.FIELDS) if self.is_slow else wanted
        self._ends = {name: (mask or {}).get(name) for name in _ENDS}
        self._heads: PieceCache[int] = PieceCache(lambda size: _FLOW_TAG + varint(size))
        self._node_tail = (
            text_field(_NODE_NAME, node.qualified_name) if "node_name" in wanted else b""
        )
        self._time_tail = tag(_TIME, length_delimited=True) if "time" in wanted else None
        self._marks: PieceCache[tuple[int, int]] = PieceCache(self._make_marks)
        self._ethernets: PieceCache[bytes] = PieceCache(
            lambda key: pieces.ethernet(key[:6], key[6:])
        )
        self._ips: PieceCache[bytes] = PieceCache(
            lambda key: pieces.ip(key[:16], key[16:32], key[32:48], is_ipv6=bool(key[48]))
        )
        self._l4s: PieceCache[int] = PieceCache(
            lambda key: pieces.l4(
                key >> 40 & 0xFF,
                key >> 24 & 0xFFFF,
                key >> 8 & 0xFFFF,
                None if key >> 48 else key & 0xFF,
            )
        )
        self._summaries: PieceCache[int] = PieceCache(
            lambda key: pieces.summary(
                key >> 48, key >> 40 & 0xFF, key >> 24 & 0xFFFF, key >> 8 & 0xFFFF, key & 0xFF
            )
        )
        self._endpoints: dict[str, PieceCache[int]] = {
            "source": PieceCache(lambda row: self._make_endpoint("source", row)),
            "destination": PieceCache(lambda row: self._make_endpoint("destination", row)),
        }
        self._interfaces: PieceCache[int] = PieceCache(
            lambda row: pieces.interface(directory.interfaces[row])
        )
        self._rules: PieceCache[int] = PieceCache(self._make_rules)
        self._counts = CountPieces()
        self._tunnels: PieceCache[tuple[int, int, bool]] = PieceCache(
            lambda key: pieces.tunnel(
                node.ipv4, key[0].to_bytes(4, "little"), key[1], outward=key[2]
            )
        )

    # ---- making pieces ----

    def _make_marks(self, key: tuple[int, int]) -> bytes:
        high, low = key
        return pieces.marks(
            self._wanted,
            self._node,
            kind=high >> 40 & 0xFF,
            subtype=high >> 32 & 0xFF,
            drop_reason=high >> 24 & 0xFF,
            file=high >> 16 & 0xFF,
            line=high & 0xFFFF,
            verdict=low >> 32 & 0xFF,
            reply=low >> 24 & 0xFF,
            direction=low >> 16 & 0xFF,
            match=low >> 8 & 0xFF,
            trace_reason=low & 0xFF,
        )

    def _make_endpoint(self, field: str, row: int) -> bytes:
        payload = pieces.endpoint(self._directory.rows[row])
        mask = self._ends[field]
        if mask is not None:
            whole = flow_pb2.Endpoint.FromString(payload)
            part = flow_pb2.Endpoint()
            apply_mask(mask, whole, part)
            payload = part.SerializeToString()
        return message_field(pieces.FIELDS[field], payload)

    def _make_rules(self, key: int) -> bytes:
        return pieces.policies(
            self._wanted,
            self._directory.rules[key >> 16],
            egress=(key >> 8 & 0xFF) == flow_pb2.EGRESS,
            denied=(key & 0xFF) in (flow_pb2.DROPPED, flow_pb2.AUDIT),
        )

    # ---- columns to pieces ----

    def responses(self, batch: Batch) -> list[bytes]:
        """Encode one observer.GetFlowsResponse for each flow of a batch, in order."""
        count = len(batch["time_ns"])
        if not count:
            return []
        bodies = [b"".join(parts) for parts in zip(*self.fields(batch).values(), strict=True)]
        if self.is_slow:
            return [self._masked(flow_pb2.Flow.FromString(body)) for body in bodies]
        heads = self._heads
        if self._time_tail is None:
            tail = self._node_tail
            return [heads[len(body)] + body + tail for body in bodies]
        tails = timestamps(batch["time_ns"], self._node_tail + self._time_tail)
        return [heads[len(body)] + body + tail for body, tail in zip(bodies, tails, strict=True)]

    def messages(self, batch: Batch) -> list[flow_pb2.Flow]:
        """One message for each flow of a batch, in order."""
        parsed = map(observer_pb2.GetFlowsResponse.FromString, self.responses(batch))
        return [response.flow for response in parsed]

    def record(self, body: bytes, time_ns: int) -> bytes:
        """Encode a response with a flow that is encoded already and was seen at a time."""
        if self._mask is not None:
            return self._masked(flow_pb2.Flow.FromString(body))
        seen = message_field(_TIME, timestamp(time_ns))
        return self._heads[len(body)] + body + self._node_tail + seen

    def _masked(self, whole: flow_pb2.Flow) -> bytes:
        part = flow_pb2.Flow()
        apply_mask(self._mask or {}, whole, part)
        return _response(part).SerializeToString()

    def fields(self, batch: Batch) -> dict[str, list[bytes]]:
        """Encode parts of flows: the field it is named after, or several, of each flow in order.

        What no flow of the batch has may be missing.
        """
        wanted = self._wanted
        flags = batch["flags"]
        lists = {"marks": self._marks_column(batch)}
        if "time" in wanted:
            lists["time"] = timestamps(batch["time_ns"], pieces.length_tag("time"))
        if "ethernet" in wanted:
            lists["ethernet"] = self._ethernet_column(batch, (flags & _ETHERNET) != 0)
        if "IP" in wanted:
            lists["IP"] = self._ip_column(batch, flags)
        has_l4 = (flags & _L4) != 0
        at_sockets, packetless = batch["type"] == TYPE_SOCK, without_packets(batch)
        transport = _transport_keys(batch, packetless)
        if "l4" in wanted:
            l4s = self._l4s
            lists["l4"] = [
                l4s[key] if there else b""
                for key, there in zip(transport.tolist(), has_l4.tolist(), strict=True)
            ]
        for end in _ENDS:
            if end in wanted:
                cache = self._endpoints[end]
                lists[end] = [cache[row] for row in batch[f"{end}_row"].tolist()]
            if f"{end}_service" in wanted and batch[f"{end}_service"].any():
                lists[f"{end}_service"] = self._service_column(f"{end}_service", batch)
            if f"{end}_names" in wanted and batch[f"{end}_names"].any():
                lists[f"{end}_names"] = self._names_column(f"{end}_names", batch)
        if "interface" in wanted and batch["interface"].any():
            interfaces = self._interfaces
            lists["interface"] = [interfaces[row] for row in batch["interface"].tolist()]
        if "proxy_port" in wanted and batch["proxy_port"].any():
            lists["proxy_port"] = [pieces.proxy_port(port) for port in batch["proxy_port"].tolist()]
        if "uuid" in wanted:
            lead = pieces.length_tag("uuid")
            lists["uuid"] = uuids(batch["uuid_high"], batch["uuid_low"], lead)
        if "tunnel" in wanted and (flags & _TUNNEL).any():
            lists["tunnel"] = self._tunnel_column(batch, (flags & _TUNNEL) != 0)
        if batch["rules"].any() and not wanted.isdisjoint(_RULE_FIELDS):
            lists["rules"] = self._rules_column(batch)
        if at_sockets.any() and not wanted.isdisjoint(pieces.SOCKET_FIELDS):
            lists["sockets"] = self._sockets_column(batch, at_sockets)
        if "extensions" in wanted and batch["packets"].any():
            lists["extensions"] = self._counts.column(batch["packets"], batch["bytes"], packetless)
        if "Summary" in wanted:
            kinds = (flags & (_L3 | _L4 | _IPV6)).astype(np.uint64) << np.uint64(48)
            summaries = self._summaries
            kinds |= packetless.astype(np.uint64) << np.uint64(63)
            of_kernel = (batch["type"] == TYPE_DROP) & (batch["file"] == FILE_KERNEL)
            if of_kernel.any():
                codes = np.where(of_kernel, batch["line"], 0).astype(np.uint64)
                kinds |= codes << np.uint64(48 + pieces.KERNEL_DROP_SHIFT)
            lists["Summary"] = [summaries[key] for key in (_said(transport) | kinds).tolist()]
        return lists

    def _marks_column(self, batch: Batch) -> list[bytes]:
        is_drop = batch["type"] == TYPE_DROP
        high = _pack(
            (batch["type"], 40),
            (batch["subtype"], 32),
            (batch["drop_reason"], 24),
            (np.where(is_drop, batch["file"], 0), 16),
            (np.where(is_drop, batch["line"], 0), 0),
        )
        low = _pack(
            (batch["verdict"], 32),
            (batch["reply"], 24),
            (batch["direction"], 16),
            (batch["match"], 8),
            (batch["trace_reason"], 0),
        )
        marks = self._marks
        return [marks[key] for key in zip(high.tolist(), low.tolist(), strict=True)]

    def _ethernet_column(self, batch: Batch, there: NDArray[np.bool_]) -> list[bytes]:
        keys = np.concatenate(
            [
                batch["source_mac"].view(np.uint8).reshape(-1, 6),
                batch["destination_mac"].view(np.uint8).reshape(-1, 6),
            ],
            axis=1,
        )
        made = self._ethernets
        found: list[bytes] = [made[key] for key in keys.view("V12").ravel().tolist()]
        if there.all():
            return found
        return [piece if ok else b"" for piece, ok in zip(found, there.tolist(), strict=True)]

    def _ip_column(self, batch: Batch, flags: NDArray[np.uint16]) -> list[bytes]:
        translated = batch["translated_high"], batch["translated_low"]
        at_sockets = batch["type"] == TYPE_SOCK
        if at_sockets.any():
            high, low = (np.where(at_sockets, 0, half).astype(np.uint64) for half in translated)
            translated = high, low
        keys = np.stack(
            [
                batch["source_high"],
                batch["source_low"],
                batch["destination_high"],
                batch["destination_low"],
                *translated,
                (flags & _IPV6).astype(np.uint64),
            ],
            axis=1,
        )
        made = self._ips
        found: list[bytes] = [made[key] for key in keys.view("V56").ravel().tolist()]
        there = (flags & _L3) != 0
        if there.all():
            return found
        return [piece if ok else b"" for piece, ok in zip(found, there.tolist(), strict=True)]

    def _service_column(self, field: str, batch: Batch) -> list[bytes]:
        services = self._directory.services
        return [pieces.service(field, services[row]) for row in batch[field].tolist()]

    def _sockets_column(self, batch: Batch, there: NDArray[np.bool_]) -> list[bytes]:
        wanted = self._wanted
        return [
            pieces.socket(wanted, cookie, cgroup) if ok else b""
            for cookie, cgroup, ok in zip(
                batch["translated_high"].tolist(),
                batch["translated_low"].tolist(),
                there.tolist(),
                strict=True,
            )
        ]

    def _names_column(self, field: str, batch: Batch) -> list[bytes]:
        rows = self._directory.names.rows
        return [
            texts_field(pieces.FIELDS[field], rows[row].names) if row else b""
            for row in batch[field].tolist()
        ]

    def _tunnel_column(self, batch: Batch, there: NDArray[np.bool_]) -> list[bytes]:
        rows = self._directory.rows
        outward = (batch["subtype"] == _TO_OVERLAY) & (batch["type"] == TYPE_TRACE)
        made = self._tunnels
        return [
            made[peer, rows[row].identity, out] if ok else b""
            for peer, row, out, ok in zip(
                batch["tunnel_peer"].tolist(),
                batch["source_row"].tolist(),
                outward.tolist(),
                there.tolist(),
                strict=True,
            )
        ]

    def _rules_column(self, batch: Batch) -> list[bytes]:
        keys = _pack((batch["rules"], 16), (batch["direction"], 8), (batch["verdict"], 0))
        rules = self._rules
        return [rules[key] for key in keys.tolist()]


def _response(flow: flow_pb2.Flow) -> observer_pb2.GetFlowsResponse:
    response = observer_pb2.GetFlowsResponse(flow=flow, node_name=flow.node_name)
    if flow.HasField("time"):
        response.time.CopyFrom(flow.time)
    return response


def _pack(*parts: tuple[NDArray[Any], int]) -> NDArray[np.uint64]:
    """Numbers side by side in one: each column shifted left."""
    column, shift = parts[0]
    packed = column.astype(np.uint64) << np.uint64(shift)
    for column, shift in parts[1:]:
        packed |= column.astype(np.uint64) << np.uint64(shift)
    return packed


def _transport_keys(batch: Batch, packetless: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Protocol, ports and flags in one number, with bit 48 where no packet stands behind them."""
    return _pack(
        (packetless, 48),
        (batch["protocol"], 40),
        (batch["source_port"], 24),
        (batch["destination_port"], 8),
        (batch["tcp_flags"], 0),
    )


_PORTS = np.uint64(0xFFFFFFFF << 8)
_PACKET = np.uint64((1 << 48) - 1)


def _said(transport: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Reduce transport keys to what a summary tells: no ports for protocols that have them."""
    transport = transport & _PACKET
    protocols = transport >> np.uint64(40)
    is_icmp = (protocols == texts.ICMPV4) | (protocols == texts.ICMPV6)
    return np.where(is_icmp, transport, transport & ~_PORTS)
