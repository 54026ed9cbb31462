"""Texts of gRPC statuses, which travel in a header: clients refuse calls whose headers are long.

gRPC's own clients begin to at 8 KiB, at random, and then show RESOURCE_EXHAUSTED in place of what
the server said. So a text that quotes what a client sent is cut here, for all servers.
"""

from __future__ import annotations

from urllib.parse import quote

MAX_BYTES = 4096
"""Of a text as it travels, which leaves half of what clients take to other headers."""

_BARE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
"""What travels as it is; each byte of the rest takes three (gRPC over HTTP/2, Percent-Encoded)."""


def fitting(text: str) -> str:
    """The text, cut where it is too long: the end then tells how many characters are missing."""
    if len(text) * 12 <= MAX_BYTES or _encoded_bytes(text) <= MAX_BYTES:
        return text
    room = MAX_BYTES - _encoded_bytes(_missing(len(text)))
    kept = 0
    for letter in text:
        room -= _encoded_bytes(letter)
        if room < 0:
            break
        kept += 1
    return text[:kept] + _missing(len(text) - kept)


def _missing(characters: int) -> str:
    return f"… ({characters:,} more characters)"


def _encoded_bytes(text: str) -> int:
    return len(quote(text, safe=_BARE, errors="replace"))
