"""Files that are replaced whole: a reader sees the old one or the new one, never half of one.

And how to tell that one was.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def versions_of(paths: Iterable[Path]) -> tuple[object, ...]:
    """What tells the present contents of files from earlier ones; None for those that are away."""
    return tuple(_version(path) for path in paths)


def _version(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def write_atomic(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace a file in one step, synced to disk; `OSError` leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(  # noqa: PTH123 - the mode must hold from the first moment
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb"
        ) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
