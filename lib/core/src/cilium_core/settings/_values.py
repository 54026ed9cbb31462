"""Text to value and back, one entry per type that a setting may have.

A parser raises ValueError whose text completes the sentence "expected …".
"""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

Seconds: TypeAlias = Annotated[float, "duration"]
"""A length of time in seconds; written `5s`, `250ms`, `1h30m` or a bare number of seconds."""

Bytes: TypeAlias = Annotated[int, "size"]
"""A number of bytes; written `64Mi`, `10MB` or a bare number."""

_DURATION_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1,
    "m": 60,
    "h": 3600,
    "d": 86400,
}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|d)")
_SIZE = re.compile(r"(\d+)\s*([kKMGT]?)(i?)B?")
_SIZE_STEPS = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}
_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


@dataclass(frozen=True, slots=True)
class Codec:
    """How one type is read and shown."""

    placeholder: str
    parse: Callable[[str], Any]
    show: Callable[[Any], str]
    many: bool = False


def parse_duration(text: str) -> float:
    """Seconds of a duration such as `1h30m`, `250ms` or `5`. Raises ValueError."""
    try:
        value = float(text)
    except ValueError:
        parts = _DURATION_PART.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            raise ValueError("a duration such as 5s, 250ms or 1h30m") from None
        return sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)
    if not math.isfinite(value) or value < 0:
        raise ValueError("a duration of zero or more, such as 5s")
    return value


def format_duration(seconds: float) -> str:
    """The shortest usual way to write a duration, `90.0` becoming `1m30s`."""
    if seconds == 0:
        return "0s"
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    whole, fraction = int(seconds), seconds - int(seconds)
    text = ""
    for unit, size in (("h", 3600), ("m", 60)):
        count, whole = divmod(whole, size)
        if count:
            text += f"{count}{unit}"
    rest = whole + fraction
    return f"{text}{rest:g}s" if rest or not text else text


def parse_size(text: str) -> int:
    """Bytes of a size such as `64Mi` (binary), `10MB` (decimal) or `4096`. Raises ValueError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError("a size such as 64Mi, 10MB or 4096")
    number, step, binary = match.groups()
    return int(number) * int((1024 if binary else 1000) ** _SIZE_STEPS[step])


def _format_size(value: int) -> str:
    for step, name in ((1024**3, "Gi"), (1024**2, "Mi"), (1024, "Ki")):
        if value and value % step == 0:
            return f"{value // step}{name}"
    return str(value)


def _parse_bool(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError("true or false")


def _parse_int(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise ValueError("a whole number") from None


def _parse_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("a number") from None
    if not math.isfinite(value):
        raise ValueError("a finite number")
    return value


def _parse_with(constructor: Callable[[str], Any], expected: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return constructor(text)
        except ValueError:
            raise ValueError(expected) from None

    return parse


def _parse_pairs(text: str) -> dict[str, str]:
    """`a=1,b=2`; a piece without `=` belongs to the value before it, so lists may be values."""
    pairs: dict[str, str] = {}
    last = ""
    for piece in text.split(","):
        name, sign, value = piece.partition("=")
        if sign:
            last = name.strip()
            pairs[last] = value.strip()
        elif last:
            pairs[last] += "," + piece.strip()
        else:
            raise ValueError("pairs such as name=value,other=value")
    return pairs


def _show_bool(value: bool) -> str:
    return "true" if value else "false"


_CODECS: dict[Any, Codec] = {
    bool: Codec("BOOL", _parse_bool, _show_bool),
    int: Codec("NUMBER", _parse_int, str),
    float: Codec("NUMBER", _parse_float, "{:g}".format),
    str: Codec("TEXT", str, str),
    Path: Codec("PATH", Path, str),
    IPv4Address: Codec("IPV4", _parse_with(IPv4Address, "an IPv4 address"), str),
    IPv6Address: Codec("IPV6", _parse_with(IPv6Address, "an IPv6 address"), str),
    IPv4Address | IPv6Address: Codec("IP", _parse_with(ip_address, "an IP address"), str),
    IPv4Network: Codec(
        "CIDR", _parse_with(IPv4Network, "an IPv4 network such as 10.244.0.0/16"), str
    ),
    IPv6Network: Codec(
        "CIDR", _parse_with(IPv6Network, "an IPv6 network such as fd00:244::/48"), str
    ),
    IPv4Network | IPv6Network: Codec(
        "CIDR", _parse_with(ip_network, "a network such as 10.0.0.0/8 or fd00::/8"), str
    ),
    Seconds: Codec("DURATION", parse_duration, format_duration),
    Bytes: Codec("SIZE", parse_size, _format_size),
    dict[str, str]: Codec(
        "PAIRS", _parse_pairs, lambda value: ",".join(f"{k}={v}" for k, v in value.items())
    ),
}


def _choices(values: dict[str, Any]) -> Codec:
    names = list(values)

    def parse(text: str) -> Any:
        if text not in values:
            raise ValueError("one of " + ", ".join(names))
        return values[text]

    shown = {value: name for name, value in values.items()}
    return Codec("|".join(names), parse, lambda value: shown[value])


def _list_of(item: Codec) -> Codec:
    def parse(text: str) -> tuple[Any, ...]:
        return tuple(item.parse(part.strip()) for part in text.split(",") if part.strip())

    def show(value: tuple[Any, ...]) -> str:
        return ",".join(item.show(part) for part in value)

    return Codec(f"{item.placeholder},…", parse, show, many=True)


def _optional(item: Codec) -> Codec:
    return Codec(
        item.placeholder,
        lambda text: item.parse(text) if text else None,
        lambda value: "" if value is None else item.show(value),
        many=item.many,
    )


def codec_for(annotation: Any) -> Codec:
    """How a field of this type is read and shown. Raises TypeError for a type settings lack."""
    if annotation in _CODECS:
        return _CODECS[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return _choices({str(value): value for value in arguments})
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return _choices({str(member.value): member for member in annotation})
    if origin is tuple and arguments[1:] == (...,):
        return _list_of(codec_for(arguments[0]))
    if origin in (types.UnionType, typing.Union) and type(None) in arguments:
        rest = [argument for argument in arguments if argument is not type(None)]
        return _optional(codec_for(typing.Union[tuple(rest)]))  # noqa: UP007 - built at run time
    raise TypeError(f"a setting cannot have the type {annotation}")
