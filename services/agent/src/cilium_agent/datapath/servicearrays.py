"""The arrays of services as memory: a write is live at once and costs no system call.

The kernel gives every element of such a map a multiple of eight bytes. Used by one thread.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

import numpy as np
from cilium_core import abi

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cilium_agent.datapath.maps import Map

_FEW = 8
"""Below this, single writes are faster than one of many."""


class Array:
    """All elements of a map of BPF_F_MMAPABLE, as rows of bytes or, of `__u32`, as numbers."""

    def __init__(self, held: Map) -> None:
        self.size = held.spec.max_entries
        stride = -(-held.value_size // 8) * 8
        length = -(-self.size * stride // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(held.fd, length, mmap.MAP_SHARED)
        self._rows: Any = np.frombuffer(self._memory, np.dtype((np.void, stride)), count=self.size)
        scalar = held.spec.value.startswith("__")
        kind = np.dtype(np.uint32) if scalar else abi.dtype(held.spec.value)
        layout = {"names": ["it"], "formats": [kind], "offsets": [0], "itemsize": stride}
        spaced: Any = np.dtype(layout)  # type: ignore[call-overload]
        self.values: Any = self._rows.view(spaced)["it"]
        self._stride = stride

    def write(self, rows: Mapping[int, bytes]) -> None:
        """Set whole rows by index."""
        if len(rows) < _FEW:
            for index, row in rows.items():
                at = index * self._stride
                self._memory[at : at + len(row)] = row
            return
        blob = b"".join(row.ljust(self._stride, b"\0") for row in rows.values())
        self._rows[np.fromiter(rows, np.intp, len(rows))] = np.frombuffer(blob, self._rows.dtype)

    def write_runs(self, runs: Mapping[int, tuple[int, ...]]) -> None:
        """Set numbers from the indices on that are the keys."""
        if len(runs) < _FEW:
            for first, numbers in runs.items():
                self.values[first : first + len(numbers)] = numbers
            return
        lengths = np.fromiter(map(len, runs.values()), np.intp, len(runs))
        ends = lengths.cumsum()
        firsts = np.fromiter(runs, np.intp, len(runs))
        places = np.arange(ends[-1]) + np.repeat(firsts - (ends - lengths), lengths)
        flat = [number for run in runs.values() for number in run]
        self.values[places] = np.array(flat, np.uint32)

    def row(self, index: int, size: int) -> bytes:
        """One row."""
        at = index * self._stride
        return self._memory[at : at + size]

    def used(self, field: str) -> Iterable[int]:
        """Return the indices of the rows in which a field is not zero."""
        return [int(index) for index in np.flatnonzero(self.values[field])]

    def erase(self) -> None:
        """Zero everything."""
        self._rows[:] = np.zeros(1, self._rows.dtype)

    def close(self) -> None:
        """Let go of the memory; the map stays as it is."""
        del self.values, self._rows
        self._memory.close()
