"""The kernel's side of captures: the entry that says whose packets, and the rings they come in.

The programs copy packets into a perf ring of each processor, which exists only while a `Capture` is
open. What they may capture holds for `LEASE_S` after the last renewal, so they stop by themselves
when this process is killed. `poll` belongs to one thread, the rest to who holds a lock.
"""

from __future__ import annotations

import ctypes
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cilium_core import abi
from cilium_core.telemetry import get_logger

from hubble_server.errors import CaptureError, RingError
from hubble_server.ring.maps import open_pinned

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_log = get_logger()

CAPTURE_MAP = "cilium_capture"
CAPTURES_MAP = "cilium_captures"
LOSSES_MAP = "cilium_capture_lost"
LEASE_S: Final = 5.0
"""How long the programs go on capturing for one that has gone silent."""

WHOLE: Final = 65_000
"""Most bytes that are kept of a packet: a record of the ring has room for few more."""

_RING_PAGES = 256
"""Of each processor: 1 MiB, some 700 full packets."""

_RECORD = abi.view(
    "capture_record",
    "time_ns",
    "length",
    "captured",
    "recordings",
    "endpoint",
    "point",
    "reason",
)
_LOSSES = abi.view("capture_losses", "packets", "bytes")
_KEY = bytes(4)
_SAMPLE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32)
_LOST = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64)


@dataclass(frozen=True, slots=True)
class Packet:
    """A captured packet; times are those of the monotonic clock."""

    time_ns: int
    length: int
    """Of the whole packet, in bytes."""
    data: bytes
    recordings: int
    """Bits of those whose filters it fits."""
    endpoint: int
    point: int
    """enum trace_point, or CAPTURE_DROPPED."""
    reason: int


def _lib() -> Any:
    lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    lib.bpf_map_update_elem.argtypes = (
        ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint64,
    )  # fmt: skip
    lib.bpf_map_lookup_elem.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    lib.perf_buffer__new.restype = ctypes.c_void_p
    lib.perf_buffer__new.argtypes = (
        ctypes.c_int, ctypes.c_size_t, _SAMPLE, _LOST, ctypes.c_void_p, ctypes.c_void_p,
    )  # fmt: skip
    lib.perf_buffer__poll.argtypes = (ctypes.c_void_p, ctypes.c_int)
    lib.perf_buffer__consume.argtypes = (ctypes.c_void_p,)
    lib.perf_buffer__free.argtypes = (ctypes.c_void_p,)
    return lib


class Capture:
    """Captured packets below `root`, the folder of pins; handed to `take`.

    Raises CaptureError when the agent has not pinned the maps or memory is short.
    """

    def __init__(self, root: Path, take: Callable[[Packet], None]) -> None:
        self._lib = _lib()
        self._take = take
        self._rows: Sequence[bytes] = ()
        self._snap = WHOLE
        self._failed: Exception | None = None
        # held here, as the library calls them for as long as the ring lives
        self._callbacks = _SAMPLE(self._on_sample), _LOST(self._on_lost)
        with ExitStack() as undo:
            try:
                self._entry, _ = open_pinned(root / CAPTURE_MAP)
                undo.callback(os.close, self._entry)
                self._losses, _ = open_pinned(root / LOSSES_MAP)
                undo.callback(os.close, self._losses)
                rings, shape = open_pinned(root / CAPTURES_MAP)
            except RingError as error:
                raise CaptureError(f"packets cannot be captured: {error}") from error
            # open for as long as the rings live: the map forgets them with who has put them there
            undo.callback(os.close, rings)
            self._ring = self._lib.perf_buffer__new(
                rings, _RING_PAGES, *self._callbacks, None, None
            )
            if not self._ring:
                reason = os.strerror(ctypes.get_errno())
                raise CaptureError(f"no rings for captured packets: {reason}")
            undo.callback(self._lib.perf_buffer__free, self._ring)
            self._cpus = shape.entries
            self._lost = self._losses_ever()
            self._undo = undo.pop_all()

    def want(self, rows: Sequence[bytes], snap_length: int) -> None:
        """Capture what fits one of the rows, and as many bytes of each packet, from now on."""
        self._write(0)  # a program that reads meanwhile finds it off, or a whole entry
        self._rows, self._snap = rows, snap_length
        self.renew()

    def renew(self) -> None:
        """Have the programs go on for another `LEASE_S`."""
        self._write(time.monotonic_ns() + int(LEASE_S * 1e9) if self._rows else 0)

    def poll(self, timeout_s: float) -> None:
        """Hand over what is there, waiting for the first packet up to a while."""
        self._lib.perf_buffer__poll(self._ring, int(timeout_s * 1000))
        self._lib.perf_buffer__consume(self._ring)  # also what came without waking anybody
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    def lost(self) -> tuple[int, int]:
        """Packets that found no room since the last time, and the bytes kept of them."""
        before, self._lost = self._lost, self._losses_ever()
        return self._lost[0] - before[0], self._lost[1] - before[1]

    def _losses_ever(self) -> tuple[int, int]:
        size = _LOSSES.size
        held = ctypes.create_string_buffer(size * self._cpus)
        if self._lib.bpf_map_lookup_elem(self._losses, _KEY, held) < 0:
            return 0, 0
        found = list(_LOSSES.iter_unpack(held.raw))
        return sum(packets for packets, _ in found), sum(size for _, size in found)

    def close(self) -> None:
        """Capture nothing any more, and give the memory back."""
        self._write(0)
        self._undo.close()

    def _write(self, until_ns: int) -> None:
        head = abi.pack("capture", until_ns=until_ns, count=len(self._rows), snap_length=self._snap)
        start = abi.fields("capture")["filters"][0]
        value = (head[:start] + b"".join(self._rows)).ljust(len(head), b"\0")
        result = self._lib.bpf_map_update_elem(self._entry, _KEY, value, 0)
        if result < 0:
            _log.error("captures cannot be changed", reason=os.strerror(-result))

    def _on_sample(self, _context: Any, _cpu: int, data: int, size: int) -> None:
        try:
            raw = ctypes.string_at(data, size)
            moment, length, captured, recordings, endpoint, point, reason = _RECORD.unpack_from(raw)
            body = raw[_RECORD.size : _RECORD.size + captured]
            self._take(Packet(moment, length, body, recordings, endpoint, point, reason))
        except Exception as error:
            self._failed = error

    def _on_lost(self, _context: Any, _cpu: int, _count: int) -> None:
        """What the library says of losses comes late; see `lost`."""


def switch_off(root: Path) -> None:
    """End what a server that was killed may have left on."""
    try:
        fd, _ = open_pinned(root / CAPTURE_MAP)
    except RingError:
        return
    try:
        _lib().bpf_map_update_elem(fd, _KEY, bytes(abi.sizeof("capture")), 0)
    finally:
        os.close(fd)
