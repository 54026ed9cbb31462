"""DNS names that endpoints of this node resolved to addresses, looked up for columns of flows.

Part of the directory, and owned by the ingest thread like it. A flow keeps the number of a row of
names; rows never change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hubble_server.hashing import MISSING, Index, Keys
from hubble_server.metadata.addresses import AddressKey, parse_prefix, salted
from hubble_server.metadata.rows import Generations, Interned

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cilium.metadata.v1 import metadata_pb2
    from numpy.typing import NDArray

ROWS_LIMIT = 65_536
"""Rows after which a new generation begins, so that ever new names cannot fill the memory."""

_SPREAD = 0x9E3779B97F4A7C15
_MASK64 = (1 << 64) - 1


class NamesRow(NamedTuple):
    """Names of one address, as one endpoint knows them."""

    names: tuple[str, ...] = ()


class NameTable:
    """Names by the endpoint that resolved them and the address."""

    def __init__(self) -> None:
        self.rows: Interned[NamesRow] = Interned(NamesRow())
        self._known: dict[tuple[int, str], tuple[str, ...]] = {}
        self._index = Index()
        self._generations = Generations(ROWS_LIMIT)

    def __contains__(self, key: object) -> bool:
        return key in self._known

    def __len__(self) -> int:
        return len(self._known)

    def set(self, told: metadata_pb2.Names) -> None:
        """Take what the agent says: none means none any more. An address that is none is ignored.

        Names are kept without a final dot.
        """
        key = (told.endpoint, told.ip)
        names = tuple(name.rstrip(".") for name in told.names)
        if not names:
            self.forget(key)
            return
        try:
            place = _place(key)
        except ValueError:
            return
        self._known[key] = names
        self._index.set(*place, self.rows.number(NamesRow(names)))

    def forget(self, key: tuple[int, str]) -> None:
        """Forget the names that an endpoint knows of an address."""
        if self._known.pop(key, None) is not None:
            self._index.set(*_place(key), MISSING)

    def keep(self, keys: Iterable[object]) -> None:
        """Forget everything but these endpoints and addresses."""
        for key in self._known.keys() - set(keys):
            self.forget(key)

    def find(
        self, endpoints: NDArray[np.uint16], high: Keys, low: Keys, is_ipv6: NDArray[np.bool_]
    ) -> NDArray[np.uint32] | None:
        """Rows of what endpoints call addresses, 0 for nothing; None when no name is known."""
        if not self._known:
            return None
        second = salted(low, is_ipv6) ^ endpoints.astype(np.uint64) * np.uint64(_SPREAD)
        return np.maximum(self._index.find(high, second), 0).view(np.uint32)

    def tidy(self, written: int, slots: int) -> None:
        """Begin a new generation of rows when there are too many, drop the old one in time."""
        if self._generations.begins(self.rows, written):
            self._index.clear()
            for key, names in self._known.items():
                self._index.set(*_place(key), self.rows.number(NamesRow(names)))
        first = self._generations.ends(written, slots)
        if first is not None:
            self.rows.drop_before(first)


def _place(key: tuple[int, str]) -> AddressKey:
    """Place in the index. Raises ValueError for an address that is none."""
    endpoint, text = key
    address = parse_prefix(text).key
    return AddressKey(address.high, address.low ^ (endpoint * _SPREAD & _MASK64))
