"""Points in time and durations as users write and read them.

Durations and layouts follow Go's, since that is what the flags of Hubble clients accept. Times are
kept as protobuf keeps them, seconds and nanoseconds since the epoch, because `datetime` stops at
microseconds. Everything is shown in UTC.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from typing import TYPE_CHECKING

from hubble_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.timestamp_pb2 import Timestamp

NOT_AVAILABLE = "N/A"

_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_TERM = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_DURATION = re.compile(rf"[-+]?(?:0|(?:{_TERM.pattern})+)")
_POINT = re.compile(
    r"(?P<date>\d{4}-\d{2}-\d{2})"
    r"(?:T(?P<hour>\d{1,2})(?::(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d+))?)?)?"
    r"(?P<zone>Z|[-+]\d{2}:\d{2}))?"
)
_MAIL = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), (?P<date>\d{2} \w{3} \d{4}) "
    r"(?P<time>\d{1,2}:\d{2}:\d{2}) (?P<zone>[-+]\d{4})"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS = range(-62135596800, 253402300800)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")

FORMATS = (
    "YearMonthDay",
    "YearMonthDayHour",
    "YearMonthDayHourMinute",
    "StampMilli",
    "RFC3339",
    "RFC3339Milli",
    "RFC3339Micro",
    "RFC3339Nano",
    "RFC1123Z",
)
"""Names that `--time-format` knows; any other means StampMilli."""


def parse_duration_ns(text: str) -> int:
    """Nanoseconds of a duration such as `1h30m` or `-1.5s`. Raises ValueError."""
    if not _DURATION.fullmatch(text):
        if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)", text):
            raise ValueError(f'time: missing unit in duration "{text}"')
        raise ValueError(f'time: invalid duration "{text}"')
    total = 0
    for amount, unit in _TERM.findall(text):
        whole, _, fraction = amount.partition(".")
        total += int(whole or "0") * _UNITS_NS[unit]
        if fraction:
            total += int(fraction) * _UNITS_NS[unit] // 10 ** len(fraction)
    return -total if text.startswith("-") else total


def format_duration_ns(duration_ns: int) -> str:
    """A duration as `1h1m1s`, `1.5s` or `20ms`."""
    sign, rest = ("-", -duration_ns) if duration_ns < 0 else ("", duration_ns)
    if rest == 0:
        return "0s"
    if rest < 1_000_000_000:
        for unit in ("ms", "µs", "ns"):
            if rest >= _UNITS_NS[unit]:
                return f"{sign}{_decimal(rest, _UNITS_NS[unit])}{unit}"
    minutes, left_ns = divmod(rest, _UNITS_NS["m"])
    text = f"{_decimal(left_ns, _UNITS_NS['s'])}s"
    hours, minutes = divmod(minutes, 60)
    if hours or minutes:
        text = f"{minutes}m{text}"
    if hours:
        text = f"{hours}h{text}"
    return sign + text


def _decimal(amount: int, unit: int) -> str:
    whole, fraction = divmod(amount, unit)
    if not fraction:
        return str(whole)
    return f"{whole}.{str(fraction).zfill(len(str(unit)) - 1).rstrip('0')}"


def parse_time(text: str, now_ns: int) -> tuple[int, int]:
    """Seconds and nanoseconds of a time or of a duration back from now. Raises UsageError."""
    if _DURATION.fullmatch(text):
        return divmod(now_ns - parse_duration_ns(text), 1_000_000_000)
    try:
        return _parse_point(text)
    except ValueError as error:
        raise UsageError(f"failed to convert {text} to time") from error


def _parse_point(text: str) -> tuple[int, int]:
    if mail := _MAIL.fullmatch(text):
        moment = datetime.strptime(
            f"{mail['date']} {mail['time']} {mail['zone']}", "%d %b %Y %H:%M:%S %z"
        )
        return (moment - _EPOCH) // timedelta(seconds=1), 0
    point = _POINT.fullmatch(text)
    if point is None:
        raise ValueError(text)
    zone = UTC
    if (offset := point["zone"]) not in (None, "Z"):
        minutes = int(offset[1:3]) * 60 + int(offset[4:6])
        zone = timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes))
    year, month, day = map(int, point["date"].split("-"))
    hour, minute, second = (int(point[part] or 0) for part in ("hour", "minute", "second"))
    moment = datetime(year, month, day, hour, minute, second, tzinfo=zone)
    fraction = (point["fraction"] or "")[:9].ljust(9, "0")
    return (moment - _EPOCH) // timedelta(seconds=1), int(fraction)


@lru_cache(maxsize=64)
def _utc(seconds: int) -> datetime:
    return _EPOCH + timedelta(seconds=seconds)


@lru_cache(maxsize=64)
def _stamp(seconds: int) -> str:
    at = _utc(seconds)
    return f"{_MONTHS[at.month - 1]} {at.day:>2} {at:%H:%M:%S}"


@lru_cache(maxsize=64)
def _iso(seconds: int) -> str:
    return _utc(seconds).replace(tzinfo=None).isoformat()


def _trimmed(digits: int) -> Callable[[int, int], str]:
    def layout(seconds: int, nanos: int) -> str:
        fraction = f"{nanos:09d}"[:digits].rstrip("0")
        return f"{_iso(seconds)}.{fraction}Z" if fraction else f"{_iso(seconds)}Z"

    return layout


def _mail(seconds: int, _nanos: int) -> str:
    at = _utc(seconds)
    return (
        f"{_WEEKDAYS[at.weekday()]}, {at.day:02d} {_MONTHS[at.month - 1]} {at.year:04d}"
        f" {at:%H:%M:%S} +0000"
    )


_LAYOUTS: dict[str, Callable[[int, int], str]] = {
    "stampmilli": lambda seconds, nanos: f"{_stamp(seconds)}.{nanos // 1_000_000:03d}",
    "yearmonthday": lambda seconds, _: _iso(seconds)[:10],
    "yearmonthdayhour": lambda seconds, _: _iso(seconds)[:13] + "Z",
    "yearmonthdayhourminute": lambda seconds, _: _iso(seconds)[:16] + "Z",
    "rfc3339": lambda seconds, _: _iso(seconds) + "Z",
    "rfc3339milli": _trimmed(3),
    "rfc3339micro": _trimmed(6),
    "rfc3339nano": _trimmed(9),
    "rfc1123z": _mail,
}


def formatter(name: str) -> Callable[[Timestamp, bool], str]:
    """The function that shows a timestamp in the named format.

    Its second argument says whether the timestamp was there at all; a missing or invalid one
    reads `N/A`.
    """
    layout = _LAYOUTS.get(name.lower(), _LAYOUTS["stampmilli"])

    def show(timestamp: Timestamp, present: bool) -> str:
        if not present:
            return NOT_AVAILABLE
        seconds, nanos = timestamp.seconds, timestamp.nanos
        if seconds not in _SECONDS or not 0 <= nanos < 1_000_000_000:
            return NOT_AVAILABLE
        return layout(seconds, nanos)

    return show


def rfc3339(timestamp: Timestamp) -> str:
    """RFC 3339 with 0, 3, 6 or 9 digits of fraction, as in protobuf's JSON. Raises ValueError."""
    seconds, nanos = timestamp.seconds, timestamp.nanos
    if seconds not in _SECONDS or not 0 <= nanos < 1_000_000_000:
        raise ValueError(f"timestamp out of range: {seconds} s, {nanos} ns")
    text = _iso(seconds)
    if not nanos:
        return f"{text}Z"
    if nanos % 1_000:
        return f"{text}.{nanos:09d}Z"
    if nanos % 1_000_000:
        return f"{text}.{nanos // 1_000:06d}Z"
    return f"{text}.{nanos // 1_000_000:03d}Z"
