"""Addresses as pairs of 64-bit numbers, and tables of addresses and prefixes made of them.

The kernel writes an address as 16 bytes, IPv4 in the first four with the rest zero. Here it is the
two little-endian numbers those bytes make, which compares and hashes in bulk without swapping
bytes. A random salt in the second number keeps IPv4 addresses apart from IPv6 ones with the same
bytes.
"""

from __future__ import annotations

import ipaddress
import secrets
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hubble_server.hashing import MISSING, Index, Keys, Values

if TYPE_CHECKING:
    from numpy.typing import NDArray

IPV4_SALT = secrets.randbits(64)
_BULK_SALT = np.uint64(IPV4_SALT)


class AddressKey(NamedTuple):
    """Key of an address in a table."""

    high: int
    low: int


class Prefix(NamedTuple):
    """A parsed prefix: its key, family and length in bits."""

    key: AddressKey
    version: int
    length: int

    @property
    def is_address(self) -> bool:
        """Whether the prefix holds exactly one address."""
        return self.length == (32 if self.version == 4 else 128)


def key_of(packed: bytes) -> AddressKey:
    """Key of an address in network byte order, 4 or 16 bytes."""
    whole = packed.ljust(16, b"\0")
    low = int.from_bytes(whole[8:], "little")
    return AddressKey(
        int.from_bytes(whole[:8], "little"), low ^ IPV4_SALT if len(packed) == 4 else low
    )


def parse_prefix(text: str) -> Prefix:
    """Parse an address or a prefix. Raises ValueError."""
    network = ipaddress.ip_network(text, strict=False)
    packed = network.network_address.packed
    return Prefix(key_of(packed), network.version, network.prefixlen)


def salted(low: Keys, is_ipv6: NDArray[np.bool_]) -> Keys:
    """Second numbers of addresses with the salt in those of IPv4."""
    return low ^ (~is_ipv6 * _BULK_SALT)


class PrefixTable:
    """Longest-prefix match in bulk: prefixes to numbers of 0 or more.

    Costs one hash look-up for each distinct prefix length, so it is only used for the few events
    that come without an identity.
    """

    def __init__(self) -> None:
        self._lengths: dict[tuple[int, int], Index] = {}
        self._counts: dict[tuple[int, int], int] = {}

    def set(self, prefix: Prefix, value: int) -> None:
        """Give a prefix a value."""
        group = (prefix.version, prefix.length)
        index = self._lengths.get(group)
        if index is None:
            index = self._lengths[group] = Index()
        if index.get(*prefix.key) == MISSING:
            self._counts[group] = self._counts.get(group, 0) + 1
        index.set(*prefix.key, value)

    def forget(self, prefix: Prefix) -> None:
        """Remove a prefix, which must be there."""
        group = (prefix.version, prefix.length)
        self._lengths[group].set(*prefix.key, MISSING)
        self._counts[group] -= 1
        if not self._counts[group]:
            del self._lengths[group], self._counts[group]

    def find(self, high: Keys, low: Keys, is_ipv6: NDArray[np.bool_]) -> Values:
        """Values of the longest prefixes that hold the addresses, MISSING without one."""
        found = np.full(len(high), MISSING, dtype=np.int32)
        for (version, length), index in sorted(self._lengths.items(), reverse=True):
            open_ones = np.flatnonzero((found == MISSING) & (is_ipv6 == (version == 6)))
            if not len(open_ones):
                continue
            high_mask, low_mask = masks(length)
            masked_low = low[open_ones] & low_mask
            if version == 4:
                masked_low ^= _BULK_SALT
            found[open_ones] = index.find(high[open_ones] & high_mask, masked_low)
        return found


def masks(length: int) -> tuple[np.uint64, np.uint64]:
    """Masks of the two numbers of an address for a prefix of `length` bits."""
    whole = ((1 << 128) - (1 << (128 - length))).to_bytes(16, "big")
    return np.uint64(int.from_bytes(whole[:8], "little")), np.uint64(
        int.from_bytes(whole[8:], "little")
    )
