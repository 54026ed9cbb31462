"""Summaries of complete parts: which kinds of flows a part has, how many, and in which row groups.

Flows of a part that are alike in what filters and counts mostly ask for are one row of its summary,
a small file beside the part's own. A filter put to the summary says which row groups need
not be read; counts are often known from it alone. A part whose flows are too different has none,
and a summary that is missing or damaged is made up for by reading the part.

The ports of clients would make every connection a kind of its own. So a summary does not tell apart
the high destination ports of replies, and the high source ports of the others.
"""

from __future__ import annotations

import json
import struct
import threading
import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hubble_server.filters import FilterContext, compile_filters
from hubble_server.filters.columns import Columns
from hubble_server.flows.columns import (
    KIND_LOST,
    KIND_RECORD,
    REPLY_YES,
    SCHEMA,
)
from hubble_server.flows.grouping import hashes
from hubble_server.flows.naming import Namer
from hubble_server.history.layout import summary_path
from hubble_server.history.tables import COLUMNS as ROW_COLUMNS
from hubble_server.history.tables import NAMES, add_row, decode_node
from hubble_server.metadata.directory import Directory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from flow import flow_pb2

    from hubble_server.facts import NodeFacts
    from hubble_server.filters import Filters
    from hubble_server.filters.fields import Test
    from hubble_server.history.layout import Part

KEYS: Final = (
    "kind", "type", "subtype", "protocol", "l7", "flags", "verdict", "direction", "reply",
    "drop_reason", "source_row", "destination_row", "source_names", "destination_names",
    "source_high", "source_low", "destination_high", "destination_low", "source_service",
    "destination_service", "rules", "interface", "file", "source_port", "destination_port",
)  # fmt: skip
"""Columns in which the flows of one row of a summary are alike."""

_COUNTS: Final = {
    "flows": np.dtype("i8"),
    "packets": np.dtype("i8"),
    "bytes": np.dtype("i8"),
    "time_ns": np.dtype("i8"),
    "last_ns": np.dtype("i8"),
    "groups": np.dtype("u8"),
}
LAST_BIT: Final = 63
"""Bit of `groups` for all row groups from this one on."""

_LEAST_SHARE: Final = 4
"""A summary has at most the part's rows divided by this."""

_FIRST_HIGH_PORT: Final = 32768
"""Where the ports begin that Linux gives to clients (net.ipv4.ip_local_port_range)."""

_HIGH_PORT: Final = 65535
"""Stands for all of them."""

_PORTS: Final = ("source_port", "destination_port")

_COLUMNS: Final = {name: SCHEMA[name] for name in KEYS} | _COUNTS
_ROW_BYTES: Final = sum(kind.itemsize for kind in _COLUMNS.values())

_HEAD: Final = struct.Struct("<IIII")
"""Magic, CRC-32 of what follows, length of the JSON, rows; then the JSON and zstd's columns."""

_MAGIC: Final = 0x31534648


class UnknownColumnError(Exception):
    """A summary does not know what a filter or a count asks for."""


def write_summary(
    path: Path,
    columns: Mapping[str, NDArray[Any]],
    group_rows: int,
    names: Mapping[str, Any],
    node: Sequence[Any],
) -> bool:
    """Write the summary of a part with these columns, in row groups of a size; whether it has one.

    Raises OSError.
    """
    count = len(columns["time_ns"])
    keys = {name: columns[name] for name in KEYS} | {"time_ns": columns["time_ns"]}
    for name in _PORTS:
        high = _of_clients(name, columns["reply"]) & (columns[name] >= _FIRST_HIGH_PORT)
        keys[name] = np.where(high, _HIGH_PORT, columns[name]).astype(SCHEMA[name])
    codes, first, inverse = np.unique(hashes(keys, KEYS), return_index=True, return_inverse=True)
    if len(codes) > count // _LEAST_SHARE:
        return False
    made = {name: keys[name][first] for name in KEYS}
    made |= _counts(columns, inverse, len(codes), group_rows)
    texts = {name: [json.dumps(row) for row in rows] for name, rows in names.items()}
    meta = json.dumps([count, texts, node]).encode()
    body = b"".join(made[name].astype(kind).tobytes() for name, kind in _COLUMNS.items())
    rest = meta + pa.compress(body, codec="zstd", asbytes=True)
    head = _HEAD.pack(_MAGIC, zlib.crc32(rest), len(meta), len(codes))
    path.write_bytes(head + rest)
    return True


def _counts(
    columns: Mapping[str, NDArray[Any]], inverse: NDArray[np.intp], size: int, group_rows: int
) -> dict[str, NDArray[Any]]:
    times = columns["time_ns"]
    first, last = np.full(size, np.iinfo(np.int64).max), np.zeros(size, dtype=np.int64)
    np.minimum.at(first, inverse, times)
    np.maximum.at(last, inverse, times)
    groups = np.zeros(size, dtype=np.uint64)
    for number, start in enumerate(range(0, len(times), group_rows)):
        bit = np.uint64(1 << min(number, LAST_BIT))
        groups[np.unique(inverse[start : start + group_rows])] |= bit
    return {
        "flows": np.bincount(inverse, minlength=size).astype(np.int64),
        "packets": np.bincount(inverse, columns["packets"], size).astype(np.int64),
        "bytes": np.bincount(inverse, columns["bytes"], size).astype(np.int64),
        "time_ns": first,
        "last_ns": last,
        "groups": groups,
    }


def summary_of(part: Part) -> Summary | None:
    """Read a part's summary, None where there is none that can be read and is of this part."""
    if part.is_journal:
        return None
    path = summary_path(part.path.parent, part.number)
    with suppress(OSError, pa.ArrowException, ValueError, struct.error, TypeError):
        data = memoryview(path.read_bytes())
        magic, check, meta_size, count = _HEAD.unpack_from(data)
        rest = data[_HEAD.size :]
        if magic != _MAGIC or zlib.crc32(rest) != check:
            return None
        rows, names, node = json.loads(bytes(rest[:meta_size]))
        if rows != part.rows:
            return None
        body = pa.decompress(
            pa.py_buffer(rest[meta_size:]), count * _ROW_BYTES, codec="zstd", asbytes=True
        )
        columns, at = {}, 0
        for name, kind in _COLUMNS.items():
            columns[name] = np.frombuffer(body, dtype=kind, count=count, offset=at)
            at += count * kind.itemsize
        return Summary(columns, names, decode_node(node))
    return None


class Reader:
    """Puts the filters of one request to many summaries, in which the same names mean the same.

    May be used by several threads.
    """

    def __init__(
        self, whitelist: Sequence[flow_pb2.FlowFilter], blacklist: Sequence[flow_pb2.FlowFilter]
    ) -> None:
        self._entries = whitelist, blacklist
        entries = (*whitelist, *blacklist)
        ports = [port for each in entries for name in _PORTS for port in getattr(each, name)]
        self._asks_high_ports = not all(
            port.isdecimal() and int(port) < _FIRST_HIGH_PORT for port in ports
        )
        self._directory = Directory()
        self._numbers: dict[str, dict[str, int]] = {name: {} for name in NAMES}
        self._tools: dict[NodeFacts, tuple[Filters, Namer]] = {}
        self._lock = threading.Lock()

    def passing(self, summary: Summary) -> Found:
        """What a summary says. Raises FilterError for filters that make no sense."""
        with self._lock:
            self._adopt(summary)
            filters, _ = self._with(summary.node)
            return summary.passing(filters, high_ports=self._asks_high_ports)

    def namer(self, summary: Summary) -> Namer:
        """Says what rows of a summary are called that was read before."""
        with self._lock:
            return self._with(summary.node)[1]

    def _with(self, node: NodeFacts) -> tuple[Filters, Namer]:
        known = self._tools.get(node)
        if known is None:
            filters = compile_filters(FilterContext(self._directory, node), *self._entries)
            known = self._tools[node] = filters, Namer(node, self._directory)
        return known

    def _adopt(self, summary: Summary) -> None:
        """Number a summary's rows of names as those of the others."""
        numbers = {
            name: np.array([0, *(self._number(name, text) for text in texts)], dtype=np.uint32)
            for name, texts in summary.names.items()
        }
        for column, name in ROW_COLUMNS.items():
            if name in numbers:
                summary.columns[column] = numbers[name][summary.columns[column]]
        summary.names = {}

    def _number(self, name: str, text: str) -> int:
        known = self._numbers[name].get(text)
        if known is None:
            number = add_row(self._directory, name, json.loads(text))
            known = self._numbers[name][text] = number
        return known


@dataclass(frozen=True, slots=True)
class Found:
    """What a summary says about the flows that filters let through."""

    rows: NDArray[np.bool_]
    """Rows of the summary with flows that pass, or may."""
    exact: bool
    """Whether all flows of these rows pass, and all others do not."""


class Summary:
    """The summary of one part."""

    def __init__(
        self, columns: dict[str, NDArray[Any]], names: dict[str, list[str]], node: NodeFacts
    ) -> None:
        self.columns = columns
        self.names = names
        """Rows of names by table, as JSON, until a `Reader` has numbered them anew."""
        self.node = node
        self.count = len(columns["time_ns"])
        self.kinds = columns["kind"]

    def passing(self, filters: Filters, *, high_ports: bool) -> Found:
        """Put filters to the summary; losses bypass them.

        `high_ports` says whether some of the filters are for ports that it does not tell apart.
        """
        found, exact = np.ones(self.count, dtype=np.bool_), True
        if filters.whitelist:
            found[:] = False
            for entry in filters.whitelist:
                mask, known = self._entry(entry, high_ports, undecided=True)
                found |= mask
                exact &= known
        for entry in filters.blacklist:
            mask, known = self._entry(entry, high_ports, undecided=False)
            found &= ~mask
            exact &= known
        if filters.matches is not None:
            exact &= filters.messages is None and not (found & (self.kinds == KIND_RECORD)).any()
        found &= self.kinds <= KIND_RECORD
        found |= self.kinds == KIND_LOST
        return Found(found, exact)

    def _entry(
        self, tests: Sequence[Test], high_ports: bool, *, undecided: bool
    ) -> tuple[NDArray[np.bool_], bool]:
        """Rows for which all tests hold, and whether each test could be put to all of them."""
        found, exact = np.ones(self.count, dtype=np.bool_), True
        for test in tests:
            source = _Source(self.columns)
            try:
                mask = test(Columns(source, self.count))
            except UnknownColumnError:
                mask = np.zeros(self.count, dtype=np.bool_)
                at = np.ones(self.count, dtype=np.bool_)
            else:
                at = np.zeros(self.count, dtype=np.bool_)
                for name in source.asked_ports if high_ports else ():
                    at |= _high_ports(self.columns, name)
            if (at & found).any():
                exact = False
                mask = np.where(at, undecided, mask)
            found &= mask
        return found, exact

    def groups(self, found: Found) -> int:
        """Bits of the row groups that have such flows."""
        return int(np.bitwise_or.reduce(self.columns["groups"][found.rows], initial=0))

    def losses(self) -> int:
        """Bits of the row groups that tell of losses."""
        return int(np.bitwise_or.reduce(self.columns["groups"][self.kinds == KIND_LOST], initial=0))

    def flows(self, found: Found) -> Counted:
        """Counts of the flows that pass."""
        return Counted(self.columns, np.flatnonzero(found.rows & (self.kinds <= KIND_RECORD)))

    @property
    def first_ns(self) -> int:
        """Earliest time in the part."""
        return int(self.columns["time_ns"].min())


class Counted:
    """Rows of a summary with their counts. Raises UnknownColumnError for what it does not know."""

    def __init__(self, columns: Mapping[str, NDArray[Any]], rows: NDArray[np.intp]) -> None:
        self._columns = columns
        self._rows = rows

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._columns:
            raise UnknownColumnError(name)
        if name in _PORTS and _high_ports(self._columns, name)[self._rows].any():
            raise UnknownColumnError(name)
        return self._columns[name][self._rows]


def _of_clients(name: str, reply: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a column of ports holds those of clients."""
    found: NDArray[np.bool_] = (reply == REPLY_YES) == (name == "destination_port")
    return found


def _high_ports(columns: Mapping[str, NDArray[Any]], name: str) -> NDArray[np.bool_]:
    """Rows in which a column of ports does not tell them apart."""
    found = _of_clients(name, columns["reply"])
    found &= columns[name] == _HIGH_PORT
    return found


class _Source:
    """Columns for one test, which notes the ports it asked for."""

    def __init__(self, columns: Mapping[str, NDArray[Any]]) -> None:
        self._columns = columns
        self.asked_ports: set[str] = set()

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in KEYS:
            raise UnknownColumnError(name)
        if name in _PORTS:
            self.asked_ports.add(name)
        return self._columns[name]
