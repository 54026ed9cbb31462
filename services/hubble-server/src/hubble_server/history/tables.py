"""Interned rows of one part: what its flows' row numbers mean, so that a part explains itself.

Row numbers of the directory hold for one run of the server. A part numbers the rows that its flows
refer to anew and keeps them as JSON. Row 0 means nothing in every table, as in the directory.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from hubble_server.facts import NodeFacts
from hubble_server.metadata.directory import Directory
from hubble_server.metadata.names import NamesRow
from hubble_server.metadata.rows import (
    EndpointRow,
    InterfaceRow,
    Interned,
    RulesRow,
    ServiceRow,
    Workload,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

COLUMNS: Final = {
    "source_row": "rows",
    "destination_row": "rows",
    "source_service": "services",
    "destination_service": "services",
    "source_names": "names",
    "destination_names": "names",
    "rules": "rules",
    "interface": "interfaces",
}
"""Columns of row numbers, and the tables they point into."""

NAMES: Final = ("rows", "services", "names", "rules", "interfaces")

Added = dict[str, list[Any]]
"""New rows of each table, as JSON has them."""


def table(directory: Directory, name: str) -> Interned[Any]:
    """One of a directory's tables."""
    found: Interned[Any] = (
        directory.names.rows if name == "names" else getattr(directory, name)
    )  # fmt: skip
    return found


class PartTables:
    """Numbers the rows of one directory for one part, as its flows come in."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._numbers: dict[str, dict[int, int]] = {name: {0: 0} for name in NAMES}
        self._own: dict[str, Interned[Any]] = {
            name: Interned(table(Directory(), name)[0]) for name in NAMES
        }

    def translate(self, batch: Mapping[str, NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], Added]:
        """The batch with the part's row numbers, and the rows it brings."""
        before = {name: own.stop for name, own in self._own.items()}
        columns = dict(batch)
        for column, name in COLUMNS.items():
            unique, inverse = np.unique(batch[column], return_inverse=True)
            numbers = [self._number(name, number) for number in unique.tolist()]
            columns[column] = np.array(numbers, dtype=np.uint32)[inverse]
        return columns, {
            name: [_encode(own[number]) for number in range(before[name], own.stop)]
            for name, own in self._own.items()
            if own.stop > before[name]
        }

    def _number(self, name: str, number: int) -> int:
        known = self._numbers[name].get(number)
        if known is not None:
            return known
        rows = table(self._directory, name)
        # a row that no flow of the ring refers to any more may be gone already
        row = rows[number] if rows.base <= number < rows.stop else None
        found = 0 if row is None else self._own[name].number(row)
        self._numbers[name][number] = found
        return found


def add_rows(directory: Directory, added: Added) -> None:
    """Append rows of a part to the directory that it is read with. Raises ValueError."""
    for name, rows in added.items():
        if name not in NAMES:
            raise ValueError(f"unknown table {name!r}")
        for row in rows:
            add_row(directory, name, row)


def numbered(directory: Directory, added: Added) -> dict[str, NDArray[np.uint32]]:
    """Put the rows of a part into a directory that has others, too.

    Gives for each column of row numbers those in the directory, by those of the part. Raises
    ValueError.
    """
    numbers = {
        name: np.array([0, *(add_row(directory, name, row) for row in added.get(name, ()))], "u4")
        for name in NAMES
    }
    return {column: numbers[name] for column, name in COLUMNS.items()}


def add_row(directory: Directory, name: str, row: Any) -> int:
    """Number of a row of a part in a directory. Raises ValueError."""
    return table(directory, name).number(_decode(name, row))


def encode_node(node: NodeFacts) -> list[Any]:
    """A node's facts for JSON."""
    return [node.name, node.cluster, list(node.labels), list(node.addresses)]


def decode_node(values: Sequence[Any]) -> NodeFacts:
    """Facts of a node out of JSON. Raises ValueError."""
    name, cluster, labels, addresses = values
    return NodeFacts(str(name), str(cluster), tuple(labels), tuple(addresses))


def _encode(row: Any) -> Any:
    if isinstance(row, RulesRow):
        return [[base64.b64encode(policy).decode() for policy in row.policies], row.log]
    return row


def _decode(name: str, values: Sequence[Any]) -> Any:
    match name:
        case "rows":
            number, identity, namespace, labels, pod, workloads, cluster = values
            return EndpointRow(
                number, identity, namespace, tuple(labels), pod,
                tuple(Workload(*workload) for workload in workloads), cluster,
            )  # fmt: skip
        case "services":
            return ServiceRow(*values)
        case "names":
            return NamesRow(tuple(values[0]))
        case "rules":
            policies, log = values
            return RulesRow(tuple(base64.b64decode(policy) for policy in policies), tuple(log))
        case _:
            return InterfaceRow(*values)
