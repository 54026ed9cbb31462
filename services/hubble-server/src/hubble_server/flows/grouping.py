"""Which flows of a batch are alike in some columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)


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
