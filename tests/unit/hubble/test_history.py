"""The history of flows: what is written is read as the ring has it, whatever befalls its files."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cilium_core.errors import InvalidError
from flow import flow_pb2
from hubble_server.encoding.masks import parse_mask
from hubble_server.facts import NodeFacts
from hubble_server.flows.columns import SCHEMA
from hubble_server.flows.querying import Query
from hubble_server.history.answering import ALL, answer, reaches_back
from hubble_server.history.files import Opened, convert
from hubble_server.history.journals import Journal
from hubble_server.history.layout import parts_of
from hubble_server.history.reading import Reading
from hubble_server.history.tables import COLUMNS
from hubble_server.history.walking import Asked
from hubble_server.history.writing import History, Limits
from hubble_server.metadata.directory import Directory
from hubble_server.servicers.streaming import Chunk
from observer import observer_pb2

from tests.unit.hubble.conftest import running
from tests.unit.hubble.loads import names, strange, strange_records, traffic
from tests.unit.hubble.pipelines import NODE, Pipeline

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable
    from pathlib import Path

    from hubble_server.flows.querying import Cursor

Responses = list[observer_pb2.GetFlowsResponse]


class Kept(Pipeline):
    """A pipeline with a history, whose threads do nothing by themselves."""

    def __init__(self, path: Path, capacity: int = 4095, limits: Limits | None = None) -> None:
        super().__init__(capacity)
        self.damage: list[str] = []
        self.node = NODE
        self.path = path
        self.history = History(
            path, limits or Limits(), self.store, self.directory, lambda: self.node
        )

    def complete(self) -> None:
        """Make the journal a complete part."""
        self.history.step()
        self.history._seal()
        self.history._worker.submit(lambda: None).result(10)

    def read(self, asked: Asked | None = None, parts: object = None) -> Responses:
        snapshot = self.history.snapshot()
        return told(
            Reading(snapshot.parts, asked or Asked(), self.damage.append, find=self.history.part)
        )

    async def answer(self, query: Query, asked: Asked | None = None) -> Responses:
        async def go_on(cursor: Cursor) -> AsyncGenerator[Chunk, None]:
            while not cursor.ended:
                for run in cursor.read().runs:
                    assert isinstance(run, dict)
                    flows = self.encode(run)
                    yield Chunk(flows, run["time_ns"].tolist())

        asked = asked or Asked(since_ns=query.since_ns, until_ns=query.until_ns)
        chunks = answer(self.history, self.store, query, asked, go_on)
        return told([chunk async for chunk in chunks])

    def encode(self, run: dict[str, np.ndarray]) -> list[bytes]:
        from hubble_server.encoding.encoder import Encoder

        return Encoder(NODE, self.directory).responses(run)


def told(chunks: Iterable[Chunk]) -> Responses:
    return [
        observer_pb2.GetFlowsResponse.FromString(data)
        for chunk in chunks
        for data in chunk.responses
    ]


def uuids(responses: Responses) -> list[str]:
    return [one.flow.uuid for one in responses if one.HasField("flow")]


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "history")


def strange_flows(pipeline: Pipeline, seed: int = 1) -> None:
    pipeline.tell(*names(4))
    pipeline.feed(strange(300, seed))
    pipeline.tell(*strange_records(40, seed))


@pytest.mark.parametrize("complete", [False, True])
def test_every_flow_is_read_as_the_ring_has_it(kept: Kept, complete: bool) -> None:
    strange_flows(kept)
    kept.feed(traffic(10, 4), lost={1: 5})
    kept.feed(traffic(1, 4))
    kept.history.step()
    if complete:
        kept.complete()
        assert [part.is_journal for part in parts_of(kept.path)[0]] == [False]
    found = kept.read()
    assert [one.flow for one in found if one.HasField("flow")] == kept.flows()
    assert [one.lost_events.num_events_lost for one in found if one.HasField("lost_events")] == [5]
    assert {one.node_name for one in found} == {NODE.qualified_name}


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize(
    "one",
    [
        flow_pb2.FlowFilter(source_pod=["default/"]),
        flow_pb2.FlowFilter(verdict=[flow_pb2.DROPPED]),
        flow_pb2.FlowFilter(destination_port=["80", "443"]),
        flow_pb2.FlowFilter(destination_fqdn=["*.test"]),
        flow_pb2.FlowFilter(http_method=["GET"]),
        flow_pb2.FlowFilter(
            experimental=flow_pb2.FlowFilter.Experimental(
                cel_expression=["_flow.verdict == 2"]  # of flows without a message, too
            )
        ),
    ],
    ids=lambda one: one.ListFields()[0][0].name,
)
def test_filters_find_what_they_find_in_the_ring(
    kept: Kept, complete: bool, one: flow_pb2.FlowFilter
) -> None:
    strange_flows(kept)
    kept.history.step()
    if complete:
        kept.complete()
    for allow, deny in (([one], []), ([], [one])):
        expected = kept.flows(Query(filters=kept.filters(allow, deny)))
        found = kept.read(Asked(whitelist=allow, blacklist=deny))
        assert [each.flow for each in found if each.HasField("flow")] == expected


def test_only_the_fields_asked_for_are_read(kept: Kept) -> None:
    strange_flows(kept)
    kept.complete()
    mask = parse_mask(["source.pod_name", "verdict"])
    flows = [one.flow for one in kept.read(Asked(mask=mask)) if one.HasField("flow")]
    expected = [one.flow for one in kept.responses(mask=mask) if one.HasField("flow")]
    assert flows == expected


def test_times_and_numbers_limit_what_is_read(kept: Kept) -> None:
    kept.feed(traffic(100, 4))
    kept.complete()
    kept.feed(traffic(100, 4, 2))
    kept.history.step()
    flows = kept.flows()
    times = [flow.time.ToNanoseconds() for flow in flows]
    found = kept.read(Asked(since_ns=times[50], until_ns=times[149]))
    assert uuids(found) == [flow.uuid for flow in flows[50:150]]
    assert uuids(kept.read(Asked(number=120))) == [flow.uuid for flow in flows[:120]]


def test_a_restart_keeps_everything_and_the_names_of_then(tmp_path: Path) -> None:
    first = Kept(tmp_path)
    strange_flows(first)
    first.history.step()
    first.history.stop()
    flows = first.flows()
    again = Kept(tmp_path)
    again.feed(traffic(20, 1))
    again.complete()
    assert [one.flow for one in again.read()] == flows + again.flows()


def test_what_was_being_written_at_a_crash_does_not_count(tmp_path: Path) -> None:
    first = Kept(tmp_path)
    first.feed(traffic(50, 4))
    first.history.step()
    kept_so_far = uuids(first.read())
    first.feed(traffic(50, 4, 2))
    first.history.step()
    first.history.stop()
    (journal,) = tmp_path.glob("*.journal")
    os.truncate(journal, journal.stat().st_size - 7)
    (tmp_path / "flows-00000009-1-2-3.parquet.tmp").write_bytes(b"half")
    again = Kept(tmp_path)
    assert uuids(again.read()) == kept_so_far
    again.complete()
    assert uuids(again.read()) == kept_so_far
    assert not list(tmp_path.glob("*.tmp"))


def test_a_conversion_that_was_interrupted_counts_once(tmp_path: Path) -> None:
    first = Kept(tmp_path)
    first.feed(traffic(50, 4))
    first.history.step()
    (journal,) = tmp_path.glob("*.journal")
    copy = journal.read_bytes()
    first.complete()
    first.history.stop()
    journal.write_bytes(copy)
    again = Kept(tmp_path)
    assert uuids(again.read()) == [flow.uuid for flow in first.flows()]
    assert not journal.exists()


@pytest.mark.parametrize("what", ["a page", "a name", "the end"])
def test_a_damaged_part_is_told_and_the_others_are_read(kept: Kept, what: str) -> None:
    kept.feed(traffic(1000, 4))
    kept.complete()
    kept.feed(traffic(30, 4, 2))
    kept.complete()
    damaged = parts_of(kept.path)[0][0].path
    data = bytearray(damaged.read_bytes())
    data[{"a page": 2000, "a name": data.index(b"pod-0"), "the end": -2}[what]] ^= 1
    damaged.write_bytes(data)
    found = kept.read()
    assert uuids(found)[-30:] == [flow.uuid for flow in kept.flows()][-30:]
    assert kept.damage
    losses = [one.lost_events for one in found if one.HasField("lost_events")]
    assert losses[0].num_events_lost == 1000


def test_a_full_disk_loses_nothing_that_the_ring_still_has(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.feed(traffic(10, 4))
    kept.history.step()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hubble_server.history.writing._RETRY_S", 0)
    with monkeypatch.context() as disk:
        disk.setattr(Journal, "append", full)
        kept.feed(traffic(10, 4, 2))
        kept.history.step()
        assert len(uuids(kept.read())) == 10
        kept.history._begin()
        assert len(kept.history.snapshot().parts) == 1
    kept.history.step()
    assert uuids(kept.read()) == [flow.uuid for flow in kept.flows()]


def test_what_the_ring_overwrote_is_told_as_a_loss(tmp_path: Path) -> None:
    kept = Kept(tmp_path, capacity=1)
    for seed in range(3):
        kept.feed(traffic(4096, 4, seed))
    kept.history.step()
    found = kept.read()
    (lost,) = [one.lost_events for one in found if one.HasField("lost_events")]
    assert lost.num_events_lost + len(uuids(found)) == 3 * 4096


def test_the_oldest_parts_go_when_there_are_too_many(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    for seed in range(3):
        kept.feed(traffic(200, 4, seed))
        kept.complete()
    sizes = [part.path.stat().st_size for part in parts_of(tmp_path)[0]]
    kept.history._limits = replace(kept.history._limits, max_bytes=sum(sizes) - 1)
    kept.history._tend()
    assert [part.number for part in parts_of(tmp_path)[0]] == [2, 3]
    kept.history._limits = replace(kept.history._limits, max_age_s=1e-9)
    kept.history._tend()
    assert parts_of(tmp_path)[0] == []
    assert uuids(kept.read()) == []


def test_a_clock_that_steps_back_leaves_all_flows_to_be_found(kept: Kept) -> None:
    kept.feed(traffic(50, 4))
    kept.complete()
    kept.ingest.clock._last_ns = 0
    kept.ingest.clock.offset_ns -= 3600 * 10**9
    kept.feed(traffic(50, 4, 2))
    kept.complete()
    flows = kept.flows()
    late = list(flows[:50])
    since_ns = late[0].time.ToNanoseconds()
    assert uuids(kept.read(Asked(since_ns=since_ns))) == [flow.uuid for flow in late]
    assert uuids(kept.read(Asked(until_ns=since_ns - 1))) == [flow.uuid for flow in flows[50:]]


def test_facts_of_the_node_hold_for_the_flows_of_their_time(kept: Kept) -> None:
    kept.feed(traffic(5, 4))
    kept.history.step()
    kept.node = NodeFacts("renamed")
    kept.history.step()
    kept.feed(traffic(5, 4, 2))
    kept.history.step()
    assert [one.node_name for one in kept.read()] == 5 * [NODE.qualified_name] + 5 * ["renamed"]


def test_two_servers_do_not_share_a_directory(kept: Kept) -> None:
    with pytest.raises(InvalidError, match="in use by another server"):
        Kept(kept.path)


async def test_the_history_goes_on_in_the_ring_without_gap_or_duplicate(tmp_path: Path) -> None:
    kept = Kept(tmp_path, capacity=63)
    expected: list[str] = []
    for seed in range(4):
        kept.feed(traffic(3000, 4, seed))
        expected += [flow.uuid for flow in kept.flows(Query(since_ns=0))][-3000:]
        if seed < 3:
            kept.history.step()
        if seed == 1:
            kept.complete()
    found = uuids(await kept.answer(Query(number=ALL)))
    assert len(found) == len(set(found)) == 12_000
    assert found[-63:] == expected[-63:]
    assert uuids(await kept.answer(Query(number=11_990, first=True))) == found[:11_990]
    since = Query(since_ns=0)
    assert uuids(await kept.answer(since)) == found
    assert len(uuids(kept.read())) == 9000


@pytest.mark.parametrize("flush", [True, False])
async def test_the_last_flows_are_the_newest_wherever_they_are(tmp_path: Path, flush: bool) -> None:
    kept = Kept(tmp_path, capacity=63)
    for seed in range(4):
        kept.feed(traffic(700, 4, seed))
        if seed == 1:
            kept.complete()
        if flush or seed < 3:
            kept.history.step()
    everything = uuids(await kept.answer(Query(number=ALL)))
    for number in (100, 799, 2100, 2750, 10_000):
        query = Query(number=number)
        assert reaches_back(kept.store, query)
        assert uuids(await kept.answer(query)) == everything[-number:]
    dropped = flow_pb2.FlowFilter(verdict=[flow_pb2.DROPPED])
    query = Query(number=50, filters=kept.filters([dropped]))
    found = await kept.answer(query, Asked(whitelist=[dropped]))
    all_dropped = await kept.answer(
        replace(query, number=ALL), Asked(whitelist=[dropped])
    )  # fmt: skip
    assert len(found) == 50
    assert found == all_dropped[-50:]
    until_ns = all_dropped[-60].time.ToNanoseconds()
    earlier = replace(query, until_ns=until_ns)
    asked = Asked(whitelist=[dropped], until_ns=until_ns)
    assert await kept.answer(earlier, asked) == all_dropped[-109:-59]


def test_only_queries_older_than_the_ring_reach_back(kept: Kept) -> None:
    kept.feed(traffic(50, 4))
    first_ns = kept.flows()[0].time.ToNanoseconds()
    reach = [
        Query(since_ns=first_ns - 1), Query(first=True, number=3), Query(number=ALL),
        Query(until_ns=first_ns - 1), Query(number=51), Query(number=51, follow=True),
    ]  # fmt: skip
    stay = [
        Query(since_ns=first_ns), Query(number=20), Query(follow=True), Query(),
        Query(number=ALL, follow=True), Query(until_ns=first_ns + 1, number=20),
    ]  # fmt: skip
    assert all(reaches_back(kept.store, query) for query in reach)
    assert not any(reaches_back(kept.store, query) for query in stay)


async def test_clients_of_a_restarted_server_get_the_flows_of_the_one_before(
    tmp_path: Path,
) -> None:
    settings: dict[str, Any] = {
        "hubble_history_dir": tmp_path / "past",
        "hubble_event_buffer_capacity": 1023,
    }
    async with running(tmp_path, **settings) as server:
        for seed in range(3):
            await server.feed_flows(traffic(1500, 4, seed))
    async with running(tmp_path, **settings) as server:
        await server.feed_flows(traffic(100, 4, 9))
        found = await server.get(number=ALL)
        assert len(set(uuids(found))) == len(found) == 4600
        times = [one.time.ToNanoseconds() for one in found]
        assert times == sorted(times)
        assert await server.get(number=4000, first=True) == found[:4000]
        since = found[100].time
        assert await server.get(since=since) == found[100:]
        until = found[300].time
        assert await server.get(since=since, until=until) == found[100:301]
        dropped = flow_pb2.FlowFilter(verdict=[flow_pb2.DROPPED])
        assert await server.get(number=ALL, whitelist=[dropped]) == [
            one for one in found if one.flow.verdict == flow_pb2.DROPPED
        ]
        assert [one.flow for one in await server.get(number=20)] == [
            one.flow for one in found[-20:]
        ]
        call = server.observer.GetFlows(
            observer_pb2.GetFlowsRequest(since=found[0].time, follow=True)
        )
        followed = [await call.read() for _ in range(4600)]
        assert followed == found
        await server.feed_flows(traffic(1, 4, 10))
        assert (await call.read()).flow.uuid not in uuids(found)
        call.cancel()


def test_a_server_without_a_history_does_not_load_what_it_takes() -> None:
    code = "import sys, hubble_server.app; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize("value", [0, 1, -1])
def test_columns_that_are_the_same_in_all_rows_are_read_as_they_were(
    tmp_path: Path, value: int
) -> None:
    frame: dict[str, np.ndarray] = {}
    for name, kind in SCHEMA.items():
        bits = 8 * kind.itemsize
        whole = (value & ((1 << bits) - 1)).to_bytes(kind.itemsize, "little")
        frame[name] = np.frombuffer(whole * 3, dtype=kind)
    journal = Journal(tmp_path / "flows-00000001.journal", NODE)
    for name in COLUMNS:
        frame[name] = np.zeros(3, dtype=SCHEMA[name])
    journal.append(3, frame, {}, {})
    journal.close()
    part = convert(parts_of(tmp_path)[0][0], pytest.fail)
    assert part is not None
    ((_, group),) = Opened(part.path, Directory()).groups(None, None)
    for name in SCHEMA:
        assert group[name].tobytes() == frame[name].tobytes(), name
        assert group[name].dtype == SCHEMA[name]
