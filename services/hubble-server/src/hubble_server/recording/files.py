"""Files of packets in the format of pcap, readable at any time.

Whole packets go to the file with each write and nothing is held back. Killing the process may cut
the last write short: what is left of a packet then goes at the next start, see `mend`; a file that
is being written is known by a mark beside it. When a file is full the next one is begun, and the
oldest of them goes when there are too many.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from cilium_core import pcap

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hubble_server.recording.capturing import Packet

_MODE = 0o600
_MARK = ".writing"


def mend(folder: Path) -> None:
    """Cut off files what a server that was killed has begun to write of a packet. No one writes."""
    for mark in folder.glob(f"*{_MARK}"):
        path = mark.with_suffix("")
        with suppress(FileNotFoundError), path.open("r+b") as file:
            file.truncate(pcap.whole_bytes(file))
        mark.unlink()


class PcapFiles:
    """`path`, then path with .1, .2 … before its suffix, each up to `max_bytes`.

    `max_files` are kept. Raises OSError. Owned by one thread.
    """

    def __init__(self, path: Path, snap_length: int, max_bytes: int, max_files: int) -> None:
        self._first = path
        self._snap = snap_length
        self._max_bytes, self._max_files = max_bytes, max_files
        self._count = 0
        self._kept: list[Path] = []
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._begin()

    @property
    def path(self) -> Path:
        """The file that was begun last."""
        return self._kept[-1]

    def write(self, packets: Sequence[Packet], clock_offset_ns: int) -> int:
        """Add packets, in as few writes as files; returns how many, which is all."""
        pending: list[bytes] = []
        size = self._size
        for packet in packets:
            moment_ns = packet.time_ns + clock_offset_ns
            encoded = pcap.record(moment_ns, packet.length, packet.data)
            if size + len(encoded) > self._max_bytes and size > pcap.HEADER_BYTES:
                self._flush(pending)
                pending = []
                self._end()
                self._begin()
                size = self._size
            pending.append(encoded)
            size += len(encoded)
        self._flush(pending)
        return len(packets)

    def close(self) -> None:
        """Bring the file to the disk and let go of it."""
        os.fsync(self._fd)
        self._end()

    def _end(self) -> None:
        os.close(self._fd)
        _mark(self.path).unlink(missing_ok=True)

    def _begin(self) -> None:
        name = self._first.stem + (f".{self._count}" if self._count else "")
        path = self._first.with_name(name + self._first.suffix)
        _mark(path).touch(_MODE)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        self._count += 1
        self._kept.append(path)
        self._size = 0
        self._flush([pcap.header(self._snap)])
        while len(self._kept) > self._max_files:
            self._kept.pop(0).unlink(missing_ok=True)

    def _flush(self, parts: list[bytes]) -> None:
        """Write whole records, or none of them where the disk is full."""
        data = b"".join(parts)
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError:
            os.ftruncate(self._fd, self._size)
            os.lseek(self._fd, self._size, os.SEEK_SET)
            raise
        self._size += len(data)


def _mark(path: Path) -> Path:
    return path.with_name(path.name + _MARK)
