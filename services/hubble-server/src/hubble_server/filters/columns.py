"""What column filters are made of: the columns they see, tables of values, tests of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from cilium_core import abi
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from hubble_server.flows.store import Said
    from hubble_server.metadata.rows import Interned

Mask = NDArray[np.bool_]
Row = TypeVar("Row")

_IPV6 = abi.constants["EVENT_IPV6"]
_L3 = abi.constants["EVENT_L3"]
_L4 = abi.constants["EVENT_L4"]


class Columns:
    """Columns of a stretch of flows, a ring block or a batch."""

    __slots__ = ("_source", "count")

    def __init__(self, source: Any, count: int) -> None:
        self._source: Mapping[str, NDArray[Any]] = source
        self.count = count

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._source[name]

    def said(self, rows: Sequence[int]) -> list[Said | None] | None:
        """What records of some rows say; None where the source does not keep that."""
        tell = getattr(self._source, "said", None)
        return None if tell is None else tell(rows)

    def none(self) -> Mask:
        """A mask of no flow."""
        return np.zeros(self.count, dtype=np.bool_)

    def all(self) -> Mask:
        """A mask of all flows."""
        return np.ones(self.count, dtype=np.bool_)

    def _flagged(self, bits: int) -> Mask:
        flagged: Mask = (self["flags"] & np.uint16(bits)) != 0
        return flagged

    @property
    def has_ip(self) -> Mask:
        """Flows with valid addresses."""
        return self._flagged(_L3)

    @property
    def has_l4(self) -> Mask:
        """Flows with a valid transport header."""
        return self._flagged(_L4)

    @property
    def is_ipv6(self) -> Mask:
        """Flows over IPv6."""
        return self._flagged(_IPV6)


def table(values: Iterable[int], size: int) -> Mask:
    """Look-up table of small numbers: true at each of `values` that is below `size`."""
    made = np.zeros(size, dtype=np.bool_)
    made[[value for value in values if 0 <= value < size]] = True
    return made


class RowTest(Generic[Row]):
    """A test of interned rows, asked of whole columns of row numbers.

    Each row that occurs is tested once in the life of the filter. The writer may add rows at any
    time, so the column is copied before the tables are looked at.
    """

    _UNKNOWN, _NO, _YES = 0, 1, 2

    def __init__(self, rows: Interned[Row], test: Callable[[Row], bool]) -> None:
        self._rows = rows
        self._test = test
        self._first = rows.base
        self._answers: NDArray[np.uint8] = np.zeros(256, dtype=np.uint8)

    def __call__(self, column: NDArray[np.uint32]) -> Mask:
        """Mask of the flows whose row passes."""
        numbers = column.astype(np.int64)
        numbers -= self._first
        largest = int(numbers.max(initial=0))
        if largest >= len(self._answers):
            grown = np.zeros(2 * largest + 1, dtype=np.uint8)
            grown[: len(self._answers)] = self._answers
            self._answers = grown
        answers = self._answers.take(numbers)
        unknown = answers == self._UNKNOWN
        if unknown.any():
            for number in np.unique(numbers[unknown]).tolist():
                yes = self._test(self._rows[number + self._first])
                self._answers[number] = self._YES if yes else self._NO
            answers = self._answers.take(numbers)
        found: Mask = answers == self._YES
        return found
