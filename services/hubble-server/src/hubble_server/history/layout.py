"""Names of the files of a history, and which there are.

A history is a sequence of parts, numbered from 1 in the order they were written. A part begins as
a journal (`flows-00000001.journal`), which grows, and ends as a Parquet file that is complete from
the moment it has its name (`flows-00000001-<first>-<last>-<rows>.parquet`, times in nanoseconds
since the epoch). Where both exist, the journal is what an interruption left over, and does not
count. Beside a Parquet file may be a summary of it (`flows-00000001.summary`) and a filter of its
UUIDs (`flows-00000001.uuids`), which it is whole without.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FILE = re.compile(r"flows-(\d{8,})-(-?\d+)-(-?\d+)-(\d+)\.parquet")
_JOURNAL = re.compile(r"flows-(\d{8,})\.journal")
_EXTRA = re.compile(r"flows-(\d{8,})\.(summary|uuids)")
TEMPORARY = ".tmp"
"""How names of incomplete files end."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a history."""

    number: int
    path: Path
    first_ns: int = 0
    """Earliest time in it, of a complete file."""
    last_ns: int = 0
    rows: int = 0
    is_journal: bool = False

    def may_hold(self, since_ns: int | None, until_ns: int | None) -> bool:
        """Whether it may have rows in a range of time, both ends inclusive."""
        if self.is_journal:
            return True
        return (since_ns is None or self.last_ns >= since_ns) and (
            until_ns is None or self.first_ns <= until_ns
        )


def journal_path(directory: Path, number: int) -> Path:
    """Path of a part's journal."""
    return directory / f"flows-{number:08d}.journal"


def file_path(directory: Path, number: int, first_ns: int, last_ns: int, rows: int) -> Path:
    """Path of a complete part."""
    return directory / f"flows-{number:08d}-{first_ns}-{last_ns}-{rows}.parquet"


def summary_path(directory: Path, number: int) -> Path:
    """Path of a part's summary."""
    return directory / f"flows-{number:08d}.summary"


def uuids_path(directory: Path, number: int) -> Path:
    """Path of the filter of a part's UUIDs."""
    return directory / f"flows-{number:08d}.uuids"


def files_of(part: Part) -> list[Path]:
    """All files of a part; not all need be there."""
    directory = part.path.parent
    return [part.path, summary_path(directory, part.number), uuids_path(directory, part.number)]


def parts_of(directory: Path) -> tuple[list[Part], list[Path]]:
    """Parts in order, and leftovers that do not count. Raises OSError."""
    parts: dict[int, Part] = {}
    journals: dict[int, Part] = {}
    extras: list[tuple[int, Path]] = []
    leftovers: list[Path] = []
    for path in directory.iterdir():
        if match := _FILE.fullmatch(path.name):
            number, first, last, rows = map(int, match.groups())
            parts[number] = Part(number, path, first, last, rows)
        elif match := _JOURNAL.fullmatch(path.name):
            number = int(match[1])
            journals[number] = Part(number, path, is_journal=True)
        elif match := _EXTRA.fullmatch(path.name):
            extras.append((int(match[1]), path))
        elif path.name.startswith("flows-") and path.name.endswith(TEMPORARY):
            leftovers.append(path)
    leftovers += [path for number, path in extras if number not in parts]
    for number, journal in journals.items():
        if number in parts:
            leftovers.append(journal.path)
        else:
            parts[number] = journal
    return [parts[number] for number in sorted(parts)], leftovers
