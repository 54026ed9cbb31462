"""Records of queries and answers for flows, composed of parts that are encoded once.

A record is a `cilium.proxy.v1.Record`. Fields of a protobuf message may come in any order and in
pieces, so a record is the concatenation of what all records of a message share, of what all of a
connection share, and of what is its own: time, port and latency.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from cilium.proxy.v1 import proxy_pb2
from cilium_core.varints import varint
from flow import flow_pb2

from dns_proxy.answers import NO_TTL
from dns_proxy.messages import type_name

if TYPE_CHECKING:
    from cilium_core.policy.l7 import Redirect

    from dns_proxy.answers import Answer
    from dns_proxy.messages import Query

SOURCE: Final = "proxy"

_TIME: Final = Struct("<Bq")  # Record.time_ns
_CLIENT_PORT: Final = b"\x30"  # Record.client_port
_L7: Final = b"\x52"  # Record.l7
_LATENCY: Final = b"\x10"  # Layer7.latency_ns
_RESPONSE: Final = b"\x08\x02"  # Layer7.type


def refused_message(port: int, redirect: Redirect) -> bytes:
    """The constant part for a message that was not understood."""
    return _constant(
        port, redirect, flow_pb2.DROPPED, flow_pb2.DNS(observation_source=SOURCE), request=True
    )


def request(port: int, redirect: Redirect, query: Query, *, by_rule: bool) -> bytes:
    """The constant part for a query; `by_rule` says whether the rules allow it."""
    verdict = (
        flow_pb2.FORWARDED if by_rule else flow_pb2.AUDIT if redirect.audit else flow_pb2.DROPPED
    )
    return _constant(port, redirect, verdict, _question(query), request=True)


def failure(port: int, redirect: Redirect, query: Query, rcode: int) -> bytes:
    """The constant part for a query that the proxy itself could not serve."""
    dns = _question(query)
    dns.rcode, dns.ttl = rcode, NO_TTL
    return _constant(port, redirect, flow_pb2.ERROR, dns, request=False)


def response_dns(query: Query, answer: Answer) -> bytes:
    """An answer as the `dns` field of `Layer7`."""
    dns = _question(query)
    dns.ips.extend(answer.address_texts)
    dns.ttl = answer.lowest_ttl_s
    dns.cnames.extend(answer.aliases)
    dns.rcode = answer.rcode
    dns.rrtypes.extend(answer.types)
    return flow_pb2.Layer7(dns=dns).SerializeToString()


def response_head(port: int, redirect: Redirect) -> bytes:
    """What the records of all responses that pass a redirect share."""
    return proxy_pb2.Record(
        ingress=redirect.ingress, proxy_port=port, verdict=flow_pb2.FORWARDED
    ).SerializeToString()


def connection(client: bytes, server: bytes, server_port: int, protocol: int) -> bytes:
    """What the records of a client and a server share."""
    return proxy_pb2.Record(
        client=client, server=server, server_port=server_port, protocol=protocol
    ).SerializeToString()


def complete_request(constant: bytes, connection: bytes, client_port: int, time_ns: int) -> bytes:
    """A whole record of a request."""
    return b"".join((constant, connection, _time(time_ns), _CLIENT_PORT, varint(client_port)))


def complete_response(
    head: bytes, connection: bytes, client_port: int, time_ns: int, latency_ns: int, dns: bytes
) -> bytes:
    """A whole record of a response."""
    latency = varint(max(latency_ns, 0))
    size = varint(len(_RESPONSE) + 1 + len(latency) + len(dns))
    return b"".join(
        (
            head,
            connection,
            _time(time_ns),
            _CLIENT_PORT,
            varint(client_port),
            _L7,
            size,
            _RESPONSE,
            _LATENCY,
            latency,
            dns,
        )
    )


def _time(time_ns: int) -> bytes:
    return _TIME.pack(0x09, time_ns)


def _question(query: Query) -> flow_pb2.DNS:
    return flow_pb2.DNS(
        query=query.name, qtypes=[type_name(query.qtype)], observation_source=SOURCE
    )


def _constant(
    port: int,
    redirect: Redirect,
    verdict: flow_pb2.Verdict,
    dns: flow_pb2.DNS,
    *,
    request: bool,
) -> bytes:
    l7 = flow_pb2.Layer7(type=flow_pb2.REQUEST if request else flow_pb2.RESPONSE, dns=dns)
    return proxy_pb2.Record(
        ingress=redirect.ingress, proxy_port=port, verdict=verdict, l7=l7
    ).SerializeToString()
