"""The hashes behind Maglev: of a flow, as programs in the kernel compute it, and of a backend.

`flow_hash` mirrors `bpf/lib/lb_hash.h`, bit by bit. Pure functions.
"""

from __future__ import annotations

import base64
import binascii
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from cilium_core.errors import InvalidError

if TYPE_CHECKING:
    from cilium_core.services.models import L4Address

DEFAULT_SEED: Final = "JLfvgnHc2kaSUFaI"
"""Of the option `bpf-lb-maglev-hash-seed`; the same on all nodes of a cluster."""

_SEED_BYTES: Final = 12
_MASK32: Final = 0xFFFFFFFF
_MASK64: Final = 0xFFFFFFFFFFFFFFFF
_JHASH_INITIAL: Final = 0xDEADBEEF
_C1: Final = 0x87C37B91114253D5
_C2: Final = 0x4CF5AD432745937F


class Seeds(NamedTuple):
    """What the text of the option holds: 32 bits for backends, 32 for flows, 32 not used."""

    backends: int
    flows: int
    spare: int


def read_seed(text: str) -> Seeds:
    """Read base64 of 12 bytes, big-endian numbers. Raises InvalidError."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != _SEED_BYTES:
        raise InvalidError(
            f"bpf-lb-maglev-hash-seed is {text[:40]!r}; it must be 12 bytes in base64, as "
            "`head -c12 /dev/urandom | base64` makes them"
        )
    return Seeds(*struct.unpack(">III", raw))


def flow_hash(client: L4Address, frontend: L4Address, seed: int, *, affinity: bool = False) -> int:
    """The 32 bits by which a flow picks its entry; `seed` is `Seeds.flows`.

    With session affinity the client's port does not count. Both addresses are of one family.
    """
    port = 0 if affinity else client.port
    packed = client.address.packed + frontend.address.packed
    packed += struct.pack(">HH", port, frontend.port)
    words = struct.unpack(f"<{len(packed) // 4}I", packed)
    return jhash2(words, seed + int(frontend.protocol))


def jhash2(words: tuple[int, ...], initial: int) -> int:
    """Linux's `jhash2` of 32-bit words."""
    a = b = c = (_JHASH_INITIAL + (len(words) << 2) + initial) & _MASK32
    position, left = 0, len(words)
    while left > 3:
        a = (a + words[position]) & _MASK32
        b = (b + words[position + 1]) & _MASK32
        c = (c + words[position + 2]) & _MASK32
        a, b, c = _mix(a, b, c)
        position, left = position + 3, left - 3
    if not left:
        return c
    rest = (*words[position:], 0, 0)
    return _final((a + rest[0]) & _MASK32, (b + rest[1]) & _MASK32, (c + rest[2]) & _MASK32)


def _rotate32(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (32 - bits))) & _MASK32


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    for bits in (4, 6, 8, 16, 19, 4):
        # Each step is the same one with the three words turned by one place.
        a = ((a - c) & _MASK32) ^ _rotate32(c, bits)
        c = (c + b) & _MASK32
        a, b, c = b, c, a
    return a, b, c


def _final(a: int, b: int, c: int) -> int:
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - _rotate32(b, bits)) & _MASK32
        a, b, c = b, c, a
    return b


def murmur3_128(data: bytes, seed: int) -> tuple[int, int]:
    """MurmurHash3 for 64-bit machines: both halves of its 128 bits."""
    one = two = seed
    whole = len(data) & ~15
    for offset in range(0, whole, 16):
        first, second = struct.unpack_from("<QQ", data, offset)
        one ^= _scramble(first, _C1, 31, _C2)
        one = ((_rotate64(one, 27) + two) * 5 + 0x52DCE729) & _MASK64
        two ^= _scramble(second, _C2, 33, _C1)
        two = ((_rotate64(two, 31) + one) * 5 + 0x38495AB5) & _MASK64
    tail = data[whole:].ljust(16, b"\0")
    first, second = struct.unpack("<QQ", tail)
    two ^= _scramble(second, _C2, 33, _C1)
    one ^= _scramble(first, _C1, 31, _C2)
    one ^= len(data)
    two ^= len(data)
    one = (one + two) & _MASK64
    two = (two + one) & _MASK64
    one, two = _finish(one), _finish(two)
    one = (one + two) & _MASK64
    return one, (two + one) & _MASK64


def _rotate64(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (64 - bits))) & _MASK64


def _scramble(value: int, before: int, bits: int, after: int) -> int:
    return _rotate64((value * before) & _MASK64, bits) * after & _MASK64


def _finish(value: int) -> int:
    value ^= value >> 33
    value = value * 0xFF51AFD7ED558CCD & _MASK64
    value ^= value >> 33
    value = value * 0xC4CEB9FE1A85EC53 & _MASK64
    return value ^ value >> 33
