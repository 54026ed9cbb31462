"""Files that are begun anew when they are large, the old ones kept beside them."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

STDOUT: Final = "stdout"
MEGABYTE: Final = 1 << 20
_MODE: Final = 0o644
_STAMP: Final = "%Y-%m-%dT%H-%M-%S"
_STAMPED: Final = r"-\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3}"


class Sink(Protocol):
    """Where lines go."""

    def write(self, lines: bytes) -> None:
        """Write whole lines, or raise OSError and none, as far as disks allow."""

    def close(self) -> None:
        """Give up what is held."""


class StandardOutput:
    """The process's own output."""

    def write(self, lines: bytes) -> None:
        """Write and flush."""
        sys.stdout.buffer.write(lines)
        sys.stdout.buffer.flush()

    def close(self) -> None:
        """Stays open."""


class RotatingFile:
    """A file of at most `limit` bytes, and the newest `backups` of those before it.

    A file that is full is renamed to `<base>-<time>.<ext>` (UTC, milliseconds) and, if asked for,
    compressed. A batch of lines larger than the limit gets a file of its own. The file is opened
    at the first write, and taken up where it ends.
    """

    def __init__(
        self,
        path: Path,
        *,
        limit: int,
        backups: int,
        compress: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._path = path
        self._limit = limit
        self._backups = backups
        self._compress = compress
        self._now = now
        self._fd = -1
        self._size = 0

    def write(self, lines: bytes) -> None:
        """Append lines. Raises OSError; what was begun of them is taken back."""
        if self._fd < 0:
            self._open()
        if self._size and self._size + len(lines) > self._limit:
            self._rotate()
        written = 0
        try:
            while written < len(lines):
                written += os.write(self._fd, lines[written:])
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += written

    def close(self) -> None:
        """Close the file; the next write opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, _MODE)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        self.close()
        now = self._now()
        stamp = f"{now.strftime(_STAMP)}.{now.microsecond // 1000:03d}"
        kept = self._path.with_name(f"{self._path.stem}-{stamp}{self._path.suffix}")
        self._path.rename(kept)
        self._open()
        if self._compress:
            packed = kept.with_name(f"{kept.name}.gz")
            with kept.open("rb") as source, gzip.open(packed, "wb") as target:
                shutil.copyfileobj(source, target)
            kept.unlink()
        self._prune()

    def _prune(self) -> None:
        """Remove the oldest backups beyond the limit; none are removed for a limit of 0."""
        if not self._backups:
            return
        stem, suffix = re.escape(self._path.stem), re.escape(self._path.suffix)
        # files of others may begin alike
        ours = re.compile(f"{stem}{_STAMPED}{suffix}(?:\\.gz)?")
        kept = sorted(one for one in self._path.parent.iterdir() if ours.fullmatch(one.name))
        for old in kept[: -self._backups]:
            old.unlink(missing_ok=True)


def sink_of(path: str, *, megabytes: int, backups: int, compress: bool) -> Sink:
    """The sink of a path, `stdout` being the process's own output."""
    if path == STDOUT:
        return StandardOutput()
    return RotatingFile(Path(path), limit=megabytes * MEGABYTE, backups=backups, compress=compress)
