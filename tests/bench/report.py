"""What a benchmark found: rows with a bar each, printed as a table and written as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Literal

OUTPUT = Path("build/bench.json")


@dataclass(frozen=True)
class Row:
    """One measured fact.

    `ratio` is ours divided by the peer's figure of the same run; `bar` is what the ratio, or our
    own figure where there is no peer, is held to; `ok` is None where there is nothing to hold.
    """

    name: str
    unit: str
    ours: float
    against: str
    peer: float | None
    ratio: float | None
    bar: str
    ok: bool | None


def compare(
    name: str,
    unit: str,
    ours: list[float],
    against: str,
    peer: list[float],
    bound: Literal[">=", "<="],
    limit: float,
) -> Row:
    """A row of medians of interleaved runs, held to `ratio bound limit`."""
    mine, theirs = median(ours), median(peer)
    ratio = median(a / b for a, b in zip(ours, peer, strict=True))
    ok = ratio >= limit if bound == ">=" else ratio <= limit
    return Row(name, unit, mine, against, theirs, ratio, f"{bound} {limit:g}x", ok)


def absolute(name: str, unit: str, ours: float, bound: Literal[">=", "<="], limit: float) -> Row:
    """A row without a peer, held to a limit of its own unit."""
    ok = ours >= limit if bound == ">=" else ours <= limit
    return Row(name, unit, ours, "", None, None, f"{bound} {limit:g}", ok)


def told(name: str, unit: str, ours: float, against: str = "", peer: float | None = None) -> Row:
    """A row that is only told."""
    return Row(name, unit, ours, against, peer, ours / peer if peer else None, "", None)


def table(rows: list[Row]) -> str:
    """The rows as aligned text."""
    head = ("name", "unit", "ours", "against", "peer", "ratio", "bar", "ok")
    cells = [head] + [
        (
            row.name,
            row.unit,
            _number(row.ours),
            row.against,
            _number(row.peer),
            _number(row.ratio),
            row.bar,
            {True: "yes", False: "NO", None: ""}[row.ok],
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def write(rows: list[Row]) -> None:
    """Write build/bench.json."""
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
