"""The pinned events map: opening it, putting perf buffers in, noticing that it was replaced.

The kernel drops our buffers from the map when the descriptor they were put in through is closed,
so `EventsMap` stays open as long as the buffers are read, and a killed server leaves nothing
behind.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from typing import TYPE_CHECKING

from hubble_server.errors import EventsMapMissingError, RingError

if TYPE_CHECKING:
    from pathlib import Path

EVENTS_MAP = "cilium_events"
"""Pin name of the events map, see bpf/lib/maps.h."""

_BPF_ANY = 0
_INFO_SIZE = 96
_INFO_ID_OFFSET = 4
_INFO_MAX_ENTRIES_OFFSET = 16


@functools.cache
def _libbpf() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise RingError("libbpf.so.1 is not installed; install the package libbpf1") from error


def _reason() -> str:
    return os.strerror(ctypes.get_errno())


class EventsMap:
    """The perf event array at `path`.

    Raises EventsMapMissingError when nothing is pinned there, RingError when it cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = _open(path)
        info = bytearray(_INFO_SIZE)
        size = ctypes.c_uint32(_INFO_SIZE)
        raw = (ctypes.c_char * _INFO_SIZE).from_buffer(info)
        if _libbpf().bpf_obj_get_info_by_fd(self.fd, raw, ctypes.byref(size)):
            text = _reason()
            os.close(self.fd)
            raise RingError(f"{path}: cannot be inspected: {text}")
        (self.id,) = struct.unpack_from("=I", info, _INFO_ID_OFFSET)
        (self.entries,) = struct.unpack_from("=I", info, _INFO_MAX_ENTRIES_OFFSET)

    def put(self, cpu: int, fd: int) -> None:
        """Make the programs on processor `cpu` write into the perf buffer behind `fd`."""
        key, value = ctypes.c_uint32(cpu), ctypes.c_int(fd)
        if _libbpf().bpf_map_update_elem(
            self.fd, ctypes.byref(key), ctypes.byref(value), ctypes.c_uint64(_BPF_ANY)
        ):
            raise RingError(
                f"{self.path}: cannot put the buffer of processor {cpu} in a map of "
                f"{self.entries} entries: {_reason()}"
            )

    def replaced(self) -> bool:
        """Whether another map, or none, is pinned at the path by now."""
        try:
            other = EventsMap(self.path)
        except EventsMapMissingError:
            return True
        same = other.id == self.id
        other.close()
        return not same

    def close(self) -> None:
        """Close the map; the kernel takes the buffers out."""
        os.close(self.fd)


def _open(path: Path) -> int:
    fd: int = _libbpf().bpf_obj_get(os.fsencode(path))
    if fd >= 0:
        return fd
    if ctypes.get_errno() in (2, 20):  # ENOENT, ENOTDIR
        raise EventsMapMissingError(f"{path}: no events map is pinned here; is the agent running?")
    raise RingError(f"{path}: the events map cannot be opened: {_reason()}")
