"""Which addresses may be frontends: the bits by which the programs pass all others by.

A bit stands for many addresses and is set before the first frontend of one of them is there. It
stays when the frontend goes, which costs packets to that address a look-up and nothing else; what
is left of earlier frontends is cleared when the maps are read. Used by one thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cilium_agent.datapath.servicearrays import Array
from cilium_agent.datapath.servicerows import KEY4

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from cilium_agent.datapath.maps import Map

_FACTOR = 0x9E3779B1
_WORD_BITS = 32


class AddressBits:
    """The map cilium_lb_addresses."""

    def __init__(self, held: Map) -> None:
        self._words = Array(held)

    def add(self, keys: Iterable[bytes]) -> None:
        """Set the bits of these frontends' addresses."""
        for word, bits in _bits(keys).items():
            self._words.values[word] |= bits

    def set(self, keys: Collection[bytes]) -> None:
        """Set these bits, and clear all others."""
        wanted = np.zeros(self._words.size, np.uint32)
        for word, bits in _bits(keys).items():
            wanted[word] = bits
        self._words.values[:] = wanted

    def close(self) -> None:
        """Let go of the memory; the map stays as it is."""
        self._words.close()


def bit_of(key: bytes) -> tuple[int, int]:
    """Word and bit of a frontend's address, by its key, as lb_may_serve() in lb.h finds them."""
    if len(key) == KEY4.size:
        number = int.from_bytes(key[:4], "little")
    else:
        low, high = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:16], "little")
        number = low ^ high
        number = (number ^ number >> 32) & 0xFFFFFFFF
    value = (number * _FACTOR & 0xFFFFFFFF) >> 16
    return value // _WORD_BITS, value % _WORD_BITS


def _bits(keys: Iterable[bytes]) -> dict[int, int]:
    found: dict[int, int] = {}
    for word, bit in map(bit_of, keys):
        found[word] = found.get(word, 0) | 1 << bit
    return found
