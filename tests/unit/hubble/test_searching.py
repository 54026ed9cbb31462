"""Patterns are found in many texts as they are in each."""

from __future__ import annotations

import re2
from hubble_server.filters.searching import TextTest
from hubble_server.flows.store import Said
from hypothesis import given
from hypothesis import strategies as st

PIECES = (
    "", "a", "b", "/", ".", "^", "$", r"\A", r"\z", r"\b", r"\B", r"\s", r"\n", "[^a]", "[^a]*",
    ".*", "(?i)", "(?s).", "(?m)^", "(?-m:$)", "(?s-m:^.)", "a|b", "|", r"\Qa\nA$\E",
    "é", r"\x00", "b?",
)  # fmt: skip
LETTERS = st.text(alphabet="ab/A\n\0 é", max_size=6)


@given(
    st.lists(st.lists(st.sampled_from(PIECES), max_size=5).map("".join), min_size=1, max_size=2),
    st.lists(LETTERS, max_size=40),
)
def test_a_pattern_is_found_among_texts_where_it_is_found_in_each(
    patterns: list[str], texts: list[str]
) -> None:
    said = [Said(text=text.encode(), path=None) for text in texts]
    finds = [re2.compile(pattern) for pattern in patterns]
    expected = [any(find.search(text) is not None for find in finds) for text in texts]
    assert TextTest("text", patterns).mask(said).tolist() == expected


def test_what_is_not_known_may_pass_and_what_has_no_path_does_not() -> None:
    said = [None, Said(text=b"", path=None), Said(text=b"/a", path=b"/a"), Said(text=b"", path=b"")]
    assert TextTest("path", [""]).mask(said).tolist() == [True, False, True, True]
    assert TextTest("path", ["x"]).mask(said).tolist() == [True, False, False, False]


def test_finds_in_most_texts_are_all_told() -> None:
    said = [Said(text=b"/%d" % number, path=None) for number in range(1000)]
    mask = TextTest("text", ["[13579]$"]).mask(said)
    assert mask.tolist() == [number % 2 == 1 for number in range(1000)]
