"""The protobuf wire format, as far as encoding flows by hand needs it. Pure functions."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from cilium_core.varints import varint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

Key = TypeVar("Key")

TIME_PAYLOAD = 12
"""Bytes of a google.protobuf.Timestamp as `timestamps` writes it."""


@functools.cache
def tag(number: int, *, length_delimited: bool) -> bytes:
    """Key of a field: a varint or something with a length."""
    return varint(number << 3 | (2 if length_delimited else 0))


def number_field(number: int, value: int) -> bytes:
    """Field of a scalar number, enum or bool without presence: nothing when it is 0."""
    return tag(number, length_delimited=False) + varint(value) if value else b""


def message_field(number: int, payload: bytes) -> bytes:
    """Field of a message or bytes; present even when the payload is empty."""
    return tag(number, length_delimited=True) + varint(len(payload)) + payload


def text_field(number: int, text: str) -> bytes:
    """Field of a string without presence: nothing when it is empty."""
    return message_field(number, text.encode()) if text else b""


def texts_field(number: int, texts: Iterable[str]) -> bytes:
    """Field of a repeated string, where empty elements count."""
    return b"".join(message_field(number, text.encode()) for text in texts)


def timestamp(time_ns: int) -> bytes:
    """A google.protobuf.Timestamp at or after the epoch."""
    seconds, nanos = divmod(time_ns, 1_000_000_000)
    return number_field(1, seconds) + number_field(2, nanos)


def timestamps(times_ns: NDArray[np.int64], before: bytes) -> list[bytes]:
    """Timestamps, each preceded by `before` and a length, all at once.

    Seconds take five bytes (until the year 3058) and so do nanoseconds, which are padded with
    continuation bits where fewer would do: legal, and it makes every element equally long.
    """
    seconds, nanos = np.divmod(times_ns, 1_000_000_000)
    lead = before + bytes([TIME_PAYLOAD])
    out = np.empty((len(times_ns), len(lead) + TIME_PAYLOAD), dtype=np.uint8)
    out[:, : len(lead)] = np.frombuffer(lead, dtype=np.uint8)
    at = len(lead)
    out[:, at] = 0x08
    _fixed_varint(out, at + 1, seconds)
    out[:, at + 6] = 0x10
    _fixed_varint(out, at + 7, nanos)
    return rows_as_bytes(out)


def _fixed_varint(out: NDArray[np.uint8], at: int, values: NDArray[np.int64]) -> None:
    for byte in range(4):
        out[:, at + byte] = (values >> (7 * byte)) & 0x7F | 0x80
    out[:, at + 4] = (values >> 28) & 0x7F


_HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
_UUID_PLACES = np.array([0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34])
_UUID_DASHES = np.array([8, 13, 18, 23])
_UUID_TEXT = 36


def uuids(high: NDArray[np.uint64], low: NDArray[np.uint64], before: bytes) -> list[bytes]:
    """UUID texts, each preceded by `before` and a length."""
    raw = np.stack([high, low], axis=1).view(np.uint8)
    lead = before + bytes([_UUID_TEXT])
    out = np.empty((len(high), len(lead) + _UUID_TEXT), dtype=np.uint8)
    out[:, : len(lead)] = np.frombuffer(lead, dtype=np.uint8)
    text = out[:, len(lead) :]
    text[:, _UUID_DASHES] = ord("-")
    text[:, _UUID_PLACES] = _HEX[raw >> 4]
    text[:, _UUID_PLACES + 1] = _HEX[raw & 0x0F]
    return rows_as_bytes(out)


def rows_as_bytes(array: NDArray[np.uint8]) -> list[bytes]:
    """Each row of a two-dimensional array of bytes as a bytes object."""
    width = array.shape[1]
    rows: list[bytes] = np.ascontiguousarray(array).view(f"V{width}").ravel().tolist()
    return rows


class PieceCache(dict[Key, bytes], Generic[Key]):
    """Encoded pieces by what they are made of; begins anew when it is full."""

    def __init__(self, make: Callable[[Key], bytes], limit: int = 65_536) -> None:
        super().__init__()
        self._make = make
        self._limit = limit

    def __missing__(self, key: Key) -> bytes:
        if len(self) >= self._limit:
            self.clear()
        piece = self[key] = self._make(key)
        return piece
