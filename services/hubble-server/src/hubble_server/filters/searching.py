"""Regular expressions looked for in what many records say, before any of their messages is read.

RE2 does the work, so no pattern takes more than linear time. A text that comes again is not looked
at again. What passes here is still put to `cilium_core.flow_filters`, which decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import re2

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flow import flow_pb2

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


class TextTest:
    """Test of a part of what records say: whether one of some patterns is found in it.

    The patterns have been checked. Belongs to one request.
    """

    def __init__(self, part: str, patterns: Iterable[str]) -> None:
        options = re2.Options()
        options.log_errors = False
        options.never_capture = True
        # what `search` of these makes of a match takes longer than to find it
        self._finds: list[Any] = [
            re2.compile(each, options=options)._regexp.Match for each in patterns
        ]
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
            return np.fromiter(self._search(texts), np.bool_, len(texts))
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()
        new = [text for text in distinct if text not in self._known]
        self._known.update(zip(new, self._search(new), strict=True))
        return np.fromiter(map(self._known.__getitem__, texts), np.bool_, len(texts))

    def _search(self, texts: Sequence[bytes | None]) -> list[bool]:
        """In which texts something is found."""
        first, *others = self._finds
        found = [
            text is not None and first(_ANYWHERE, text, 0, len(text)) != _NOWHERE for text in texts
        ]
        for find in others:
            found = [
                yes or (text is not None and find(_ANYWHERE, text, 0, len(text)) != _NOWHERE)
                for yes, text in zip(found, texts, strict=True)
            ]
        return [yes or text is _UNKNOWN for yes, text in zip(found, texts, strict=True)]


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
