"""Which UUIDs a complete part may have, so that a flow is found without reading all parts.

Beside a part lies a Bloom filter of the UUIDs of its flows, `flows-00000001.uuids`: for each flow
`_BITS` bits, of which a UUID sets `_HASHES`. UUIDs are random, so parts of them are the hashes. It
never denies a UUID that is there, and admits about one in a hundred that is not. Without the file,
or when it is damaged, a part may have any. Who asks for UUIDs is not told of losses in parts that
cannot have them.
"""

from __future__ import annotations

import struct
import uuid as uuids
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from hubble_server.history.layout import uuids_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from flow import flow_pb2
    from numpy.typing import NDArray

    from hubble_server.history.layout import Part

_BITS: Final = 10
_HASHES: Final = 5
_HEAD: Final = struct.Struct("<IIQ")
"""Magic, CRC-32 of the filter, rows of the part; then the filter."""

_MAGIC: Final = 0x31554648


def _places(high: NDArray[np.uint64], low: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """Bits of each UUID in a filter of `size` bits, one row for each hash."""
    steps = np.arange(_HASHES, dtype=np.uint64)[:, None]
    # two hashes make any number of them (Kirsch and Mitzenmacher)
    return (high + steps * (low | np.uint64(1))) % np.uint64(size)


def write_uuids(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write the filter of a part with these columns. Raises OSError."""
    count = len(columns["uuid_low"])
    size = -(-count * _BITS // 8) * 8
    bits = np.zeros(size, dtype=np.bool_)
    for places in _places(columns["uuid_high"], columns["uuid_low"], size):
        bits[places] = True
    body = np.packbits(bits).tobytes()
    path.write_bytes(_HEAD.pack(_MAGIC, zlib.crc32(body), count) + body)


def wanted_uuids(whitelist: Sequence[flow_pb2.FlowFilter]) -> list[uuids.UUID] | None:
    """UUIDs of the only flows that can pass; None when others can, too."""
    if not whitelist or not all(entry.uuid for entry in whitelist):
        return None
    found = []
    for text in (text for entry in whitelist for text in entry.uuid):
        with suppress(ValueError):  # no flow has what is no UUID
            found.append(uuids.UUID(text))
    return found


def may_have(part: Part, wanted: Iterable[uuids.UUID]) -> bool:
    """Whether a part may have a flow with one of these UUIDs."""
    if part.is_journal:
        return True
    try:
        data = uuids_path(part.path.parent, part.number).read_bytes()
        magic, check, count = _HEAD.unpack_from(data)
    except (OSError, struct.error):
        return True
    body = data[_HEAD.size :]
    if magic != _MAGIC or count != part.rows or zlib.crc32(body) != check:
        return True
    halves = np.array([np.frombuffer(one.bytes, "<u8") for one in wanted], dtype=np.uint64)
    if not len(halves):
        return False
    places = _places(halves[:, 0], halves[:, 1], 8 * len(body))
    octets = np.frombuffer(body, np.uint8)[places // np.uint64(8)]
    are_set = octets >> (7 - places % np.uint64(8)).astype(np.uint8) & 1
    return bool(are_set.all(axis=0).any())
