from __future__ import annotations

import re
from urllib.parse import quote

import pytest
from cilium_core.serving.status_text import MAX_BYTES, fitting


@pytest.mark.parametrize("text", ["", "no such pod: a/b", "é%\n" * 300, "x" * MAX_BYTES])
def test_a_text_that_fits_stays(text: str) -> None:
    assert fitting(text) == text


@pytest.mark.parametrize("letter", ["x", "%", "é", "\0", "🐝"])
def test_a_longer_text_is_cut_and_says_by_how_much(letter: str) -> None:
    text = "bad: " + letter * 20_000
    cut = fitting(text)
    kept, missing = re.fullmatch(r"(.*)… \(([\d,]+) more characters\)", cut, re.DOTALL).groups()  # type: ignore[union-attr]
    assert text.startswith(kept)
    assert len(kept) + int(missing.replace(",", "")) == len(text)
    travels = len(quote(cut, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"))
    assert MAX_BYTES - 20 < travels <= MAX_BYTES
