"""From columns to lines of JSON, observer.ExportEvent as `google.protobuf.json_format` writes it.

The encoder's parts of flows (`Encoder.fields`) repeat from flow to flow, and so does the JSON that
they are. It is kept by them; what remains is joining texts. A mask that reaches into other fields
than source and destination takes the slow way, flow by flow.

Used by one thread at a time.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from flow import flow_pb2
from google.protobuf import json_format
from google.protobuf.wrappers_pb2 import StringValue
from observer import observer_pb2

from hubble_server.encoding.encoder import Encoder
from hubble_server.encoding.pieces import FIELDS
from hubble_server.encoding.wire import uuids

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message
    from numpy.typing import NDArray

    from hubble_server.encoding.masks import Mask
    from hubble_server.facts import NodeFacts
    from hubble_server.flows.columns import Batch
    from hubble_server.metadata.directory import Directory

_MOST_KEPT: Final = 16_384
"""Fragments kept of each part of flows."""

_STRING: Final = StringValue.DESCRIPTOR.full_name


def as_json(message: Message) -> str:
    """The message in one line."""
    return json_format.MessageToJson(
        message, preserving_proto_field_name=True, indent=None, ensure_ascii=False
    )


def line_of(event: observer_pb2.ExportEvent) -> bytes:
    """The event as a line."""
    return as_json(event).encode() + b"\n"


class _Fragments(dict[bytes, str]):
    """JSON of encoded parts of flows, each with a comma after it; begins anew when it is full."""

    def __init__(self, make: Callable[[flow_pb2.Flow], str]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, part: bytes) -> str:
        if len(self) >= _MOST_KEPT:
            self.clear()
        made = self._make(flow_pb2.Flow.FromString(part))
        fragment = self[part] = f"{made}, " if made else ""
        return fragment


class JsonLines:
    """Writes flows of one node under one mask (None: whole flows) as lines."""

    def __init__(self, node: NodeFacts, directory: Directory, mask: Mask | None = None) -> None:
        wanted: Mask = dict.fromkeys(FIELDS) if mask is None else mask
        self._encoder = Encoder(node, directory, mask)
        rest = {name: child for name, child in wanted.items() if name not in ("time", "uuid")}
        self._rest = Encoder(node, directory, rest)
        self._has_time, self._has_uuid = "time" in wanted, "uuid" in wanted
        name = f'"node_name": {json.dumps(node.qualified_name, ensure_ascii=False)}'
        self._tail = f", {name}" if "node_name" in wanted else ""
        self._fragments: dict[str, _Fragments] = {}

    def lines(self, batch: Batch) -> list[bytes]:
        """A line for each flow of a batch, in order."""
        if self._encoder.is_slow:
            # GetFlowsResponse has the fields of ExportEvent with the same numbers
            encoded = self._encoder.responses(batch)
            return [line_of(observer_pb2.ExportEvent.FromString(one)) for one in encoded]
        parts = [self._texts(name, found) for name, found in self._rest.fields(batch).items()]
        if self._has_uuid:
            found = uuids(batch["uuid_high"], batch["uuid_low"], b"")
            parts.append([f'"uuid": "{one[1:].decode()}", ' for one in found])
        tail = self._tail
        if not self._has_time:
            return [
                f'{{"flow": {{{"".join(row)[:-2]}}}{tail}}}\n'.encode()
                for row in zip(*parts, strict=True)
            ]
        times = _times(batch["time_ns"])
        return [
            f'{{"flow": {{{"".join(row)}"time": {at}}}{tail}, "time": {at}}}\n'.encode()
            for at, row in zip(times, zip(*parts, strict=True), strict=True)
        ]

    def record(self, body: bytes, time_ns: int) -> bytes:
        """The line of a flow that is encoded already and was seen at a time."""
        return line_of(observer_pb2.ExportEvent.FromString(self._encoder.record(body, time_ns)))

    def _texts(self, name: str, found: list[bytes]) -> list[str]:
        known = self._fragments.get(name)
        if known is None:
            known = self._fragments[name] = _Fragments(_MAKERS.get(name, _fragment))
        return list(map(known.__getitem__, found))


def _times(times_ns: NDArray[np.int64]) -> list[str]:
    """Times as JSON has them: fractions of three, six or nine digits."""
    texts = np.datetime_as_string(times_ns.astype("M8[ns]")).tolist()
    for row in np.flatnonzero(times_ns % 1000 == 0).tolist():
        texts[row] = texts[row].removesuffix("000").removesuffix("000").removesuffix(".000")
    return [f'"{text}Z"' for text in texts]


# ---- JSON of parts, without the braces around them ----


def _fragment(flow: flow_pb2.Flow) -> str:
    return as_json(flow)[1:-1]


def _object(name: str, members: dict[str, Any]) -> str:
    """A member that is an object of what is not empty."""
    inner = ", ".join(f'"{key}": {value}' for key, value in members.items() if value)
    return f'"{name}": {{{inner}}}'


def _l4(flow: flow_pb2.Flow) -> str:
    """Ports are new with every connection; the general way would take twenty times as long."""
    name = flow.l4.WhichOneof("protocol")
    if name not in ("TCP", "UDP"):
        return _fragment(flow)
    part = getattr(flow.l4, name)
    ports = {"source_port": part.source_port, "destination_port": part.destination_port}
    flags = {}
    if name == "TCP" and part.HasField("flags"):
        flags["flags"] = _FLAGS[part.flags.SerializeToString()]
    return f'"l4": {{{_object(name, ports | flags)}}}'


class _Flags(dict[bytes, str]):
    def __missing__(self, encoded: bytes) -> str:
        text = self[encoded] = as_json(flow_pb2.TCPFlags.FromString(encoded))
        return text


_FLAGS: Final = _Flags()


def _ip(flow: flow_pb2.Flow) -> str:
    if not flow.HasField("IP"):
        return ""
    quoted = {
        "source": flow.IP.source,
        "source_xlated": flow.IP.source_xlated,
        "destination": flow.IP.destination,
        "ipVersion": flow.IP.ipVersion and flow_pb2.IPVersion.Name(flow.IP.ipVersion),
    }
    return _object("IP", {key: text and f'"{text}"' for key, text in quoted.items()})


def _counts(flow: flow_pb2.Flow) -> str:
    if not flow.HasField("extensions") or not flow.extensions.Is(StringValue.DESCRIPTOR):
        return _fragment(flow)
    text = json.dumps(StringValue.FromString(flow.extensions.value).value)
    return _object("extensions", {"@type": f'"type.googleapis.com/{_STRING}"', "value": text})


_MAKERS: Final = {"l4": _l4, "IP": _ip, "extensions": _counts}
