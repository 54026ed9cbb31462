"""The state of a server, its nodes and namespaces, and changes of peers as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peer import peer_pb2
from relay import relay_pb2

from hubble_cli import jsonlines, times
from hubble_cli.errors import UsageError
from hubble_cli.printing.outputs import Format, enum_name
from hubble_cli.tables import align

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from google.protobuf.message import Message
    from observer import observer_pb2

_NODE_STATES = {
    relay_pb2.NODE_CONNECTED: "Connected",
    relay_pb2.NODE_UNAVAILABLE: "Unavailable",
    relay_pb2.NODE_GONE: "Gone",
    relay_pb2.NODE_ERROR: "Error",
}
_SECOND_NS = 1_000_000_000


def server_status(status: observer_pb2.ServerStatusResponse, output: Format) -> str:
    """The state of a server or relay."""
    if output is Format.JSON:
        return jsonlines.encode(status) + "\n"
    if output is Format.COMPACT:
        return _compact(status)
    rate = f"{status.flows_rate:.2f}" if status.flows_rate > 0 else times.NOT_AVAILABLE
    values = (
        f"{status.num_flows:,}",
        f"{status.max_flows:,}",
        f"{status.seen_flows:,}",
        rate,
        _uptime(status.uptime_ns),
        _count(status, "num_connected_nodes"),
        _count(status, "num_unavailable_nodes"),
        status.version,
    )
    heads = ["NUM FLOWS", "MAX FLOWS", "SEEN FLOWS", "FLOWS PER SECOND", "UPTIME"]
    heads += ["NUM CONNECTED NODES", "NUM UNAVAILABLE NODES", "VERSION"]
    if output is Format.TABLE:
        return align("\t".join(heads) + "\n" + "\t".join(values) + "\n")
    heads[6] = "NUM UNAVAIL. NODES"
    return "".join(f"{head:>19}: {value}\n" for head, value in zip(heads, values, strict=True))


def _count(status: observer_pb2.ServerStatusResponse, field: str) -> str:
    return str(getattr(status, field).value) if status.HasField(field) else times.NOT_AVAILABLE


def _uptime(uptime_ns: int) -> str:
    return f"{uptime_ns}ns" if uptime_ns >= 1 << 63 else times.format_duration_ns(uptime_ns)


def _compact(status: observer_pb2.ServerStatusResponse) -> str:
    lines = [f"Current/Max Flows: {status.num_flows:,}/{status.max_flows:,}"]
    if status.max_flows:
        lines[0] += f" ({status.num_flows / status.max_flows * 100:.2f}%)"
    rate = times.NOT_AVAILABLE
    if status.flows_rate > 0:
        rate = f"{status.flows_rate:.2f}"
    elif 0 < status.uptime_ns < 1 << 63:
        rate = f"{status.seen_flows / (status.uptime_ns / _SECOND_NS):.2f}"
    lines.append(f"Flows/s: {rate}")
    unavailable = status.num_unavailable_nodes.value
    if status.HasField("num_connected_nodes"):
        connected = status.num_connected_nodes.value
        known = status.HasField("num_unavailable_nodes")
        total = f"/{connected + unavailable}" if known else ""
        lines.append(f"Connected Nodes: {connected}{total}")
    if unavailable:
        lines.append(f"Unavailable Nodes: {unavailable}")
        names = sorted(status.unavailable_nodes)
        lines += [f"  - {name}" for name in names]
        if names and unavailable > len(names):
            lines.append(f"  - and {unavailable - len(names)} more...")
    return "\n".join(lines) + "\n"


def nodes(found: Iterable[observer_pb2.Node], output: str) -> str:
    """The nodes behind a relay, sorted by name. Raises UsageError on an unknown format."""
    listed = sorted(found, key=lambda node: node.name)
    if output == "json":
        return _json_list(listed)
    if output not in ("table", "wide"):
        raise UsageError(f"unknown output format: {output}")
    wide = output == "wide"
    rows = [["NAME", "STATUS", "AGE", "FLOWS/S", "CURRENT/MAX-FLOWS"]]
    if wide:
        rows[0] += ["VERSION", "ADDRESS", "TLS"]
    for node in listed:
        age = rate = ratio = times.NOT_AVAILABLE
        # Rounded half away from zero to whole seconds.
        if uptime_s := (node.uptime_ns + _SECOND_NS // 2) // _SECOND_NS:
            age = times.format_duration_ns(uptime_s * _SECOND_NS)
            rate = f"{node.seen_flows / uptime_s:.2f}"
        if node.max_flows:
            share = node.num_flows / node.max_flows * 100
            ratio = f"{node.num_flows}/{node.max_flows} ({share:6.2f}%)"
        row = [node.name, _NODE_STATES.get(node.state, "Unknown"), age, rate, ratio]
        if wide:
            tls = "Enabled" if node.tls.enabled else "Disabled"
            row += [
                node.version or times.NOT_AVAILABLE,
                node.address,
                tls if node.HasField("tls") else times.NOT_AVAILABLE,
            ]
        rows.append(row)
    return align("".join("\t".join(row) + "\n" for row in rows))


def namespaces(found: Sequence[observer_pb2.Namespace], output: str) -> str:
    """Namespaces seen in flows. Raises UsageError on an unknown format."""
    if output == "json":
        return _json_list(found)
    if output not in ("table", "wide"):
        raise UsageError(f"unknown output format: {output}")
    wide = output == "wide"
    lines = ["NAMESPACE\tCLUSTER\n" if wide else "NAMESPACE\n"]
    for one in found:
        cluster = f"\t{one.cluster}" if wide and one.cluster else ""
        lines.append(f"{one.namespace}{cluster}\n")
    return align("".join(lines))


def _json_list(messages: Sequence[Message]) -> str:
    """An indented array; the empty one reads null, as it always did."""
    import json

    if not messages:
        return "null\n"
    parsed = json.loads(f"[{','.join(map(jsonlines.encode, messages))}]")
    text = json.dumps(parsed, indent=2, ensure_ascii=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text + "\n"


def peer_change(change: peer_pb2.ChangeNotification) -> str:
    """One change of the peers."""
    kind = enum_name(peer_pb2.ChangeNotificationType, change.type)
    tls = f" (TLS.ServerName: {change.tls.server_name})" if change.HasField("tls") else ""
    return f"{kind:<12} {change.address} {change.name}{tls}\n"
