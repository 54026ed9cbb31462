"""The layout of events, as the data plane's header defines it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from cilium_core import abi
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

EVENT_DTYPE: Final[np.dtype[Any]] = abi.dtype("event")
HEAD_DTYPE: Final[np.dtype[Any]] = abi.dtype("event_head")

Events = NDArray[Any]
"""Structured array of `struct event`."""

NO_EVENTS: Final[Events] = np.empty(0, dtype=EVENT_DTYPE)

_WORDS: Final = EVENT_DTYPE.itemsize // 8


def words(events: Events) -> NDArray[np.uint64]:
    """The same memory as rows of numbers: NumPy copies those at 4 ns an event, structs at 200."""
    return events.view("<u8").reshape(-1, _WORDS)


def from_words(rows: NDArray[np.uint64]) -> Events:
    """The inverse of `words`."""
    return rows.view(EVENT_DTYPE).reshape(-1)


def pick(events: Events, which: NDArray[np.intp] | NDArray[np.bool_]) -> Events:
    """Copy some events, by position or by mask."""
    return from_words(words(events)[which])


def concatenate(parts: Sequence[Events]) -> Events:
    """Copy stretches of events, one after the other."""
    return from_words(np.concatenate([words(part) for part in parts]))


def sequences_of(numbers: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Sequences that records of these numbers carry once they are whole: odd, hence never 0."""
    return (numbers * 2 + 1).astype(np.uint32)
