"""Turns a flow that was seen into the questions why it had its verdict, and who served it. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple
from urllib.parse import urlsplit

from cilium.agent.v1 import agent_pb2
from flow import flow_pb2

from cilium_core.errors import InvalidError
from cilium_core.verdict_texts import PROTOCOLS

_NUMBERS: Final = {name: number for number, name in PROTOCOLS.items()}
_ICMP: Final = {"ICMPv4": 1, "ICMPv6": 58}
_SERVED: Final = frozenset({"TCP", "UDP", "SCTP"})
TYPE_SOCK: Final = 7
"""Type of the events of translations at sockets."""


class FlowQuestionError(InvalidError):
    """Nothing can be asked about the flow."""


class Side(NamedTuple):
    """One side of a connection, as a flow tells of it."""

    endpoint: flow_pb2.Endpoint
    address: str
    port: int
    """0 for protocols without ports."""
    service: flow_pb2.Service
    """Empty when the flow names none."""

    @property
    def name(self) -> str:
        """`namespace/pod`, else the address."""
        if self.endpoint.pod_name:
            return f"{self.endpoint.namespace}/{self.endpoint.pod_name}"
        return self.address

    @property
    def labels(self) -> str:
        """The labels of a pod of then, as the agent takes them; empty for what is no pod."""
        return ",".join(self.endpoint.labels) if self.endpoint.pod_name else ""


class Sides(NamedTuple):
    """Who began the connection of a flow, and with whom."""

    client: Side
    server: Side


def sides_of(flow: flow_pb2.Flow) -> Sides:
    """The sides of a flow's connection; those of an answer are turned round."""
    kind = flow.l4.WhichOneof("protocol")
    ports = (0, 0)
    if kind in _SERVED:
        layer = getattr(flow.l4, kind)
        ports = (layer.source_port, layer.destination_port)
    addresses = (
        flow.IP.source or flow.ethernet.source,
        flow.IP.destination or flow.ethernet.destination,
    )
    source = Side(flow.source, addresses[0], ports[0], flow.source_service)
    destination = Side(flow.destination, addresses[1], ports[1], flow.destination_service)
    if flow.is_reply.value:
        return Sides(destination, source)
    return Sides(source, destination)


def policy_question(
    flow: flow_pb2.Flow, *, as_of_then: bool = False
) -> agent_pb2.ExplainPolicyRequest:
    """What to ask about a flow: the first packet of its connection, and its request.

    With `as_of_then`, pods are asked about by the labels that they had, as they may be gone. Raises
    FlowQuestionError.
    """
    kind = flow.l4.WhichOneof("protocol")
    if kind is None:
        raise FlowQuestionError(f"flow {flow.uuid} has no protocol that policies speak of")
    client, server = sides_of(flow)
    protocol = _ICMP.get(kind) or _NUMBERS.get(kind, 0)
    if not protocol:
        raise FlowQuestionError(f"flow {flow.uuid} is {kind}, which policies do not speak of")
    request = agent_pb2.ExplainPolicyRequest(
        source=(as_of_then and client.labels) or client.name,
        destination=(as_of_then and server.labels) or server.name,
        protocol=protocol,
        port=getattr(flow.l4, kind).type if kind in _ICMP else server.port,
    )
    match flow.l7.WhichOneof("record"):
        case "http":
            url = urlsplit(flow.l7.http.url)
            request.http.method = flow.l7.http.method
            request.http.path = url.path + (f"?{url.query}" if url.query else "")
            request.http.host = url.netloc
            for header in flow.l7.http.headers:
                request.http.headers[header.key.lower()] = header.value
        case "dns":
            request.dns_name = flow.l7.dns.query
    return request


def asked_address(flow: flow_pb2.Flow) -> agent_pb2.ServiceAddress | None:
    """Address, port and protocol that a flow's client asked, as far as the flow tells.

    None where it can be no service's: these have ports.
    """
    kind, server = flow.l4.WhichOneof("protocol"), sides_of(flow).server
    if kind not in _SERVED or not server.port or not server.address:
        return None
    return agent_pb2.ServiceAddress(ip=server.address, port=server.port, protocol=_NUMBERS[kind])


def translation_filter(flow: flow_pb2.Flow, point: int) -> flow_pb2.FlowFilter:
    """What finds the flow of a socket that led to another flow, at a SocketTranslationPoint."""
    client, server = sides_of(flow)
    wanted = flow_pb2.FlowFilter(
        source_ip=[client.address],
        destination_ip=[server.address],
        destination_port=[str(server.port)],
    )
    wanted.event_type.add(type=TYPE_SOCK, match_sub_type=True, sub_type=point)
    return wanted


def service_question(
    flow: flow_pb2.Flow, frontend: agent_pb2.ServiceAddress
) -> agent_pb2.ExplainServiceRequest:
    """What to ask about the service at an address that a flow's client asked."""
    client = sides_of(flow).client
    return agent_pb2.ExplainServiceRequest(
        frontend=frontend, client=client.name, client_port=client.port, no_verify=True
    )
