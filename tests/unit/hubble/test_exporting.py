"""Exporters: what they write, how files are begun anew, and what follows their configuration."""

from __future__ import annotations

import asyncio
import gzip
import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cilium.metadata.v1 import metadata_pb2
from cilium_core.errors import InvalidError
from flow import flow_pb2
from hubble_server.exporting.configuring import Exporters, parse_file, parse_filters
from hubble_server.exporting.exporters import Export, Exporter, Feed
from hubble_server.exporting.files import RotatingFile
from hubble_server.servicers.streaming import NewEvents

from tests.unit.hubble.loads import event, make, strange, strange_records
from tests.unit.hubble.pipelines import NODE, Pipeline

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

LIMIT_S = 10.0


def feed_of(pipeline: Pipeline) -> Feed:
    return Feed(pipeline.store, pipeline.directory, lambda: NODE, NewEvents(pipeline.store))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def eventually(path: Path, count: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(LIMIT_S):
        while len(lines(path)) < count:  # noqa: ASYNC110  written by a thread
            await asyncio.sleep(0.01)
    return lines(path)


async def taken(exporter: Exporter, count: int) -> None:
    async with asyncio.timeout(LIMIT_S):
        while exporter.taken < count:  # noqa: ASYNC110  counted after a thread's work
            await asyncio.sleep(0.01)


@asynccontextmanager
async def exporting(pipeline: Pipeline, export: Export) -> AsyncIterator[Exporter]:
    exporter = Exporter(export, feed_of(pipeline))
    task = asyncio.create_task(exporter.run())
    await asyncio.sleep(0)
    try:
        yield exporter
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_flows_events_and_losses_are_lines_of_json(tmp_path: Path) -> None:
    pipeline, path = Pipeline(), tmp_path / "sub" / "flows.log"
    pipeline.feed(event(type=4))  # before the exporter: not its business
    async with exporting(pipeline, Export("all", str(path))):
        pipeline.feed(strange(40, 1), lost={0: 7})
        pipeline.tell(*strange_records(5, 1))
        agent_event = flow_pb2.AgentEvent(type=flow_pb2.AGENT_STARTED)
        pipeline.tell(make(agent_event=metadata_pb2.AgentEvent(event=agent_event)))
        expected = pipeline.flows()[1:]
        written = await eventually(path, len(expected) + 2)

    flows = [one for one in written if "flow" in one]
    assert [one["flow"]["uuid"] for one in flows] == [flow.uuid for flow in expected]
    assert {one["node_name"] for one in flows} == {NODE.qualified_name}
    assert [one["lost_events"]["num_events_lost"] for one in written if "lost_events" in one] == [
        "7"
    ]
    assert [one["node_name"] for one in written if "agent_event" in one] == [NODE.name]


async def test_filters_and_masks_choose_what_is_written(tmp_path: Path) -> None:
    pipeline, path = Pipeline(), tmp_path / "flows.log"
    export = Export(
        "some",
        str(path),
        allow=(flow_pb2.FlowFilter(verdict=[flow_pb2.DROPPED]),),
        deny=(flow_pb2.FlowFilter(protocol=["udp"]),),
        field_mask=("verdict", "source.pod_name"),
    )
    async with exporting(pipeline, export):
        pipeline.feed(strange(200, 2), lost={0: 7})
        expected = [
            flow
            for flow in pipeline.flows()
            if flow.verdict == flow_pb2.DROPPED and not flow.l4.HasField("UDP")
        ]
        written = await eventually(path, len(expected))

    assert expected
    assert [one["flow"] for one in written] == [
        {
            "verdict": "DROPPED",
            "source": {"pod_name": flow.source.pod_name} if flow.source.pod_name else {},
        }
        for flow in expected
    ]


async def test_flows_that_are_equal_in_some_fields_become_one_line_with_counts(
    tmp_path: Path,
) -> None:
    pipeline, path = Pipeline(), tmp_path / "flows.log"
    export = Export("sums", str(path), aggregate=("verdict",), interval_s=3600)
    async with exporting(pipeline, export) as exporter:
        pipeline.feed(strange(300, 3))
        flows = pipeline.flows()
        await taken(exporter, len(flows))
        assert lines(path) == []

    written = lines(path)  # on stopping
    assert len(written) == len({flow.verdict for flow in flows})
    total = sum(sum(one["flow"]["aggregate"].values()) for one in written)
    assert total == len(flows)


async def test_what_is_gathered_is_written_early_when_it_is_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubble_server.exporting.exporters._GATHERED", 10)
    pipeline, path = Pipeline(), tmp_path / "flows.log"
    export = Export("sums", str(path), aggregate=("uuid",), interval_s=3600)
    async with exporting(pipeline, export) as exporter:
        pipeline.feed(strange(300, 3))
        flows = pipeline.flows()
        await taken(exporter, len(flows))
        assert len(lines(path)) >= len(flows) - 10


def test_a_full_file_is_kept_under_its_time_and_the_oldest_go(tmp_path: Path) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)

    def tick() -> datetime:
        nonlocal now
        now += timedelta(seconds=1)
        return now

    path = tmp_path / "flows.log"
    file = RotatingFile(path, limit=10, backups=2, compress=True, now=tick)
    for text in (b"first--\n", b"second-\n", b"third--\n", b"fourth-\n", b"x" * 30 + b"\n"):
        file.write(text)
    file.close()

    kept = sorted(one.name for one in tmp_path.iterdir())
    assert kept == [
        "flows-2026-01-02T03-04-08.678.log.gz",
        "flows-2026-01-02T03-04-09.678.log.gz",
        "flows.log",
    ]
    assert gzip.decompress((tmp_path / kept[0]).read_bytes()) == b"third--\n"
    assert path.read_bytes() == b"x" * 30 + b"\n"
    again = RotatingFile(path, limit=100, backups=2)
    again.write(b"more\n")
    again.close()
    assert path.read_bytes().endswith(b"x\nmore\n")


def test_files_of_others_that_begin_alike_are_no_backups(tmp_path: Path) -> None:
    others = [tmp_path / "flows-1.log", tmp_path / "flows-1-old.log", tmp_path / "flows-2.log.gz"]
    for other in others:
        other.write_bytes(b"theirs")
    file = RotatingFile(tmp_path / "flows.log", limit=1, backups=1)
    for _ in range(4):
        file.write(b"line\n")
    file.close()
    assert all(other.read_bytes() == b"theirs" for other in others)


async def test_exporters_follow_their_file_and_bad_content_changes_nothing(tmp_path: Path) -> None:
    pipeline = Pipeline()
    config, first, second = tmp_path / "e.yaml", tmp_path / "a.log", tmp_path / "b.log"
    exporters = Exporters(config, feed_of(pipeline))
    task = None
    try:
        config.write_text(f"flowLogs: [{{name: a, filePath: {first}}}]")
        await exporters.look()
        await asyncio.sleep(0)
        pipeline.feed(event(type=4))
        await eventually(first, 1)
        config.write_text(f"flowLogs: [{{name: a, filePath: {first}}}, {{name: b}}]")
        await exporters.look()
        pipeline.feed(event(type=4))
        await eventually(first, 2)
        config.write_text(f"flowLogs: [{{name: b, filePath: {second}}}]")
        await exporters.look()
        await asyncio.sleep(0)
        pipeline.feed(event(type=4))
        await eventually(second, 1)
    finally:
        task = asyncio.create_task(exporters.run())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert len(lines(first)) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("flowLogs: 1", "flowLogs: must be a list"),
        ("flowLogs: [{name: a}]", "flowLogs[0].filePath: is missing"),
        ("flowLogs: [{name: a, filePath: x}, {name: a, filePath: y}]", "named twice"),
        ("flowLogs: [{name: a, filePath: x}, {name: b, filePath: x}]", "the file of a too"),
        ("flowLogs: [{name: a, filePath: x, colour: 1}]", "flowLogs[0].colour: there is no such"),
        ("flowLogs: [{name: a, filePath: x, includeFilters: [{z: 1}]}]", "[0].includeFilters"),
        ("flowLogs: [{name: a, filePath: x, end: soon}]", "flowLogs[0].end: 'soon'"),
        ("flowLogs: [{name: a, filePath: x, aggregationInterval: soon}]", "aggregationInterval"),
        ("flowLogs: [{name: a, filePath: x, fileMaxSizeMb: -1}]", "fileMaxSizeMb: -1"),
    ],
)
def test_a_file_that_makes_no_sense_says_where(text: str, says: str) -> None:
    with pytest.raises(InvalidError) as raised:
        parse_file(text)
    assert says in str(raised.value)


def test_filters_stand_one_after_another() -> None:
    found = parse_filters('{"verdict":["DROPPED"]} {"protocol":["tcp"]}', "x")
    assert [list(one.protocol) for one in found] == [[], ["tcp"]]
    with pytest.raises(InvalidError, match="x: ', "):
        parse_filters('{"verdict":["DROPPED"]}, {"protocol":["tcp"]}', "x")


async def test_a_time_that_has_come_ends_the_writing(tmp_path: Path) -> None:
    pipeline, path = Pipeline(), tmp_path / "flows.log"
    export = Export("past", str(path), end=datetime.now(UTC) - timedelta(seconds=1))
    async with exporting(pipeline, export) as exporter:
        pipeline.feed(event(type=4))
        await taken(exporter, 1)
    assert lines(path) == []
