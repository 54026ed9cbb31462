"""Unsigned numbers of variable length, as protobuf and Kafka write them. Pure."""

from __future__ import annotations

from typing import Final


def varint(number: int) -> bytes:
    """Encode a number ≥ 0."""
    if number < 0x80:
        return _SMALL[number]
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_SMALL: Final = [bytes((number,)) for number in range(0x80)]
