"""One line about a request or a response, as Hubble words it. Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flow import flow_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

RCODES: Final = {
    0: "No Error",
    1: "Format Error",
    2: "Server Failure",
    3: "Non-Existent Domain",
    4: "Not Implemented",
    5: "Query Refused",
    6: "Name Exists when it should not",
    7: "RR Set Exists when it should not",
    8: "RR Set that should exist does not",
    9: "Server Not Authoritative for zone",
    10: "Name not contained in zone",
    16: "Bad OPT Version",
    17: "Key not recognized",
    18: "Signature out of time window",
    19: "Bad TKEY Mode",
    20: "Duplicate key name",
    21: "Algorithm not supported",
    22: "Bad Truncation",
    23: "Bad Cookie",
}
"""Texts of DNS response codes; others are `Unknown`."""

_NS_PER_MS: Final = 1_000_000


def summary(l7: flow_pb2.Layer7) -> str:
    """What a record says, in one line; nothing for one without a known protocol."""
    response = l7.type == flow_pb2.RESPONSE
    match l7.WhichOneof("record"):
        case "dns":
            return _dns_answer(l7.dns) if response else _dns_query(l7.dns)
        case "http":
            return _http(l7.http, l7.latency_ns, response=response)
        case "kafka":
            return _kafka(l7.kafka, response=response)
    return ""


def _dns_query(dns: flow_pb2.DNS) -> str:
    return f"DNS Query {dns.query} {','.join(dns.qtypes)}"


def _dns_answer(dns: flow_pb2.DNS) -> str:
    if dns.rcode:
        answer = f"RCode: {RCODES.get(dns.rcode, 'Unknown')}"
    else:
        addresses, aliases = _quoted(dns.ips), _quoted(dns.cnames)
        parts = [addresses, aliases and f"CNAMEs: {aliases}"]
        answer = " ".join(filter(None, parts))
    source = "Proxy" if dns.observation_source == "proxy" else "Query"
    asked = f"{source} {dns.query} {','.join(dns.qtypes)}"
    return f"DNS Answer {answer} TTL: {dns.ttl} ({asked})"


def _quoted(texts: Iterable[str]) -> str:
    joined = ",".join(texts).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{joined}"' if joined else ""


def _http(http: flow_pb2.HTTP, latency_ns: int, *, response: bool) -> str:
    if not response:
        return f"{http.protocol} {http.method} {http.url}"
    latency_ms = latency_ns // _NS_PER_MS
    return f"{http.protocol} {http.code} {latency_ms}ms ({http.method} {http.url})"


def _kafka(kafka: flow_pb2.Kafka, *, response: bool) -> str:
    what = "response" if response else "request"
    text = f"Kafka {what} {kafka.api_key} correlation id {kafka.correlation_id}"
    text += f" topic '{kafka.topic}'"
    return f"{text} return code {kafka.error_code}" if response else text
