"""Streams merged in the order of time."""

import pytest
from hubble_relay.merging import FOLLOWED_LIMIT, UP_TO_DATE_WAIT_S, Merger
from hypothesis import given, settings
from hypothesis import strategies as some

START_NS = 1_000_000


def merger(limit=100, follow=False):
    return Merger(limit=limit, drain_timeout_s=1.0, follow=follow, start_ns=START_NS)


def push(merging, key, times, now_s=0.0):
    merging.push(key, times, [f"{key}{at}" for at in times], now_s)


STREAMS = some.lists(
    some.lists(some.integers(0, 50), max_size=12).map(sorted), min_size=1, max_size=4
)


@settings(max_examples=200, deadline=None)
@given(STREAMS, some.data())
def test_ordered_streams_come_out_ordered_and_whole(streams, data):
    merging = merger()
    rest = {f"s{index}": list(times) for index, times in enumerate(streams)}
    for key in rest:
        merging.add(key, 0.0)
    out = []

    while rest:
        key = data.draw(some.sampled_from(sorted(rest)))
        size = data.draw(some.integers(1, 5))
        push(merging, key, rest[key][:size])
        del rest[key][:size]
        if not rest[key]:
            merging.end(key)
            del rest[key]
        out += merging.take(0.0)[0]

    assert out == sorted(at for times in streams for at in times)
    assert merging.held == 0


@settings(max_examples=200, deadline=None)
@given(STREAMS, some.integers(1, 5), some.booleans(), some.data())
def test_nothing_is_lost_or_doubled_however_uneven_the_streams(streams, limit, follow, data):
    merging = merger(limit, follow)
    sent = []
    taken = []
    now_s = 0.0
    for index, times in enumerate(streams):
        merging.add(f"s{index}", now_s)
        for at in times:
            now_s += data.draw(some.sampled_from([0.0, 0.05, 0.7, 2.0]))
            push(merging, f"s{index}", [at], now_s)
            sent.append(f"s{index}{at}")
            taken += merging.take(now_s)[1]
            wait_s = merging.wait_s(now_s)
            assert (wait_s is None) == (merging.held == 0)
        if data.draw(some.booleans()):
            merging.end(f"s{index}")

    taken += merging.take(now_s + 10)[1]

    assert sorted(taken) == sorted(sent)


def test_an_item_waits_for_a_silent_stream_up_to_the_drain_timeout():
    merging = merger()
    merging.add("a", 0.0)
    merging.add("b", 0.0)
    push(merging, "a", [5], now_s=0.25)

    assert merging.take(0.25)[1] == []
    assert merging.wait_s(0.25) == pytest.approx(0.75)  # then b was silent for long enough
    assert merging.take(0.99)[1] == []
    assert merging.take(1.0)[1] == ["a5"]


def test_a_stream_known_to_be_silent_delays_the_others_for_a_moment_only():
    merging = merger()
    merging.add("a", 0.0)
    merging.add("b", 0.0)
    push(merging, "a", [5], now_s=3.0)

    assert merging.take(3.0)[1] == []
    assert merging.wait_s(3.0) == pytest.approx(UP_TO_DATE_WAIT_S)
    assert merging.take(3.0 + UP_TO_DATE_WAIT_S)[1] == ["a5"]


def test_a_stream_that_is_up_to_date_delays_the_others_for_a_moment_only():
    merging = merger(follow=True)
    merging.add("a", 0.0)
    merging.add("b", 0.0)
    push(merging, "b", [START_NS], now_s=0.1)
    push(merging, "a", [START_NS + 1], now_s=0.1)

    assert merging.take(0.1)[1] == [f"b{START_NS}"]
    assert merging.take(0.21)[1] == [f"a{START_NS + 1}"]


def test_an_ended_stream_is_not_waited_for():
    merging = merger()
    merging.add("a", 0.0)
    merging.add("b", 0.0)
    push(merging, "a", [5, 6])
    merging.end("b")

    assert merging.take(0.0) == ([5, 6], ["a5", "a6"])
    assert merging.wait_s(0.0) is None


def test_following_never_holds_more_than_the_limit():
    merging = merger(limit=3, follow=True)
    merging.add("a", 0.0)
    merging.add("b", 0.0)
    push(merging, "a", list(range(10)))

    assert merging.take(0.0)[0] == list(range(7))
    assert merging.held == 3
    assert merging.room("a")


def test_a_client_that_does_not_keep_up_pauses_the_streams_it_follows():
    merging = merger(limit=3, follow=True)
    merging.add("a", 0.0)
    push(merging, "a", list(range(FOLLOWED_LIMIT)))

    assert not merging.room("a")
    merging.take(0.0)
    assert merging.room("a")


def test_without_following_a_full_stream_is_paused_instead():
    merging = merger(limit=3)
    merging.add("a", 0.0)
    merging.add("b", 0.0)
    push(merging, "a", list(range(10)))

    assert merging.take(0.0)[0] == []
    assert not merging.room("a")
    push(merging, "b", [4])
    assert merging.take(0.0)[0] == [0, 1, 2, 3, 4, 4]
    assert not merging.room("a")
    merging.end("b")
    assert merging.take(0.0)[0] == [5, 6, 7, 8, 9]
    assert merging.room("a")


def test_a_stream_may_end_and_begin_again():
    merging = merger()
    merging.add("a", 0.0)
    merging.add("b", 0.0)
    push(merging, "a", [1])
    merging.end("a")
    merging.add("a", 0.0)
    push(merging, "a", [3])
    push(merging, "b", [2])

    assert merging.take(0.0)[1] == ["a1", "b2"]
    merging.end("b")
    assert merging.take(0.0)[1] == ["a3"]
