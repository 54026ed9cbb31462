"""The bulk index behaves like a dictionary."""

from __future__ import annotations

import numpy as np
from hubble_server.hashing import MISSING, Index
from hypothesis import given
from hypothesis import strategies as st

NUMBERS = st.integers(0, 3) | st.integers(0, (1 << 64) - 1)
STEPS = st.lists(st.tuples(NUMBERS, NUMBERS, st.integers(MISSING, 1 << 30)), max_size=300)


@given(STEPS, st.lists(st.tuples(NUMBERS, NUMBERS)))
def test_it_finds_what_was_set_last(
    steps: list[tuple[int, int, int]], others: list[tuple[int, int]]
) -> None:
    index, plain = Index(), {}
    for first, second, value in steps:
        index.set(first, second, value)
        plain[first, second] = value
    keys = [*plain, *others]
    expected = [plain.get(key, MISSING) for key in keys]
    first = np.array([key[0] for key in keys], dtype=np.uint64)
    second = np.array([key[1] for key in keys], dtype=np.uint64)
    assert expected == index.find(first, second).tolist()
    assert expected == [index.get(*key) for key in keys]


def test_it_grows_and_can_be_cleared() -> None:
    index = Index()
    for number in range(5000):
        index.set(number, 0, number)
    keys = np.arange(6000, dtype=np.uint64)
    expected = [*range(5000), *[MISSING] * 1000]
    assert expected == index.find(keys).tolist()
    index.clear()
    assert (index.find(keys) == MISSING).all()
