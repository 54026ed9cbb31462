"""Maglev: which backend each entry of a table leads to, the same on every node.

Every backend prefers all entries in an order of its own, which follows from its address alone.
Backends take turns at claiming the free entry that they prefer most, until none is left: all get
equally many (with weights: in proportion), and when one backend goes, few entries of others change.
Pure functions.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np

from cilium_core.errors import InvalidError
from cilium_core.services.hashing import flow_hash, murmur3_128, read_seed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from cilium_core.services.models import Backend, L4Address

TABLE_SIZES: Final = (251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071)
"""What `bpf-lb-maglev-table-size` may be: primes; about a hundred times the backends is right."""

DEFAULT_TABLE_SIZE: Final = 16381

_LATE: Final = 16
"""Once all but one in this many entries are taken, claims are looked up rather than tried out."""


def check_size(size: int) -> int:
    """A size that a table can have. Raises InvalidError."""
    if size not in TABLE_SIZES:
        sizes = ", ".join(map(str, TABLE_SIZES))
        raise InvalidError(f"bpf-lb-maglev-table-size is {size}; it must be one of {sizes}")
    return size


def table(backends: Sequence[Backend], size: int, seed: str) -> NDArray[np.uint32]:
    """The table: for each entry the position of a backend in `backends`; empty without backends.

    The same backends give the same choice in whatever order they come, as long as each is there
    once. `seed` is the text of `bpf-lb-maglev-hash-seed`, `size` a prime. Raises InvalidError.
    """
    if not backends:
        return np.zeros(0, np.uint32)
    murmur_seed = read_seed(seed).backends
    order = sorted(range(len(backends)), key=lambda index: _text(backends[index].at))
    starts, steps = [], []
    for index in order:
        first, second = _hashes(_text(backends[index].at), murmur_seed)
        starts.append(first % size)
        steps.append(second % (size - 1) + 1)
    weights = [max(1, backends[index].weight) for index in order]
    chosen = _fill(starts, steps, weights, size)
    return np.asarray(order, np.uint32)[chosen]


def entry_of_flow(
    client: L4Address, frontend: L4Address, size: int, seed: str, *, affinity: bool
) -> int:
    """The entry of a table that a flow from outside looks at. Raises InvalidError."""
    return flow_hash(client, frontend, read_seed(seed).flows, affinity=affinity) % size


def _text(at: L4Address) -> str:
    return f"[{at},State:active]"


@lru_cache(maxsize=65536)
def _hashes(text: str, seed: int) -> tuple[int, int]:
    return murmur3_128(text.encode(), seed)


def _turns(weights: Sequence[int]) -> Iterator[list[int]]:
    """Who has a turn, round by round: the heaviest always, others in proportion."""
    everybody = list(range(len(weights)))
    if len(set(weights)) == 1:
        while True:
            yield everybody
    share, most = np.asarray(weights, np.int64), max(weights)
    credit = np.zeros(len(weights), np.int64)
    while True:
        credit += share
        due = np.flatnonzero(credit >= most)
        credit[due] -= most
        yield due.tolist()


def _fill(
    starts: Sequence[int], steps: Sequence[int], weights: Sequence[int], size: int
) -> NDArray[np.int64]:
    """Let everybody claim entries in turn, until all are taken."""
    taken, chosen = bytearray(size), [0] * size
    places, left = list(starts), size
    late = size // _LATE
    turns = _turns(weights)
    while left > late:
        for index in next(turns):
            place, step = places[index], steps[index]
            while taken[place]:
                place += step
                if place >= size:
                    place -= size
            taken[place] = 1
            chosen[place] = index
            left -= 1
            places[index] = place
            if not left:
                break
    if left:
        _fill_rest(places, steps, turns, taken, chosen)
    return np.asarray(chosen, np.int64)


def _fill_rest(
    places: Sequence[int],
    steps: Sequence[int],
    turns: Iterator[list[int]],
    taken: bytearray,
    chosen: list[int],
) -> None:
    """The same for the last entries, where trying one after the other would find most taken.

    From the place where a backend is, a free entry is `(entry - place) / step` of its steps away,
    modulo the size.
    """
    size = len(taken)
    free = np.flatnonzero(np.frombuffer(taken, np.uint8) == 0)
    inverse = np.asarray([pow(step, -1, size) for step in steps], np.int64)
    far = (free[None, :] - np.asarray(places, np.int64)[:, None]) * inverse[:, None] % size
    narrow = far.astype(np.uint16 if size <= 1 << 16 else np.uint32)
    wishes = free.astype(np.uint32)[np.argsort(narrow, axis=1, kind="stable")]
    rows = [memoryview(row) for row in wishes]
    positions, left = [0] * len(rows), len(free)
    while True:
        for index in next(turns):
            row, position = rows[index], positions[index]
            while taken[row[position]]:
                position += 1
            place = row[position]
            taken[place] = 1
            chosen[place] = index
            positions[index] = position + 1
            left -= 1
            if not left:
                return
