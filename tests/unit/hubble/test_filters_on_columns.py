"""Filters on columns select exactly the flows that the same filters select one by one."""

from __future__ import annotations

from typing import Any

import pytest
from cilium_core import flow_filters
from cilium_core.flow_filters import FilterError
from flow import flow_pb2
from hubble_server.filters.compiling import _END_FIELDS
from hubble_server.filters.fields import FIELDS, RECORD_FIELDS
from hubble_server.flows.querying import Query
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.hubble.loads import (
    address_of,
    event,
    identity_of,
    join,
    names,
    record,
    strange,
    strange_records,
)
from tests.unit.hubble.pipelines import Pipeline

Flow = flow_pb2.Flow

_IPS = [address_of(0), address_of(0, ipv6=True), "FD00:244::1", "192.0.2.0/24", "fd00::/8",
        "10.244.0.0/30", "0.0.0.0/0", "::/0", "::102:304"]  # fmt: skip
_NAMES = ["ns0/", "/pod-1", "/", "pod", "ns1/pod-", "ns0/pod-0/x", "default/"]
_LABELS = ["app=app0", "k8s:app!=app1", "reserved:host", "!app", "app in (app0, app2)",
           "app notin (app3)", "", "k8s:io.cilium.k8s.policy.cluster=default,app"]  # fmt: skip
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "source_ip": st.sampled_from(_IPS),
    "destination_ip": st.sampled_from(_IPS),
    "source_ip_xlated": st.sampled_from(_IPS),
    "source_pod": st.sampled_from(_NAMES),
    "destination_pod": st.sampled_from(_NAMES),
    "source_service": st.sampled_from(_NAMES),
    "source_label": st.sampled_from(_LABELS),
    "destination_label": st.sampled_from(_LABELS),
    "node_labels": st.sampled_from(["os=linux", "os!=linux", "zone"]),
    "source_identity": st.sampled_from([0, 2, identity_of(0), identity_of(1)]),
    "destination_identity": st.sampled_from([1, identity_of(2), 0x01000001]),
    "source_workload": st.builds(
        flow_pb2.Workload, name=st.sampled_from(["", "app1"]), kind=st.sampled_from(["", "Job"])
    ),
    "destination_cluster_name": st.sampled_from(["default", "other"]),
    "verdict": st.integers(0, 7),
    "traffic_direction": st.integers(0, 2),
    "drop_reason_desc": st.sampled_from([0, 133, 181, 203]),
    "event_type": st.builds(
        flow_pb2.EventTypeFilter,
        type=st.sampled_from([0, 1, 4, 5, 129]),
        match_sub_type=st.booleans(),
        sub_type=st.sampled_from([0, 4, 133]),
    ),
    "protocol": st.sampled_from(
        ["tcp", "UDP", "icmp", "ICMPv6", "sctp", "igmp", "http", "dns", "KAFKA"]
    ),
    "source_port": st.sampled_from(["0", "80", "40000"]),
    "destination_port": st.sampled_from(["53", "443"]),
    "reply": st.booleans(),
    "tcp_flags": st.builds(
        flow_pb2.TCPFlags, SYN=st.booleans(), ACK=st.booleans(), RST=st.booleans(), NS=st.booleans()
    ),
    "ip_version": st.integers(0, 2),
    "interface": st.builds(
        flow_pb2.NetworkInterface, index=st.integers(0, 2), name=st.sampled_from(["", "lxc1"])
    ),
    "encrypted": st.booleans(),
    "node_name": st.sampled_from(["node1", "node*", "default/", "other/node1", "*/node1"]),
    "uuid": st.just("6b2f7f1e-1111-4222-8333-444455556666"),
    "source_fqdn": st.sampled_from(["*.example.com", "alias1.test"]),
    "destination_fqdn": st.sampled_from(["api.*", "*"]),
    "dns_query": st.sampled_from(["a.*b", "test"]),
    "http_method": st.sampled_from(["get"]),
    "http_status_code": st.sampled_from(["200", "4+"]),
    "http_path": st.sampled_from(["^/a$", "plain"]),
    "http_url": st.sampled_from(["b=1"]),
    "http_header": st.builds(flow_pb2.HTTPHeader, key=st.just("a"), value=st.just("b")),
    "trace_id": st.sampled_from(["", "ab" * 16]),
    "ip_trace_id": st.integers(0, 1),
}
_EXPRESSIONS = [
    "_flow.verdict == Verdict.DROPPED",
    "has(_flow.l4.TCP) && _flow.l4.TCP.destination_port < 1000u",
    "_flow.source.labels.exists(one, one.startsWith('k8s:app'))",
    "_flow.node_name.endsWith('node1') && _flow.IP.source != ''",
    "1 / int(_flow.event_type.type - _flow.event_type.type) > 0",
]


@st.composite
def filters(draw: st.DrawFn) -> flow_pb2.FlowFilter:
    entry = flow_pb2.FlowFilter()
    for name in draw(st.lists(st.sampled_from(sorted(_VALUES)), max_size=3, unique=True)):
        values = draw(st.lists(_VALUES[name], min_size=1, max_size=3))
        getattr(entry, name).extend(values)
    if draw(st.integers(0, 4)) == 0:
        entry.experimental.cel_expression.append(draw(st.sampled_from(_EXPRESSIONS)))
    return entry


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 1 << 30),
    whitelist=st.lists(filters(), max_size=2),
    blacklist=st.lists(filters(), max_size=2),
)
def test_masks_agree_with_testing_each_flow_on_its_own(
    seed: int, whitelist: list[flow_pb2.FlowFilter], blacklist: list[flow_pb2.FlowFilter]
) -> None:
    pipeline = Pipeline()
    pipeline.tell(*names(4))
    pipeline.feed(strange(30, seed))
    pipeline.tell(*strange_records(15, seed))
    pipeline.feed(strange(5, seed + 1))
    flows = pipeline.flows()
    if flows:
        blacklist = [*blacklist, flow_pb2.FlowFilter(uuid=[flows[seed % len(flows)].uuid])]
    try:
        passes = flow_filters.compile_filters(whitelist, blacklist)
    except FilterError:
        with pytest.raises(FilterError, match="requires the event type"):
            pipeline.filters(whitelist, blacklist)
        return
    found = pipeline.flows(Query(filters=pipeline.filters(whitelist, blacklist)))
    assert [flow for flow in flows if passes(flow)] == found
    last = pipeline.flows(Query(number=3, filters=pipeline.filters(whitelist, blacklist)))
    assert found[-3:] == last


def test_every_field_of_the_api_is_compiled() -> None:
    ends = {f"{end}_{name}" for end in ("source", "destination") for name in _END_FIELDS}
    ends |= {"source_fqdn", "destination_fqdn"}
    compiled = {*FIELDS, *RECORD_FIELDS, *ends, "source_service", "destination_service"}
    compiled |= {"interface", "node_name", "node_labels", "experimental"}
    assert set(flow_pb2.FlowFilter.DESCRIPTOR.fields_by_name) == compiled


def test_dropped_flows_count_as_no_replies_and_others_without_the_answer_as_nothing() -> None:
    pipeline = Pipeline()
    pipeline.feed(join([event(type=1, subtype=133), event(type=4, subtype=5, reason=5)]))
    for wanted, expected in ((False, [1]), (True, [])):
        found = pipeline.flows(
            Query(filters=pipeline.filters([flow_pb2.FlowFilter(reply=[wanted])]))
        )
        assert expected == [flow.event_type.type for flow in found]


def test_a_row_that_appears_after_a_filter_was_compiled_is_tested_too() -> None:
    pipeline = Pipeline()
    compiled = pipeline.filters([flow_pb2.FlowFilter(source_pod=["/pod-2"])])
    pipeline.feed(event(type=4, saddr=address_of(0)))
    assert pipeline.flows(Query(filters=compiled)) == []
    pipeline.feed(event(type=4, saddr=address_of(2)))
    (flow,) = pipeline.flows(Query(filters=compiled))
    assert flow.source.pod_name == "pod-2"


def test_records_kept_as_messages_pass_the_same_filters() -> None:
    from cilium.metadata.v1 import metadata_pb2

    pipeline = Pipeline()
    record = Flow(verdict=flow_pb2.DROPPED, Type=flow_pb2.L7)
    record.event_type.type = 129
    record.l7.http.method = "GET"
    update = metadata_pb2.Update(l7=metadata_pb2.L7Record(flow=record))
    pipeline.feed(event(type=4, saddr=address_of(0)))
    pipeline.tell(update)
    wanted = pipeline.filters([flow_pb2.FlowFilter(http_method=["get"])])
    (flow,) = pipeline.flows(Query(filters=wanted))
    assert (flow.node_name, flow.l7.http.method) == ("node1", "GET")
    assert len(pipeline.flows()) == 2


def test_patterns_find_records_among_all_that_was_overwritten() -> None:
    pipeline = Pipeline(capacity=127)
    for number in range(3):
        http = flow_pb2.Layer7(
            type=flow_pb2.REQUEST, http=flow_pb2.HTTP(url=f"http://w/a%20{number}")
        )
        pipeline.tell(*[record(http) for _ in range(2000)])
        pipeline.feed(strange(100, number))
    found = [
        len(
            pipeline.flows(Query(filters=pipeline.filters([flow_pb2.FlowFilter(http_path=[path])])))
        )
        for path in ("^/a 2$", "^/a [01]$", "")
    ]
    assert found == [27, 0, 27]
