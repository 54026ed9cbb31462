"""From records of proxies to flows: completed, redacted, encoded, and as columns for the filters.

The encoded flow is what clients get. The columns, and words beside them, repeat what filters ask
for, so that a search through many records only reads the messages of the few that it finds. Runs on
the ingest thread, on as many records at once as there are.
"""

from __future__ import annotations

import ipaddress
import uuid as uuids
from typing import TYPE_CHECKING, Any

import numpy as np
from cilium_core import abi
from cilium_core.request_paths import request_path
from flow import flow_pb2

from hubble_server.encoding.texts import ICMPV4, ICMPV6, SCTP, TCP, UDP, address_text
from hubble_server.facts import EMITTER_NAME, VERSION
from hubble_server.flows.columns import (
    KIND_RECORD,
    L7_KINDS,
    L7_OTHER,
    REPLY_NO,
    REPLY_YES,
    TYPE_L7,
    zeros,
)
from hubble_server.flows.decoding import random_uuids
from hubble_server.flows.store import Said
from hubble_server.metadata.rows import EndpointRow, Workload
from hubble_server.records.correlating import Requests
from hubble_server.records.summaries import summary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cilium.metadata.v1 import metadata_pb2
    from numpy.typing import NDArray

    from hubble_server.facts import NodeFacts
    from hubble_server.metadata.directory import Directory
    from hubble_server.records.redacting import Redaction

_IPV6 = abi.constants["EVENT_IPV6"]
_L3 = abi.constants["EVENT_L3"]
_L4 = abi.constants["EVENT_L4"]
_PROTOCOLS = {"TCP": TCP, "UDP": UDP, "SCTP": SCTP, "ICMPv4": ICMPV4, "ICMPv6": ICMPV6}
_PORT_PROTOCOLS = frozenset({"TCP", "UDP", "SCTP"})

Columns = dict[str, "NDArray[Any]"]


class RecordBuilder:
    """Makes flows of records. `redaction` is None when nothing is to be taken out."""

    def __init__(self, directory: Directory, redaction: Redaction | None = None) -> None:
        self._directory = directory
        self._redaction = redaction
        self._requests = Requests()
        self._random = np.random.default_rng()

    def build(
        self, records: Sequence[metadata_pb2.L7Record], times_ns: Sequence[int], node: NodeFacts
    ) -> tuple[Columns, list[bytes], list[Said | None]]:
        """Columns, encoded messages, and words of the flows that records become.

        They were seen at `times_ns`, on this node.
        """
        columns = zeros(len(records))
        columns["kind"][:] = KIND_RECORD
        columns["type"][:] = TYPE_L7
        columns["time_ns"][:] = times_ns
        words = random_uuids(self._random, len(records))
        columns["uuid_high"], columns["uuid_low"] = words[:, 0], words[:, 1]
        flows = []
        for row, record in enumerate(records):
            flow = self._complete(record, times_ns[row], node)
            flow.uuid = str(uuids.UUID(bytes=words[row].tobytes()))
            self._fill(columns, row, flow)
            flows.append(flow)
        self._join(columns, flows)
        return (
            columns,
            [flow.SerializeToString() for flow in flows],
            [_said(flow) for flow in flows],
        )

    def _complete(
        self, record: metadata_pb2.L7Record, time_ns: int, node: NodeFacts
    ) -> flow_pb2.Flow:
        """Fill in what is the same for all records of this node, and what the record implies."""
        self._requests.complete(record)
        flow = record.flow
        if self._redaction is not None:
            self._redaction.apply(flow.l7)
        flow.Type = flow_pb2.L7
        flow.event_type.type = TYPE_L7
        flow.event_type.sub_type = 0
        flow.is_reply.value = flow.reply = flow.l7.type == flow_pb2.RESPONSE
        flow.time.FromNanoseconds(time_ns)
        flow.node_name = node.qualified_name
        flow.node_labels[:] = node.labels
        flow.emitter.name, flow.emitter.version = EMITTER_NAME, VERSION
        flow.Summary = summary(flow.l7) or flow.Summary
        for end in (flow.source, flow.destination):
            end.labels.sort()
        return flow

    def _fill(self, columns: Columns, row: int, flow: flow_pb2.Flow) -> None:
        """Write what the record itself says into its columns."""
        columns["verdict"][row] = flow.verdict
        columns["direction"][row] = flow.traffic_direction
        columns["reply"][row] = REPLY_YES if flow.is_reply.value else REPLY_NO
        columns["l7"][row] = L7_KINDS.get(flow.l7.WhichOneof("record") or "", L7_OTHER)
        flags = 0
        source, destination = _packed(flow.IP.source), _packed(flow.IP.destination)
        if source and len(source) == len(destination):
            is_ipv6 = len(source) == 16
            flags |= _L3 | (_IPV6 if is_ipv6 else 0)
            flow.IP.ipVersion = flow_pb2.IPv6 if is_ipv6 else flow_pb2.IPv4
            flow.IP.source = _put_address(columns, "source", row, source)
            flow.IP.destination = _put_address(columns, "destination", row, destination)
        else:
            flow.ClearField("IP")
        protocol = flow.l4.WhichOneof("protocol")
        if protocol in _PROTOCOLS:
            flags |= _L4
            columns["protocol"][row] = _PROTOCOLS[protocol]
            if protocol in _PORT_PROTOCOLS:
                transport = getattr(flow.l4, protocol)
                columns["source_port"][row] = transport.source_port & 0xFFFF
                columns["destination_port"][row] = transport.destination_port & 0xFFFF
        columns["flags"][row] = flags
        for end, name in ((flow.source, "source_row"), (flow.destination, "destination_row")):
            columns[name][row] = self._directory.row_of(_row(end))

    def _join(self, columns: Columns, flows: Sequence[flow_pb2.Flow]) -> None:
        """Look up services and DNS names of all the addresses at once."""
        directory = self._directory
        is_ipv6 = (columns["flags"] & _IPV6) != 0
        for end, other in (("source", "destination"), ("destination", "source")):
            directory.seen(columns[f"{end}_row"])
            high, low = columns[f"{end}_high"], columns[f"{end}_low"]
            knowing = directory.endpoint_ids(columns[f"{other}_row"])
            names = directory.names.find(knowing, high, low, is_ipv6)
            if names is not None:
                columns[f"{end}_names"] = names
                for row in np.flatnonzero(names).tolist():
                    getattr(flows[row], f"{end}_names")[:] = directory.names.rows[names[row]].names
            services = directory.service_rows(
                high, low, is_ipv6, columns[f"{end}_port"], columns["protocol"]
            )
            if services is not None:
                columns[f"{end}_service"] = services
                for row in np.flatnonzero(services).tolist():
                    service = directory.services[services[row]]
                    told = getattr(flows[row], f"{end}_service")
                    told.name, told.namespace = service.name, service.namespace


def _said(flow: flow_pb2.Flow) -> Said | None:
    match flow.l7.WhichOneof("record"):
        case "dns":
            return Said(flow.l7.dns.query.encode())
        case "http":
            path = request_path(flow.l7.http.url)
            return Said(flow.l7.http.url.encode(), None if path is None else path.encode())
        case _:
            return None


def _row(end: flow_pb2.Endpoint) -> EndpointRow:
    return EndpointRow(
        end.ID,
        end.identity,
        end.namespace,
        tuple(end.labels),
        end.pod_name,
        tuple(Workload(each.name, each.kind) for each in end.workloads),
        end.cluster_name,
    )


def _packed(address: str) -> bytes:
    """Bytes of an address, none when it is no address."""
    try:
        return ipaddress.ip_address(address).packed
    except ValueError:
        return b""


def _put_address(columns: Columns, end: str, row: int, packed: bytes) -> str:
    """Write an address into its columns; returns the text that filters compare."""
    whole = packed.ljust(16, b"\0")
    columns[f"{end}_high"][row] = int.from_bytes(whole[:8], "little")
    columns[f"{end}_low"][row] = int.from_bytes(whole[8:], "little")
    return address_text(whole, len(packed) == 16)
