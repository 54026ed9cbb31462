"""The layout of what the kernel writes into a perf buffer, and splitting bytes into events.

A sample is a header (type, misc, size), the size of the raw data, the data (one `struct event`)
and padding to 8 bytes. As every event has one size, a stretch of samples is an array with a
constant stride, and only the rare other records (losses) interrupt it.

Pure functions of bytes; used by the reader thread alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from cilium_core import abi
from numpy.typing import NDArray

EVENT_DTYPE: np.dtype[Any] = abi.dtype("event")
EVENT_SIZE = EVENT_DTYPE.itemsize

# include/uapi/linux/perf_event.h, enum perf_event_type
PERF_RECORD_LOST = 2
PERF_RECORD_SAMPLE = 9

_HEADER_SIZE = 8
_RAW_SIZE_OFFSET = 8
_EVENT_OFFSET = 12
RECORD_SIZE = (_EVENT_OFFSET + EVENT_SIZE + 7) // 8 * 8
"""Bytes one event takes in the ring."""

_RAW_SIZE = RECORD_SIZE - _EVENT_OFFSET
_SAMPLE = np.dtype(
    {
        "names": ["type", "size", "raw_size"],
        "formats": ["<u4", "<u2", "<u4"],
        "offsets": [0, 6, _RAW_SIZE_OFFSET],
        "itemsize": RECORD_SIZE,
    }
)
_PAYLOAD = np.dtype(
    {
        "names": ["event"],
        "formats": [f"V{EVENT_SIZE}"],
        "offsets": [_EVENT_OFFSET],
        "itemsize": RECORD_SIZE,
    }
)

Events = NDArray[Any]
"""Structured array of `struct event`."""

NO_EVENTS: Events = np.empty(0, dtype=EVENT_DTYPE)


@dataclass(frozen=True, slots=True)
class Split:
    """What a stretch of ring bytes held."""

    events: Events
    lost: int
    """Events the kernel says it could not write."""
    malformed: int
    """Records of a size or kind that no program of ours writes."""


def split(data: NDArray[np.uint8]) -> Split:
    """Split ring bytes, which begin at a record, into events (copied) and losses."""
    parts: list[Events] = []
    lost = malformed = position = 0
    end = len(data)
    while end - position >= _HEADER_SIZE:
        run = _run_length(data, position, end)
        if run:
            stop = position + run * RECORD_SIZE
            payload = data[position:stop].view(_PAYLOAD)["event"]
            parts.append(np.ascontiguousarray(payload).view(EVENT_DTYPE))
            position = stop
            continue
        kind = int(data[position : position + 4].view("<u4")[0])
        size = int(data[position + 6 : position + 8].view("<u2")[0])
        if size < _HEADER_SIZE or position + size > end:
            malformed += 1
            break
        if kind == PERF_RECORD_LOST and size >= _HEADER_SIZE + 16:
            lost += int(data[position + 16 : position + 24].view("<u8")[0])
        else:
            malformed += 1
        position += size
    if not parts:
        return Split(NO_EVENTS, lost, malformed)
    return Split(parts[0] if len(parts) == 1 else np.concatenate(parts), lost, malformed)


def _run_length(data: NDArray[np.uint8], position: int, end: int) -> int:
    """Count event samples from `position` on that follow each other without a gap."""
    most = (end - position) // RECORD_SIZE
    if not most:
        return 0
    heads = data[position : position + most * RECORD_SIZE].view(_SAMPLE)
    good = heads["size"] == RECORD_SIZE
    good &= heads["type"] == PERF_RECORD_SAMPLE
    good &= heads["raw_size"] == _RAW_SIZE
    return most if bool(good.all()) else int(good.argmin())


def sample(event: bytes) -> bytes:
    """One event as the kernel writes it into the ring; the inverse of `split`."""
    head = PERF_RECORD_SAMPLE.to_bytes(4, "little") + bytes(2) + RECORD_SIZE.to_bytes(2, "little")
    return head + _RAW_SIZE.to_bytes(4, "little") + event.ljust(_RAW_SIZE, b"\0")


def lost_record(count: int) -> bytes:
    """Encode the kernel's note that `count` events did not fit."""
    head = PERF_RECORD_LOST.to_bytes(4, "little") + bytes(2) + (24).to_bytes(2, "little")
    return head + bytes(8) + count.to_bytes(8, "little")
