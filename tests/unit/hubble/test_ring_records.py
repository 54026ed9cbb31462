"""Records of a ring become events and losses, however far the writer is ahead."""

from __future__ import annotations

import numpy as np
from hubble_server.ring.buffers import CpuRing
from hubble_server.ring.reading import merge
from hubble_server.ring.records import EVENT_DTYPE, sequences_of
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.hubble.loads import event

SIZE = 16


class Ring:
    """A ring as the programs write it."""

    def __init__(self, start: int = 0) -> None:
        self.slots = np.zeros(SIZE, dtype=EVENT_DTYPE)
        self.heads = np.array([start], dtype=np.uint64)
        self.reader = CpuRing(self.slots, self.heads, 0, start)

    def begin(self) -> int:
        """Take a slot; what is in it is not whole until it is committed."""
        number = int(self.heads[0])
        self.heads[0] += np.uint64(1)
        self.slots[number % SIZE] = np.zeros((), dtype=EVENT_DTYPE)
        return number

    def commit(self, number: int) -> None:
        self.slots["time_ns"][number % SIZE] = number
        sequence = sequences_of(np.array([number], dtype=np.uint64))[0]
        self.slots["sequence"][number % SIZE] = sequence

    def write(self, count: int) -> None:
        for _ in range(count):
            self.commit(self.begin())

    def read(self) -> tuple[list[int], int]:
        """Numbers of the records that came, and how many were lost."""
        before = self.reader.lost
        return self.reader.take()["time_ns"].tolist(), self.reader.lost - before


@given(st.integers(0, 1 << 40), st.lists(st.integers(0, 3 * SIZE)))
def test_every_record_arrives_once_or_is_lost(start: int, rounds: list[int]) -> None:
    ring = Ring(start)
    expected = start
    for count in rounds:
        ring.write(count)
        numbers, lost = ring.read()
        assert lost == max(0, count - SIZE)
        assert numbers == list(range(expected + lost, expected + count))
        expected += count


@given(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1))
def test_a_record_that_is_being_written_waits_with_those_after_it(before: int, after: int) -> None:
    ring = Ring()
    ring.write(before)
    open_record = ring.begin()
    ring.write(min(after, SIZE - before - 1))
    assert ring.read() == (list(range(before)), 0)
    ring.commit(open_record)
    assert ring.read() == (list(range(before, int(ring.heads[0]))), 0)


def test_a_record_that_nobody_finishes_is_lost_in_the_end() -> None:
    ring = Ring()
    ring.begin()
    assert ring.read() == ([], 0)
    ring.write(SIZE)
    assert ring.read() == (list(range(1, SIZE + 1)), 1)


def test_a_sequence_that_runs_over_goes_on() -> None:
    start = (1 << 31) - 3
    ring = Ring(start)
    ring.write(6)
    assert ring.read() == (list(range(start, start + 6)), 0)


def test_events_of_several_processors_are_put_in_order_of_time() -> None:
    first = np.concatenate([event(time_ns=time) for time in (1, 4, 9)])
    second = np.concatenate([event(time_ns=time) for time in (2, 3, 10)])
    assert merge([first, second])["time_ns"].tolist() == [1, 2, 3, 4, 9, 10]
