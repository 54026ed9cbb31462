"""What proxies saw becomes flows with the right ends."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest
from cilium.proxy.v1 import proxy_pb2
from cilium_agent.proxies import records
from cilium_agent.proxies.envoy import accesslogs, mismatches
from cilium_agent.proxies.envoy.logging import LogName
from cilium_agent.proxies.envoy.rules import read
from cilium_agent.proxies.records import RecordSink, l7_record
from cilium_agent.proxies.secrets import Secrets
from cilium_core.policy.l7 import HeaderMatch, HttpRule, L7Kind, Mismatch, Redirect
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2
from flow import flow_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from cilium.metadata.v1 import metadata_pb2

REDIRECT = Redirect(ingress=True, kind=L7Kind.HTTP, http=(HttpRule(path="/a"),))
NAME = LogName.of(REDIRECT, 10000)


class Names:
    """Knows endpoints by the last byte of their address."""

    def endpoint(self, address: str) -> flow_pb2.Endpoint:
        return flow_pb2.Endpoint(ID=ipaddress.ip_address(address).packed[-1])


def record(
    kind: flow_pb2.L7FlowType = flow_pb2.REQUEST, client: str = "10.0.0.1", server: str = "10.0.0.2"
) -> proxy_pb2.Record:
    made = proxy_pb2.Record(
        time_ns=5,
        ingress=True,
        protocol=6,
        client=ipaddress.ip_address(client).packed,
        client_port=4000,
        server=ipaddress.ip_address(server).packed,
        server_port=80,
        verdict=flow_pb2.FORWARDED,
    )
    made.l7.type = kind
    return made


def entry(route: str = "allowed", code: int = 200) -> accesslog_pb2.HTTPAccessLogEntry:
    made = accesslog_pb2.HTTPAccessLogEntry()
    common = made.common_properties
    common.downstream_direct_remote_address.socket_address.address = "10.0.0.1"
    common.downstream_direct_remote_address.socket_address.port_value = 4000
    common.downstream_remote_address.socket_address.address = "6.6.6.6"
    common.downstream_local_address.socket_address.address = "10.0.0.2"
    common.downstream_local_address.socket_address.port_value = 80
    common.start_time.FromNanoseconds(1_000_000_000)
    common.time_to_first_upstream_rx_byte.FromNanoseconds(5_000_000)
    common.route_name = route
    made.protocol_version = accesslog_pb2.HTTPAccessLogEntry.HTTP11
    made.request.request_method = 1
    made.request.scheme, made.request.authority, made.request.path = "http", "x:80", "/a?b=1"
    made.request.user_agent = "curl"
    made.request.request_headers["accept"] = "*/*"
    made.request.request_headers["traceparent"] = "00-1-2-01"
    if code:
        made.response.response_code.value = code
    return made


def message(*entries: accesslog_pb2.HTTPAccessLogEntry) -> als_pb2.StreamAccessLogsMessage:
    made = als_pb2.StreamAccessLogsMessage()
    made.http_logs.log_entry.extend(entries)
    return made


def test_a_request_goes_from_client_to_server() -> None:
    flow = l7_record(record(), Names()).flow
    assert (flow.IP.source, flow.IP.destination) == ("10.0.0.1", "10.0.0.2")
    assert (flow.l4.TCP.source_port, flow.l4.TCP.destination_port) == (4000, 80)
    assert (flow.source.ID, flow.destination.ID) == (1, 2)
    assert (flow.is_reply.value, flow.event_type.type) == (False, 129)
    assert (flow.traffic_direction, flow.Type) == (flow_pb2.INGRESS, flow_pb2.L7)


def test_a_response_goes_from_server_to_client() -> None:
    flow = l7_record(record(flow_pb2.RESPONSE), Names()).flow
    assert (flow.IP.source, flow.IP.destination) == ("10.0.0.2", "10.0.0.1")
    assert (flow.l4.TCP.source_port, flow.l4.TCP.destination_port) == (80, 4000)
    assert (flow.source.ID, flow.destination.ID, flow.is_reply.value) == (2, 1, True)


def test_ipv6_and_udp_are_named() -> None:
    made = record(client="fd00::1", server="fd00::2")
    made.protocol = 17
    flow = l7_record(made, Names()).flow
    assert (flow.IP.ipVersion, flow.IP.source) == (flow_pb2.IPv6, "fd00::1")
    assert flow.l4.UDP.destination_port == 80


def test_what_exceeds_the_rate_is_counted_as_lost() -> None:
    taken: list[metadata_pb2.L7Record] = []
    now = [0.0]
    sink = RecordSink(Names(), taken.append, limit_per_s=10, clock=lambda: now[0])
    before = records.LOST.value("http")
    sink.take(L7Kind.HTTP, [record()] * 25)
    assert (len(taken), records.LOST.value("http") - before) == (10, 15)
    now[0] = 0.5
    sink.take(L7Kind.HTTP, [record()] * 25)
    assert len(taken) == 15


def test_what_a_proxy_lost_itself_is_counted_too() -> None:
    sink = RecordSink(Names(), lambda _: None)
    before = records.LOST.value("dns")
    sink.take(L7Kind.DNS, [], lost=7)
    assert records.LOST.value("dns") - before == 7


async def test_requests_are_counted_by_verdict() -> None:
    before = {rule: records.L7.value(rule, "kafka") for rule in ("received", "denied")}
    refused = record()
    refused.verdict = flow_pb2.DROPPED
    batch = [record(), refused, record(flow_pb2.RESPONSE)]
    await RecordSink(Names(), lambda _: None).report(L7Kind.KAFKA, batch, 0)
    assert records.L7.value("received", "kafka") - before["received"] == 2
    assert records.L7.value("denied", "kafka") - before["denied"] == 1


def test_a_log_entry_becomes_a_request_and_a_response() -> None:
    request, response = accesslogs.records(NAME, message(entry()))
    assert (request.l7.type, request.verdict) == (flow_pb2.REQUEST, flow_pb2.FORWARDED)
    assert request.l7.http.url == "http://x:80/a?b=1"
    assert (request.l7.http.method, request.l7.http.protocol) == ("GET", "HTTP/1.1")
    assert [(h.key, h.value) for h in request.l7.http.headers] == [
        ("accept", "*/*"),
        ("traceparent", "00-1-2-01"),
        ("user-agent", "curl"),
    ]
    assert request.l7.http.code == 0
    assert (response.l7.http.code, response.l7.latency_ns) == (200, 5_000_000)
    assert response.time_ns - request.time_ns == 5_000_000
    assert (request.ingress, request.proxy_port) == (True, 10000)


def test_the_client_is_the_one_of_the_connection_not_of_a_header() -> None:
    request, _ = accesslogs.records(NAME, message(entry()))
    assert request.client == bytes([10, 0, 0, 1])


@pytest.mark.parametrize(
    ("route", "verdict"),
    [
        ("allowed", flow_pb2.FORWARDED),
        ("refused", flow_pb2.DROPPED),
        ("audited", flow_pb2.AUDIT),
        ("", flow_pb2.DROPPED),
    ],
)
def test_the_route_tells_the_verdict(route: str, verdict: flow_pb2.Verdict) -> None:
    request, response = accesslogs.records(NAME, message(entry(route, 403)))
    assert (request.verdict, response.verdict) == (verdict, flow_pb2.FORWARDED)


def test_bytes_that_are_no_http_are_an_error() -> None:
    odd = entry("", 400)
    odd.common_properties.response_flags.downstream_protocol_error = True
    request, _ = accesslogs.records(NAME, message(odd))
    assert request.verdict == flow_pb2.ERROR


def test_a_request_without_answer_has_no_response() -> None:
    (request,) = accesslogs.records(NAME, message(entry(code=0)))
    assert request.l7.type == flow_pb2.REQUEST


def test_an_entry_without_addresses_loses_nothing_else() -> None:
    made = accesslogs.records(NAME, message(accesslog_pb2.HTTPAccessLogEntry(), entry()))
    assert len(made) == 2


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_no_log_message_breaks_the_reader(data: bytes) -> None:
    made = als_pb2.StreamAccessLogsMessage()
    try:
        made.ParseFromString(data)
    except Exception:  # a frame that is no message; gRPC answers it
        return
    accesslogs.records(NAME, made)


def test_the_name_of_a_log_can_be_read_back() -> None:
    assert LogName.parse(str(NAME)) == NAME


@pytest.mark.parametrize(
    "text", ["", "ingress", "ingress-http-x-y", "x-http-1-y", "ingress-ftp-1-y"]
)
def test_a_log_of_another_name_is_not_read(text: str) -> None:
    assert LogName.parse(text) is None


def test_a_header_that_is_only_watched_is_reported_where_its_rule_allows() -> None:
    match = HeaderMatch("accept", "text/html", mismatch=Mismatch.LOG)
    conditions = read([HttpRule(path="/a.*", headers=(match,))], Secrets()).conditions
    before = mismatches.MISMATCHES.value("accept")
    seen = accesslogs.records(NAME, message(entry()))
    mismatches.report(mismatches.with_log_action(conditions), seen)
    other = read([HttpRule(path="/b", headers=(match,))], Secrets()).conditions
    mismatches.report(other, seen)
    assert mismatches.MISMATCHES.value("accept") - before == 1
