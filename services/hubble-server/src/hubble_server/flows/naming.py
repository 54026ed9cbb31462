"""What flows are called in the dimensions that they are counted by, told from columns.

A dimension looks at a few columns only. Of flows that are alike in these one is made into a message
that has nothing but what the dimension asks for, and `cilium_core.flow_dimensions` says what it is
called. Names are kept, since rows of the directory never change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from cilium.flows.v1 import flows_pb2
from cilium_core import abi
from cilium_core.flow_dimensions import values_of
from flow import flow_pb2

from hubble_server.encoding import pieces, texts
from hubble_server.encoding.wire import message_field, text_field, texts_field
from hubble_server.flows.columns import L7_KINDS
from hubble_server.flows.grouping import Codes, codes_of, joined

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from hubble_server.facts import NodeFacts
    from hubble_server.flows.columns import Selectable
    from hubble_server.metadata.directory import Directory

MOST_KEPT: Final = 65_536
"""Names kept of each dimension."""

_D: Final = flows_pb2
_L3: Final = abi.constants["EVENT_L3"]
_L4: Final = abi.constants["EVENT_L4"]
_IPV6: Final = abi.constants["EVENT_IPV6"]
_L7_FIELDS: Final = {
    kind: flow_pb2.Layer7.DESCRIPTOR.fields_by_name[name].number for name, kind in L7_KINDS.items()
}

Piece = Callable[..., bytes]
"""Encodes parts of a flow.Flow from the facts of the node, the directory, and numbers."""


@dataclass(frozen=True, slots=True)
class _Dimension:
    columns: tuple[str, ...]
    piece: Piece
    flags: int = 0
    """Bits of the column `flags` that play a role."""
    of_end: bool = False
    """Whether the first column is a row that says all if it is a pod's."""


def _address(end: int, high: int, low: int, flags: int) -> bytes:
    if not flags & _L3:
        return b""
    packed = high.to_bytes(8, "little") + low.to_bytes(8, "little")
    text = texts.address_text(packed, is_ipv6=bool(flags & _IPV6))
    return message_field(pieces.FIELDS["IP"], text_field(end, text))


def _end(field: str, number: int) -> _Dimension:
    """An end of flows: its row, and where no pod is at it, its names and address."""

    def piece(_node: NodeFacts, known: Directory, row: int, names: int, *address: int) -> bytes:
        made = message_field(pieces.FIELDS[field], pieces.endpoint(known.rows[row]))
        if names:
            made += texts_field(pieces.FIELDS[f"{field}_names"], known.names.rows[names].names)
        return made + _address(number, *address)

    columns = (f"{field}_row", f"{field}_names", f"{field}_high", f"{field}_low", "flags")
    return _Dimension(columns, piece, flags=_L3 | _IPV6, of_end=True)


def _end_row(field: str) -> _Dimension:
    def piece(_node: NodeFacts, known: Directory, row: int) -> bytes:
        return message_field(pieces.FIELDS[field], pieces.endpoint(known.rows[row]))

    return _Dimension((f"{field}_row",), piece)


def _ip(field: str, number: int) -> _Dimension:
    def piece(_node: NodeFacts, _known: Directory, *address: int) -> bytes:
        return _address(number, *address)

    return _Dimension((f"{field}_high", f"{field}_low", "flags"), piece, flags=_L3 | _IPV6)


def _service(_node: NodeFacts, known: Directory, row: int) -> bytes:
    return pieces.service("destination_service", known.services[row])


def _port(_node: NodeFacts, _known: Directory, port: int, protocol: int, flags: int) -> bytes:
    return pieces.l4(protocol, 0, port, None) if flags & _L4 else b""


def _protocol(_node: NodeFacts, _known: Directory, protocol: int, l7: int, flags: int) -> bytes:
    made = pieces.l4(protocol, 0, 0, None) if flags & _L4 else b""
    if l7 in _L7_FIELDS:
        made += message_field(pieces.FIELDS["l7"], message_field(_L7_FIELDS[l7], b""))
    return made


_NO_MARKS: Final = {
    "kind": 0, "subtype": 0, "verdict": 0, "drop_reason": 0, "reply": 0, "direction": 0,
    "match": 0, "trace_reason": 0, "file": 0, "line": 0,
}  # fmt: skip


def _marks(fields: tuple[str, ...], **columns: str) -> _Dimension:
    """Fields that `pieces.marks` makes of columns, by what it calls these."""

    def piece(node: NodeFacts, _known: Directory, *values: int) -> bytes:
        given = _NO_MARKS | dict(zip(columns, values, strict=True))
        return pieces.marks(fields, node, **given)

    return _Dimension(tuple(columns.values()), piece)


_RULES: Final = frozenset(
    f"{way}_{what}_by" for way in ("egress", "ingress") for what in ("allowed", "denied")
)


def _policy(_node: NodeFacts, known: Directory, rules: int, direction: int, verdict: int) -> bytes:
    return pieces.policies(
        _RULES,
        known.rules[rules],
        egress=direction == flow_pb2.EGRESS,
        denied=verdict in (flow_pb2.DROPPED, flow_pb2.AUDIT),
    )


_DIMENSIONS: Final[Mapping[int, _Dimension]] = {
    _D.DIMENSION_SOURCE: _end("source", 1),
    _D.DIMENSION_DESTINATION: _end("destination", 2),
    _D.DIMENSION_SOURCE_NAMESPACE: _end_row("source"),
    _D.DIMENSION_DESTINATION_NAMESPACE: _end_row("destination"),
    _D.DIMENSION_SOURCE_WORKLOAD: _end_row("source"),
    _D.DIMENSION_DESTINATION_WORKLOAD: _end_row("destination"),
    _D.DIMENSION_SOURCE_IDENTITY: _end_row("source"),
    _D.DIMENSION_DESTINATION_IDENTITY: _end_row("destination"),
    _D.DIMENSION_SOURCE_IP: _ip("source", 1),
    _D.DIMENSION_DESTINATION_IP: _ip("destination", 2),
    _D.DIMENSION_SERVICE: _Dimension(("destination_service",), _service),
    _D.DIMENSION_PORT: _Dimension(("destination_port", "protocol", "flags"), _port, flags=_L4),
    _D.DIMENSION_PROTOCOL: _Dimension(("protocol", "l7", "flags"), _protocol, flags=_L4),
    _D.DIMENSION_VERDICT: _marks(("verdict",), verdict="verdict"),
    _D.DIMENSION_DROP_REASON: _marks(
        ("verdict", "drop_reason", "drop_reason_desc"),
        verdict="verdict",
        drop_reason="drop_reason",
    ),
    _D.DIMENSION_TYPE: _marks(("event_type",), kind="type"),
    _D.DIMENSION_DIRECTION: _marks(("traffic_direction",), direction="direction"),
    _D.DIMENSION_REPLY: _marks(("is_reply",), reply="reply"),
    _D.DIMENSION_NODE: _marks(("node_name",)),
    _D.DIMENSION_POLICY: _Dimension(("rules", "direction", "verdict"), _policy),
}
_NOTHING: Final = _Dimension((), lambda _node, _known: b"")

OF_RECORDS: Final = frozenset({_D.DIMENSION_POLICY})
"""What only the message of a record says."""


def columns_of(by: Sequence[int]) -> tuple[str, ...]:
    """Names of the columns that these dimensions look at."""
    dimensions = (_DIMENSIONS.get(one, _NOTHING) for one in by)
    return tuple(dict.fromkeys(name for each in dimensions for name in each.columns))


class Named(NamedTuple):
    """What flows are called: for each of them a place in a list of names, which differ."""

    places: NDArray[np.intp]
    names: list[str]

    @property
    def codes(self) -> Codes:
        """Numbers that tell the names apart."""
        return Codes(self.places, len(self.names))


class Namer:
    """Names flows of one node whose rows are in one directory. May be used by many threads."""

    def __init__(self, node: NodeFacts, directory: Directory) -> None:
        self.node = node
        self._directory = directory
        self._known: dict[int, dict[tuple[int, ...], str]] = {}

    def names(self, dimension: int, columns: Selectable, length: int) -> Named:
        """Names of `length` flows in a dimension."""
        how = _DIMENSIONS.get(dimension, _NOTHING)
        chosen = self._reduced(how, [columns[name] for name in how.columns])
        alike = joined(map(codes_of, chosen), length)
        examples = alike.examples()
        keys: list[tuple[int, ...]] = [()] * alike.size
        if chosen:
            keys = list(zip(*(column[examples].tolist() for column in chosen), strict=True))
        known = self._known.setdefault(dimension, {})
        if len(known) > MOST_KEPT:
            known = self._known[dimension] = {}
        names: dict[str, int] = {}
        places = np.empty(alike.size, dtype=np.intp)
        for code, key in enumerate(keys):
            name = known.get(key)
            if name is None:
                flow = flow_pb2.Flow.FromString(how.piece(self.node, self._directory, *key))
                (name,) = values_of(flow, (dimension,))
                known[key] = name
            places[code] = names.setdefault(name, len(names))
        return Named(places.take(alike.codes), list(names))

    def _reduced(self, how: _Dimension, columns: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """Columns with nothing in them that plays no role."""
        if how.flags:
            columns[-1] = columns[-1] & np.uint16(how.flags)
        if not how.of_end:
            return columns
        rows = codes_of(columns[0])
        known = self._directory.rows
        is_pod = [bool(known[row].pod_name) for row in columns[0][rows.examples()].tolist()]
        others = ~np.array(is_pod, dtype=np.bool_).take(rows.codes)
        for at in range(1, len(columns)):
            columns[at] = columns[at] * others
        return columns
