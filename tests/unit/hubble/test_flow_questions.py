"""Flows turned into questions about their verdict."""

from __future__ import annotations

from typing import Any

import pytest
from cilium_core.flow_questions import FlowQuestionError, policy_question
from flow import flow_pb2


def flow(**fields: Any) -> flow_pb2.Flow:
    made = flow_pb2.Flow(
        source=flow_pb2.Endpoint(namespace="shop", pod_name="client"),
        IP=flow_pb2.IP(source="10.0.0.1", destination="203.0.113.9"),
        l4=flow_pb2.Layer4(TCP=flow_pb2.TCP(source_port=40000, destination_port=80)),
    )
    made.MergeFrom(flow_pb2.Flow(**fields))
    return made


def test_ends_are_pods_where_there_are_any_and_addresses_elsewhere() -> None:
    asked = policy_question(flow())
    assert (asked.source, asked.destination) == ("shop/client", "203.0.113.9")
    assert (asked.protocol, asked.port) == (6, 80)


def test_an_answer_is_asked_about_as_the_connection_it_belongs_to() -> None:
    reply = flow(is_reply={"value": True})
    asked = policy_question(reply)
    assert (asked.source, asked.destination, asked.port) == ("203.0.113.9", "shop/client", 40000)


def test_an_http_request_is_asked_about_with_its_query_and_headers() -> None:
    http = flow_pb2.HTTP(
        method="GET",
        url="http://web:8080/items?page=2",
        headers=[flow_pb2.HTTPHeader(key="X-Token", value="42")],
    )
    asked = policy_question(flow(l7=flow_pb2.Layer7(http=http)))
    assert (asked.http.method, asked.http.path, asked.http.host) == (
        "GET",
        "/items?page=2",
        "web:8080",
    )
    assert dict(asked.http.headers) == {"x-token": "42"}


def test_a_looked_up_name_is_asked_about() -> None:
    asked = policy_question(flow(l7=flow_pb2.Layer7(dns=flow_pb2.DNS(query="example.org."))))
    assert asked.dns_name == "example.org."


def test_icmp_is_asked_about_by_type() -> None:
    ping = flow(l4=flow_pb2.Layer4(ICMPv4=flow_pb2.ICMPv4(type=8)))
    asked = policy_question(ping)
    assert (asked.protocol, asked.port) == (1, 8)


def test_a_flow_without_a_protocol_cannot_be_asked_about() -> None:
    bare = flow()
    bare.ClearField("l4")
    with pytest.raises(FlowQuestionError, match="no protocol"):
        policy_question(bare)
