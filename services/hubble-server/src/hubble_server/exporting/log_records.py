"""Events as log records of OpenTelemetry.

The body of a record is the event as a map, with the field names of the API. What one searches by
stands in attributes as well, under the names of the semantic conventions where these have one. A
flow of a request that carries a trace belongs to that trace.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final

from cilium_core.flow_counts import counts_of
from cilium_core.varints import varint
from flow import flow_pb2
from google.protobuf import json_format, message_factory, symbol_database
from google.protobuf.descriptor import FieldDescriptor
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import (
    SEVERITY_NUMBER_DEBUG,
    SEVERITY_NUMBER_INFO,
    SEVERITY_NUMBER_WARN,
)

from hubble_server.encoding.wire import message_field, tag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from google.protobuf import any_pb2
    from google.protobuf.message import Message
    from observer import observer_pb2
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

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
        "Policy", "Service", "TCPFlags",
    )
)  # fmt: skip
"""Messages that many flows have in common."""
_MOST_ATTRIBUTES: Final = 16_384
_MOST_VALUES: Final = 2048
"""Encoded attributes, and values of each field, that are kept; some 200 bytes each."""
_OF_RESOURCE: Final = 1
_OF_RECORD: Final = 6
_BODY: Final = 5
"""Numbers of fields: attributes of a resource and a record, the record's body."""
_STRING, _BOOL, _INT, _DOUBLE, _ARRAY, _MAP, _BYTES = range(1, 8)
"""Numbers of the kinds of an AnyValue."""
_KEY: Final = 1
_VALUE: Final = 2
_ELEMENT: Final = 1
"""Numbers of the halves of a KeyValue, and of what a map or an array has."""
_TRUE: Final = tag(_BOOL, length_delimited=False) + varint(1)
_FALSE: Final = tag(_BOOL, length_delimited=False) + varint(0)
_LARGEST: Final = (1 << 63) - 1
_WORD: Final = 1 << 64
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
    logs.resource.MergeFromString(_attributes(resource, _OF_RESOURCE))
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
    attributes: dict[str, str | int | bool] = {}
    if kind == "flow":
        if event.flow.verdict in _WARNED:
            severity = SEVERITY_NUMBER_WARN
        trace_id = event.flow.trace_context.parent.trace_id
        if len(trace_id) == _TRACE_DIGITS:
            with suppress(ValueError):  # clients may write anything into the header
                record.trace_id = bytes.fromhex(trace_id)
        attributes = attributes_of(event.flow)
    elif kind == "lost_events":
        severity = SEVERITY_NUMBER_WARN
    elif kind == "debug_event":
        severity = SEVERITY_NUMBER_DEBUG
    record.severity_number = severity
    record.severity_text = _SEVERITIES[severity]
    if event.node_name:
        attributes["cilium.node.name"] = event.node_name
    encoded = _attributes(attributes, _OF_RECORD)
    if kind:
        encoded += message_field(_BODY, _map(getattr(event, kind)))
    record.MergeFromString(encoded)


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


def _name(enum: Any, number: int) -> str:
    """Name of an enum's value; empty for 0, which says nothing."""
    if not number:
        return ""
    found = enum.DESCRIPTOR.values_by_number.get(number)
    return found.name if found else str(number)


# What follows writes AnyValue and KeyValue by hand, which costs less than filling messages.


def _attributes(attributes: Mapping[str, str | int | bool], number: int) -> bytes:
    """Attributes as field `number`."""
    return b"".join([_attribute(number, name, value) for name, value in attributes.items()])


@lru_cache(_MOST_ATTRIBUTES, typed=True)  # 1 and True are equal
def _attribute(number: int, name: str, value: str | int | bool) -> bytes:
    return message_field(number, _pair(name, _scalar(value)))


def _pair(name: str, value: bytes) -> bytes:
    """A KeyValue, given an AnyValue."""
    return message_field(_KEY, name.encode()) + message_field(_VALUE, value)


def _scalar(value: str | int | bool | float | bytes) -> bytes:
    """An AnyValue of a scalar."""
    if isinstance(value, str):
        return message_field(_STRING, value.encode())
    if isinstance(value, bool):
        return _TRUE if value else _FALSE
    if isinstance(value, int):
        # unsigned numbers may be too large for what a record can hold
        if value > _LARGEST:
            return _scalar(str(value))
        return tag(_INT, length_delimited=False) + varint(value % _WORD)
    if isinstance(value, float):
        return struct.pack("<Bd", _DOUBLE << 3 | 1, value)
    return message_field(_BYTES, value)


def _map_of(pairs: Iterable[bytes]) -> bytes:
    return message_field(_MAP, b"".join([message_field(_ELEMENT, pair) for pair in pairs]))


def _array_of(values: Iterable[bytes]) -> bytes:
    return message_field(_ARRAY, b"".join([message_field(_ELEMENT, value) for value in values]))


def _map(message: Message) -> bytes:
    """An AnyValue with a message as a map."""
    return message_field(
        _MAP, b"".join([_element_of(field)(value) for field, value in message.ListFields()])
    )


@cache
def _element_of(field: Any) -> Callable[[Any], bytes]:
    """How a field with its value becomes an element of a map. What recurs is encoded once."""
    encode = _encoder(field)
    head = message_field(_KEY, field.name.encode())

    def element(value: Any) -> bytes:
        return message_field(_ELEMENT, head + message_field(_VALUE, encode(value)))

    if field.is_repeated:
        return element
    kind = field.message_type
    if kind is not None and kind.full_name in _RECURRING:
        message_class = message_factory.GetMessageClass(kind)
        kept = lru_cache(_MOST_VALUES)(lambda encoded: element(message_class.FromString(encoded)))
        return lambda value: kept(value.SerializeToString())
    if kind is None:
        return lru_cache(_MOST_VALUES, typed=True)(element)
    return element


def _encoder(field: Any) -> Callable[[Any], bytes]:
    """How values of a field become AnyValues."""
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        encode = _encoder_of_one(kind.fields_by_name["value"])
        return lambda value: _map_of(_pair(str(key), encode(item)) for key, item in value.items())
    one = _encoder_of_one(field)
    if field.is_repeated:
        return lambda value: _array_of(map(one, value))
    return one


def _encoder_of_one(field: Any) -> Callable[[Any], bytes]:
    if (kind := field.enum_type) is not None:
        names = {number: value.name for number, value in kind.values_by_number.items()}
        return lambda value: _scalar(names.get(value, value))
    if field.type != FieldDescriptor.TYPE_MESSAGE:
        return _scalar
    name = field.message_type.full_name
    if name == "google.protobuf.Timestamp":
        return lambda value: _scalar(value.ToJsonString())
    if name in _WRAPPERS:
        return lambda value: _scalar(value.value)
    if name == "google.protobuf.Any":
        return _any
    if name in _FREE:
        return lambda value: _free(json_format.MessageToDict(value))
    return _map


def _free(value: Any) -> bytes:
    """What JSON can say; nothing for null."""
    if isinstance(value, dict):
        return _map_of(_pair(name, _free(item)) for name, item in value.items())
    if isinstance(value, list):
        return _array_of(map(_free, value))
    return b"" if value is None else _scalar(value)


def _any(value: any_pb2.Any) -> bytes:
    """What an Any holds; its bytes where nobody here knows the type."""
    try:
        kind = symbol_database.Default().GetSymbol(value.TypeName())
    except KeyError:
        return _map(value)
    message: Any = kind.FromString(value.value)
    if value.TypeName() in _WRAPPERS:
        return _scalar(message.value)
    if value.TypeName() in _FREE:
        return _free(json_format.MessageToDict(message))
    pairs = [_element_of(field)(item) for field, item in message.ListFields()]
    own_type = message_field(_ELEMENT, _pair("@type", _scalar(value.type_url)))
    return message_field(_MAP, b"".join((*pairs, own_type)))
