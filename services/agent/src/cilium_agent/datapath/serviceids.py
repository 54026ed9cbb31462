"""Which ids and which runs of slots are free; pure bookkeeping for `services`.

An id that is given up is retired first: connections may remember it, and it means nobody else
before they have been swept. Used by one thread.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_FREE, _USED, _RETIRED = 0, 1, 2


class FullError(Exception):
    """There is no id or no run of slots left; says of what."""


class Numbers:
    """Ids from 1 to below `size`, handed out in turn, so that none is soon used again."""

    def __init__(self, what: str, size: int, before: Callable[[], None] = lambda: None) -> None:
        """`before` is called ahead of each `take`."""
        self._what = what
        self._before = before
        self._states = bytearray(size)
        self._states[0] = _USED
        self._next = 1
        self.retired: set[int] = set()

    @property
    def used(self) -> int:
        """How many are in use, the retired ones not counted."""
        return self._states.count(_USED) - 1

    def take(self) -> int:
        """Return a free id. Raises FullError."""
        self._before()
        found = self._states.find(_FREE, self._next)
        if found < 0:
            found = self._states.find(_FREE)
        if found < 0:
            raise FullError(f"all {len(self._states) - 1} {self._what} are in use")
        self._states[found] = _USED
        self._next = found + 1
        return found

    def reserve(self, number: int) -> None:
        """Take a given id, retired or free; what is taken next comes after the highest."""
        self._states[number] = _USED
        self._next = max(self._next, number + 1)
        self.retired.discard(number)

    def revive(self, number: int) -> None:
        """Take a retired id back into use."""
        self._states[number] = _USED
        self.retired.discard(number)

    def retire(self, number: int) -> None:
        """Give an id up, for `free` to be called once nobody remembers it."""
        self._states[number] = _RETIRED
        self.retired.add(number)

    def free(self, number: int) -> None:
        """Let an id be handed out again."""
        self._states[number] = _FREE
        self.retired.discard(number)

    def in_use(self) -> bytes:
        """Return a 1 for each id in use, 0 and what is retired being others."""
        return bytes(self._states)


class Runs:
    """Runs of slots of any length; neighbours that are free are one run."""

    def __init__(self, size: int, used: Iterable[tuple[int, int]] = ()) -> None:
        """`used` are (first, length) of the runs in use, which may overlap."""
        self.size = size
        self.used = 0
        self._lengths: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        self._by_length: dict[int, set[int]] = {}
        self._sizes: list[int] = []
        at = 0
        for first, length in sorted(used):
            if first > at:
                self._add(at, first - at)
            self.used += max(0, first + length - max(at, first))
            at = max(at, first + length)
        if at < size:
            self._add(at, size - at)

    def take(self, length: int) -> int:
        """Return the first slot of a free run of a length of at least 1. Raises FullError."""
        at = bisect_left(self._sizes, length)
        if at == len(self._sizes):
            raise FullError(f"no {length} slots in a row are free, {self.used} are in use")
        found = self._sizes[at]
        first = next(iter(self._by_length[found]))
        self._remove(first, found)
        if found > length:
            self._add(first + length, found - length)
        self.used += length
        return first

    def give(self, first: int, length: int) -> None:
        """Let a run be handed out again."""
        self.used -= length
        before = self._ends.get(first)
        if before is not None:
            length += self._lengths[before]
            self._remove(before, self._lengths[before])
            first = before
        behind = self._lengths.get(first + length)
        if behind is not None:
            self._remove(first + length, behind)
            length += behind
        self._add(first, length)

    def _add(self, first: int, length: int) -> None:
        self._lengths[first] = length
        self._ends[first + length] = first
        starts = self._by_length.get(length)
        if starts is None:
            self._by_length[length] = {first}
            insort(self._sizes, length)
        else:
            starts.add(first)

    def _remove(self, first: int, length: int) -> None:
        del self._lengths[first]
        del self._ends[first + length]
        starts = self._by_length[length]
        starts.discard(first)
        if not starts:
            del self._by_length[length]
            del self._sizes[bisect_left(self._sizes, length)]
