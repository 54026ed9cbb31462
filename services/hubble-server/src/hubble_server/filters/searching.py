"""Regular expressions looked for in what many records say, before any of their messages is read.

RE2 does the work, so no pattern takes more than linear time. A text that comes again is not looked
at again. Others are the lines of one text, which a search goes through from find to find: to begin
one costs as much as many lines. What passes here is still put to `cilium_core.flow_filters`, which
decides.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import re2

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flow import flow_pb2
    from numpy.typing import NDArray

    from hubble_server.filters.columns import Columns, Mask
    from hubble_server.flows.store import Said

FIELDS: Final = {"dns_query": "text", "http_url": "text", "http_path": "path"}
"""Fields of filters that hold patterns, and what of a record these are looked for in."""

_MOST_KNOWN: Final = 65_536
"""Texts remembered by one filter."""

_UNKNOWN: Final = b"\xff"
"""Stands for what records say of which nothing is known; no text in UTF-8 is like that."""

_ANYWHERE: Final = re2._re2.RE2.Anchor.UNANCHORED
_NOWHERE: Final = [(-1, -1)]

_OF_WHOLE_TEXTS: Final = re.compile(r"\\[AzZ]|\(\?[A-Za-z]*-")
"""What may mean the ends of a text and not of a line, whatever `(?m)` says."""
_LINES: Final = 128
"""Texts that are gone through at once."""
_WORTH_S: Final = 1e-6
"""What a text may take among others; one by itself takes about as long."""
_TRIED_S: Final = 0.005
"""What they may take beyond that before each is looked at by itself."""


class _Pattern:
    """A pattern, looked for in many texts."""

    def __init__(self, pattern: str) -> None:
        options = re2.Options()
        options.log_errors = False
        options.never_capture = True
        # what `search` of these makes of a match takes longer than to find it
        self._find = re2.compile(pattern, options=options)._regexp.Match
        self._find_line: Any = None
        self._saved_s = 0.0
        if not _OF_WHOLE_TEXTS.search(pattern):
            options.never_nl = True
            self._find_line = re2.compile(f"(?m){pattern}", options=options)._regexp.Match

    def found(self, texts: Sequence[bytes]) -> Mask:
        """In which texts it is found."""
        found = np.zeros(len(texts), np.bool_)
        for first in range(0, len(texts), _LINES):
            if self._find_line is None:
                found[first:] = self._each(texts[first:])
                break
            some = texts[first : first + _LINES]
            lines = b"\n".join(some)
            if lines.count(b"\n") != len(some) - 1:
                found[first : first + _LINES] = self._each(some)
                continue
            began_s = time.thread_time()
            found[self._rows(some, lines) + first] = True
            self._saved_s += _WORTH_S * len(some) - (time.thread_time() - began_s)
            if self._saved_s < -_TRIED_S:
                self._find_line = None
        return found

    def _each(self, texts: Sequence[bytes]) -> list[bool]:
        return [self._find(_ANYWHERE, text, 0, len(text)) != _NOWHERE for text in texts]

    def _rows(self, texts: Sequence[bytes], lines: bytes) -> NDArray[np.intp]:
        """Which lines it is found in."""
        starts = [0, *accumulate(len(text) + 1 for text in texts)]
        rows = []
        row = 0
        while row < len(texts):
            ((at, _),) = self._find_line(_ANYWHERE, lines, starts[row], len(lines))
            if at < 0:
                break
            row = bisect_right(starts, at)
            rows.append(row - 1)
        return np.array(rows, np.intp)


class TextTest:
    """Test of a part of what records say: whether one of some patterns is found in it.

    The patterns have been checked. Belongs to one request.
    """

    def __init__(self, part: str, patterns: Iterable[str]) -> None:
        self._patterns = [_Pattern(each) for each in patterns]
        self._is_path = part == "path"
        self._known: dict[bytes | None, bool] = {}

    def mask(self, said: Sequence[Said | None]) -> Mask:
        """Which records may pass that say this; None is what nothing is known of."""
        if self._is_path:
            texts = [_UNKNOWN if one is None else one.path for one in said]
        else:
            texts = [_UNKNOWN if one is None else one.text for one in said]
        distinct = dict.fromkeys(texts)  # in the order in which they lie in memory: the fastest
        if 2 * len(distinct) > len(texts):
            return self._search(texts)
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()
        new = [text for text in distinct if text not in self._known]
        self._known.update(zip(new, self._search(new).tolist(), strict=True))
        return np.fromiter(map(self._known.__getitem__, texts), np.bool_, len(texts))

    def _search(self, texts: Sequence[bytes | None]) -> Mask:
        """In which texts something is found; None is no text."""
        known = [text or b"" for text in texts]
        found = np.zeros(len(texts), np.bool_)
        for pattern in self._patterns:
            found |= pattern.found(known)
        found[[row for row, text in enumerate(texts) if text is None]] = False
        found[[row for row, text in enumerate(texts) if text is _UNKNOWN]] = True
        return found


def text_tests(entry: flow_pb2.FlowFilter) -> list[TextTest]:
    """Tests for the patterns of an entry."""
    return [
        TextTest(part, values)
        for field, part in FIELDS.items()
        if (values := getattr(entry, field))
    ]


def narrow(tests: Sequence[TextTest], records: Mask, block: Columns) -> Mask:
    """Take out of a mask of records those whose words fail a test, where words are known."""
    rows = np.flatnonzero(records)
    said = block.said(rows.tolist()) if len(rows) else None
    if said is not None:
        for test in tests:
            records[rows] &= test.mask(said)
    return records
