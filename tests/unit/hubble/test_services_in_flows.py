"""Services have their names in flows, and translations at sockets are flows of pods."""

from __future__ import annotations

from typing import Any

import pytest
from cilium.metadata.v1 import metadata_pb2
from cilium_core import abi
from flow import flow_pb2
from hubble_server.flows.querying import Query

from tests.unit.hubble.loads import address_of, event, make, packed
from tests.unit.hubble.pipelines import Pipeline

FRONTEND = "10.96.4.20"
PRE_FORWARD, POST_FORWARD, PRE_REVERSE, POST_REVERSE = (
    abi.constants[f"XLATE_{name}"]
    for name in ("PRE_FORWARD", "POST_FORWARD", "PRE_REVERSE", "POST_REVERSE")
)
TRANSLATED = (512201).to_bytes(8, "little") + (9471).to_bytes(8, "little")


def service(ip: str = FRONTEND, port: int = 80, protocol: int = 6) -> metadata_pb2.Service:
    frontend = metadata_pb2.Frontend(ip=ip, port=port, protocol=protocol)
    return metadata_pb2.Service(frontend=frontend, namespace="shop", name="cart")


def at_socket(point: int, daddr: str = FRONTEND, dport: int = 80, **fields: Any) -> Any:
    made = event(
        type=7, subtype=point, daddr=daddr, dport=dport, proto=6, **{"endpoint": 1, **fields}
    )
    made["orig_saddr"][0] = list(TRANSLATED)
    return made


@pytest.fixture
def pipeline() -> Pipeline:
    made = Pipeline()
    made.tell(make(service=service()))
    return made


def test_a_translation_at_a_socket_is_a_flow_from_its_pod(pipeline: Pipeline) -> None:
    pipeline.feed(at_socket(PRE_FORWARD))
    (flow,) = pipeline.flows()
    assert (flow.Type, flow.verdict) == (flow_pb2.SOCK, flow_pb2.TRACED)
    assert flow.sock_xlate_point == flow_pb2.SOCK_XLATE_POINT_PRE_DIRECTION_FWD
    assert (flow.socket_cookie, flow.cgroup_id) == (512201, 9471)
    assert (address_of(0), FRONTEND, "") == (
        flow.IP.source,
        flow.IP.destination,
        flow.IP.source_xlated,
    )
    assert flow.source.pod_name == "pod-0"
    assert (flow.destination_service.namespace, flow.destination_service.name) == ("shop", "cart")
    assert (
        flow.l4.TCP.source_port,
        flow.l4.TCP.destination_port,
        flow.l4.TCP.HasField("flags"),
    ) == (0, 80, False)
    assert flow.Summary == "TCP"
    assert (flow.event_type.type, flow.event_type.sub_type) == (7, PRE_FORWARD)
    assert not flow.HasField("is_reply")


def test_what_the_socket_connects_to_in_the_end_is_translated(pipeline: Pipeline) -> None:
    pipeline.feed(at_socket(POST_FORWARD, daddr=address_of(1), dport=8080))
    (flow,) = pipeline.flows()
    assert flow.verdict == flow_pb2.TRANSLATED
    assert (flow.destination.pod_name, flow.l4.TCP.destination_port) == ("pod-1", 8080)
    assert not flow.HasField("destination_service")


def test_the_way_back_has_the_pod_as_its_destination(pipeline: Pipeline) -> None:
    pipeline.feed(at_socket(PRE_REVERSE, daddr=address_of(1), dport=8080))
    pipeline.feed(at_socket(POST_REVERSE))
    before, after = pipeline.flows()
    assert (before.source.pod_name, before.destination.pod_name) == ("pod-1", "pod-0")
    assert (before.l4.TCP.source_port, before.l4.TCP.destination_port) == (8080, 0)
    assert (FRONTEND, address_of(0)) == (after.IP.source, after.IP.destination)
    assert after.source_service.name == "cart"
    assert [before.verdict, after.verdict] == [flow_pb2.TRACED, flow_pb2.TRANSLATED]


def test_an_event_over_ipv6_has_the_pods_address_of_that_family(pipeline: Pipeline) -> None:
    pipeline.feed(at_socket(PRE_FORWARD, daddr="fd00:96::1"))
    (flow,) = pipeline.flows()
    assert (address_of(0, ipv6=True), "fd00:96::1") == (flow.IP.source, flow.IP.destination)


@pytest.mark.parametrize("endpoint", [0, 99])
def test_sockets_that_are_no_pods_make_no_flows(pipeline: Pipeline, endpoint: int) -> None:
    pipeline.feed(at_socket(PRE_FORWARD, endpoint=endpoint))
    assert pipeline.flows() == []


def test_an_answer_of_a_service_has_its_name_and_both_its_addresses(pipeline: Pipeline) -> None:
    answer = event(
        type=4, reason=2, endpoint=1, saddr=FRONTEND, daddr=address_of(0), sport=80, dport=40000,
        proto=6,
    )  # fmt: skip
    answer["orig_saddr"][0] = list(packed(address_of(1)))
    pipeline.feed(answer)
    (flow,) = pipeline.flows()
    assert (address_of(1), FRONTEND) == (flow.IP.source, flow.IP.source_xlated)
    assert (flow.source.pod_name, flow.source_service.name) == ("pod-1", "cart")


def test_a_request_names_the_service_that_it_asks(pipeline: Pipeline) -> None:
    asks = {"saddr": address_of(0), "daddr": FRONTEND, "proto": 6, "type": 4}
    pipeline.feed(event(**asks, dport=80))
    pipeline.feed(event(**asks, dport=81))
    named, other = pipeline.flows()
    assert named.destination_service.name == "cart"
    assert not other.HasField("destination_service")


def test_a_service_that_is_gone_has_no_name_any_more(pipeline: Pipeline) -> None:
    pipeline.feed(at_socket(PRE_FORWARD))
    pipeline.tell(make(frontend_deleted=service().frontend))
    pipeline.feed(at_socket(PRE_FORWARD))
    before, after = pipeline.flows()
    assert before.HasField("destination_service")
    assert not after.HasField("destination_service")


def _found(pipeline: Pipeline, one: flow_pb2.FlowFilter) -> int:
    return len(pipeline.flows(Query(filters=pipeline.filters([one]))))


def test_filters_find_flows_by_service_and_by_kind(pipeline: Pipeline) -> None:
    pipeline.feed(at_socket(PRE_FORWARD))
    pipeline.feed(at_socket(POST_REVERSE))
    pipeline.feed(event(type=4, saddr=address_of(0), daddr=address_of(1), proto=6, dport=80))
    of_sockets = flow_pb2.FlowFilter(event_type=[flow_pb2.EventTypeFilter(type=7)])
    assert _found(pipeline, of_sockets) == 2
    assert _found(pipeline, flow_pb2.FlowFilter(destination_service=["shop/cart"])) == 1
    assert _found(pipeline, flow_pb2.FlowFilter(source_service=["shop/"])) == 1
    assert _found(pipeline, flow_pb2.FlowFilter(destination_service=["cart"])) == 0
    assert _found(pipeline, flow_pb2.FlowFilter(source_ip_xlated=["0.0.0.0/0"])) == 0
    any_flags = flow_pb2.FlowFilter(tcp_flags=[flow_pb2.TCPFlags()])
    assert _found(pipeline, any_flags) == 1


def test_what_is_refused_at_a_socket_is_a_drop_of_its_pod(pipeline: Pipeline) -> None:
    drop = {"type": 1, "subtype": 158, "file": abi.constants["FILE_SOCK"], "endpoint": 1}
    pipeline.feed(event(**drop, daddr=FRONTEND, dport=80, proto=6))
    (flow,) = pipeline.flows()
    assert (flow.verdict, flow.drop_reason_desc) == (
        flow_pb2.DROPPED,
        flow_pb2.SERVICE_BACKEND_NOT_FOUND,
    )
    assert (flow.IP.source, flow.source.pod_name) == (address_of(0), "pod-0")
    assert (flow.destination_service.name, flow.file.name) == ("cart", "bpf_sock.c")
    assert flow.traffic_direction == flow_pb2.EGRESS
    assert (flow.Summary, flow.l4.TCP.HasField("flags")) == ("TCP", False)
