"""Columns aligned with blanks, the way Hubble's tables always were.

A cell ends with a tab, a line with a newline; the text after the last tab of a line belongs to no
column. A column is a run of neighbouring lines that have a cell in the same place, so that a table
whose data contains tabs or newlines comes out the same as everywhere.
"""

from __future__ import annotations

import re

PADDING = 3
_MINIMUM_WIDTH = 2


def align(text: str) -> str:
    """The text with its cells padded to the widest of their column and three blanks."""
    out: list[str] = []
    # A form feed ends the line and every column.
    for page in text.split("\f"):
        lines = [re.split(r"[\t\v]", line) for line in page.split("\n")]
        _format(lines, out, 0, len(lines), [])
    return "\n".join(out)


def _format(
    lines: list[list[str]], out: list[str], first: int, last: int, widths: list[int]
) -> None:
    """Write lines[first:last], whose first len(widths) columns have their width already."""
    column = len(widths)
    this = first
    while this < last:
        if column >= len(lines[this]) - 1:
            this += 1
            continue
        out += [_join(line, widths) for line in lines[first:this]]
        first = this
        while this < last and column < len(lines[this]) - 1:
            this += 1
        widest = max(len(line[column]) for line in lines[first:this]) + PADDING
        _format(lines, out, first, this, [*widths, max(widest, _MINIMUM_WIDTH)])
        first = this
    out += [_join(line, widths) for line in lines[first:last]]


def _join(line: list[str], widths: list[int]) -> str:
    cells = [
        cell.ljust(widths[column]) if column < len(widths) else cell
        for column, cell in enumerate(line[:-1])
    ]
    return "".join(cells) + line[-1]
