"""Recordings in progress, and the thread that brings them their packets.

The thread lives while there is a recording: it holds the rings of captured packets, hands each
packet to those who want it, and ends recordings whose limits are reached. Recordings are begun and
ended from the event loop; a lock guards what both sides change.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from cilium_core.telemetry import counter, get_logger

from hubble_server.errors import CaptureError, RecordingsError
from hubble_server.recording.capturing import WHOLE, Capture
from hubble_server.recording.filters import MOST_FILTERS, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from recorder import recorder_pb2

    from hubble_server.recording.capturing import Packet

_log = get_logger()

MOST_RECORDINGS: Final = 8
_BITS = 32
"""Of `Packet.recordings`: a number comes again so late that no packet of its last owner is left."""
_POLL_S = 0.1
_RENEW_S = 1.0
_HELD_BYTES = 1 << 20
"""Bytes of packets that are gathered before they are handed on."""

PACKETS = counter("hubble_recorded_packets_total", "Packets handed to recordings.")
LOST_PACKETS = counter(
    "hubble_recorder_lost_packets_total", "Packets that recordings asked for and did not get."
)


class Sink(Protocol):
    """Where packets go; called on the thread of recordings."""

    def write(self, packets: Sequence[Packet], clock_offset_ns: int) -> int:
        """Take packets; returns how many of them, from the first on. Raises OSError."""

    def close(self) -> None:
        """Take no more. Raises OSError."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What ends a recording; 0 is no limit."""

    packets: int = 0
    bytes: int = 0
    """Of packets as they are kept."""
    seconds: float = 0.0


@dataclass(slots=True)
class Statistics:
    """What a recording has got so far, and what not."""

    packets: int = 0
    bytes: int = 0
    packets_lost: int = 0
    bytes_lost: int = 0


class Recording:
    """One recording: `ended` is set after its last packet, `failure` says why it broke off."""

    def __init__(
        self, number: int, rows: list[bytes], snap_length: int, limits: Limits, sink: Sink
    ) -> None:
        self.number = number
        self.rows = rows
        self.snap_length = snap_length
        self.sink = sink
        self.statistics = Statistics()
        self.ended = threading.Event()
        self.failure = ""
        self.on_end: Callable[[], None] = lambda: None
        self._limits = limits
        self._until = time.monotonic() + limits.seconds if limits.seconds else float("inf")
        self._waiting: list[Packet] = []
        self._waiting_bytes = 0
        self._full = False

    @property
    def over(self) -> bool:
        """Whether a limit is reached."""
        return self._full or bool(self.failure) or time.monotonic() >= self._until

    def take(self, packet: Packet) -> None:
        """Add a packet, shortened as this recording wants it, up to the limits."""
        if self._full:
            return
        if len(packet.data) > self.snap_length:
            packet = replace(packet, data=packet.data[: self.snap_length])
        done, limits = self.statistics, self._limits
        packets = done.packets + len(self._waiting)
        size = done.bytes + self._waiting_bytes
        if limits.bytes and size + len(packet.data) > limits.bytes and packets:
            self._full = True
            return
        self._waiting.append(packet)
        self._waiting_bytes += len(packet.data)
        if (limits.packets and packets + 1 >= limits.packets) or (
            limits.bytes and size + len(packet.data) >= limits.bytes
        ):
            self._full = True

    def end(self) -> None:
        """Take no more packets; the recording is over soon."""
        self._full = True

    @property
    def holds_much(self) -> bool:
        """Whether it is time to hand on."""
        return self._waiting_bytes >= _HELD_BYTES

    def hand_on(self, clock_offset_ns: int) -> None:
        """Give the sink what is waiting."""
        packets, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if not packets or self.failure:
            return
        try:
            taken = self.sink.write(packets, clock_offset_ns)
        except OSError as error:
            self.failure = f"packets cannot be kept: {error.strerror}"
            taken = 0
        done = self.statistics
        done.packets += taken
        done.bytes += sum(len(each.data) for each in packets[:taken])
        self.lose(len(packets) - taken, sum(len(each.data) for each in packets[taken:]))
        PACKETS.add(taken)

    def lose(self, packets: int, size: int = 0) -> None:
        """Note packets that could have been this recording's."""
        self.statistics.packets_lost += packets
        self.statistics.bytes_lost += size
        LOST_PACKETS.add(packets)

    def finish(self) -> None:
        """Close the sink and tell that it is over."""
        try:
            self.sink.close()
        except OSError as error:
            self.failure = self.failure or f"packets cannot be kept: {error.strerror}"
        self.ended.set()
        self.on_end()


class Recordings:
    """All recordings of a server; `root` is the folder of pins."""

    def __init__(self, root: Path, clock_offset_ns: Callable[[], int]) -> None:
        self._root = root
        self._clock_offset_ns = clock_offset_ns
        self._lock = threading.Lock()
        self._running: dict[int, Recording] = {}
        self._capture: Capture | None = None
        self._last = -1
        self._thread: threading.Thread | None = None

    # ---- on the event loop ----

    def begin(
        self,
        filters: Iterable[recorder_pb2.Filter],
        snap_length: int,
        limits: Limits,
        make_sink: Callable[[int], Sink],
        on_end: Callable[[], None],
    ) -> Recording:
        """Begin a recording; `make_sink` is given the bytes that are kept of a packet.

        `on_end` is called on the thread of recordings. Raises RecordingError for filters that make
        no sense, RecordingsError when there are too many, CaptureError when the kernel or the disk
        does not go along.
        """
        snap_length = min(snap_length or WHOLE, WHOLE)
        with self._lock:
            if len(self._running) == MOST_RECORDINGS:
                raise RecordingsError(
                    f"{MOST_RECORDINGS} recordings run already; end one with Ctrl-C or a limit"
                )
            number = self._next_number()
            rows = rows_of(filters, number)
            used = sum(len(each.rows) for each in self._running.values())
            if used + len(rows) > MOST_FILTERS:
                raise RecordingsError(
                    f"include: {len(rows)} filters, where {MOST_FILTERS - used} of "
                    f"{MOST_FILTERS} are left (one without addresses counts for two)"
                )
            capture = self._capture
            if capture is None:
                capture = Capture(self._root, self._take)
            try:
                sink = make_sink(snap_length)
            except OSError as error:
                if self._capture is None:
                    capture.close()
                raise CaptureError(f"packets cannot be kept: {error}") from error
            recording = Recording(number, rows, snap_length, limits, sink)
            recording.on_end = on_end
            self._running[number] = recording
            self._apply(capture)
            if self._capture is None:
                self._capture = capture
                self._thread = threading.Thread(
                    target=self._run, args=(capture,), name="recordings", daemon=True
                )
                self._thread.start()
        return recording

    def _next_number(self) -> int:
        """Return a bit that is not in use, and as long as can be was not."""
        while True:
            self._last = (self._last + 1) % _BITS
            if self._last not in self._running:
                return self._last

    def stop(self) -> None:
        """End all recordings and wait for their last packets."""
        with self._lock:
            for recording in self._running.values():
                recording.end()
            thread = self._thread
        if thread is not None:
            thread.join()

    # ---- on the thread ----

    def _run(self, capture: Capture) -> None:
        renewed = 0.0
        while True:
            try:
                capture.poll(_POLL_S)
            except Exception as error:
                _log.error("captured packets cannot be read", exc_info=error)
            with self._lock:
                self._lose(*capture.lost())
                ended = self._hand_on()
                if over := not self._running:
                    self._capture = None
                    capture.close()
                elif ended:
                    self._apply(capture)
                elif time.monotonic() - renewed > _RENEW_S:
                    capture.renew()
                    renewed = time.monotonic()
            for recording in ended:
                recording.finish()
            if over:
                return

    def _apply(self, capture: Capture) -> None:
        """Have the kernel capture for those that run now."""
        running = self._running.values()
        snap = max(each.snap_length for each in running)
        capture.want([row for each in running for row in each.rows], snap)

    def _hand_on(self) -> list[Recording]:
        """Hand on all that is waiting; returns those who are over, and no longer here."""
        offset = self._clock_offset_ns()
        ended = []
        for recording in list(self._running.values()):
            over = recording.over
            recording.hand_on(offset)
            if over:
                del self._running[recording.number]
                ended.append(recording)
        return ended

    def _take(self, packet: Packet) -> None:
        for recording in list(self._running.values()):
            if packet.recordings >> recording.number & 1:
                recording.take(packet)
                if recording.holds_much:
                    recording.hand_on(self._clock_offset_ns())

    def _lose(self, packets: int, size: int) -> None:
        """Note what found no room in the kernel, which may have been anybody's."""
        for recording in self._running.values() if packets else ():
            recording.lose(packets, size)
