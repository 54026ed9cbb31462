"""Durations and points in time."""

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hubble_cli import times
from hubble_cli.errors import UsageError
from hypothesis import given
from hypothesis import strategies as some

NOW_NS = 1_768_472_431_123_456_789


@pytest.mark.parametrize(
    ("text", "back_ns"),
    [
        ("5m", 300_000_000_000),
        ("1h30m", 5_400_000_000_000),
        ("1.5s", 1_500_000_000),
        (".5ms", 500_000),
        ("-2us", -2_000),
        ("1h-", None),
        ("0", 0),
        ("3µs7ns", 3_007),
    ],
)
def test_durations_count_back_from_now(text, back_ns):
    if back_ns is None:
        with pytest.raises(UsageError):
            times.parse_time(text, NOW_NS)
    else:
        assert times.parse_time(text, NOW_NS) == divmod(NOW_NS - back_ns, 10**9)


@pytest.mark.parametrize(
    ("text", "seconds", "nanos"),
    [
        ("2026-01-15", 1_768_435_200, 0),
        ("2026-01-15T10Z", 1_768_471_200, 0),
        ("2026-01-15T10:20Z", 1_768_472_400, 0),
        ("2026-01-15T12:20+02:00", 1_768_472_400, 0),
        ("2026-01-15T10:20:31Z", 1_768_472_431, 0),
        ("2026-01-15T10:20:31.123456789Z", 1_768_472_431, 123_456_789),
        ("2026-01-15T10:20:31.5-01:30", 1_768_477_831, 500_000_000),
        ("Thu, 15 Jan 2026 10:20:31 +0000", 1_768_472_431, 0),
        ("1969-12-31T23:59:59.25Z", -1, 250_000_000),
    ],
)
def test_points_in_time(text, seconds, nanos):
    assert times.parse_time(text, NOW_NS) == (seconds, nanos)


@pytest.mark.parametrize(
    "text",
    ["", "x", "5", "2026-13-01", "2026-02-30", "2026-01-15 10:20", "Jan 15 10:20:31.123", "10:20"],
)
def test_what_is_no_time_is_told(text):
    with pytest.raises(UsageError, match=r"failed to convert .* to time"):
        times.parse_time(text, NOW_NS)


@given(some.integers(-(2**62), 2**62))
def test_a_duration_shown_is_the_duration_read(duration_ns):
    assert times.parse_duration_ns(times.format_duration_ns(duration_ns)) == duration_ns


@pytest.mark.parametrize(
    ("duration_ns", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1_100, "1.1µs"),
        (2_200_000, "2.2ms"),
        (3_661_000_000_000, "1h1m1s"),
        (60_000_000_000, "1m0s"),
        (3_600_000_000_000, "1h0m0s"),
        (-1_500_000_000, "-1.5s"),
    ],
)
def test_durations_read_as_in_go(duration_ns, text):
    assert times.format_duration_ns(duration_ns) == text


@pytest.mark.parametrize("seconds", [-62_135_596_801, 253_402_300_800])
def test_times_out_of_range_read_not_available(seconds):
    assert times.formatter("StampMilli")(Timestamp(seconds=seconds), True) == "N/A"


@given(some.integers(-62_135_596_800, 253_402_300_799), some.integers(0, 10**9 - 1))
def test_rfc3339_says_the_same_as_protobuf(seconds, nanos):
    timestamp = Timestamp(seconds=seconds, nanos=nanos)

    assert times.rfc3339(timestamp) == timestamp.ToJsonString()
