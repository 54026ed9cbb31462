"""Summaries of parts: they spare reading, and never change an answer."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from cilium_core import abi
from cilium_core.flow_dimensions import NAMES
from flow import flow_pb2
from hubble_server.flows.naming import Namer
from hubble_server.flows.querying import Query
from hubble_server.history import walking
from hubble_server.history.counting import count
from hubble_server.history.files import ROW_GROUP
from hubble_server.history.layout import parts_of, summary_path, uuids_path
from hubble_server.history.summaries import Reader, summary_of
from hubble_server.history.uuids import may_have, wanted_uuids
from hubble_server.history.walking import Asked

from tests.unit.hubble.loads import names, strange_records, traffic
from tests.unit.hubble.pipelines import NODE
from tests.unit.hubble.test_history import Kept, uuids
from tests.unit.hubble.test_history_counts import counted, told

if TYPE_CHECKING:
    from pathlib import Path

    from cilium.flows.v1 import flows_pb2
    from numpy.typing import NDArray

FILTERS = (
    flow_pb2.FlowFilter(source_pod=["ns1/"], destination_port=["80", "443"]),
    flow_pb2.FlowFilter(verdict=[flow_pb2.DROPPED], source_ip=["10.244.0.2"]),
    flow_pb2.FlowFilter(source_port=["40000"]),
    flow_pb2.FlowFilter(source_port=["443"]),
    flow_pb2.FlowFilter(destination_port=["40000", "50001"]),
    flow_pb2.FlowFilter(destination_port=["8080"], reply=[True]),
    flow_pb2.FlowFilter(tcp_flags=[flow_pb2.TCPFlags(SYN=True)], reply=[True]),
    flow_pb2.FlowFilter(destination_identity=[1003]),
    flow_pb2.FlowFilter(http_method=["GET"]),
    flow_pb2.FlowFilter(protocol=["dns"]),
    flow_pb2.FlowFilter(event_type=[flow_pb2.EventTypeFilter(type=5)]),
    flow_pb2.FlowFilter(
        experimental=flow_pb2.FlowFilter.Experimental(cel_expression=["_flow.verdict == 2"])
    ),
    flow_pb2.FlowFilter(interface=[flow_pb2.NetworkInterface(name="lxc1")]),
    flow_pb2.FlowFilter(source_pod=["nowhere/"]),
)


def turned(count: int, pods: int, seed: int) -> NDArray[Any]:
    """Traffic with replies to the ports of clients."""
    events = traffic(count, pods, seed)
    back = events["reason"] == abi.constants["REASON_REPLY"]
    ports = events["sport"].copy(), events["dport"].copy()
    events["sport"][back], events["dport"][back] = ports[1][back], ports[0][back]
    return events


def filled(path: Path, *, records: bool = True) -> Kept:
    kept = Kept(path, capacity=4095)
    kept.tell(*names(4))
    kept.feed(turned(2500, 2, 1))
    kept.feed(turned(500, 4, 2), lost={0: 9})
    if records:
        kept.tell(*strange_records(60, 1))
    kept.feed(turned(500, 4, 3))
    kept.complete()
    (part,) = parts_of(path)[0]
    assert summary_path(path, part.number).exists()
    return kept


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return filled(tmp_path_factory.mktemp("history"))


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No part's own file may be read."""

    def opened(path: Path, _: object) -> None:
        pytest.fail(f"{path} is read")

    monkeypatch.setattr(walking, "Opened", opened)


def ask(
    kept: Kept, *by: str, asked: Asked | None = None, query: Query | None = None
) -> flows_pb2.AggregateFlowsResponse:
    namer = Namer(NODE, kept.directory)
    return count(
        kept.history, kept.store, query or Query(), asked or Asked(), [NAMES[one] for one in by],
        0, namer,
    )  # fmt: skip


@pytest.mark.parametrize("deny", [False, True])
@pytest.mark.parametrize("one", FILTERS, ids=lambda one: one.ListFields()[0][0].name)
def test_filters_and_counts_find_the_same_as_in_the_ring(
    kept: Kept, one: flow_pb2.FlowFilter, deny: bool
) -> None:
    allowed, denied = ([], [one]) if deny else ([one], [])
    query = Query(filters=kept.filters(allowed, denied))
    flows = kept.flows(query)
    asked = Asked(whitelist=allowed, blacklist=denied)
    found = kept.read(asked)
    assert [each.flow for each in found if each.HasField("flow")] == flows
    assert [one.lost_events.num_events_lost for one in found if one.HasField("lost_events")] == [9]
    by = ("source", "destination", "verdict", "reply")
    answer = ask(kept, *by, asked=asked, query=query)
    assert told(answer) == counted(flows, *by)
    assert answer.budgets[0].lost_in_kernel == 9


@pytest.mark.parametrize("dimension", sorted(NAMES))
def test_counts_by_each_dimension_are_those_of_single_flows(kept: Kept, dimension: str) -> None:
    assert told(ask(kept, dimension, "verdict")) == counted(kept.flows(), dimension, "verdict")


def test_sums_and_times_are_those_of_the_flows(kept: Kept) -> None:
    flows = kept.flows()
    (group,) = ask(kept).groups
    columns = kept.store.block(kept.store.oldest, kept.store.head)
    assert group.packets == columns["packets"].sum()
    assert group.bytes == columns["bytes"].sum()
    times = [flow.time.ToNanoseconds() for flow in flows]
    assert (group.first_ns, group.last_ns) == (min(times), max(times))


def test_what_is_nowhere_in_a_part_costs_no_look_at_it(tmp_path: Path, unread: None) -> None:
    path = tmp_path / "history"
    kept = Kept(path)
    kept.feed(turned(3000, 2, 1))
    kept.complete()
    assert kept.read(Asked(whitelist=[flow_pb2.FlowFilter(source_pod=["nowhere/"])])) == []


def test_counts_that_a_summary_knows_cost_no_look_at_the_part(tmp_path: Path, unread: None) -> None:
    kept = Kept(tmp_path / "history")
    kept.feed(turned(3000, 2, 1))
    kept.complete()
    by = ("source", "destination-namespace", "verdict", "type", "policy")
    assert told(ask(kept, *by)) == counted(kept.flows(), *by)
    served = flow_pb2.FlowFilter(source_pod=["ns0/"], destination_port=["80"])
    query = Query(filters=kept.filters([served]))
    answer = ask(kept, "destination", query=query, asked=Asked(whitelist=[served]))
    assert told(answer) == counted(kept.flows(query), "destination")
    requests = flow_pb2.FlowFilter(reply=[False])
    query = Query(filters=kept.filters([requests]))
    answer = ask(kept, "port", query=query, asked=Asked(whitelist=[requests]))
    assert told(answer) == counted(kept.flows(query), "port")


@pytest.mark.parametrize("how", ["gone", "damaged", "of another part"])
def test_a_summary_that_cannot_be_used_is_done_without(tmp_path: Path, how: str) -> None:
    path = tmp_path / "history"
    kept = filled(path)
    summary = summary_path(path, 1)
    if how == "gone":
        summary.unlink()
    elif how == "damaged":
        data = bytearray(summary.read_bytes())
        data[len(data) // 2] ^= 1
        summary.write_bytes(data)
    else:
        other = Kept(tmp_path / "other")
        other.feed(turned(3000, 2, 1))
        other.complete()
        summary.write_bytes(summary_path(other.path, 1).read_bytes())
    assert summary_of(parts_of(path)[0][0]) is None
    assert told(ask(kept, "source", "verdict")) == counted(kept.flows(), "source", "verdict")
    dropped = flow_pb2.FlowFilter(verdict=[flow_pb2.DROPPED])
    found = uuids(kept.read(Asked(whitelist=[dropped])))
    assert found == [flow.uuid for flow in kept.flows(Query(filters=kept.filters([dropped])))]


def test_row_groups_without_what_is_wanted_are_left_out(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "history", capacity=65535)
    for _ in range(0, ROW_GROUP, 4096):
        kept.feed(turned(4096, 2, 1))
    kept.feed(turned(4096, 1, 1))
    kept.complete()
    (part,) = kept.history.snapshot().parts
    summary = summary_of(part)
    assert summary is not None
    one = flow_pb2.FlowFilter(source_pod=["ns1/pod-1"])
    reader = Reader([one], [])
    assert summary.groups(reader.passing(summary)) == 0b1
    everything = Counter(flow.source.pod_name for flow in kept.flows())
    assert len(kept.read(Asked(whitelist=[one]))) == everything["pod-1"]


def test_a_part_and_its_summary_go_together(tmp_path: Path) -> None:
    path = tmp_path / "history"
    kept = filled(path)
    kept.history._limits = type(kept.history._limits)(max_bytes=1)
    kept.history._tend()
    assert sorted(each.name for each in path.iterdir()) == ["lock"]
    kept.history.stop()
    summary_path(path, 5).write_bytes(b"left over")
    Kept(path)
    assert sorted(each.name for each in path.iterdir()) == ["lock"]


@pytest.mark.parametrize("how", ["there", "gone", "damaged"])
def test_flows_are_found_by_their_uuids(tmp_path: Path, how: str) -> None:
    kept = Kept(tmp_path / "history")
    for seed in range(3):
        kept.feed(traffic(300, 4, seed))
        kept.complete()
    filters = uuids_path(kept.path, 2)
    if how == "gone":
        filters.unlink()
    elif how == "damaged":
        filters.write_bytes(filters.read_bytes()[:-1])
    for flow in kept.flows()[::50]:
        assert uuids(kept.read(Asked(whitelist=[flow_pb2.FlowFilter(uuid=[flow.uuid])]))) == [
            flow.uuid
        ]


def test_parts_that_cannot_have_a_uuid_are_not_read(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "history")
    kept.feed(traffic(2000, 4))
    kept.complete()
    (part,) = kept.history.snapshot().parts
    own = [UUID(flow.uuid) for flow in kept.flows()[:100]]
    assert all(may_have(part, [one]) for one in own)
    others = [UUID(int=chance.getrandbits(128)) for chance in [Random(1)] for _ in range(1000)]
    assert sum(may_have(part, [one]) for one in others) < 40
    assert may_have(part, [others[0], own[0]])
    assert not may_have(part, [])
    assert wanted_uuids([flow_pb2.FlowFilter(uuid=["x"]), flow_pb2.FlowFilter()]) is None
    assert wanted_uuids([flow_pb2.FlowFilter(uuid=["no UUID", str(own[0])])]) == own[:1]
