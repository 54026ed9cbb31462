"""One processor's perf buffer: opened, mapped, and emptied in bulk.

The kernel writes at `data_head`, we give space back at `data_tail`; both only grow, positions are
taken modulo the size. Owned by one `EventReader`, which is the only caller; not thread-safe.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from typing import TYPE_CHECKING

import numpy as np

from hubble_server.errors import RingError
from hubble_server.ring.records import RECORD_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PAGE = mmap.PAGESIZE
_SYS_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}

# include/uapi/linux/perf_event.h
_PERF_TYPE_SOFTWARE = 1
_PERF_COUNT_SW_BPF_OUTPUT = 10
_PERF_SAMPLE_RAW = 1 << 10
_PERF_FORMAT_LOST = 1 << 4
_PERF_ATTR_SIZE = 112
_PERF_FLAG_FD_CLOEXEC = 1 << 3
_ATTR_WATERMARK = 1 << 14
_HEAD_OFFSET = 1024

_libc = ctypes.CDLL(None, use_errno=True)


def _perf_event_open(cpu: int, watermark: int, read_format: int) -> int:
    attr = bytearray(_PERF_ATTR_SIZE)
    struct.pack_into(
        "<IIQ", attr, 0, _PERF_TYPE_SOFTWARE, _PERF_ATTR_SIZE, _PERF_COUNT_SW_BPF_OUTPUT
    )
    struct.pack_into("<QQQ", attr, 24, _PERF_SAMPLE_RAW, read_format, _ATTR_WATERMARK)
    struct.pack_into("<I", attr, 48, watermark)
    number = _SYS_PERF_EVENT_OPEN.get(os.uname().machine)
    if number is None:
        raise RingError(f"perf_event_open is not known for machine type {os.uname().machine}")
    raw = (ctypes.c_char * len(attr)).from_buffer(attr)
    fd = _libc.syscall(number, raw, -1, cpu, -1, ctypes.c_ulong(_PERF_FLAG_FD_CLOEXEC))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(fd)


class CpuBuffer:
    """Perf buffer of one processor, of `pages` pages (a power of two).

    `watermark` is the number of unread bytes at which the kernel makes `fd` readable. Raises
    RingError when the kernel refuses the buffer.
    """

    def __init__(self, cpu: int, pages: int, watermark: int) -> None:
        self.cpu = cpu
        self.size = pages * _PAGE
        self.counts_losses = True
        try:
            self.fd = _perf_event_open(cpu, watermark, _PERF_FORMAT_LOST)
        except OSError:
            # Linux before 6.0 cannot count losses on the descriptor; its lost records remain.
            self.counts_losses = False
            try:
                self.fd = _perf_event_open(cpu, watermark, 0)
            except OSError as error:
                raise RingError(
                    f"perf buffer of processor {cpu}: {error.strerror}; hubble-server needs the "
                    "capabilities PERFMON (or SYS_ADMIN) and BPF"
                ) from error
        try:
            self._map = mmap.mmap(self.fd, self.size + _PAGE)
        except (OSError, ValueError) as error:
            os.close(self.fd)
            raise RingError(
                f"perf buffer of processor {cpu}: cannot map {pages} pages: {error}; "
                "lower hubble-perf-ring-pages"
            ) from error
        self._positions = np.frombuffer(self._map, dtype="<u8", count=2, offset=_HEAD_OFFSET)
        self._data: NDArray[np.uint8] = np.frombuffer(
            self._map, dtype=np.uint8, count=self.size, offset=_PAGE
        )
        self._lost_seen = 0

    def pending(self) -> int:
        """Position up to which the kernel has written."""
        return int(self._positions[0])

    def take(self, head: int) -> NDArray[np.uint8]:
        """Copy everything up to `head` (from `pending`) out and give the space back."""
        tail = int(self._positions[1])
        count = head - tail
        out = np.empty(count, dtype=np.uint8)
        start = tail % self.size
        first = min(count, self.size - start)
        out[:first] = self._data[start : start + first]
        out[first:] = self._data[: count - first]
        self._positions[1] = head
        return out

    def new_losses(self) -> int:
        """Events the kernel could not write since the last call; 0 when it does not count them."""
        if not self.counts_losses:
            return 0
        _, total = struct.unpack("<QQ", os.read(self.fd, 16))
        fresh = int(total) - self._lost_seen
        self._lost_seen = int(total)
        return fresh

    @property
    def capacity(self) -> int:
        """Events that fit."""
        return self.size // RECORD_SIZE

    def close(self) -> None:
        """Unmap and close; the kernel stops writing here."""
        del self._positions, self._data
        self._map.close()
        os.close(self.fd)


def online_cpus() -> list[int]:
    """Numbers of the processors that are on, from sysfs."""
    with open("/sys/devices/system/cpu/online", encoding="ascii") as file:  # noqa: PTH123
        ranges = file.read().strip().split(",")
    found: list[int] = []
    for part in ranges:
        low, _, high = part.partition("-")
        found.extend(range(int(low), int(high or low) + 1))
    return found
