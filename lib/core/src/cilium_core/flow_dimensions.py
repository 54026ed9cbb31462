"""What flows are told apart by when they are counted: texts of single flows.

The one definition for servers, which count columns, and for clients of servers that cannot count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cilium.flows.v1 import flows_pb2
from flow import flow_pb2

from cilium_core.drops import DropReason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_D = flows_pb2
_TYPES: Final = {
    1: "drop", 2: "debug", 3: "capture", 4: "trace", 5: "policy-verdict", 7: "trace-sock",
    129: "l7",
}  # fmt: skip
_PORTS: Final = frozenset({"TCP", "UDP", "SCTP"})

NAMES: Final[dict[str, int]] = {
    name.removeprefix("DIMENSION_").lower().replace("_", "-"): number
    for name, number in flows_pb2.Dimension.items()
    if number
}
"""Dimensions by the names that users give them, such as `source-namespace`."""


def _qualified(namespace: str, name: str) -> str:
    return f"{namespace}/{name}" if namespace and name else name


def _end(endpoint: flow_pb2.Endpoint, address: str, names: Sequence[str]) -> str:
    if endpoint.pod_name:
        return _qualified(endpoint.namespace, endpoint.pod_name)
    if names:
        return ",".join(names)
    reserved = [one for one in endpoint.labels if one.startswith("reserved:")]
    # the world is too large to be one peer
    if reserved and not any("world" in one for one in reserved):
        return ",".join(reserved)
    return address or ",".join(reserved)


def _workload(endpoint: flow_pb2.Endpoint) -> str:
    names = {one.name for one in endpoint.workloads}
    return ",".join(_qualified(endpoint.namespace, name) for name in sorted(names))


def _protocol(flow: flow_pb2.Flow) -> str:
    record = flow.l7.WhichOneof("record") if flow.HasField("l7") else None
    return (record or flow.l4.WhichOneof("protocol") or "").upper().replace("ICMPV", "ICMPv")


def _port(flow: flow_pb2.Flow) -> str:
    name = flow.l4.WhichOneof("protocol")
    return str(getattr(flow.l4, name).destination_port) if name in _PORTS else ""


def _service(flow: flow_pb2.Flow) -> str:
    return _qualified(flow.destination_service.namespace, flow.destination_service.name)


def _reason(flow: flow_pb2.Flow) -> str:
    if flow.verdict != flow_pb2.DROPPED:
        return ""
    if flow.drop_reason == int(DropReason["KERNEL"]):
        return "KERNEL"
    if flow.drop_reason_desc == flow_pb2.DROP_REASON_UNKNOWN:
        return "PROXY"  # which refuses requests and gives no number
    return flow_pb2.DropReason.Name(flow.drop_reason_desc)


def _policy(flow: flow_pb2.Flow) -> str:
    found = (
        *flow.egress_allowed_by, *flow.ingress_allowed_by,
        *flow.egress_denied_by, *flow.ingress_denied_by,
    )  # fmt: skip
    named = (f"{one.kind} {_qualified(one.namespace, one.name)}".strip() for one in found)
    return ", ".join(dict.fromkeys(named))


_VALUES: Final[Mapping[int, Callable[[flow_pb2.Flow], str]]] = {
    _D.DIMENSION_SOURCE: lambda f: _end(f.source, f.IP.source, f.source_names),
    _D.DIMENSION_DESTINATION: lambda f: _end(f.destination, f.IP.destination, f.destination_names),
    _D.DIMENSION_SOURCE_NAMESPACE: lambda f: f.source.namespace,
    _D.DIMENSION_DESTINATION_NAMESPACE: lambda f: f.destination.namespace,
    _D.DIMENSION_SOURCE_WORKLOAD: lambda f: _workload(f.source),
    _D.DIMENSION_DESTINATION_WORKLOAD: lambda f: _workload(f.destination),
    _D.DIMENSION_SOURCE_IDENTITY: lambda f: str(f.source.identity),
    _D.DIMENSION_DESTINATION_IDENTITY: lambda f: str(f.destination.identity),
    _D.DIMENSION_SOURCE_IP: lambda f: f.IP.source,
    _D.DIMENSION_DESTINATION_IP: lambda f: f.IP.destination,
    _D.DIMENSION_SERVICE: _service,
    _D.DIMENSION_PORT: _port,
    _D.DIMENSION_PROTOCOL: _protocol,
    _D.DIMENSION_VERDICT: lambda f: flow_pb2.Verdict.Name(f.verdict),
    _D.DIMENSION_DROP_REASON: _reason,
    _D.DIMENSION_TYPE: lambda f: _TYPES.get(f.event_type.type, str(f.event_type.type)),
    _D.DIMENSION_DIRECTION: lambda f: flow_pb2.TrafficDirection.Name(f.traffic_direction),
    _D.DIMENSION_REPLY: lambda f: str(f.is_reply.value).lower() if f.HasField("is_reply") else "",
    _D.DIMENSION_NODE: lambda f: f.node_name,
    _D.DIMENSION_POLICY: _policy,
}


def values_of(flow: flow_pb2.Flow, by: Sequence[int]) -> tuple[str, ...]:
    """The flow's text in each dimension; unknown dimensions give nothing."""
    return tuple(_VALUES[one](flow) if one in _VALUES else "" for one in by)
