"""States of nodes as tables or JSON, and how well they are known."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from hubble_cli import tables, times
from hubble_cli.terminals import Painter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from cilium.flows.v1 import states_pb2

_UNHEARD_NS = 90 * 1_000_000_000
"""A server notes every 30 s that nothing has changed."""

_OBJECTS = ("peers", "endpoints", "identities", "policies", "addresses", "services")


def show(nodes: Sequence[states_pb2.NodeState], at_ns: int, output: str) -> str:
    """All of it; `output` is table or json."""
    if output == "json":
        return json.dumps(as_document(nodes, at_ns)) + "\n"
    parts = [f"State at {_full(at_ns)}\n"]
    endpoints: list[tuple[str, ...]] = []
    identities: dict[int, str] = {}
    policies: dict[tuple[str, str], set[str]] = {}
    for node in nodes:
        labels = {one.id: " ".join(one.labels) for one in node.identities}
        for one in node.endpoints:
            pod = f"{one.namespace}/{one.pod_name}" if one.pod_name else ""
            row = (node.node_name, str(one.id), pod, ",".join(one.ips), str(one.identity))
            endpoints.append((*row, labels.get(one.identity, "")))
        identities.update(labels)
        for policy in node.policies:
            name = f"{policy.namespace}/{policy.name}" if policy.namespace else policy.name
            if name:  # what agents allow by themselves has none
                policies.setdefault((policy.kind, name), set()).add(node.node_name)
    parts.append(
        _table("Endpoints", ("NODE", "ID", "POD", "ADDRESSES", "IDENTITY", "LABELS"), endpoints)
    )
    parts.append(
        _table(
            "Identities", ("ID", "LABELS"), ((str(n), identities[n]) for n in sorted(identities))
        )
    )
    rows = ((kind, name, ",".join(sorted(policies[kind, name]))) for kind, name in sorted(policies))
    parts.append(_table("Policies", ("KIND", "NAME", "NODES"), rows))
    parts.append("".join(f"{line}\n" for line in unknown(nodes, at_ns)))
    return "\n".join(part for part in parts if part)


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    escape = Painter(enabled=False).escape
    lines = ["\t".join(escape(cell) or "-" for cell in row) for row in rows]
    if not lines:
        return f"{title}: none\n"
    return f"{title}\n" + tables.align("\n".join(["\t".join(heads), *lines]) + "\n")


def unknown(nodes: Sequence[states_pb2.NodeState], at_ns: int) -> Iterator[str]:
    """What is not known of the moment, a line for each node and reason."""
    for node in nodes:
        if node.note:
            since = f"; it begins at {_full(node.kept_from_ns)}" if node.kept_from_ns else ""
            yield f"not known: {node.node_name}: {node.note}{since}"
        elif at_ns - node.told_ns > _UNHEARD_NS:
            yield (
                f"not known: {node.node_name}: what happened since {_full(node.told_ns)}, when it"
                " last heard of its agent"
            )


def as_document(nodes: Sequence[states_pb2.NodeState], at_ns: int) -> dict[str, Any]:
    """The states as plain values."""
    return {
        "at": _full(at_ns),
        "nodes": [
            {
                "node": node.node_name,
                "told": _full(node.told_ns) if node.told_ns else None,
                "kept_from": _full(node.kept_from_ns) if node.kept_from_ns else None,
                "note": node.note,
                "labels": list(node.local_node.labels),
                **{
                    name: [
                        MessageToDict(one, preserving_proto_field_name=True)
                        for one in getattr(node, name)
                    ]
                    for name in _OBJECTS
                },
            }
            for node in nodes
        ],
        "unknown": list(unknown(nodes, at_ns)),
    }


def _full(time_ns: int) -> str:
    made = Timestamp()
    made.FromNanoseconds(time_ns)
    return times.rfc3339(made)
