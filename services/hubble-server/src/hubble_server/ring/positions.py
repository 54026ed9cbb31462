"""How far the kernel's ring was read, kept in a file for the server that comes next.

With it that server knows what got lost while none ran, and with a history that it need not take
twice what is on the disk already. The file is memory that a reader writes after each round, so a
server that is killed leaves it right. What it says counts for the same ring only: of the same boot,
map and number of processors.

Without a history, a position is kept as soon as it was read; with one, once the history has what
was read. Not thread-safe; owned by one `EventReader`. Without a directory to write to nothing is
kept, and a log says so once.
"""

from __future__ import annotations

import mmap
import os
import uuid
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from cilium_core.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

_log = get_logger()

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_MAGIC: Final = 0x01_67_6E_69_72_62_75_68
_HEAD: Final = 4
"""Words before the positions: what the file is, the boot, the map, the processors."""

_WAITING: Final = 4096
"""Rounds that may wait for the history; of more, the oldest are forgotten."""


class ReadPositions:
    """The file at `path`. `kept` tells how many events of the store need not be read again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept: Callable[[], int] | None = None
        self._words: NDArray[np.uint64] | None = None
        self._waiting: deque[tuple[int, tuple[int, ...]]] = deque(maxlen=_WAITING)

    def attach(self, map_id: int, cpus: int) -> list[int] | None:
        """Positions of each processor that were kept of this ring, None when there are none."""
        head = np.array([_MAGIC, _boot(), map_id, cpus], dtype=np.uint64)
        try:
            words = _mapped(self.path, _HEAD + cpus)
        except OSError as error:
            _log.warning("cannot keep how far events were read", path=str(self.path), reason=error)
            self._words = None
            return None
        self._words = words
        self._waiting.clear()
        known = bool((words[:_HEAD] == head).all())
        found = words[_HEAD:].tolist() if known else None
        words[:_HEAD] = head
        if not known:
            words[_HEAD:] = 0
        return found

    def note(self, positions: Sequence[int], head: int) -> None:
        """The events before these positions are in the store, which has `head` events by now."""
        if self._words is None:
            return
        self._waiting.append((head, tuple(positions)))
        self.settle()

    def settle(self) -> None:
        """Write the last positions that are kept."""
        kept = self.kept() if self.kept is not None else None
        last: tuple[int, ...] | None = None
        while self._waiting and (kept is None or self._waiting[0][0] <= kept):
            _, last = self._waiting.popleft()
        if last is not None and self._words is not None:
            self._words[_HEAD:] = last


def _boot() -> int:
    return uuid.UUID(_BOOT_ID.read_text("ascii").strip()).int & ((1 << 64) - 1)


def _mapped(path: Path, words: int) -> NDArray[np.uint64]:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, words * 8)
        memory = mmap.mmap(fd, words * 8)
    finally:
        os.close(fd)
    return np.frombuffer(memory, dtype=np.uint64)
