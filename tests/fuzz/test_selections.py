"""Random filters, compared with what Hubble's own client has selected once.

`python -m tests.fuzz --hubble PATH --record` writes the expectations anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flow import flow_pb2
from google.protobuf import json_format

from tests.fuzz.selecting import Filters, Selection, replayed

EXPECTED = Path(__file__).parent / "selections.jsonl"


def filters(rows: list[dict[str, Any]]) -> Filters:
    return [json_format.ParseDict(row, flow_pb2.FlowFilter()) for row in rows]


def test_random_filters_select_what_hubble_selects() -> None:
    lines: list[str] = []
    pairs = 0
    for row in map(json.loads, EXPECTED.read_text("utf-8").splitlines()):
        if "lines" in row:
            lines = row["lines"]
            continue
        expected = Selection(tuple(row.get("flows", ())), row.get("error", ""))
        found = replayed(lines, filters(row["allow"]), filters(row["deny"]))
        assert found.agrees(expected), row
        pairs += len(lines)
    assert pairs >= 1000
