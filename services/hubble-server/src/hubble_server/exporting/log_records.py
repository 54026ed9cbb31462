"""Events as log records of OpenTelemetry.

The body of a record is the event as a map, with the field names of the API. What one searches by
stands in attributes as well, under the names of the semantic conventions where these have one. A
flow of a request that carries a trace belongs to that trace.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final

from cilium_core.flow_counts import counts_of
from flow import flow_pb2
from google.protobuf import json_format, message_factory, symbol_database
from google.protobuf.descriptor import FieldDescriptor
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import (
    SEVERITY_NUMBER_DEBUG,
    SEVERITY_NUMBER_INFO,
    SEVERITY_NUMBER_WARN,
)

from hubble_server.encoding.wire import message_field

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from google.protobuf import any_pb2
    from google.protobuf.message import Message
    from observer import observer_pb2
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource

SCOPE: Final = "cilium.hubble"
_WARNED: Final = frozenset({flow_pb2.DROPPED, flow_pb2.ERROR})
_SEVERITIES: Final = {
    SEVERITY_NUMBER_DEBUG: "DEBUG",
    SEVERITY_NUMBER_INFO: "INFO",
    SEVERITY_NUMBER_WARN: "WARN",
}
_WRAPPERS: Final = frozenset(
    f"google.protobuf.{kind}Value" for kind in ("Bool", "Int32", "UInt32", "String")
)
_FREE: Final = frozenset(f"google.protobuf.{kind}" for kind in ("Struct", "Value", "ListValue"))
_RECURRING: Final = frozenset(
    f"flow.{kind}"
    for kind in (
        "CiliumEventType", "Emitter", "Endpoint", "Ethernet", "FileInfo", "NetworkInterface",
        "Policy", "Service",
    )
)  # fmt: skip
"""Messages that many flows have in common."""
_MOST_KEPT: Final = 16_384
"""Encoded pairs that are kept, each some 300 bytes."""
_OF_RESOURCE: Final = 1
_OF_RECORD: Final = 6
_OF_MAP: Final = 1
_MAP: Final = 6
"""Numbers of fields: attributes of a resource and a record, pairs of a map, the map of a value."""
_LARGEST: Final = (1 << 63) - 1
_TRACE_DIGITS: Final = 32
_EVENTS: Final = {
    "flow": "hubble.flow",
    "lost_events": "hubble.lost_events",
    "agent_event": "hubble.agent_event",
    "debug_event": "hubble.debug_event",
}


def request_of(
    events: Iterable[observer_pb2.ExportEvent], observed_ns: int, resource: Mapping[str, str]
) -> ExportLogsServiceRequest:
    """A request with these events, all of one resource."""
    # filled in place: copying messages into each other costs several times as much
    request = ExportLogsServiceRequest()
    logs = request.resource_logs.add()
    _put_attributes(resource, _OF_RESOURCE, logs.resource)
    scope = logs.scope_logs.add()
    scope.scope.name = SCOPE
    for event in events:
        write_record(event, observed_ns, scope.log_records.add())
    return request


def write_record(event: observer_pb2.ExportEvent, observed_ns: int, record: LogRecord) -> None:
    """Fill a record with an event; `observed_ns` (Unix time) is when it is exported."""
    kind = event.WhichOneof("response_types") or ""
    record.time_unix_nano = event.time.ToNanoseconds()
    record.observed_time_unix_nano = observed_ns
    record.event_name = _EVENTS.get(kind, "hubble.event")
    severity = SEVERITY_NUMBER_INFO
    if kind == "flow":
        if event.flow.verdict in _WARNED:
            severity = SEVERITY_NUMBER_WARN
        trace_id = event.flow.trace_context.parent.trace_id
        if len(trace_id) == _TRACE_DIGITS:
            with suppress(ValueError):  # clients may write anything into the header
                record.trace_id = bytes.fromhex(trace_id)
        _put_attributes(attributes_of(event.flow), _OF_RECORD, record)
    elif kind == "lost_events":
        severity = SEVERITY_NUMBER_WARN
    elif kind == "debug_event":
        severity = SEVERITY_NUMBER_DEBUG
    record.severity_number = severity
    record.severity_text = _SEVERITIES[severity]
    if kind:
        record.body.MergeFromString(_body(getattr(event, kind)))
    if event.node_name:
        _put_attributes({"cilium.node.name": event.node_name}, _OF_RECORD, record)


def attributes_of(flow: flow_pb2.Flow) -> dict[str, str | int | bool]:
    """What one searches flows by; only what the flow has."""
    found: dict[str, str | int | bool] = {
        "cilium.flow.uuid": flow.uuid,
        "cilium.flow.verdict": _name(flow_pb2.Verdict, flow.verdict),
        "cilium.flow.type": _name(flow_pb2.FlowType, flow.Type),
        "cilium.flow.direction": _name(flow_pb2.TrafficDirection, flow.traffic_direction),
        "cilium.flow.drop_reason": _name(flow_pb2.DropReason, flow.drop_reason_desc),
        "cilium.flow.summary": flow.Summary,
        "source.address": flow.IP.source,
        "destination.address": flow.IP.destination,
        "network.type": _name(flow_pb2.IPVersion, flow.IP.ipVersion).lower(),
    }
    if protocol := flow.l4.WhichOneof("protocol"):
        found["network.transport"] = protocol.lower()
        ports = getattr(flow.l4, protocol)
        found["source.port"] = getattr(ports, "source_port", 0)
        found["destination.port"] = getattr(ports, "destination_port", 0)
    for side in ("source", "destination"):
        end: flow_pb2.Endpoint = getattr(flow, side)
        found[f"cilium.{side}.identity"] = end.identity
        found[f"cilium.{side}.namespace"] = end.namespace
        found[f"cilium.{side}.pod"] = end.pod_name
        found[f"cilium.{side}.workload"] = end.workloads[0].name if end.workloads else ""
        found[f"cilium.{side}.service"] = getattr(flow, f"{side}_service").name
    if (counts := counts_of(flow)) is not None:
        found["cilium.flow.packets"], found["cilium.flow.bytes"] = counts
    match flow.l7.WhichOneof("record"):
        case "http":
            http = flow.l7.http
            found["http.request.method"] = http.method
            found["http.response.status_code"] = http.code
            found["url.full"] = http.url
        case "dns":
            found["dns.question.name"] = flow.l7.dns.query
        case "kafka":
            found["messaging.system"] = "kafka"
            found["messaging.operation.name"] = flow.l7.kafka.api_key
            found["messaging.destination.name"] = flow.l7.kafka.topic
    kept = {name: value for name, value in found.items() if value}
    if flow.HasField("is_reply"):
        kept["cilium.flow.is_reply"] = flow.is_reply.value
    return kept


def _put_attributes(
    attributes: Mapping[str, str | int | bool], number: int, into: LogRecord | Resource
) -> None:
    """Put attributes into field `number`."""
    into.MergeFromString(
        b"".join([_pair(number, name, value) for name, value in attributes.items()])
    )


@lru_cache(_MOST_KEPT, typed=True)  # 1 and True are equal
def _pair(number: int, name: str, value: str | int | bool) -> bytes:
    """A KeyValue as field `number`."""
    pair = KeyValue(key=name)
    _put(value, pair.value)
    return message_field(number, pair.SerializeToString())


def _name(enum: Any, number: int) -> str:
    """Name of an enum's value; empty for 0, which says nothing."""
    if not number:
        return ""
    found = enum.DESCRIPTOR.values_by_number.get(number)
    return found.name if found else str(number)


def _put(value: str | int | bool | float | bytes, into: AnyValue) -> None:
    if isinstance(value, str):
        into.string_value = value
    elif isinstance(value, bool):
        into.bool_value = value
    elif isinstance(value, int):
        # unsigned numbers may be too large for what a record can hold
        if value <= _LARGEST:
            into.int_value = value
        else:
            into.string_value = str(value)
    elif isinstance(value, float):
        into.double_value = value
    else:
        into.bytes_value = value


def _body(message: Message) -> bytes:
    """An AnyValue with a message as a map. What recurs is encoded once."""
    parts = []
    for field, value in message.ListFields():
        kind = field.message_type
        if field.is_repeated or (kind is not None and kind.full_name not in _RECURRING):
            pair = KeyValue(key=field.name)
            _put_field(field, value, pair.value)
            parts.append(message_field(_OF_MAP, pair.SerializeToString()))
        elif kind is not None:
            parts.append(_recurring(field, value.SerializeToString()))
        elif field.enum_type is not None:
            parts.append(_recurring(field, value))
        else:
            parts.append(_pair(_OF_MAP, field.name, value))
    return message_field(_MAP, b"".join(parts))


@lru_cache(_MOST_KEPT)
def _recurring(field: Any, value: int | bytes) -> bytes:
    """The pair of an enum's value or of an encoded message."""
    pair = KeyValue(key=field.name)
    if isinstance(value, bytes):
        message = message_factory.GetMessageClass(field.message_type).FromString(value)
        _put_map(message, pair.value)
    else:
        _putter(field)(value, pair.value)
    return message_field(_OF_MAP, pair.SerializeToString())


def _put_map(message: Message, into: AnyValue) -> None:
    pairs = into.kvlist_value.values
    into.kvlist_value.SetInParent()
    for field, value in message.ListFields():
        pair = pairs.add()
        pair.key = field.name
        _put_field(field, value, pair.value)


def _put_field(field: Any, value: Any, into: AnyValue) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        put = _putter(field.message_type.fields_by_name["value"])
        into.kvlist_value.SetInParent()
        for name, item in value.items():
            entry = into.kvlist_value.values.add()
            entry.key = str(name)
            put(item, entry.value)
    elif field.is_repeated:
        put = _putter(field)
        for item in value:
            put(item, into.array_value.values.add())
    else:
        _putter(field)(value, into)


@cache
def _putter(field: Any) -> Callable[[Any, AnyValue], None]:
    """How values of a field are put into a record."""
    if (kind := field.enum_type) is not None:
        names = {number: value.name for number, value in kind.values_by_number.items()}
        return lambda value, into: _put(names.get(value, value), into)
    if field.type != FieldDescriptor.TYPE_MESSAGE:
        return _put
    name = field.message_type.full_name
    if name == "google.protobuf.Timestamp":
        return lambda value, into: _put(value.ToJsonString(), into)
    if name in _WRAPPERS:
        return lambda value, into: _put(value.value, into)
    if name == "google.protobuf.Any":
        return _put_any
    if name in _FREE:
        return lambda value, into: _put_free(json_format.MessageToDict(value), into)
    return _put_map


def _put_free(value: Any, into: AnyValue) -> None:
    """What JSON can say; nothing for null."""
    if isinstance(value, dict):
        into.kvlist_value.SetInParent()
        for name, item in value.items():
            pair = into.kvlist_value.values.add()
            pair.key = name
            _put_free(item, pair.value)
    elif isinstance(value, list):
        into.array_value.SetInParent()
        for item in value:
            _put_free(item, into.array_value.values.add())
    elif value is not None:
        _put(value, into)


def _put_any(value: any_pb2.Any, into: AnyValue) -> None:
    """What an Any holds; its bytes where nobody here knows the type."""
    try:
        kind = symbol_database.Default().GetSymbol(value.TypeName())
    except KeyError:
        _put_map(value, into)
        return
    message: Any = kind.FromString(value.value)
    if value.TypeName() in _WRAPPERS:
        _put(message.value, into)
        return
    if value.TypeName() in _FREE:
        _put_free(json_format.MessageToDict(message), into)
        return
    _put_map(message, into)
    pair = into.kvlist_value.values.add()
    pair.key, pair.value.string_value = "@type", value.type_url
