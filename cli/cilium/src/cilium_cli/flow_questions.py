# SPDX-License-Identifier: Apache-2.0
"""Turns a flow that was seen into the question why it had its verdict."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
from cilium.agent.v1 import agent_pb2
from flow import flow_pb2
from observer import observer_pb2
from observer.observer_pb2_grpc import ObserverStub

from cilium_cli.connecting import TIMEOUT_S, channel
from cilium_cli.errors import CommandError, InputError, NotFoundError
from cilium_cli.policy_texts import PROTOCOLS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cilium_cli.targets import Target

_NUMBERS = {name: number for number, name in PROTOCOLS.items()}
_ICMP = {"ICMPv4": 1, "ICMPv6": 58}


def find_flow(uuid: str, targets: Iterable[Target]) -> flow_pb2.Flow:
    """Return the flow with this uuid from the first node that still has it."""
    request = observer_pb2.GetFlowsRequest(
        number=1, whitelist=[flow_pb2.FlowFilter(uuid=[uuid])], first=False
    )
    names = []
    for target in targets:
        names.append(target.name)
        remedy = "is hubble-server running there?"
        with channel(target.hubble, f"hubble-server of {target.name}", remedy) as opened:
            stub = ObserverStub(opened)  # type: ignore[no-untyped-call]
            try:
                for answer in stub.GetFlows(request, timeout=TIMEOUT_S):
                    if answer.HasField("flow"):
                        found: flow_pb2.Flow = answer.flow
                        return found
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                    raise InputError(f"flow: {error.details()}", "hubble observe -o json") from None
                raise
    raise NotFoundError(
        f"flow {uuid!r} is not known to {', '.join(names)}",
        "`hubble observe -o json` shows the uuid of each flow; old flows are forgotten",
    )


def question(flow: flow_pb2.Flow) -> agent_pb2.ExplainPolicyRequest:
    """Return what to ask about a flow: the first packet of its connection, and its request."""
    ends = [_end(flow.source, flow.IP.source), _end(flow.destination, flow.IP.destination)]
    kind = flow.l4.WhichOneof("protocol")
    if kind is None:
        raise CommandError(f"flow {flow.uuid} has no protocol that policies speak of")
    layer = getattr(flow.l4, kind)
    ports = [0, layer.type] if kind in _ICMP else [layer.source_port, layer.destination_port]
    if flow.is_reply.value:
        ends.reverse()
        ports.reverse()
    request = agent_pb2.ExplainPolicyRequest(
        source=ends[0],
        destination=ends[1],
        protocol=_ICMP.get(kind) or _NUMBERS.get(kind, 0),
        port=ports[1],
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


def _end(end: flow_pb2.Endpoint, address: str) -> str:
    if end.pod_name:
        return f"{end.namespace}/{end.pod_name}"
    return address
