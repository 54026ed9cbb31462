"""Agent and debug events as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flow import flow_pb2

from hubble_cli import jsonlines, times
from hubble_cli.printing.outputs import DICT_SEPARATOR, Format, Options, Sink, Streams
from hubble_cli.printing.outputs import enum_name as _name

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from google.protobuf.timestamp_pb2 import Timestamp
    from observer import observer_pb2

    Show = Callable[[Timestamp, bool], str]


class EventPrinter:
    """Prints the answers of GetAgentEvents or GetDebugEvents one after the other."""

    def __init__(self, options: Options, out: Sink | None = None, err: Sink | None = None) -> None:
        self._options = options
        self.streams = Streams(options, out, err)
        self._time = times.formatter(options.time_format)
        self._line = 0

    def print_agent(self, response: observer_pb2.GetAgentEventsResponse) -> None:
        """Print one agent event."""
        event = response.agent_event
        if self._json(response, event):
            return
        kind = _name(flow_pb2.AgentEventType, event.type)
        details = agent_details(event, self._time)
        time, node = self._where(response)
        if self._options.output is Format.COMPACT:
            self.streams.print(f"{time}{node}: {kind} ({details})\n")
        elif self._options.output is Format.TABLE:
            self._row(response, ("TYPE", "DETAILS"), (kind, details))
        else:
            self._record(response, [("TYPE", kind), ("DETAILS", details)])
        self._line += 1

    def print_debug(self, response: observer_pb2.GetDebugEventsResponse) -> None:
        """Print one debug event."""
        event = response.debug_event
        if self._json(response, event):
            return
        kind = _name(flow_pb2.DebugEventType, event.type)
        source = _endpoint(event.source) if event.HasField("source") else times.NOT_AVAILABLE
        mark = f"0x{event.hash.value:x}" if event.HasField("hash") else times.NOT_AVAILABLE
        cpu = f"{event.cpu.value:02d}" if event.HasField("cpu") else times.NOT_AVAILABLE
        time, node = self._where(response)
        if self._options.output is Format.COMPACT:
            self.streams.print(
                f"{time}{node}: {source} {kind} MARK: {mark} CPU: {cpu} ({event.message})\n"
            )
        elif self._options.output is Format.TABLE:
            self._row(
                response,
                ("FROM", "", "TYPE", "CPU/MARK", "MESSAGE"),
                (source, "", kind, f"{cpu} {mark}", event.message),
            )
        else:
            fields = [("TYPE", kind), ("FROM", source), ("MARK", mark), ("CPU", cpu)]
            self._record(response, [*fields, ("MESSAGE", event.message)])
        self._line += 1

    def _json(self, response: Any, event: Any) -> bool:
        if self._options.output not in (Format.JSON, Format.LEGACY_JSON):
            return False
        shown = response if self._options.output is Format.JSON else event
        self.streams.print_raw(jsonlines.encode(shown) + "\n")
        return True

    def _where(self, response: Any) -> tuple[str, str]:
        time = self._time(response.time, response.HasField("time"))
        return time, f" [{response.node_name}]" if self._options.node_name else ""

    def _row(self, response: Any, heads: tuple[str, ...], cells: tuple[str, ...]) -> None:
        node = self._options.node_name
        if not self._line:
            self.streams.row(("TIMESTAMP", *(("NODE",) if node else ()), *heads))
        time, _ = self._where(response)
        self.streams.row((time, *((response.node_name,) if node else ()), *cells))

    def _record(self, response: Any, fields: list[tuple[str, str]]) -> None:
        time, _ = self._where(response)
        node = [("NODE", response.node_name)] if self._options.node_name else []
        lines = [
            f"{label:>11}: {value}\n" for label, value in [("TIMESTAMP", time), *node, *fields]
        ]
        # Without a line break: that is how these records have always been parted.
        self.streams.print(("" if not self._line else DICT_SEPARATOR) + "".join(lines))


def agent_details(event: flow_pb2.AgentEvent, show: Show) -> str:
    """What an agent event says beside its type; UNKNOWN when type and content do not fit."""
    wanted, tell = _DETAILS.get(event.type, ("", None))
    if tell is None or event.WhichOneof("notification") != wanted:
        return "UNKNOWN"
    return tell(getattr(event, wanted), show)


def _unknown(one: flow_pb2.AgentEventUnknown, _: Show) -> str:
    return f"type: {one.type}, notification: {one.notification}"


def _start(one: flow_pb2.TimeNotification, show: Show) -> str:
    return f"start time: {show(one.time, one.HasField('time'))}"


def _policy(one: flow_pb2.PolicyUpdateNotification, _: Show) -> str:
    return f"labels: [{','.join(one.labels)}], revision: {one.revision}, count: {one.rule_count}"


def _regenerate(one: flow_pb2.EndpointRegenNotification, _: Show) -> str:
    error = f", error: {one.error}" if one.error else ""
    return f"id: {one.id}, labels: [{','.join(one.labels)}]{error}"


def _endpoint_update(one: flow_pb2.EndpointUpdateNotification, _: Show) -> str:
    namespace = f", namespace: {one.namespace}" if one.namespace else ""
    return f"id: {one.id}{namespace}{f', pod name: {one.pod_name}' if one.pod_name else ''}"


def _ipcache(one: flow_pb2.IPCacheNotification, _: Show) -> str:
    parts = [f"cidr: {one.cidr}", f"identity: {one.identity}"]
    if one.HasField("old_identity"):
        parts.append(f"old identity: {one.old_identity.value}")
    if one.host_ip:
        parts.append(f"host ip: {one.host_ip}")
    if one.old_host_ip:
        parts.append(f"old host ip: {one.old_host_ip}")
    return ", ".join([*parts, f"encrypt key: {one.encrypt_key}"])


def _service_upsert(one: flow_pb2.ServiceUpsertNotification, _: Show) -> str:
    parts = [f"id: {one.id}"]
    if one.HasField("frontend_address"):
        parts.append(f"frontend: {_address(one.frontend_address)}")
    if one.backend_addresses:
        parts.append(f"backends: [{','.join(map(_address, one.backend_addresses))}]")
    for label, value in (
        ("type", one.type),
        ("traffic policy", one.traffic_policy),
        ("namespace", one.namespace),
        ("name", one.name),
    ):
        if value:
            parts.append(f"{label}: {value}")
    return ", ".join(parts)


def _service_delete(one: flow_pb2.ServiceDeleteNotification, _: Show) -> str:
    return f"id: {one.id}"


_DETAILS: dict[int, tuple[str, Callable[[Any, Show], str]]] = {
    flow_pb2.AGENT_EVENT_UNKNOWN: ("unknown", _unknown),
    flow_pb2.AGENT_STARTED: ("agent_start", _start),
    flow_pb2.POLICY_UPDATED: ("policy_update", _policy),
    flow_pb2.POLICY_DELETED: ("policy_update", _policy),
    flow_pb2.ENDPOINT_REGENERATE_SUCCESS: ("endpoint_regenerate", _regenerate),
    flow_pb2.ENDPOINT_REGENERATE_FAILURE: ("endpoint_regenerate", _regenerate),
    flow_pb2.ENDPOINT_CREATED: ("endpoint_update", _endpoint_update),
    flow_pb2.ENDPOINT_DELETED: ("endpoint_update", _endpoint_update),
    flow_pb2.IPCACHE_UPSERTED: ("ipcache_update", _ipcache),
    flow_pb2.IPCACHE_DELETED: ("ipcache_update", _ipcache),
    flow_pb2.SERVICE_UPSERTED: ("service_upsert", _service_upsert),
    flow_pb2.SERVICE_DELETED: ("service_delete", _service_delete),
}


def _address(one: flow_pb2.ServiceUpsertNotificationAddr) -> str:
    return f"[{one.ip}]:{one.port}" if ":" in one.ip else f"{one.ip}:{one.port}"


def _endpoint(one: flow_pb2.Endpoint) -> str:
    number = f"ID: {one.ID}"
    if one.namespace and one.pod_name:
        return f"{one.namespace}/{one.pod_name} ({number})"
    if len(one.labels) == 1 and one.labels[0].startswith("reserved:"):
        return f"{one.labels[0]} ({number})"
    return number
