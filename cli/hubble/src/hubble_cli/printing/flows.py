"""Flows, lost events and node states as text.

The compact line of a flow is the hot path: a busy node fills a ring with 65,535 of them.
"""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from flow import flow_pb2
from relay import relay_pb2

from hubble_cli import jsonlines, names, times
from hubble_cli.printing.outputs import (
    DICT_SEPARATOR,
    Format,
    Options,
    Sink,
    Streams,
    join_cut,
    quote,
)
from hubble_cli.printing.outputs import enum_name as _name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from observer import observer_pb2

_ALLOWED = frozenset({flow_pb2.FORWARDED, flow_pb2.REDIRECTED})
_DENIED = frozenset({flow_pb2.DROPPED, flow_pb2.ERROR})
_PORTS = ("TCP", "UDP", "SCTP")
_SERIOUS = frozenset({relay_pb2.NODE_ERROR, relay_pb2.NODE_UNAVAILABLE})
_MORE = ("PACKETS", "BYTES", "DROPPED AT")
_NONE = ("", "", "")
_STATUS_TEXTS = {
    relay_pb2.NODE_CONNECTED: "Receiving flows from {count} nodes: {nodes}",
    relay_pb2.NODE_UNAVAILABLE: "{count} nodes are unavailable: {nodes}",
    relay_pb2.NODE_GONE: "{count} nodes removed from cluster: {nodes}",
    relay_pb2.NODE_ERROR: "Error {message} on {count} nodes: {nodes}",
}


class FlowPrinter:
    """Prints the answers of GetFlows one after the other."""

    def __init__(self, options: Options, out: Sink | None = None, err: Sink | None = None) -> None:
        self._options = options
        self.streams = Streams(options, out, err)
        self._paint = self.streams.painter
        self._time = times.formatter(options.time_format)
        self._line = 0
        self._identities: dict[int, str] = {}
        self._print_flow = {
            Format.COMPACT: self._compact,
            Format.DICT: self._dict,
            Format.TABLE: self._table,
            Format.JSON: self._json,
            Format.LEGACY_JSON: self._legacy,
        }[options.output]

    def print(self, response: observer_pb2.GetFlowsResponse) -> None:
        """Print one answer, whatever it carries."""
        kind = response.WhichOneof("response_types")
        if kind == "flow":
            self._print_flow(response)
        elif kind == "lost_events":
            self._lost(response)
        elif kind == "node_status":
            self._node_status(response)

    def _compact(self, response: observer_pb2.GetFlowsResponse) -> None:
        one = response.flow
        left, right = self._hosts(one)
        left_id = self._identity(one.source.identity)
        right_id = self._identity(one.destination.identity)
        arrow = "<>"
        if one.HasField("is_reply"):
            arrow = "->"
            if one.is_reply.value:
                # The client stays on the left.
                left, right, left_id, right_id = right, left, right_id, left_id
                arrow = "<-"
        node = f" [{one.node_name}]" if self._options.node_name else ""
        more = ""
        if self._options.wide and any(cells := _more(one)):
            packets, octets, position = cells
            counted = f"{packets} packet{'s' * (packets != '1')}, {octets} bytes" if packets else ""
            more = f" [{'; '.join(filter(None, (counted, position)))}]"
        said = f"{flow_type(one)} {self._verdict(one)} ({self._summary(one)}){more}"
        self.streams.print(
            f"{self._time(one.time, one.HasField('time'))}{node}: {left} {left_id} {arrow}"
            f" {right} {right_id} {said}\n"
        )
        self._line += 1

    def _dict(self, response: observer_pb2.GetFlowsResponse) -> None:
        one = response.flow
        source, destination = self._hosts(one)
        self._record(
            [
                ("TIMESTAMP", self._time(one.time, one.HasField("time"))),
                *([("NODE", one.node_name)] if self._options.node_name else []),
                ("SOURCE", source),
                ("DESTINATION", destination),
                ("TYPE", flow_type(one)),
                ("VERDICT", self._verdict(one)),
                ("SUMMARY", self._summary(one)),
                *(zip(_MORE, _more(one), strict=True) if self._options.wide else ()),
            ]
        )

    def _record(self, fields: Iterable[tuple[str, str]]) -> None:
        lines = [f"{label:>11}: {value}\n" for label, value in fields]
        if self._line:
            lines.insert(0, f"{DICT_SEPARATOR}\n")
        self.streams.print("".join(lines))
        self._line += 1

    def _table(self, response: observer_pb2.GetFlowsResponse) -> None:
        one = response.flow
        source, destination = self._hosts(one)
        self._row(
            self._time(one.time, one.HasField("time")),
            one.node_name,
            (source, destination, flow_type(one), self._verdict(one), self._summary(one)),
            _more(one) if self._options.wide else (),
        )

    def _row(self, time: str, node: str, cells: Iterable[str], more: Iterable[str] = _NONE) -> None:
        with_node = self._options.node_name
        if not self._line:
            self.streams.row(
                (
                    "TIMESTAMP",
                    *(("NODE",) if with_node else ()),
                    *("SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY"),
                    *(_MORE if self._options.wide else ()),
                )
            )
        shown = tuple(cell or "-" for cell in more) if self._options.wide else ()
        self.streams.row((time, *((node,) if with_node else ()), *cells, *shown))
        self._line += 1

    def _json(self, response: observer_pb2.GetFlowsResponse) -> None:
        self.streams.print_raw(jsonlines.encode(response) + "\n")

    def _legacy(self, response: observer_pb2.GetFlowsResponse) -> None:
        self.streams.print_raw(jsonlines.encode(response.flow) + "\n")

    def _hosts(self, one: flow_pb2.Flow) -> tuple[str, str]:
        cyan = self._paint.cyan
        if not one.HasField("IP"):
            if not one.HasField("ethernet"):
                return "", ""
            return cyan(one.ethernet.source), cyan(one.ethernet.destination)
        source_port = destination_port = 0
        protocol = one.l4.WhichOneof("protocol")
        if protocol in _PORTS:
            transport = getattr(one.l4, protocol)
            source_port = transport.source_port
            destination_port = transport.destination_port
        addresses = one.IP
        return (
            cyan(
                self._host(
                    addresses.source,
                    source_port,
                    one.source,
                    one.source_service if one.HasField("source_service") else None,
                    one.source_names,
                )
            ),
            cyan(
                self._host(
                    addresses.destination,
                    destination_port,
                    one.destination,
                    one.destination_service if one.HasField("destination_service") else None,
                    one.destination_names,
                )
            ),
        )

    def _host(
        self,
        address: str,
        port: int,
        endpoint: flow_pb2.Endpoint,
        service: flow_pb2.Service | None,
        dns_names: Sequence[str],
    ) -> str:
        host = address
        if self._options.ip_translation:
            namespace = endpoint.namespace if service is None else service.namespace
            if name := endpoint.pod_name or (service.name if service is not None else ""):
                host = _qualified(namespace, name)
            elif dns_names:
                host = ",".join(dns_names)
        if not port:
            return host
        shown = self._paint.yellow(str(port))
        return f"[{host}]:{shown}" if ":" in host else f"{host}:{shown}"

    def _identity(self, number: int) -> str:
        text = self._identities.get(number)
        if text is None:
            name = names.RESERVED_IDENTITIES.get(number)
            text = self._paint.magenta(f"({name})" if name else f"(ID:{number})")
            self._identities[number] = text
        return text

    def _verdict(self, one: flow_pb2.Flow) -> str:
        verdict = one.verdict
        of_policy = one.event_type.type == names.EVENT_POLICY_VERDICT
        if verdict in _ALLOWED:
            if of_policy:
                return self._paint.green(f"ALLOWED{self._policies(one, 'allowed_by')}")
            return self._paint.green(_name(flow_pb2.Verdict, verdict))
        if verdict in _DENIED:
            if of_policy:
                return self._paint.red(f"DENIED{self._policies(one, 'denied_by')}")
            return self._paint.red(_name(flow_pb2.Verdict, verdict))
        if verdict == flow_pb2.AUDIT:
            shown = f"AUDITED{self._policies(one, 'denied_by')}" if of_policy else "AUDIT"
            return self._paint.yellow(shown)
        if verdict in (flow_pb2.TRACED, flow_pb2.TRANSLATED):
            return self._paint.yellow(_name(flow_pb2.Verdict, verdict))
        return _name(flow_pb2.Verdict, verdict)

    def _policies(self, one: flow_pb2.Flow, suffix: str) -> str:
        direction = {flow_pb2.EGRESS: "egress", flow_pb2.INGRESS: "ingress"}.get(
            one.traffic_direction
        )
        if direction is None or not self._options.policy_names:
            return ""
        listed = [
            f"{policy.name} ({policy.kind})"
            for policy in getattr(one, f"{direction}_{suffix}")
            if policy.kind and policy.name
        ]
        return f" BY {', '.join(listed)}" if listed else ""

    def _summary(self, one: flow_pb2.Flow) -> str:
        text = one.Summary
        if one.HasField("ip_trace_id") and one.ip_trace_id.trace_id:
            text = f"IP Trace ID: {one.ip_trace_id.trace_id}; {text}"
        if one.auth_type != flow_pb2.DISABLED:
            failing = one.auth_type == flow_pb2.TEST_ALWAYS_FAIL
            paint = self._paint.red if failing else self._paint.green
            text += f"; Auth: {paint(_name(flow_pb2.AuthType, one.auth_type))}"
        return text

    def _lost(self, response: observer_pb2.GetFlowsResponse) -> None:
        lost = response.lost_events
        output = self._options.output
        if output in (Format.JSON, Format.LEGACY_JSON):
            shown = response if output is Format.JSON else lost
            self.streams.print_raw(jsonlines.encode(shown) + "\n")
            return
        time = self._time(response.time, response.HasField("time"))
        source = _name(flow_pb2.LostEventSource, lost.source)
        window = ""
        if lost.HasField("first") and lost.HasField("last"):
            window = (
                f" (first: {self._time(lost.first, True)}, last: {self._time(lost.last, True)})"
            )
        cpu = f"CPU({lost.cpu.value})"
        if output is Format.COMPACT:
            self.streams.print(
                f"{time} EVENTS LOST: {source} {cpu} {lost.num_events_lost}{window}\n"
            )
            self._line += 1
            return
        node = response.node_name or "-"
        summary = f"{cpu} - {lost.num_events_lost}{window}"
        if output is Format.TABLE:
            self._row(time, node, (source, "-", "EVENTS LOST", "-", summary))
            return
        self._record(
            [
                ("TIMESTAMP", time),
                *([("NODE", node)] if self._options.node_name else []),
                ("SOURCE", source),
                ("TYPE", "EVENTS LOST"),
                ("VERDICT", "-"),
                ("SUMMARY", summary),
            ]
        )

    def _node_status(self, response: observer_pb2.GetFlowsResponse) -> None:
        status = response.node_status
        if not self._options.debug and status.state_change not in _SERIOUS:
            return
        output = self._options.output
        if output is Format.JSON:
            self.streams.warn(jsonlines.encode(response) + "\n", raw=True)
            return
        time = self._time(response.time, response.HasField("time"))
        nodes = join_cut(list(status.node_names))
        if output is Format.DICT:
            lines = (
                f"  TIMESTAMP: {time}\n"
                f"      STATE: {_name(relay_pb2.NodeState, status.state_change)}\n"
                f"      NODES: {nodes}\n"
                f"    MESSAGE: {quote(status.message) if status.message else times.NOT_AVAILABLE}\n"
            )
            # Both streams may end up on one screen: keep its records apart.
            self.streams.warn(f"{DICT_SEPARATOR}\n{lines}" if self._line else lines)
            self._line = self._line or 1
        elif output in (Format.TABLE, Format.COMPACT):
            form = _STATUS_TEXTS.get(
                status.state_change, "unknown node status event: {state} {message} {nodes}"
            )
            text = form.format(
                count=len(status.node_names),
                nodes=nodes,
                message=quote(status.message),
                state=status.state_change,
            )
            self.streams.warn(f"{time} [{response.node_name}]: {text}\n")


def _more(one: flow_pb2.Flow) -> tuple[str, str, str]:
    """Packets, bytes and the source position of a drop; empty where the flow has none."""
    from cilium_core.flow_counts import counts_of

    counts, file = counts_of(one), one.file
    position = f"{file.name}:{file.line}" if file.line else file.name
    if counts is None:
        return "", "", position
    return str(counts.packets), str(counts.bytes), position


def flow_type(one: flow_pb2.Flow) -> str:
    """What kind of event a flow is, as shown in the TYPE column."""
    if one.HasField("l7"):
        record = one.l7.WhichOneof("record")
        kind = _name(flow_pb2.L7FlowType, one.l7.type).lower()
        if record == "dns":
            kind += f" {one.l7.dns.observation_source}"
        return f"{record or 'l7'}-{kind}"
    event = one.event_type.type
    if event == names.EVENT_TRACE:
        return names.trace_point(one.event_type.sub_type)
    if event == names.EVENT_DROP:
        return names.drop_reason(one.event_type.sub_type)
    if event == names.EVENT_POLICY_VERDICT:
        match = names.POLICY_MATCH_TYPES.get(one.policy_match_type, "unknown")
        direction = _name(flow_pb2.TrafficDirection, one.traffic_direction)
        return f"policy-verdict:{match} {direction}"
    if event == names.EVENT_CAPTURE:
        return _name(flow_pb2.DebugCapturePoint, one.debug_capture_point)
    if event == names.EVENT_TRACE_SOCK:
        return names.SOCKET_TRANSLATION_POINTS.get(one.sock_xlate_point) or _name(
            flow_pb2.SocketTranslationPoint, one.sock_xlate_point
        )
    return "UNKNOWN"


def _qualified(namespace: str, name: str) -> str:
    full = f"{namespace}/{name}" if namespace else name
    return posixpath.normpath(full) if "//" in full or "/." in full or full[-1] == "/" else full
