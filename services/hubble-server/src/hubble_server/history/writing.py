"""The writer of a history: follows the ring on a thread of its own, and keeps to the limits.

It never holds the ring back: what it is too slow for, or has no room for on the disk, is lost to
it, counted, and stands in the history as a loss. A second thread brings journals to the disk, makes
them into complete parts and removes the oldest ones, so that none of this delays the first.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from cilium_core.errors import InvalidError
from cilium_core.telemetry import counter, gauge, get_logger
from flow import flow_pb2

from hubble_server.flows.columns import (
    KIND_LOST,
    KIND_RECORD,
    SCHEMA,
    zeros,
)
from hubble_server.history.files import convert
from hubble_server.history.journals import DamagedError, Journal, read_frames
from hubble_server.history.layout import Part, files_of, journal_path, parts_of
from hubble_server.history.tables import PartTables

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from hubble_server.facts import NodeFacts
    from hubble_server.flows.store import FlowStore
    from hubble_server.metadata.directory import Directory

_log = get_logger()

JOURNAL_BYTES: Final = 64 << 20
"""Size at which a journal becomes a complete part."""

_BATCH: Final = 4096
_GATHER_S: Final = 0.05
_SYNC_S: Final = 1.0
_CHECK_S: Final = 30.0
_RETRY_S: Final = 1.0
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

_WRITTEN = counter("hubble_server_history_flows_total", "Flows written into the history.")
_LOST = counter(
    "hubble_server_history_lost_events_total",
    "Events that the history lacks, as they were overwritten before they could be written.",
)
_FAILURES = counter(
    "hubble_server_history_failures_total", "Failures to write the history, by step.", "step"
)
_DAMAGED = counter("hubble_server_history_damaged_total", "Times that a damaged part was read.")
_REMOVED = counter("hubble_server_history_removed_parts_total", "Parts removed to keep the limits.")
_SIZE = gauge("hubble_server_history_bytes", "Size of the history on disk.")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is kept, and for how long."""

    max_bytes: int = 1 << 30
    max_age_s: float = 0.0
    """0 keeps flows of any age."""
    rotate_s: float = 300.0
    journal_bytes: int = JOURNAL_BYTES


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A history as of one moment."""

    parts: tuple[Part, ...]
    """In order; of the last one, `rows` had been written."""
    head: int
    """Number in the ring of the first event that is not in it."""


def note_damage(text: str) -> None:
    """Count and log a part, or an end of one, that cannot be read."""
    _DAMAGED.add(1)
    _log.error("history is damaged; what can be read of it is kept", reason=text)


class History:
    """Writes one history. Raises InvalidError where the directory cannot be used."""

    def __init__(
        self,
        path: Path,
        limits: Limits,
        store: FlowStore,
        directory: Directory,
        node: Callable[[], NodeFacts],
    ) -> None:
        self.path = path
        self._limits = limits
        self._store = store
        self._directory = directory
        self._node = node
        self._lock = threading.Lock()
        self._journal: Journal | None = None
        self._tables = PartTables(directory)
        self._journal_number = 0
        self._journal_began = 0.0
        self._position = store.head
        self._failing: set[str] = set()
        self._crowded = False
        """Whether there is no room to complete a part."""
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="history-files")
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o750)
            self._directory_lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
            fcntl.flock(self._directory_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            parts, leftovers = parts_of(path)
            for leftover in leftovers:
                leftover.unlink()
        except BlockingIOError as error:
            raise InvalidError(
                f"hubble-history-dir: {path} is in use by another server; name another directory"
            ) from error
        except OSError as error:
            raise InvalidError(f"hubble-history-dir: {path}: {error.strerror}") from error
        self._parts = {part.number: self._counted(part) for part in parts}
        self._next_number = max(self._parts, default=0) + 1

    def _counted(self, part: Part) -> Part:
        """A journal that an earlier run left, with its rows."""
        if not part.is_journal:
            return part
        rows = 0
        try:
            for frame in read_frames(part.path):
                rows += frame.count
        except (DamagedError, OSError) as error:
            _log.warning("a journal ends before its end", reason=str(error))
        return replace(part, rows=rows)

    # ---- called from other threads ----

    def start(self) -> None:
        """Begin to write what comes into the ring from now on."""
        self._stop_listening = self._store.listen(self._written)
        self._worker.submit(self._tend)
        self._thread.start()

    def _written(self) -> None:
        """Called on the ingest thread after new events."""
        self._wake.set()
        if self._store.head - self._position > self._store.slots // 4:
            self._hurry.set()

    def stop(self) -> None:
        """Write what is in the ring, bring it to the disk, and end."""
        if self._thread.ident is not None:
            self._stopping.set()
            self._wake.set()
            self._hurry.set()
            self._stop_listening()
            self._thread.join()
        self._worker.shutdown()
        if self._journal is not None:
            try:
                self._journal.close()
            except OSError as error:
                self._fail("journal", error)
        os.close(self._directory_lock)

    @property
    def position(self) -> int:
        """Events of the store that are written, or left out for good."""
        with self._lock:
            return self._position

    def snapshot(self) -> Snapshot:
        """What is in the history now."""
        with self._lock:
            parts = [self._parts[each] for each in sorted(self._parts) if self._parts[each].rows]
            if self._journal is not None and self._journal.rows:
                parts.append(
                    Part(
                        self._journal_number,
                        self._journal.path,
                        rows=self._journal.rows,
                        is_journal=True,
                    )
                )
            return Snapshot(tuple(parts), self._position)

    def part(self, number: int) -> Part | None:
        """A part as it is now, None when it is gone."""
        with self._lock:
            return self._parts.get(number)

    # ---- the thread that follows the ring ----

    def _run(self) -> None:
        checked = synced = time.monotonic()
        while not self._stopping.is_set():
            self._wake.wait(_SYNC_S)
            self._wake.clear()
            self._hurry.wait(_GATHER_S)
            self._hurry.clear()
            try:
                self.step()
            except Exception as error:
                _log.error("a round of writing the history failed", exc_info=error)
                self._stopping.wait(_RETRY_S)
            now = time.monotonic()
            if now - synced >= _SYNC_S and self._journal is not None:
                synced = now
                self._worker.submit(self._sync, self._journal)
            if now - checked >= _CHECK_S:
                checked = now
                self._worker.submit(self._tend)
        self.step()

    def step(self) -> None:
        """Write what is in the ring and not in the history."""
        if self._crowded:
            # journals would take the room that completing the parts before needs
            self._worker.submit(self._tend)
            self._stopping.wait(_RETRY_S)
            return
        while self._position < self._store.head:
            try:
                self._take()
            except OSError as error:
                self._fail("journal", error)
                self._seal()
                self._stopping.wait(_RETRY_S)
                return
            self._recovered("journal")
            self._seal_when_due()
        self._seal_when_due()

    def _seal_when_due(self) -> None:
        journal = self._journal
        if journal is not None and (
            journal.size >= self._limits.journal_bytes
            or time.monotonic() - self._journal_began >= self._limits.rotate_s
            or journal.node != self._node()
        ):
            self._seal()

    def _take(self) -> None:
        """Write one batch. After an OSError nothing of it is written."""
        store = self._store
        first = max(self._position, store.valid_from)
        block = store.block(first, min(store.head, first + _BATCH))
        count = len(block)
        columns = block.take(np.arange(count))
        kinds = columns["kind"]
        keep = kinds <= KIND_LOST
        messages: dict[int, bytes] = {}
        for row in np.flatnonzero(keep & (kinds >= KIND_RECORD)).tolist():
            attached = store.attached(first + row)
            if attached is None:
                keep[row] = False
            elif isinstance(attached, bytes):
                messages[row] = attached
            else:
                messages[row] = attached.SerializeToString()
        gone = int((~keep & (kinds <= KIND_LOST)).sum())
        torn = max(0, min(store.valid_from - first, count))
        keep[:torn] = False
        lost = first - self._position + torn + gone
        rows = np.flatnonzero(keep)
        chosen = {name: column[rows] for name, column in columns.items()}
        attached_at = {at: messages[row] for at, row in enumerate(rows.tolist()) if row in messages}
        if lost:
            chosen, attached_at = _with_loss(chosen, attached_at, lost)
        self._write(chosen, attached_at, first + count)
        _LOST.add(lost)
        _WRITTEN.add(int((chosen["kind"] <= KIND_RECORD).sum()))

    def _write(
        self, columns: dict[str, NDArray[Any]], messages: dict[int, bytes], head: int
    ) -> None:
        count = len(columns["time_ns"])
        if not count:
            with self._lock:
                self._position = head
            return
        journal = self._journal or self._begin()
        translated, added = self._tables.translate(columns)
        with self._lock:
            journal.append(count, translated, messages, added)
            self._position = head

    def _begin(self) -> Journal:
        journal = Journal(journal_path(self.path, self._next_number), self._node())
        with self._lock:
            self._journal, self._journal_number = journal, self._next_number
        self._next_number += 1
        self._tables = PartTables(self._directory)
        self._journal_began = time.monotonic()
        return journal

    def _seal(self) -> None:
        """End the journal; it becomes a complete part on the other thread."""
        with self._lock:
            journal, self._journal = self._journal, None
            if journal is None:
                return
            number = self._journal_number
            self._parts[number] = Part(number, journal.path, rows=journal.rows, is_journal=True)
        self._worker.submit(self._finish, journal)

    # ---- the thread that tends the files ----

    def _sync(self, journal: Journal) -> None:
        try:
            journal.sync()
        except OSError as error:
            self._fail("sync", error)
        else:
            self._recovered("sync")

    def _finish(self, journal: Journal) -> None:
        try:
            journal.close()
        except OSError as error:
            self._fail("sync", error)
        self._tend()

    def _tend(self) -> None:
        """Complete what has ended, and remove what is too much or too old."""
        try:
            for part in self._sealed():
                self._complete(part)
        except Exception as error:
            self._crowded = getattr(error, "errno", None) in _NO_ROOM
            self._fail("part", error)
        else:
            self._crowded = False
        try:
            self._trim()
        except OSError as error:
            self._fail("removal", error)

    def _complete(self, part: Part) -> None:
        made = convert(part, note_damage)
        with self._lock:
            if made is None:
                del self._parts[part.number]
            else:
                self._parts[part.number] = made
        # not before readers are told of what is in its place
        part.path.unlink(missing_ok=True)
        self._recovered("part")

    def _sealed(self) -> list[Part]:
        with self._lock:
            return [
                self._parts[each] for each in sorted(self._parts) if self._parts[each].is_journal
            ]

    def _trim(self) -> None:
        with self._lock:
            parts = [self._parts[number] for number in sorted(self._parts)]
            active = self._journal.size if self._journal is not None else 0
        sizes = {part.number: sum(map(_size, files_of(part))) for part in parts}
        total = sum(sizes.values()) + active
        age_s = self._limits.max_age_s
        horizon = time.time_ns() - int(age_s * 1e9) if age_s else None
        for part in parts:
            old = horizon is not None and not part.is_journal and part.last_ns < horizon
            if total <= self._limits.max_bytes and not old:
                continue
            for path in files_of(part):
                path.unlink(missing_ok=True)
            with self._lock:
                del self._parts[part.number]
            total -= sizes[part.number]
            _REMOVED.add(1)
        _SIZE.set(total)

    def _fail(self, step: str, error: Exception) -> None:
        _FAILURES.add(1, step)
        if step not in self._failing:
            self._failing.add(step)
            reason = getattr(error, "strerror", None) or str(error)
            _log.error("history cannot be written", step=step, path=str(self.path), reason=reason)

    def _recovered(self, step: str) -> None:
        if step in self._failing:
            self._failing.discard(step)
            _log.info("history is written again", step=step, path=str(self.path))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _with_loss(
    columns: dict[str, NDArray[Any]], messages: dict[int, bytes], lost: int
) -> tuple[dict[str, NDArray[Any]], dict[int, bytes]]:
    """The batch with a row before it that tells of a loss."""
    times = columns["time_ns"]
    at = int(times[0]) if len(times) else time.time_ns()
    message = flow_pb2.LostEvent(source=flow_pb2.HUBBLE_RING_BUFFER, num_events_lost=lost)
    message.first.FromNanoseconds(at)
    message.last.FromNanoseconds(at)
    row = zeros(1)
    row["kind"][0], row["time_ns"][0] = KIND_LOST, at
    joined = {name: np.concatenate([row[name], columns[name]]) for name in SCHEMA}
    return joined, {0: message.SerializeToString()} | {at + 1: m for at, m in messages.items()}
