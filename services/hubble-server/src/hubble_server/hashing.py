"""A hash index from keys of one or two 64-bit numbers to 32-bit values, looked up in bulk.

Joining a million events a second with metadata leaves no time for a dictionary look-up each: this
table probes whole columns at once. It is written by the ingest thread alone, one key at a time
(metadata changes are rare), and looked up by the same thread.
"""

from __future__ import annotations

import secrets
from typing import Final

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Values = NDArray[np.int32]

MISSING: Final = -1
"""Value of a key that is not in the table, or was forgotten."""

_EMPTY: Final = -2
_MASK64: Final = (1 << 64) - 1
_SMALLEST: Final = 64


class Index:
    """Open addressing with linear probing, at most half full. Values are 0 or more.

    The multipliers are random, so that nobody on the network can choose addresses that collide.
    """

    def __init__(self) -> None:
        self._factors = (secrets.randbits(64) | 1, secrets.randbits(64) | 1)
        self._bulk_factors = tuple(np.uint64(factor) for factor in self._factors)
        self._used = 0
        self._allocate(_SMALLEST)

    def _allocate(self, slots: int) -> None:
        self._slots = slots
        self._shift = 64 - (slots.bit_length() - 1)
        self._bulk_shift = np.uint64(self._shift)
        self._first: Keys = np.zeros(slots, dtype=np.uint64)
        self._second: Keys = np.zeros(slots, dtype=np.uint64)
        self._values: Values = np.full(slots, _EMPTY, dtype=np.int32)

    def _slot(self, first: int, second: int) -> int:
        """Slot of a key, or the empty one where it belongs."""
        mixed = (first * self._factors[0] ^ second * self._factors[1]) & _MASK64
        mixed ^= mixed >> 32
        slot = (mixed * self._factors[0] & _MASK64) >> self._shift
        while self._values[slot] != _EMPTY:
            if self._first[slot] == first and self._second[slot] == second:
                break
            slot = (slot + 1) & (self._slots - 1)
        return slot

    def set(self, first: int, second: int, value: int) -> None:
        """Give a key a value; MISSING forgets it."""
        slot = self._slot(first, second)
        if self._values[slot] == _EMPTY:
            if value == MISSING:
                return
            if 2 * (self._used + 1) > self._slots:
                self._grow()
                slot = self._slot(first, second)
            self._used += 1
            self._first[slot] = first
            self._second[slot] = second
        self._values[slot] = value

    def get(self, first: int, second: int = 0) -> int:
        """Value of one key, or MISSING."""
        return max(int(self._values[self._slot(first, second)]), MISSING)

    def clear(self) -> None:
        """Forget everything."""
        self._used = 0
        self._allocate(_SMALLEST)

    def _grow(self) -> None:
        live = np.flatnonzero(self._values >= 0)
        keys = zip(
            self._first[live].tolist(),
            self._second[live].tolist(),
            self._values[live].tolist(),
            strict=True,
        )
        self._used = len(live)
        self._allocate(max(_SMALLEST, 1 << (4 * (len(live) + 1)).bit_length()))
        for first, second, value in keys:
            slot = self._slot(first, second)
            self._first[slot] = first
            self._second[slot] = second
            self._values[slot] = value

    def find(self, first: Keys, second: Keys | None = None) -> Values:
        """Look up a column of keys; MISSING where there is none."""
        mixed = first * self._bulk_factors[0]
        if second is not None:
            mixed ^= second * self._bulk_factors[1]
        mixed ^= mixed >> np.uint64(32)
        mixed *= self._bulk_factors[0]
        mixed >>= self._bulk_shift
        slots = mixed.view(np.int64)
        values = self._values.take(slots)
        unlike = self._first.take(slots) != first
        if second is not None:
            unlike |= self._second.take(slots) != second
        unlike &= values != _EMPTY
        rest = np.flatnonzero(unlike)
        while len(rest):
            stepped = (slots[rest] + 1) & (self._slots - 1)
            slots[rest] = stepped
            found = self._values[stepped]
            values[rest] = found
            other = self._first[stepped] != first[rest]
            if second is not None:
                other |= self._second[stepped] != second[rest]
            other &= found != _EMPTY
            rest = rest[other]
        return np.maximum(values, MISSING)
