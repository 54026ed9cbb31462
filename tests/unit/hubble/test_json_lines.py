"""Lines made of columns say what the messages of the same flows do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from google.protobuf import json_format
from hubble_server.encoding.encoder import Encoder
from hubble_server.encoding.jsonlines import JsonLines
from hubble_server.encoding.masks import parse_mask
from observer import observer_pb2

from tests.unit.hubble.loads import names, strange, traffic
from tests.unit.hubble.pipelines import NODE, Pipeline

if TYPE_CHECKING:
    from hubble_server.flows.columns import Batch

MASKS: tuple[list[str], ...] = (
    [],
    ["time"],
    ["uuid", "verdict"],
    ["source.pod_name", "destination", "IP", "l4", "node_name"],
    ["time", "extensions", "Summary", "is_reply"],
    ["l4.TCP.destination_port", "IP.source"],
)


def batch_of(pipeline: Pipeline) -> Batch:
    block = pipeline.store.block(0, pipeline.store.head)
    return block.take(np.flatnonzero(block["kind"] == 0))


@pytest.mark.parametrize("paths", MASKS, ids=",".join)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_lines_are_the_json_of_the_messages(paths: list[str], seed: int) -> None:
    pipeline = Pipeline()
    pipeline.tell(*names(4))
    pipeline.feed(strange(300, seed))
    pipeline.feed(traffic(100, 4))
    batch, mask = batch_of(pipeline), parse_mask(paths)
    batch["time_ns"][:4] = [5_000_000_000, 7_120_000_000, 7_000_001_000, 8_000_000_001]

    found = JsonLines(NODE, pipeline.directory, mask).lines(batch)

    responses = Encoder(NODE, pipeline.directory, mask).responses(batch)
    expected = [
        json_format.MessageToDict(
            observer_pb2.ExportEvent.FromString(one), preserving_proto_field_name=True
        )
        for one in responses
    ]
    assert expected == [json.loads(line) for line in found]
    assert {line[-1:] for line in found} == {b"\n"}
