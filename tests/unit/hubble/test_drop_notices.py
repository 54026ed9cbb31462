"""Drops become notices about pods of the node: worded as Hubble's, and never a flood."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from cilium_core.errors import InvalidError, UnavailableError
from flow import flow_pb2
from hubble_server.drops import NOTICED, DropNotices, DropRules, notice_of, reasons_of
from hubble_server.exporting.exporters import Export, Exporter, Feed
from hubble_server.servicers.streaming import NewEvents
from observer import observer_pb2

from tests.unit.hubble.loads import strange
from tests.unit.hubble.pipelines import NODE, Pipeline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cilium.metadata.v1 import notices_pb2

LIMIT_S = 10.0
DENIED = ("POLICY_DENIED",)


def denied(direction: flow_pb2.TrafficDirection, **fields: Any) -> flow_pb2.Flow:
    return flow_pb2.Flow(
        verdict=flow_pb2.DROPPED,
        drop_reason_desc=flow_pb2.POLICY_DENIED,
        traffic_direction=direction,
        IP=flow_pb2.IP(source="10.0.0.1", destination="10.0.0.2"),
        l4=flow_pb2.Layer4(TCP=flow_pb2.TCP(source_port=5, destination_port=80)),
        **{
            "source": flow_pb2.Endpoint(ID=1, identity=300, namespace="a", pod_name="x"),
            "destination": flow_pb2.Endpoint(ID=2, identity=301, namespace="b", pod_name="y"),
            **fields,
        },
    )


def told(flow: flow_pb2.Flow, *, extended: bool = False) -> tuple[str, str]:
    notice = notice_of(flow, extended=extended)
    assert notice is not None
    assert notice.reason == "PacketDrop"
    return f"{notice.namespace}/{notice.pod_name}", notice.message


def test_a_drop_is_told_of_at_the_pod_whose_policy_it_was() -> None:
    assert told(denied(flow_pb2.INGRESS)) == (
        "b/y",
        "Incoming packet dropped (policy_denied) from a/x (10.0.0.1) TCP/80.",
    )
    assert told(denied(flow_pb2.EGRESS)) == (
        "a/x",
        "Outgoing packet dropped (policy_denied) to b/y (10.0.0.2) TCP/80.",
    )


def test_what_is_no_pod_is_named_by_what_is_known_of_it() -> None:
    world = flow_pb2.Endpoint(identity=2, labels=["reserved:world"])
    assert told(denied(flow_pb2.EGRESS, destination=world))[1] == (
        "Outgoing packet dropped (policy_denied) to world (10.0.0.2) TCP/80."
    )
    cidr = flow_pb2.Endpoint(identity=1 << 24)
    flow = denied(flow_pb2.EGRESS, destination=cidr)
    flow.l4.ICMPv4.type = 8
    assert told(flow)[1] == "Outgoing packet dropped (policy_denied) to 10.0.0.2 ICMPv4."


def test_policies_are_named_where_that_is_wanted() -> None:
    flow = denied(flow_pb2.INGRESS)
    assert told(flow, extended=True)[1].endswith("TCP/80. No policy allows it.")
    flow.ingress_denied_by.add(kind="CiliumNetworkPolicy", namespace="b", name="no")
    assert told(flow, extended=True)[1].endswith("TCP/80. Denied by CiliumNetworkPolicy b/no.")


def test_pods_of_other_nodes_and_unknown_directions_are_not_told_of() -> None:
    elsewhere = flow_pb2.Endpoint(identity=300, namespace="b", pod_name="y")
    assert notice_of(denied(flow_pb2.INGRESS, destination=elsewhere), extended=False) is None
    unknown = denied(flow_pb2.TRAFFIC_DIRECTION_UNKNOWN)
    assert notice_of(unknown, extended=False) is None


def test_reasons_are_named_as_in_flows() -> None:
    found = reasons_of(("auth_required", "Policy_Denied"))
    assert found == ("AUTH_REQUIRED", "POLICY_DENIED")
    with pytest.raises(InvalidError, match="'colour' is no reason"):
        reasons_of(("colour",))
    with pytest.raises(InvalidError, match="at least one"):
        reasons_of(())


class Agent:
    """Keeps what it is told, or is away."""

    def __init__(self) -> None:
        self.notices: list[notices_pb2.Notice] = []
        self.away = False
        self.asked = 0

    async def report(self, notices: Sequence[notices_pb2.Notice]) -> int:
        self.asked += 1
        if self.away:
            raise UnavailableError("away")
        self.notices += notices
        return len(notices)


def events(*flows: flow_pb2.Flow) -> list[bytes]:
    return [observer_pb2.ExportEvent(flow=flow).SerializeToString() for flow in flows]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_equal_drops_are_one_notice_an_interval_that_counts_the_others() -> None:
    agent, now = Agent(), [0.0]
    notices = DropNotices(DropRules(DENIED, interval_s=60, rate=5), agent.report, lambda: now[0])
    flow = denied(flow_pb2.INGRESS)
    notices.write(events(*[flow] * 10))
    now[0] = 59.0
    notices.write(events(flow, denied(flow_pb2.EGRESS)))
    now[0] = 61.0
    notices.write(events(flow))
    await settle()
    assert [(one.pod_name, one.count) for one in agent.notices] == [("y", 1), ("x", 1), ("y", 11)]


async def test_different_drops_are_told_of_at_a_bounded_rate() -> None:
    agent, now = Agent(), [0.0]
    notices = DropNotices(DropRules(DENIED, rate=2), agent.report, lambda: now[0])

    def scan(start: int) -> list[bytes]:
        flows = [denied(flow_pb2.INGRESS) for _ in range(100)]
        for port, flow in enumerate(flows, start):
            flow.l4.TCP.destination_port = port
        return events(*flows)

    notices.write(scan(1))
    await settle()
    assert len(agent.notices) == 2
    now[0] = 1.0
    notices.write(scan(1000))
    await settle()
    assert len(agent.notices) == 4


async def test_an_agent_that_is_away_stops_nothing() -> None:
    agent = Agent()
    agent.away = True
    notices = DropNotices(DropRules(DENIED, rate=5), agent.report)
    notices.write(events(denied(flow_pb2.INGRESS)))
    await settle()
    agent.away = False
    notices.write(events(denied(flow_pb2.EGRESS)))
    await settle()
    assert (agent.asked, len(agent.notices)) == (2, 1)


async def test_drops_of_the_ring_reach_the_agent() -> None:
    pipeline, agent = Pipeline(), Agent()
    rules = DropRules(DENIED, rate=100)
    feed = Feed(pipeline.store, pipeline.directory, lambda: NODE, NewEvents(pipeline.store))
    export = Export("drop-events", "", allow=rules.filters, field_mask=NOTICED)
    exporter = Exporter(export, feed, DropNotices(rules, agent.report))
    task = asyncio.create_task(exporter.run())
    await asyncio.sleep(0)
    pipeline.feed(strange(1000, 1))
    expected = set()
    for flow in pipeline.flows():
        if flow.verdict == flow_pb2.DROPPED and flow.drop_reason_desc == flow_pb2.POLICY_DENIED:
            notice = notice_of(flow, extended=False)
            expected |= {notice.message} if notice is not None else set()
    assert 0 < len(expected) <= 100
    async with asyncio.timeout(LIMIT_S):
        while len(agent.notices) < len(expected):  # noqa: ASYNC110  told by a task of the loop
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert {one.message for one in agent.notices} == expected
