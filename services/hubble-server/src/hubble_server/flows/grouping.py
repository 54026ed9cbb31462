"""Which flows are alike in some columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)

_SPAN: Final = 1 << 18
"""Numbers this close together are told apart by a table; looking them up there is cheaper than
sorting, as long as the table stays within the processor's cache."""


def hashes(columns: Mapping[str, NDArray[Any]], names: Iterable[str]) -> NDArray[np.uint64]:
    """Numbers that are equal where all these columns are, and (but for chance) only there."""
    keys = np.zeros(len(columns["time_ns"]), dtype=np.uint64)
    for name in names:
        keys = mixed(keys, columns[name].astype(np.uint64))
    return keys


def mixed(keys: NDArray[np.uint64], more: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hashes of what was hashed before and one thing more."""
    keys = (keys ^ more) * _FACTOR
    keys ^= keys >> np.uint64(32)
    return keys


class Codes(NamedTuple):
    """Numbers from 0 to `size` - 1, all of which occur: equal where what they stand for is."""

    codes: NDArray[np.intp]
    size: int

    def examples(self) -> NDArray[np.intp]:
        """A row for each code."""
        rows = np.empty(self.size, dtype=np.intp)
        rows[self.codes] = np.arange(len(self.codes))
        return rows


def codes_of(column: NDArray[Any]) -> Codes:
    """Codes of a column of integers, in the order of these."""
    if not len(column):
        return Codes(np.zeros(0, dtype=np.intp), 0)
    lowest, highest = int(column.min()), int(column.max())
    if lowest == highest:
        return Codes(np.zeros(len(column), dtype=np.intp), 1)
    if highest - lowest >= _SPAN:
        found, inverse = np.unique(column, return_inverse=True)
        return Codes(inverse, len(found))
    offsets = (column - column.dtype.type(lowest)).astype(np.intp)
    occurs = np.zeros(highest - lowest + 1, dtype=np.bool_)
    occurs[offsets] = True
    places = np.cumsum(occurs, dtype=np.intp)
    return Codes(places.take(offsets) - 1, int(places[-1]))


def joined(parts: Iterable[Codes], length: int) -> Codes:
    """Codes of rows that are alike in all parts, in the order of the first part, then the next."""
    codes, bound = np.zeros(length, dtype=np.intp), min(length, 1)
    tight = True
    for part in parts:
        if bound * part.size > _SPAN and not tight:
            codes, bound = codes_of(codes)
        codes = codes * part.size + part.codes
        bound *= part.size
        tight = part.size == 1 and tight
    return codes_of(codes)
