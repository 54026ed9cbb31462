"""Complete parts: Parquet files of compressed columns, with the rows they refer to.

Row groups have statistics, so that a query reads no group outside its range of times, and no column
that is the same in all rows. Each page has a checksum.
"""

from __future__ import annotations

import json
import os
import zlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hubble_server.flows.columns import SCHEMA
from hubble_server.history.journals import DamagedError, read_frames
from hubble_server.history.layout import TEMPORARY, Part, file_path, summary_path, uuids_path
from hubble_server.history.summaries import LAST_BIT, write_summary
from hubble_server.history.tables import NAMES, decode_node, numbered
from hubble_server.history.uuids import write_uuids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from hubble_server.facts import NodeFacts
    from hubble_server.history.journals import Frame
    from hubble_server.metadata.directory import Directory

ROW_GROUP: Final = 16_384
"""Rows that are read, or left out, together. Fewer would make answers of few flows cheaper, and the
ends of files, which describe every column of every group, dearer."""

MESSAGE: Final = "message"
"""Column of encoded flows and losses."""

_ROWS_KEY: Final = b"hubble.rows"
_NODE_KEY: Final = b"hubble.node"
_VERSION_KEY: Final = b"hubble.version"
_RANDOM: Final = ("uuid_high", "uuid_low", "time_ns")
"""Columns in which nothing repeats."""


_PLACES: Final = {name: place for place, name in enumerate(SCHEMA)}


def _schema() -> Any:
    fields = [
        pa.field(name, pa.binary(kind.itemsize) if kind.kind == "V" else pa.from_numpy_dtype(kind),
                 nullable=False)
        for name, kind in SCHEMA.items()
    ]  # fmt: skip
    return pa.schema([*fields, pa.field(MESSAGE, pa.binary(), nullable=False)])


_SCHEMA: Final = _schema()


def convert(part: Part, on_damage: Callable[[str], None]) -> Part | None:
    """Make a complete part of a journal, which the caller removes; None of one without rows.

    Raises OSError; then there is no part.
    """
    directory = part.path.parent
    frames: list[Frame] = []
    try:
        frames.extend(read_frames(part.path))
    except DamagedError as error:
        on_damage(str(error))
    if not frames:
        return None
    columns = {name: np.concatenate([frame.columns[name] for frame in frames]) for name in SCHEMA}
    messages = [message for frame in frames for message in frame.messages]
    times = columns["time_ns"]
    first, last = int(times.min()), int(times.max())
    added: dict[str, list[Any]] = {name: [] for name in NAMES}
    for frame in frames:
        for name, rows in frame.added.items():
            added[name] += rows
    node = frames[-1].node
    rows_json = json.dumps(added, separators=(",", ":")).encode()
    node_json = json.dumps(node).encode()
    schema = _SCHEMA.with_metadata(
        {
            _ROWS_KEY: rows_json,
            _NODE_KEY: node_json,
            _VERSION_KEY: _version(rows_json, node_json),
        }
    )
    path = file_path(directory, part.number, first, last, len(times))
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        # first what a part is still whole without
        if write_summary(temporary, columns, ROW_GROUP, added, node):
            temporary.rename(summary_path(directory, part.number))
        write_uuids(temporary, columns)
        temporary.rename(uuids_path(directory, part.number))
        _write(temporary, schema, columns, messages)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(directory)
    return Part(part.number, path, first, last, len(times))


def _version(rows: bytes, node: bytes) -> bytes:
    """Version of the format, and a checksum of what Parquet has none for."""
    return b"1:%08x" % zlib.crc32(node, zlib.crc32(rows))


def _write(
    path: Path, schema: Any, columns: Mapping[str, NDArray[Any]], messages: list[bytes]
) -> None:
    with path.open("wb") as file:
        writer = pq.ParquetWriter(
            file,
            schema,
            compression="zstd",
            use_dictionary=[name for name in schema.names if name not in _RANDOM],
            column_encoding={"time_ns": "DELTA_BINARY_PACKED"},
            write_statistics=[name for name in SCHEMA if not name.startswith("uuid")],
            write_page_checksum=True,
        )
        with writer:
            for start in range(0, len(messages), ROW_GROUP):
                rows = slice(start, start + ROW_GROUP)
                writer.write_table(_table(schema, columns, messages, rows))
        file.flush()
        os.fsync(file.fileno())


def _table(
    schema: Any, columns: Mapping[str, NDArray[Any]], messages: list[bytes], rows: slice
) -> Any:
    arrays = []
    for name, kind in SCHEMA.items():
        values = columns[name][rows]
        if kind.kind == "V":
            buffers = [None, pa.py_buffer(values.tobytes())]
            arrays.append(pa.Array.from_buffers(pa.binary(kind.itemsize), len(values), buffers))
        else:
            arrays.append(pa.array(values))
    arrays.append(pa.array(messages[rows], type=pa.binary()))
    return pa.Table.from_arrays(arrays, schema=schema)


def _sync_directory(directory: Path) -> None:
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


class Group:
    """A row group, whose columns are read when they are asked for."""

    def __init__(
        self, file: Any, number: int, count: int, rows: Mapping[str, NDArray[np.uint32]]
    ) -> None:
        self._file = file
        self._number = number
        self._rows = rows
        self.count = count
        self._columns: dict[str, NDArray[Any]] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._columns:
            self.load((name,))
        return self._columns[name]

    @property
    def loaded(self) -> Iterable[str]:
        """Names of the columns read so far."""
        return self._columns.keys()

    def load(self, names: Iterable[str]) -> None:
        """Read columns together, which is cheaper than one by one."""
        wanted = [name for name in names if name not in self._columns]
        data = self._file.metadata.row_group(self._number)
        stored: list[str] = []
        for name in wanted:
            kind = SCHEMA[name]
            known = data.column(_PLACES[name]).statistics
            if known is None or not known.has_min_max or known.min != known.max:
                stored.append(name)
                continue
            # what is the same in all rows need not be read
            value = np.frombuffer(known.min, kind)[0] if kind.kind == "V" else known.min
            self._put(name, np.full(self.count, value, dtype=kind))
        if not stored:
            return
        table = self._file.read_row_group(self._number, columns=stored, use_threads=False)
        for name in stored:
            self._put(name, _array(table.column(name), SCHEMA[name]))

    def _put(self, name: str, column: NDArray[Any]) -> None:
        rows = self._rows.get(name)
        self._columns[name] = column if rows is None else rows.take(column)

    def messages(self, rows: NDArray[np.intp]) -> list[bytes]:
        """Messages of some rows."""
        column = self._file.read_row_group(
            self._number, columns=[MESSAGE], use_threads=False
        ).column(0)
        return [value.as_py() for value in column.take(pa.array(rows))] if len(rows) else []


def _array(column: Any, kind: np.dtype[Any]) -> NDArray[Any]:
    if kind.kind == "V":
        whole = column.combine_chunks()
        data = np.frombuffer(whole.buffers()[1], dtype=kind)
        return data[whole.offset : whole.offset + len(whole)]
    found: NDArray[Any] = column.to_numpy()
    return found


class Opened:
    """A complete part, open for reading. Raises OSError, and DamagedError for what is none.

    Its rows of names are put into `directory`, and its flows refer to these.
    """

    def __init__(self, path: Path, directory: Directory) -> None:
        try:
            self._file = pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)
            found: Mapping[bytes, bytes] = self._file.metadata.metadata or {}
            rows, node = found[_ROWS_KEY], found[_NODE_KEY]
            same = self._file.schema_arrow.equals(_SCHEMA)
            if not same or found[_VERSION_KEY] != _version(rows, node):
                raise DamagedError(f"{path}: damaged names, or a history of another version")
            self.node: NodeFacts = decode_node(json.loads(node))
            self._rows = numbered(directory, json.loads(rows))
        except (pa.ArrowInvalid, ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"{path}: {error}") from error

    def groups(
        self, since_ns: int | None, until_ns: int | None, chosen: int | None = None
    ) -> Iterator[tuple[int, Group]]:
        """Row groups that may have rows in a range of time, with the number of their first row.

        `chosen` has bits of the only groups to look at, as a summary gives them.
        """
        data = self._file.metadata
        first = 0
        for number in range(data.num_row_groups):
            group = data.row_group(number)
            if chosen is None or chosen >> min(number, LAST_BIT) & 1:
                times = group.column(_PLACES["time_ns"]).statistics
                late = since_ns is not None and times is not None and times.max < since_ns
                early = until_ns is not None and times is not None and times.min > until_ns
                if not late and not early:
                    yield first, Group(self._file, number, group.num_rows, self._rows)
            first += group.num_rows

    def close(self) -> None:
        """Close the file."""
        self._file.close()
