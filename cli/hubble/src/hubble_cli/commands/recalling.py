"""`hubble observe --at`: endpoints, identities and policies as they were at a moment."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from hubble_cli import times
from hubble_cli.errors import HubbleError, RemoteError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cilium.flows.v1 import states_pb2
    from flow import flow_pb2

    from hubble_cli.arguments import Parsed
    from hubble_cli.settings import Settings

_EXCLUDED = (
    "all", "first", "last", "follow", "since", "until", "aggregate-by", "input-file",
)  # fmt: skip
_METHOD = "/cilium.flows.v1.StateService/GetState"


def recall(
    parsed: Parsed,
    settings: Settings,
    allowed: list[flow_pb2.FlowFilter],
    denied: list[flow_pb2.FlowFilter],
) -> None:
    """Print what held. Raises HubbleError, also where nothing is known of the moment."""
    from cilium.flows.v1 import states_pb2
    from cilium_core.flow_filters import compile_filters

    from hubble_cli import histories
    from hubble_cli.printing.moments import show, unknown

    for flag in _EXCLUDED:
        if parsed.values.get(flag):
            raise UsageError(f"--at asks for a moment, not for flows: leave out --{flag}")
    seconds, nanos = times.parse_time(str(parsed.values["at"]), time.time_ns())
    at_ns = seconds * 1_000_000_000 + nanos
    request = states_pb2.GetStateRequest(at_ns=at_ns)
    if directory := str(parsed.values.get("input-dir", "")):
        found = joined(histories.read_state(directory, request))
    else:
        found = _ask(request, settings)
    if found and all(node.note and not node.endpoints for node in found):
        raise HubbleError("\n".join(unknown(found, at_ns)))
    if allowed or denied:
        narrow(found, compile_filters(allowed, denied))
    as_json = str(parsed.values.get("output", "")).lower().startswith("json")
    sys.stdout.write(show(found, at_ns, "json" if as_json else "table"))


def _ask(request: states_pb2.GetStateRequest, settings: Settings) -> list[states_pb2.NodeState]:
    import grpc
    from cilium.flows.v1 import states_pb2

    from hubble_cli.connecting import Connection

    with Connection(settings) as connection:
        try:
            return joined(connection.stream(_METHOD, request, states_pb2.NodeState))
        except RemoteError as error:
            cause = error.__cause__
            if isinstance(cause, grpc.RpcError) and cause.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise RemoteError("the server is of a kind that keeps no states") from error
            raise


def joined(messages: Iterable[states_pb2.NodeState]) -> list[states_pb2.NodeState]:
    """One message for each node, in the order of their names."""
    nodes: dict[str, states_pb2.NodeState] = {}
    for message in messages:
        known = nodes.setdefault(message.node_name, message)
        if known is not message:
            known.MergeFrom(message)
    return [nodes[name] for name in sorted(nodes)]


def narrow(nodes: list[states_pb2.NodeState], matches: Callable[[flow_pb2.Flow], bool]) -> None:
    """Keep the endpoints from which flows would pass, and what belongs to them."""
    from flow import flow_pb2

    for node in nodes:
        labels = {one.id: one.labels for one in node.identities}
        kept = []
        for endpoint in node.endpoints:
            end = flow_pb2.Endpoint(
                ID=endpoint.id,
                identity=endpoint.identity,
                namespace=endpoint.namespace,
                labels=labels.get(endpoint.identity, ()),
                pod_name=endpoint.pod_name,
                workloads=endpoint.workloads,
            )
            flows = (
                flow_pb2.Flow(node_name=node.node_name, source=end, IP=flow_pb2.IP(source=ip))
                for ip in endpoint.ips or [""]
            )
            if any(map(matches, flows)):
                kept.append(endpoint)
        identities = {endpoint.identity for endpoint in kept}
        namespaces = {"", *(endpoint.namespace for endpoint in kept)}
        addresses = {ip for endpoint in kept for ip in endpoint.ips}
        _put(node, "endpoints", kept)
        _put(node, "identities", [one for one in node.identities if one.id in identities])
        _put(node, "policies", [one for one in node.policies if one.namespace in namespaces])
        _put(node, "services", [one for one in node.services if one.namespace in namespaces])
        hosts = ((one, one.prefix.rpartition("/")[0]) for one in node.addresses)
        _put(node, "addresses", [one for one, host in hosts if host in addresses])


def _put(node: states_pb2.NodeState, field: str, values: list[Any]) -> None:
    copies = [type(value).FromString(value.SerializeToString()) for value in values]
    values_of = getattr(node, field)
    del values_of[:]
    values_of.extend(copies)
