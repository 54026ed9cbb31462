"""Interned, append-only rows: what was known about one end of a flow when the flow happened.

A flow keeps row numbers instead of names. Rows never change, so an address that is used by another
pod later does not rewrite the past; a row is shared by all flows with equal facts. The tables are
written by the ingest thread and read by the event loop, without locks: a list only grows, and a
number is handed out after its row is in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
from cilium_core import abi

if TYPE_CHECKING:
    from numpy.typing import NDArray

Row = TypeVar("Row")

CLUSTER_LABEL = "k8s:io.cilium.k8s.policy.cluster="
"""Prefix of the label that names the cluster of an identity."""

_FIRST_LOCAL_IDENTITY = 0x01000000
_FIRST_REMOTE_NODE_IDENTITY = 0x02000000

_RESERVED_LABELS: dict[int, tuple[str, ...]] = {
    int(number): ("reserved:" + name.removeprefix("ID_").lower().replace("_", "-"),)
    for name, number in abi.enum("reserved_identity").__members__.items()
    if number
}


class Workload(NamedTuple):
    """The Kubernetes object that controls a pod."""

    name: str
    kind: str


class EndpointRow(NamedTuple):
    """One end of a flow, as in flow.Endpoint."""

    id: int = 0
    identity: int = 0
    namespace: str = ""
    labels: tuple[str, ...] = ()
    pod_name: str = ""
    workloads: tuple[Workload, ...] = ()
    cluster_name: str = ""


class AddressRow(NamedTuple):
    """What an address stands for, whatever identity its packets carry."""

    endpoint_id: int = 0
    identity: int = 0
    namespace: str = ""
    pod_name: str = ""
    workloads: tuple[Workload, ...] = ()


class RulesRow(NamedTuple):
    """Rules behind a policy verdict; `policies` are encoded flow.Policy messages."""

    policies: tuple[bytes, ...] = ()
    log: tuple[str, ...] = ()


class InterfaceRow(NamedTuple):
    """A device of the node."""

    ifindex: int = 0
    name: str = ""


class ServiceRow(NamedTuple):
    """A service behind an address and port."""

    namespace: str = ""
    name: str = ""


class Interned(Generic[Row]):
    """Rows numbered in order of first sight, each stored once.

    Numbers only grow. `renew` starts a new generation, after which rows in use are numbered anew;
    `drop_before` frees the older generation once no flow refers to it any more.
    """

    def __init__(self, *first: Row) -> None:
        self._numbers: dict[Row, int] = {}
        self._window: tuple[int, list[Row]] = (0, [])
        for row in first:
            self.number(row)

    def number(self, row: Row) -> int:
        """Number of a row, which is new if the row is."""
        known = self._numbers.get(row)
        if known is not None:
            return known
        base, rows = self._window
        rows.append(row)
        self._numbers[row] = base + len(rows) - 1
        return base + len(rows) - 1

    def __getitem__(self, number: int) -> Row:
        base, rows = self._window
        return rows[number - base]

    @property
    def base(self) -> int:
        """Smallest number still held."""
        return self._window[0]

    @property
    def stop(self) -> int:
        """Number that the next new row gets."""
        base, rows = self._window
        return base + len(rows)

    def __len__(self) -> int:
        return len(self._window[1])

    def renew(self) -> int:
        """Start a new generation and return the number it begins with."""
        self._numbers = {}
        return self.stop

    def drop_before(self, number: int) -> None:
        """Free the rows below `number`."""
        base, rows = self._window
        self._window = (number, rows[number - base :])


class Generations:
    """Says when a table of rows begins anew, and when nothing refers to the old rows any more."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._current: tuple[int, int] | None = None

    def begins(self, rows: Interned[Any], written: int) -> bool:
        """Begin a generation, if rows are more than the limit and none has just begun.

        The caller then numbers the rows in use anew. Row 0, which means nothing, stays what it is.
        `written` counts all flows ever written.
        """
        if self._current is not None or len(rows) <= self._limit:
            return False
        self._current = (rows.renew(), written)
        return True

    def ends(self, written: int, slots: int) -> int | None:
        """First row in use, once no flow of a ring of `slots` refers to older ones."""
        if self._current is None:
            return None
        first, at = self._current
        if written < at + 2 * slots:
            return None
        self._current = None
        return first


class RowFacts:
    """A growing array with one number for each row of an `Interned`, for use in bulk."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._base = 0
        self._array: NDArray[np.generic] = np.zeros(256, dtype=dtype)

    def reserve(self, number: int) -> None:
        """Make room for row `number`, whose fact is 0 unless it was set."""
        at = number - self._base
        if at >= len(self._array):
            grown = np.zeros(max(2 * len(self._array), at + 1), dtype=self._array.dtype)
            grown[: len(self._array)] = self._array
            self._array = grown

    def set(self, number: int, value: int) -> None:
        """Set the fact of row `number`."""
        self.reserve(number)
        self._array[number - self._base] = value

    def take(self, numbers: NDArray[np.uint32]) -> NDArray[np.generic]:
        """Facts of many rows."""
        return self._array.take(numbers - np.uint32(self._base))

    def put(self, numbers: NDArray[np.uint32], value: int) -> None:
        """Set the fact of many rows to one value."""
        self._array[numbers - np.uint32(self._base)] = value

    def get(self, number: int) -> int:
        """Fact of one row."""
        return int(self._array[number - self._base])

    def drop_before(self, number: int) -> None:
        """Forget the rows below `number`."""
        self._array = self._array[number - self._base :].copy()
        if not len(self._array):
            self._array = np.zeros(256, dtype=self._array.dtype)
        self._base = number


def labels_of(identity: int, known: tuple[str, ...] | None) -> tuple[str, ...]:
    """Labels a flow shows for an identity, of which the agent knows `known` (None: not at all).

    A node-local (CIDR) identity keeps the longest of its `cidr:` labels only.
    """
    if known is None:
        return _RESERVED_LABELS.get(identity, ())
    if not _FIRST_LOCAL_IDENTITY <= identity < _FIRST_REMOTE_NODE_IDENTITY:
        return known
    cidrs = [label for label in known if label.startswith("cidr:")]
    if len(cidrs) < 2:
        return known
    longest = max(cidrs, key=_prefix_length)
    return tuple(label for label in known if label == longest or not label.startswith("cidr:"))


def _prefix_length(label: str) -> int:
    length = label.rpartition("/")[2]
    return int(length) if length.isdecimal() else -1


def cluster_of(labels: tuple[str, ...]) -> str:
    """Cluster named by the labels, or nothing."""
    for label in labels:
        if label.startswith(CLUSTER_LABEL):
            return label[len(CLUSTER_LABEL) :]
    return ""
