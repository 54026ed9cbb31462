"""What proxies saw → `L7Record` for hubble-server.

All proxies speak of what they saw as `cilium.proxy.v1.Record`: ours over the wire, Envoy's access
log through `envoy/accesslogs.py`. Here addresses become endpoints, and requests and responses get
the right ends. A record costs some 20 µs, so a proxy under load can say more than anybody wants to
pay for: above `limit_per_s`, records are counted as lost instead.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Protocol

from cilium.metadata.v1 import metadata_pb2
from cilium_core.telemetry import counter, get_logger
from flow import flow_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cilium.proxy.v1 import proxy_pb2
    from cilium_core.policy.l7 import L7Kind

log = get_logger()

L7 = counter("cilium_policy_l7_total", "Requests seen by proxies.", "rule", "proxy_type")
LOST = counter("cilium_proxy_flows_lost_total", "Records that did not become flows.", "proxy_type")

EVENT_TYPE_L7 = 129
_IPV6_LENGTH = 16
_VERDICT_RULES = {
    flow_pb2.FORWARDED: "forwarded",
    flow_pb2.AUDIT: "forwarded",
    flow_pb2.DROPPED: "denied",
    flow_pb2.ERROR: "parse_errors",
}


class Resolver(Protocol):
    """Tells who an address is."""

    def endpoint(self, address: str) -> flow_pb2.Endpoint:
        """What flows show of the owner of an address now; never None, at worst world."""


class Sink(Protocol):
    """Takes what proxies saw."""

    def take(self, kind: L7Kind, records: Sequence[proxy_pb2.Record], lost: int = 0) -> None:
        """Take over a batch; `lost` records were lost before it."""


class RecordSink:
    """Turns records into `L7Record` and hands them on. Used from the event loop."""

    def __init__(
        self,
        resolver: Resolver,
        publish: Callable[[metadata_pb2.L7Record], None],
        *,
        limit_per_s: int = 5000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """At most `limit_per_s` records become flows in a second; 0 is no limit."""
        self._resolver = resolver
        self._publish = publish
        self._limit = limit_per_s
        self._clock = clock
        self._budget = float(limit_per_s)
        self._filled_at = clock()

    def take(self, kind: L7Kind, records: Sequence[proxy_pb2.Record], lost: int = 0) -> None:
        """Take over a batch; `lost` records were lost before it."""
        room = self._room(len(records))
        missing = lost + len(records) - room
        if missing:
            LOST.add(missing, kind.value)
        for record in records[:room]:
            try:
                self._publish(l7_record(record, self._resolver))
            except ValueError as error:
                LOST.add(1, kind.value)
                log.warning("a record makes no sense", kind=kind.value, error=str(error))

    async def report(self, kind: L7Kind, records: Sequence[proxy_pb2.Record], lost: int) -> None:
        """Take over a batch of one of our own proxies, and count it."""
        count(kind, records)
        self.take(kind, records, lost)

    def _room(self, wanted: int) -> int:
        if not self._limit:
            return wanted
        now = self._clock()
        filled = self._budget + (now - self._filled_at) * self._limit
        self._budget = min(float(self._limit), filled)
        self._filled_at = now
        room = min(wanted, int(self._budget))
        self._budget -= room
        return room


def count(kind: L7Kind, records: Iterable[proxy_pb2.Record]) -> None:
    """Count requests and responses in `cilium_policy_l7_total`."""
    sums = {"received": 0, "forwarded": 0, "denied": 0, "parse_errors": 0}
    for record in records:
        if record.l7.type == flow_pb2.RESPONSE:
            continue
        sums["received"] += 1
        rule = _VERDICT_RULES.get(record.verdict)
        if rule:
            sums[rule] += 1
    for rule, number in sums.items():
        if number:
            L7.add(number, rule, kind.value)


def l7_record(record: proxy_pb2.Record, resolver: Resolver) -> metadata_pb2.L7Record:
    """A record with its ends resolved; a response goes from server to client.

    Raises ValueError for addresses that are none.
    """
    ipv6 = len(record.client) == _IPV6_LENGTH
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    source, source_port = socket.inet_ntop(family, record.client), record.client_port
    destination, destination_port = socket.inet_ntop(family, record.server), record.server_port
    layer7 = record.l7
    reply = layer7.type == flow_pb2.RESPONSE
    if reply:
        source, destination = destination, source
        source_port, destination_port = destination_port, source_port
    seconds, nanos = divmod(record.time_ns, 1_000_000_000)
    result = metadata_pb2.L7Record()
    flow = result.flow
    for stamp in (result.time, flow.time):
        stamp.seconds, stamp.nanos = seconds, nanos
    flow.Type = flow_pb2.L7
    flow.event_type.type = EVENT_TYPE_L7
    flow.verdict = record.verdict
    flow.traffic_direction = flow_pb2.INGRESS if record.ingress else flow_pb2.EGRESS
    flow.is_reply.value = reply
    ip = flow.IP
    ip.source, ip.destination = source, destination
    ip.ipVersion = flow_pb2.IPv6 if ipv6 else flow_pb2.IPv4
    layer4 = flow.l4.UDP if record.protocol == socket.IPPROTO_UDP else flow.l4.TCP
    layer4.source_port, layer4.destination_port = source_port, destination_port
    flow.source.CopyFrom(resolver.endpoint(source))
    flow.destination.CopyFrom(resolver.endpoint(destination))
    flow.l7.CopyFrom(layer7)
    if record.summary:
        flow.Summary = record.summary
    return result
