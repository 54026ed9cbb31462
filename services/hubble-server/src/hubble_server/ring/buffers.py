"""One processor's ring of events: where this reader is, and taking what is new in bulk.

A program claims a number n by adding one to the processor's head, writes slot n modulo the size,
and last of all the slot's `sequence`, which is 2n + 1 (the low half) from then on and 0 in between.
So a reader takes the longest run of slots with the right sequence, and looks at the head again
afterwards: what was claimed meanwhile may have overwritten what it copied. A number that is
overwritten before it was read is a loss, counted exactly.

Not thread-safe; owned by one `EventReader`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from hubble_server.ring.records import NO_EVENTS, Events, concatenate, sequences_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_TAKEN = 16_384
"""Events taken in one go, which bounds the copy."""

_fence = threading.Lock()
"""Taking it keeps the processor from reading slots before heads and sequences, on any machine."""


class CpuRing:
    """Reader of one processor's slots. `position` is the number of the next event to take."""

    def __init__(self, slots: Events, heads: NDArray[np.uint64], cpu: int, position: int) -> None:
        self._slots = slots
        self._sequences = slots["sequence"]
        self._size = len(slots)
        self._heads = heads
        self._cpu = cpu
        self.position = position
        self.lost = 0
        """Events overwritten unread so far."""

    def written(self) -> int:
        """Events ever written on this processor."""
        return int(self._heads[self._cpu])

    def fill(self) -> float:
        """Share of the slots that is waiting to be read; more than 1 means losses."""
        return (self.written() - self.position) / self._size

    def take(self) -> Events:
        """Copy the next events out, in order; none when there is nothing new."""
        self._skip_overwritten()
        count = min(self.written() - self.position, MOST_TAKEN)
        if count <= 0:
            return NO_EVENTS
        start = self.position % self._size
        first = min(count, self._size - start)
        with _fence:
            sequences = np.concatenate(
                [self._sequences[start : start + first], self._sequences[: count - first]]
            )
        count = self._committed(sequences)
        first = min(count, first)
        with _fence:
            events = concatenate([self._slots[start : start + first], self._slots[: count - first]])
        with _fence:
            torn = self._skip_overwritten()
        self.position += count - min(torn, count)
        return events[torn:]

    def _committed(self, sequences: NDArray[np.uint32]) -> int:
        """How many events from the position on are complete, without a gap."""
        numbers = np.arange(self.position, self.position + len(sequences), dtype=np.uint64)
        wrong = sequences != sequences_of(numbers)
        return int(wrong.argmax()) if bool(wrong.any()) else len(sequences)

    def _skip_overwritten(self) -> int:
        """Step over what is overwritten already, and return how many events that was."""
        oldest = self.written() - self._size
        missed = oldest - self.position
        if missed <= 0:
            return 0
        self.position = oldest
        self.lost += missed
        return missed
