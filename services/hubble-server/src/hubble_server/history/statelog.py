"""The writer of states: keeps beside the flows what the agent tells of the node.

The event loop hands changes over and never waits; a thread writes them, and brings them to the disk
within a second. When it could not write, what was lost of the changes is made up for by a new
segment, which begins with everything that is known. Segments are removed, oldest first, when there
are too many or they are too old.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cilium.metadata.v1 import metadata_pb2
from cilium_core.telemetry import counter, get_logger

from hubble_server.history.states import (
    CHANGE,
    KINDS,
    SNAPSHOT,
    State,
    encode,
    segment_path,
    segments_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


_log = get_logger()

_FAILURES = counter(
    "hubble_server_history_state_failures_total", "Failures to write what the agent has told."
)

_GATHER_S: Final = 0.2
_RETRY_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class StateLimits:
    """How much is kept, and for how long."""

    max_bytes: int = 128 << 20
    max_age_s: float = 0.0
    """0 keeps states of any age."""
    segment_s: float = 3600.0
    """A new segment begins after this time,"""
    segment_bytes: int = 4 << 20
    """or when the changes take as much as this, or as the snapshot if that is more."""
    beat_s: float = 30.0
    """How often is noted that nothing has changed."""


@dataclass(frozen=True, slots=True)
class _Told:
    kind: int
    time_ns: int
    updates: Sequence[metadata_pb2.Update]


class StateLog:
    """Writes the states of one node into a directory that exists and nobody else writes to.

    `connected` tells whether the agent's changes are coming in.
    """

    def __init__(
        self, path: Path, limits: StateLimits, connected: Callable[[], bool] = lambda: True
    ) -> None:
        self._path = path
        self._limits = limits
        self._connected = connected
        self._state = State()
        self._waiting: deque[_Told] = deque()
        self._file = -1
        self._size = 0
        self._snapshot_size = 0
        self._began = self._beaten = 0.0
        self._failing = False
        self._known = False
        self._dirty = False
        self._next = max((segment.number for segment in segments_of(path)), default=0) + 1
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="states", daemon=True)

    # ---- called from the event loop ----

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Write what was told, and end."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._close()

    def replace(self, updates: Sequence[metadata_pb2.Update]) -> None:
        """Take the whole state."""
        self._tell(_Told(SNAPSHOT, time.time_ns(), updates))

    def update(self, update: metadata_pb2.Update) -> None:
        """Take one change."""
        if update.WhichOneof("update") in KINDS:
            self._tell(_Told(CHANGE, time.time_ns(), (update,)))

    def _tell(self, told: _Told) -> None:
        self._waiting.append(told)
        self._wake.set()

    # ---- the thread ----

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(min(self._limits.beat_s, _RETRY_S) if self._failing else self._until())
            self._wake.clear()
            self._stopping.wait(_GATHER_S)
            self._round()
        self._round()

    def _round(self) -> None:
        try:
            self.step()
        except Exception as error:
            self._dirty = True
            _log.error("a round of writing states failed", exc_info=error)

    def _until(self) -> float:
        return max(0.0, self._beaten + self._limits.beat_s - time.monotonic())

    def step(self) -> None:
        """Write what was told, or that nothing was; begin a new segment when it is time."""
        now = time.monotonic()
        records: list[bytes] = []
        for _ in range(len(self._waiting)):
            told = self._waiting.popleft()
            self._apply(told)
            records.append(encode(told.kind, told.time_ns, _kept(told)))
        if not self._known:
            self._beaten = now
            return
        changes = self._size - self._snapshot_size
        full = changes > max(self._limits.segment_bytes, self._snapshot_size)
        try:
            if self._file < 0 or full or now - self._began >= self._limits.segment_s or self._dirty:
                self._begin(now)
            elif records:
                self._write(b"".join(records))
                self._beaten = now
            if now - self._beaten >= self._limits.beat_s:
                self._beaten = now
                if self._connected():
                    self._write(encode(CHANGE, time.time_ns(), ()))
        except OSError as error:
            self._dirty = True
            _FAILURES.add(1)
            if not self._failing:
                _log.error("states cannot be written", path=str(self._path), reason=error.strerror)
            self._failing = True
        else:
            if self._failing:
                _log.info("states are written again", path=str(self._path))
            self._failing = False

    def _apply(self, told: _Told) -> None:
        if told.kind == SNAPSHOT:
            self._state.replace(told.updates)
            self._known = True
        else:
            for update in told.updates:
                self._state.apply(update)

    def _begin(self, now: float) -> None:
        """Begin a segment with everything that is known."""
        self._close()
        at = time.time_ns()
        path = segment_path(self._path, self._next, at)
        self._next += 1
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        self._size = 0
        try:
            self._write(encode(SNAPSHOT, at, self._state.updates()))
        except OSError:
            path.unlink()
            raise
        self._snapshot_size = self._size
        self._began = self._beaten = now
        self._dirty = False
        self._trim()

    def _write(self, data: bytes) -> None:
        """Append, and bring it to the disk. After an OSError the file is as it was before."""
        view, at = memoryview(data), self._size
        try:
            while view:
                written = os.pwrite(self._file, view, at)
                view, at = view[written:], at + written
            os.fdatasync(self._file)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size = at

    def _trim(self) -> None:
        segments = segments_of(self._path)
        sizes = {segment.number: segment.path.stat().st_size for segment in segments}
        total = sum(sizes.values())
        age_s = self._limits.max_age_s
        horizon = time.time_ns() - int(age_s * 1e9) if age_s else None
        for segment, younger in itertools.pairwise(segments):
            old = horizon is not None and younger.first_ns < horizon
            if total <= self._limits.max_bytes and not old:
                return
            segment.path.unlink(missing_ok=True)
            total -= sizes[segment.number]

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _kept(told: _Told) -> list[metadata_pb2.Update]:
    return [update for update in told.updates if update.WhichOneof("update") in KINDS]
