"""Envoy's access log entries → records, as all proxies report them.

An entry comes when a request is over and becomes two records: the request, at the time when it
began, and the response. A connection that was let through or refused for its server name becomes
one. Whatever an entry lacks or garbles, the rest of its batch is not lost.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from cilium.proxy.v1 import proxy_pb2
from cilium_core.telemetry import counter, histogram
from envoy.config.core.v3 import base_pb2
from envoy.data.accesslog.v3 import accesslog_pb2
from flow import flow_pb2

from cilium_agent.proxies.envoy.routes import ALLOWED, AUDITED, REFUSED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envoy.service.accesslog.v3 import als_pb2
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

    from cilium_agent.proxies.envoy.logging import LogName

REPLY = histogram(
    "cilium_proxy_upstream_reply_seconds",
    "Time until a server's response began.",
    "error",
    "protocol_l7",
    "scope",
)
GARBLED = counter("cilium_proxy_log_entries_garbled_total", "Log entries without use.")

_VERDICTS = {
    ALLOWED: flow_pb2.FORWARDED,
    REFUSED: flow_pb2.DROPPED,
    AUDITED: flow_pb2.AUDIT,
}
_Entry: TypeAlias = accesslog_pb2.HTTPAccessLogEntry
_PROTOCOLS = {
    _Entry.HTTP10: "HTTP/1.0",
    _Entry.HTTP11: "HTTP/1.1",
    _Entry.HTTP2: "HTTP/2",
    _Entry.HTTP3: "HTTP/3",
}
_METHODS = {number: name for name, number in base_pb2.RequestMethod.items()}
_NAMED = {
    "user-agent": "user_agent",
    "referer": "referer",
    "x-forwarded-for": "forwarded_for",
    "x-request-id": "request_id",
}
_PAIRING = {"traceparent", "x-request-id"}
"""Headers of requests that readers look for in responses as well."""


def records(name: LogName, message: als_pb2.StreamAccessLogsMessage) -> list[proxy_pb2.Record]:
    """The records of one message."""
    result: list[proxy_pb2.Record] = []
    for entry in message.http_logs.log_entry:
        try:
            result.extend(_http(name, entry))
        except ValueError:
            GARBLED.add()
    for connection in message.tcp_logs.log_entry:
        try:
            result.extend(_connection(name, connection))
        except ValueError:
            GARBLED.add()
    return result


def _http(name: LogName, entry: _Entry) -> Iterator[proxy_pb2.Record]:
    common, request = entry.common_properties, entry.request
    record = _record(name, common)
    http = record.l7.http
    headers = dict(request.request_headers)
    http.method = headers.pop(":method", "") or _METHODS.get(request.request_method, "")
    http.url = f"{request.scheme or 'http'}://{request.authority}{request.path}"
    http.protocol = _PROTOCOLS.get(entry.protocol_version, "HTTP/1.1")
    response = proxy_pb2.Record()
    response.CopyFrom(record)
    record.l7.type = flow_pb2.REQUEST
    record.verdict = _verdict(entry)
    for header, field in _NAMED.items():
        if value := getattr(request, field):
            headers[header] = value
    for header in sorted(headers):
        http.headers.add(key=header, value=headers[header])
    yield record

    code = entry.response.response_code.value
    if not code:
        return
    if common.HasField("time_to_first_upstream_rx_byte"):
        latency_ns = _nanoseconds(common.time_to_first_upstream_rx_byte)
        error = "5xx" if code >= 500 else ""
        REPLY.observe(latency_ns / 1e9, error, "http", "upstreamTime")
    else:
        latency_ns = _nanoseconds(common.time_to_first_downstream_tx_byte)
    response.time_ns = record.time_ns + latency_ns
    response.verdict = flow_pb2.FORWARDED
    response.l7.type = flow_pb2.RESPONSE
    response.l7.latency_ns = latency_ns
    response.l7.http.code = code
    for header in _PAIRING & headers.keys():
        response.l7.http.headers.add(key=header, value=headers[header])
    yield response


def _verdict(entry: _Entry) -> flow_pb2.Verdict:
    common = entry.common_properties
    known = _VERDICTS.get(common.route_name)
    if known is not None:
        return known
    if common.response_flags.downstream_protocol_error:
        return flow_pb2.ERROR
    return flow_pb2.DROPPED


def _connection(
    name: LogName, entry: accesslog_pb2.TCPAccessLogEntry
) -> Iterator[proxy_pb2.Record]:
    common = entry.common_properties
    record = _record(name, common)
    record.l7.type = flow_pb2.REQUEST
    asked_for = common.tls_properties.tls_sni_hostname or "without server name"
    if common.access_log_type == accesslog_pb2.TcpUpstreamConnected:
        record.verdict = flow_pb2.FORWARDED
        record.summary = f"TLS {asked_for}"
    elif common.response_flags.no_route_found:
        record.verdict = flow_pb2.DROPPED
        record.summary = f"TLS {asked_for} refused"
    elif common.downstream_transport_failure_reason:
        record.verdict = flow_pb2.ERROR
        record.summary = f"TLS {asked_for}: {common.downstream_transport_failure_reason}"
    else:
        return
    yield record


def _record(name: LogName, common: accesslog_pb2.AccessLogCommon) -> proxy_pb2.Record:
    # The other one may come from a header of the client's choice.
    client = common.downstream_direct_remote_address.socket_address
    server = common.downstream_local_address.socket_address
    return proxy_pb2.Record(
        time_ns=_nanoseconds(common.start_time) or time.time_ns(),
        ingress=name.ingress,
        proxy_port=name.port,
        protocol=socket.IPPROTO_TCP,
        client=_packed(client.address),
        client_port=client.port_value & 0xFFFF,
        server=_packed(server.address),
        server_port=server.port_value & 0xFFFF,
    )


def _nanoseconds(message: Duration | Timestamp) -> int:
    return int(message.seconds * 1_000_000_000 + message.nanos)


@lru_cache(maxsize=4096)
def _packed(text: str) -> bytes:
    address = ipaddress.ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).packed
