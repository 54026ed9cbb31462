"""Journals: the newest part of a history, appended to batch by batch.

A journal is a sequence of frames: magic, length and CRC-32 of the rest, a JSON header (how many
rows, which interned rows are new, how long the attached messages are), the columns one after
another, the messages. What follows the last whole frame was being written when the server ended,
or the disk was full, and does not count.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from hubble_server.flows.columns import FLOW_BYTES, SCHEMA
from hubble_server.history.tables import Added, encode_node

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hubble_server.facts import NodeFacts

_MAGIC: Final = 0x31464C48
_HEAD: Final = struct.Struct("<IIII")
"""Magic, length of the header, length of the body, CRC-32 of both."""

_LARGEST: Final = 1 << 30


class DamagedError(Exception):
    """A part that cannot be read as a whole."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Rows written together. `messages` has one entry for each row, empty for most."""

    count: int
    columns: Mapping[str, NDArray[Any]]
    messages: Sequence[bytes]
    added: Added
    node: list[Any]


class Journal:
    """A journal that is being written. Raises OSError."""

    def __init__(self, path: Path, node: NodeFacts) -> None:
        self.path = path
        self.node = node
        self.rows = 0
        self.size = 0
        """Bytes of whole frames."""
        self._encoded_node = encode_node(node)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        self._synced = 0

    def append(
        self,
        count: int,
        columns: Mapping[str, NDArray[Any]],
        messages: Mapping[int, bytes],
        added: Added,
    ) -> None:
        """Write rows, `messages` by row. After an OSError the journal is as it was before."""
        header = {
            "count": count,
            "messages": {row: len(message) for row, message in messages.items()},
            "added": added,
            "node": self._encoded_node,
        }
        head = json.dumps(header, separators=(",", ":")).encode()
        body = b"".join([*(columns[name][:count].tobytes() for name in SCHEMA), *messages.values()])
        check = zlib.crc32(body, zlib.crc32(head))
        frame = memoryview(_HEAD.pack(_MAGIC, len(head), len(body), check) + head + body)
        at = self.size
        try:
            while frame:
                written = os.pwrite(self._file, frame, at)
                frame, at = frame[written:], at + written
        except OSError:
            os.ftruncate(self._file, self.size)
            raise
        self.size = at
        self.rows += count

    def sync(self) -> None:
        """Bring what was written to the disk, so that it survives a power failure."""
        if self._synced != self.size:
            os.fdatasync(self._file)
            self._synced = self.size

    def close(self) -> None:
        """Bring everything to the disk, and close."""
        try:
            self.sync()
        finally:
            os.close(self._file)


def read_frames(path: Path, size: int | None = None) -> Iterator[Frame]:
    """Whole frames of a journal, or of its first `size` bytes.

    Raises OSError, and DamagedError for what no interrupted writing explains, once the frames
    before it have been handed out.
    """
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size if size is None else size
        at = 0
        while at < end:
            start = file.read(_HEAD.size)
            if len(start) < _HEAD.size:
                return
            magic, head_size, body_size, check = _HEAD.unpack(start)
            if magic != _MAGIC or head_size + body_size > _LARGEST:
                raise DamagedError(f"{path}: byte {at}: no frame of a journal")
            at += _HEAD.size + head_size + body_size
            if at > end:
                return
            head, body = file.read(head_size), file.read(body_size)
            if zlib.crc32(body, zlib.crc32(head)) != check:
                raise DamagedError(f"{path}: the frame that ends at byte {at} has a wrong checksum")
            yield _frame(head, body, path)


def _frame(head: bytes, body: bytes, path: Path) -> Frame:
    try:
        header = json.loads(head)
        count = int(header["count"])
        lengths = {int(row): int(length) for row, length in header["messages"].items()}
        added, node = header["added"], header["node"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path}: a frame with a header of another kind: {error}") from error
    if count * FLOW_BYTES + sum(lengths.values()) != len(body):
        raise DamagedError(f"{path}: a frame with columns of another version")
    columns, at = {}, 0
    for name, kind in SCHEMA.items():
        columns[name] = np.frombuffer(body, dtype=kind, count=count, offset=at)
        at += count * kind.itemsize
    messages = [b""] * count
    for row, length in lengths.items():
        messages[row] = body[at : at + length]
        at += length
    return Frame(count, columns, messages, added, node)
