"""Columns aligned with blanks."""

import pytest
from hubble_cli.tables import align


@pytest.mark.parametrize(
    ("text", "aligned"),
    [
        ("", ""),
        ("a\tb\nccc\td\n", "a     b\nccc   d\n"),
        ("\tx\n\ty\n", "   x\n   y\n"),
        ("a\tb\nplain\nccc\td\n", "a   b\nplain\nccc   d\n"),
        ("a\tb\tc\nlong\td\n", "a      b   c\nlong   d\n"),
        ("é\tx\nab\ty\n", "é    x\nab   y\n"),
        ("a\tb\fccc\td\n", "a   b\nccc   d\n"),
        ("a\vb\nccc\td", "a     b\nccc   d"),
    ],
)
def test_cells_are_padded_to_the_widest_of_their_column(text, aligned):
    assert align(text) == aligned
