"""The pinned maps of events: opening them, checking their shape, mapping them into memory.

Two arrays belong together: `cilium_events` holds the slots of all processors, one stretch after
the other, and `cilium_event_heads` says for each processor how many events were ever written. Both
can be mapped, so that reading costs no call into the kernel and any number of readers can look.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hubble_server.errors import EventsMapMissingError, RingError
from hubble_server.ring.records import EVENT_DTYPE, HEAD_DTYPE, Events

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# Pin names, see bpf/lib/maps.h.
EVENTS_MAP = "cilium_events"
HEADS_MAP = "cilium_event_heads"

_ARRAY = 2
_MMAPABLE = 1 << 10
_INFO = struct.Struct("=IIIIII")
_INFO_SIZE = 96


@functools.cache
def _libbpf() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise RingError("libbpf.so.1 is not installed; install the package libbpf1") from error


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What the kernel says about a map."""

    kind: int
    id: int
    value_size: int
    entries: int
    flags: int


def open_pinned(path: Path) -> tuple[int, MapInfo]:
    """Descriptor of the map pinned at `path`, and what it is.

    Raises EventsMapMissingError when nothing is pinned there, RingError when it cannot be opened.
    """
    fd: int = _libbpf().bpf_obj_get(os.fsencode(path))
    if fd < 0:
        code = ctypes.get_errno()
        if code in (errno.ENOENT, errno.ENOTDIR):
            raise EventsMapMissingError(f"{path}: no map is pinned here; is the agent running?")
        raise RingError(f"{path}: the map cannot be opened: {os.strerror(code)}")
    raw = ctypes.create_string_buffer(_INFO_SIZE)
    size = ctypes.c_uint32(_INFO_SIZE)
    if _libbpf().bpf_obj_get_info_by_fd(fd, raw, ctypes.byref(size)):
        text = os.strerror(ctypes.get_errno())
        os.close(fd)
        raise RingError(f"{path}: the map cannot be inspected: {text}")
    kind, id_, _, value_size, entries, flags = _INFO.unpack_from(raw)
    return fd, MapInfo(kind, id_, value_size, entries, flags)


def pinned_id(path: Path) -> int | None:
    """Number of the map pinned at `path`, None when there is none."""
    try:
        fd, info = open_pinned(path)
    except RingError:
        return None
    os.close(fd)
    return info.id


class MappedArray:
    """A pinned array map of structs, mapped for reading."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        fd, self.info = open_pinned(path)
        try:
            self._check(path, dtype)
            length = self.info.entries * dtype.itemsize
            self._memory = mmap.mmap(fd, length, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise RingError(f"{path}: the map cannot be mapped: {error}") from error
        finally:
            os.close(fd)
        self.values: NDArray[Any] = np.frombuffer(
            self._memory, dtype=dtype, count=self.info.entries
        )

    def _check(self, path: Path, dtype: np.dtype[Any]) -> None:
        info = self.info
        if (info.kind, info.value_size) != (_ARRAY, dtype.itemsize) or not info.flags & _MMAPABLE:
            raise RingError(
                f"{path}: a map of type {info.kind} with values of {info.value_size} bytes is not "
                f"the array of {dtype.itemsize} bytes that this server reads; run agent and "
                "hubble-server of the same version"
            )

    def close(self) -> None:
        """Give the memory back."""
        # Unmapped when the last view of it goes, which may be in a traceback.
        del self.values, self._memory


class EventMaps:
    """The two maps below `root`, seen as one ring for each processor.

    Raises EventsMapMissingError while they are not pinned, RingError when they do not fit.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._heads = MappedArray(root / HEADS_MAP, HEAD_DTYPE)
        try:
            self._events = MappedArray(root / EVENTS_MAP, EVENT_DTYPE)
        except RingError:
            self._heads.close()
            raise
        self.cpus = self._heads.info.entries
        self.slots, odd = divmod(self._events.info.entries, self.cpus)
        if odd or not self.slots or self.slots & (self.slots - 1):
            entries = self._events.info.entries
            self.close()
            raise RingError(
                f"{root / EVENTS_MAP}: {entries} slots are not a power of two for each of "
                f"{self.cpus} processors"
            )

    @property
    def id(self) -> int:
        """Number of the map of slots."""
        return self._events.info.id

    def slots_of(self, cpu: int) -> Events:
        """The slots of a processor, as they are at the moment of looking."""
        return self._events.values[cpu * self.slots : (cpu + 1) * self.slots]

    def heads(self) -> NDArray[np.uint64]:
        """How many events each processor has ever written, as it is at the moment of looking."""
        written: NDArray[np.uint64] = self._heads.values["written"]
        return written

    def replaced(self) -> bool:
        """Whether other maps, or none, are pinned by now."""
        return pinned_id(self._root / EVENTS_MAP) != self.id

    def close(self) -> None:
        """Unmap both. No view that was handed out may be used any more."""
        self._heads.close()
        self._events.close()
