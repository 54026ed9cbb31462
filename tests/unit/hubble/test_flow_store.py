"""The ring keeps the newest events, and says how full it is and how fast it fills."""

from __future__ import annotations

import numpy as np
import pytest
from hubble_server.errors import CapacityError
from hubble_server.flows.columns import FLOW_BYTES, zeros
from hubble_server.flows.store import FlowStore


@pytest.mark.parametrize("capacity", [1, 3, 4095, 65535])
def test_one_less_than_a_power_of_two_is_a_capacity(capacity: int) -> None:
    assert capacity == FlowStore(capacity).capacity


@pytest.mark.parametrize("capacity", [-1, 0, 2, 4, 4096, 65536, 131071])
def test_anything_else_is_refused_rather_than_rounded(capacity: int) -> None:
    with pytest.raises(CapacityError, match=f"invalid capacity: {capacity}"):
        FlowStore(capacity)


def test_a_flow_takes_less_than_200_bytes() -> None:
    assert FLOW_BYTES <= 200


def filled(store: FlowStore, times_ns: list[int]) -> FlowStore:
    batch = zeros(len(times_ns))
    batch["time_ns"] = np.array(times_ns)
    store.append(batch, len(times_ns))
    return store


SECOND = 1_000_000_000


def test_the_rate_is_the_mean_of_the_last_minute() -> None:
    store = filled(FlowStore(1023), [n * SECOND for n in range(100)])
    assert store.rate(99 * SECOND) == pytest.approx(61 / 60)


def test_the_rate_of_a_short_ring_is_that_since_its_oldest_flow() -> None:
    store = filled(FlowStore(15), [n * SECOND for n in range(100)])
    assert store.rate(99 * SECOND) == pytest.approx(15 / 14)


def test_a_store_that_is_not_full_yet_divides_by_the_whole_minute() -> None:
    store = filled(FlowStore(1023), [SECOND, 2 * SECOND])
    assert store.rate(3 * SECOND) == pytest.approx(2 / 60)


def test_listeners_hear_of_new_events_until_they_stop() -> None:
    store, heard = FlowStore(15), []
    stop = store.listen(lambda: heard.append(1))
    store.notify()
    stop()
    store.notify()
    assert heard == [1]
