"""The format of files of packets that tcpdump and Wireshark read: pcap, with nanoseconds."""

from __future__ import annotations

import struct
from typing import BinaryIO, Final

_HEAD = struct.Struct("<IHHiIII")
_RECORD = struct.Struct("<IIII")
_MAGIC_NANOSECONDS: Final = 0xA1B23C4D
_ETHERNET: Final = 1
"""The link type."""
_SECOND_NS = 1_000_000_000

HEADER_BYTES: Final = _HEAD.size


def header(snap_length: int) -> bytes:
    """What a file begins with; `snap_length` is the most bytes that are kept of a packet."""
    return _HEAD.pack(_MAGIC_NANOSECONDS, 2, 4, 0, 0, snap_length, _ETHERNET)


def record(time_ns: int, length: int, data: bytes) -> bytes:
    """A packet of `length` bytes, of which `data` are kept, seen at a time since the epoch."""
    seconds, rest = divmod(time_ns, _SECOND_NS)
    return _RECORD.pack(seconds, rest, len(data), length) + data


def whole_bytes(file: BinaryIO) -> int:
    """How many bytes of a file, from its beginning on, are its head and whole packets."""
    size = file.seek(0, 2)
    end = _HEAD.size
    while end + _RECORD.size <= size:
        file.seek(end)
        kept = _RECORD.unpack(file.read(_RECORD.size))[2]
        if end + _RECORD.size + kept > size:
            break
        end += _RECORD.size + kept
    return min(end, size)
