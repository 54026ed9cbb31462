"""Events become flows with the fields that Hubble's rules give them."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
from cilium_core import abi
from flow import flow_pb2
from hubble_server.encoding.masks import apply_mask, parse_mask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.hubble.loads import address_of, event, identity_of, strange
from tests.unit.hubble.pipelines import Pipeline
from tests.unit.hubble.plain import Names, flow_of

quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(seed=st.integers(0, 1 << 30))
def test_every_event_becomes_the_flow_that_the_plain_rules_make_of_it(seed: int) -> None:
    pipeline = Pipeline()
    events = strange(60, seed)
    pipeline.feed(events)
    names = Names.of(pipeline.updates)
    found = pipeline.responses()
    assert len(events) == len(found)
    for one, response in zip(events, found, strict=True):
        expected = flow_of(one, names)
        expected.time.CopyFrom(response.flow.time)
        expected.uuid = response.flow.uuid
        assert expected == response.flow
        assert (response.node_name, response.time) == ("node1", response.flow.time)
        assert uuid.UUID(response.flow.uuid).version == 4


_PATHS = (
    "time", "uuid", "source", "source.identity", "source.pod_name", "destination.labels",
    "destination.workloads", "IP", "IP.source", "l4", "l4.TCP.source_port", "l4.ICMPv4", "Type",
    "verdict", "node_name", "event_type", "event_type.sub_type", "is_reply", "is_reply.value",
    "Summary", "ethernet.source", "interface.name", "ingress_allowed_by", "policy_log", "file.line",
    "tunnel", "tunnel.vni", "source_service", "l7.http.code", "drop_reason_desc", "emitter",
    "proxy_port", "traffic_direction", "time.seconds", "trace_context.parent.trace_id",
    "extensions", "extensions.type_url",
)  # fmt: skip


@quick
@given(seed=st.integers(0, 1 << 30), paths=st.lists(st.sampled_from(_PATHS), min_size=1))
def test_a_field_mask_gives_what_applying_it_to_the_whole_flow_gives(
    seed: int, paths: list[str]
) -> None:
    pipeline = Pipeline()
    pipeline.feed(strange(20, seed))
    mask = parse_mask(paths)
    assert mask is not None
    for whole, part in zip(pipeline.responses(), pipeline.responses(mask=mask), strict=True):
        expected = flow_pb2.Flow()
        apply_mask(mask, whole.flow, expected)
        assert expected == part.flow
        assert expected.node_name == part.node_name
        assert expected.HasField("time") == part.HasField("time")
        assert expected.time == part.time


def test_masked_parents_are_present_even_when_the_flow_lacks_them() -> None:
    pipeline = Pipeline()
    pipeline.feed(event(type=4))
    (response,) = pipeline.responses(mask=parse_mask(["IP.source", "l4.TCP.source_port"]))
    assert response.flow.HasField("IP")
    assert response.flow.HasField("l4")
    assert response.flow.l4.WhichOneof("protocol") is None


def test_times_are_unique_and_increasing_whatever_the_events_say() -> None:
    pipeline = Pipeline()
    events = np.concatenate([event(type=4, time_ns=time) for time in (5000, 5000, 4000, 9000)])
    pipeline.feed(events)
    pipeline.feed(events)
    times = [flow.time.ToNanoseconds() for flow in pipeline.flows()]
    assert sorted(set(times)) == times
    assert len(times) == 8


def test_the_identity_of_the_packet_wins_over_the_one_of_the_address() -> None:
    pipeline = Pipeline()
    pipeline.feed(event(type=4, saddr=address_of(0), src_identity=identity_of(3)))
    (flow,) = pipeline.flows()
    assert ("pod-0", identity_of(3)) == (flow.source.pod_name, flow.source.identity)
    assert "k8s:app=app3" in flow.source.labels


def test_a_reply_keeps_the_direction_of_its_connection() -> None:
    pipeline = Pipeline()
    # The server (endpoint 2) was reached from outside; its answer is still ingress traffic.
    pipeline.feed(event(type=4, subtype=3, reason=2, endpoint=2, saddr=address_of(1)))
    (flow,) = pipeline.flows()
    assert flow.traffic_direction == flow_pb2.INGRESS
    assert flow.is_reply.value


def test_an_event_of_an_unknown_kind_is_not_a_flow() -> None:
    pipeline = Pipeline()
    pipeline.feed(event(type=77))
    assert pipeline.flows() == []


@pytest.mark.parametrize(
    ("number", "audited", "verdict", "reason", "field"),
    [
        (0, False, flow_pb2.FORWARDED, 0, "ingress_allowed_by"),
        (15001, False, flow_pb2.REDIRECTED, 0, "ingress_allowed_by"),
        (-181, False, flow_pb2.DROPPED, 181, "ingress_denied_by"),
        (-133, False, flow_pb2.DROPPED, 133, "ingress_denied_by"),
        (0, True, flow_pb2.AUDIT, 0, "ingress_denied_by"),
        (15001, True, flow_pb2.AUDIT, 0, "ingress_denied_by"),
    ],
)
def test_a_verdict_names_the_policies_behind_it(
    number: int, audited: bool, verdict: int, reason: int, field: str
) -> None:
    pipeline = Pipeline()
    flags = abi.constants["EVENT_INGRESS"] | audited * abi.constants["EVENT_AUDITED"]
    pipeline.feed(
        event(type=5, saddr=address_of(0), daddr=address_of(1), verdict=number, cookie=1,
              flags=flags)
    )  # fmt: skip
    (flow,) = pipeline.flows()
    assert (verdict, reason) == (flow.verdict, flow.drop_reason)
    for name in ("ingress_allowed_by", "ingress_denied_by", "egress_allowed_by"):
        assert (["rule1"] if name == field else []) == [one.name for one in getattr(flow, name)]


def test_a_drop_for_another_reason_names_no_policies() -> None:
    pipeline = Pipeline()
    pipeline.feed(event(type=5, saddr=address_of(0), verdict=-203, cookie=1))
    (flow,) = pipeline.flows()
    assert not flow.ingress_denied_by
