"""Address filters on columns: an address compares as text, a value with a slash is a prefix.

A flow's address is text in its canonical form, so a filter in another form (`FD00::1`) matches
nothing, as in Hubble.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import numpy as np

from hubble_server.encoding.texts import address_text
from hubble_server.flows.columns import TYPE_SOCK
from hubble_server.hashing import MISSING, Index
from hubble_server.metadata.addresses import key_of, masks, salted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from hubble_server.filters.columns import Columns, Mask

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def address_mask(values: Iterable[str], column: str) -> Callable[[Columns], Mask]:
    """Test of one of a flow's addresses, in columns `<column>_high` and `_low`.

    `values` have been checked to be addresses or prefixes.
    """
    networks: list[Network] = []
    exact = Index()
    for value in values:
        if "/" in value:
            networks.append(ipaddress.ip_network(value, strict=False))
            continue
        packed = ipaddress.ip_address(value).packed
        if address_text(packed.ljust(16, b"\0"), len(packed) == 16) == value:
            exact.set(*key_of(packed), 1)

    def mask(block: Columns) -> Mask:
        high, low, is_ipv6 = block[f"{column}_high"], block[f"{column}_low"], block.is_ipv6
        found: Mask = exact.find(high, salted(low, is_ipv6)) != MISSING
        for network in networks:
            found |= _inside(network, high, low, is_ipv6)
        found &= block.has_ip
        if column == "translated":
            found &= (high | low) != 0
            found &= block["type"] != TYPE_SOCK
        return found

    return mask


def _inside(
    network: Network, high: NDArray[np.uint64], low: NDArray[np.uint64], is_ipv6: Mask
) -> Mask:
    packed = network.network_address.packed.ljust(16, b"\0")
    high_mask, low_mask = masks(network.prefixlen)
    inside: Mask = (high & high_mask) == np.uint64(int.from_bytes(packed[:8], "little"))
    inside &= (low & low_mask) == np.uint64(int.from_bytes(packed[8:], "little"))
    inside &= is_ipv6 if network.version == 6 else ~is_ipv6
    return inside
