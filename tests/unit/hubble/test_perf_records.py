"""Bytes of a perf ring become events and losses, whatever interrupts them."""

from __future__ import annotations

import numpy as np
from hubble_server.ring.reading import merge
from hubble_server.ring.records import RECORD_SIZE, lost_record, sample, split
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.hubble.loads import event

PIECES = st.lists(st.one_of(st.integers(0, 1 << 60), st.just("lost"), st.just("other")))


def stranger() -> bytes:
    """A record of a kind that no program of ours makes."""
    return (3).to_bytes(4, "little") + bytes(2) + (16).to_bytes(2, "little") + bytes(8)


@given(PIECES)
def test_samples_losses_and_strangers_are_told_apart(pieces: list[int | str]) -> None:
    data = b""
    for piece in pieces:
        if piece == "lost":
            data += lost_record(5)
        elif piece == "other":
            data += stranger()
        else:
            data += sample(event(time_ns=piece, type=4).tobytes())
    found = split(np.frombuffer(data, dtype=np.uint8))
    times = [piece for piece in pieces if isinstance(piece, int)]
    assert times == found.events["time_ns"].tolist()
    assert (found.events["type"] == 4).all()
    assert 5 * pieces.count("lost") == found.lost
    assert pieces.count("other") == found.malformed


@given(st.binary(max_size=4 * RECORD_SIZE))
def test_garbage_ends_without_an_error(data: bytes) -> None:
    split(np.frombuffer(data, dtype=np.uint8))


def test_events_of_several_processors_are_put_in_order_of_time() -> None:
    first = np.concatenate([event(time_ns=time) for time in (1, 4, 9)])
    second = np.concatenate([event(time_ns=time) for time in (2, 3, 10)])
    assert merge([first, second])["time_ns"].tolist() == [1, 2, 3, 4, 9, 10]
