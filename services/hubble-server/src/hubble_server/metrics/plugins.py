"""The metric plugins: what each counts, under the names and labels of Hubble."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from cilium_core.telemetry.metrics import Counter, Histogram
from flow import flow_pb2

from hubble_server.encoding.texts import TRACE_POINTS
from hubble_server.flows.columns import (
    REPLY_NO,
    REPLY_UNKNOWN,
    TYPE_CAPTURE,
    TYPE_DROP,
    TYPE_L7,
    TYPE_TRACE,
    TYPE_VERDICT,
)
from hubble_server.metrics.contexts import DIRECTIONS, ContextOptions, MetricsConfigError
from hubble_server.records.summaries import RCODES

Increment = tuple[Counter, tuple[str, ...]]
Observation = tuple[Histogram, float, tuple[str, ...]]
Options = Mapping[str, tuple[str, ...]]

PREFIX: Final = "hubble_"
_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_L3_L4: Final = frozenset({TYPE_DROP, TYPE_TRACE, TYPE_VERDICT, TYPE_CAPTURE})
_TYPES: Final = {
    TYPE_L7: "L7",
    TYPE_DROP: "Drop",
    TYPE_CAPTURE: "Capture",
    TYPE_TRACE: "Trace",
    TYPE_VERDICT: "PolicyVerdict",
}
_L7_NAMES: Final = {"dns": "DNS", "http": "HTTP", "kafka": "Kafka"}
_L4_NAMES: Final = frozenset({"TCP", "UDP", "ICMPv4", "ICMPv6", "SCTP", "VRRP", "IGMP"})
_WORLD: Final = frozenset({"reserved:world", "reserved:world-ipv4", "reserved:world-ipv6"})
_PASSED: Final = frozenset({flow_pb2.FORWARDED, flow_pb2.REDIRECTED})
_MATCHES: Final = {0: "none", 1: "l3-only", 2: "l3-l4", 3: "l4-only", 4: "all", 5: "l3-proto",
                   6: "proto-only"}  # fmt: skip
_HOST: Final = 1
_RCODES: Final = RCODES | {
    9: "Not Authorized",
    11: "DSO-TYPE Not Implemented",
    23: "Bad/missing Server Cookie",
}


def protocol_of(flow: flow_pb2.Flow) -> str:
    """The protocol as metrics name it."""
    kind = flow.event_type.type
    if kind == TYPE_L7:
        return _L7_NAMES.get(flow.l7.WhichOneof("record") or "", "Unknown L7")
    if kind in _L3_L4:
        name = flow.l4.WhichOneof("protocol") or ""
        return name if name in _L4_NAMES else "Unknown L4"
    return "Unknown flow"


def _reporter(flow: flow_pb2.Flow) -> str:
    return {flow_pb2.EGRESS: "client", flow_pb2.INGRESS: "server"}.get(
        flow.traffic_direction, "unknown"
    )


def _verdict(flow: flow_pb2.Flow) -> str:
    return flow_pb2.Verdict.Name(flow.verdict)


class Plugin(ABC):
    """A metric by its name, with its options; counts flows one message at a time."""

    name: ClassVar[str]
    options: ClassVar[frozenset[str]] = frozenset()
    """What may be set beside context options, in lower case."""
    columns: ClassVar[tuple[str, ...]] = ()
    """What it looks at in flows of the data plane, beside contexts; none where it counts only what
    proxies saw."""

    def __init__(self, context: ContextOptions, options: Options) -> None:
        if unknown := sorted(set(options) - self.options):
            known = ", ".join(sorted(self.options)) or "none but contexts"
            raise MetricsConfigError(
                f"metric {self.name}: there is no option {unknown[0]!r}; there are {known}"
            )
        self.context = context
        self.port_of: tuple[int, ...] = ()
        """`REPLY_*` of flows that may count under other labels for their destination port alone."""
        self.instruments: list[Counter | Histogram] = []

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        made = Counter(PREFIX + name, help_text, (*self.context.names, *labels))
        self.instruments.append(made)
        return made

    def _histogram(self, name: str, help_text: str, *labels: str) -> Histogram:
        made = Histogram(PREFIX + name, help_text, (*self.context.names, *labels), _BUCKETS)
        self.instruments.append(made)
        return made

    def increments(self, flow: flow_pb2.Flow) -> list[Increment]:
        """The series that grow by one with this flow."""
        return list(self._increments(flow))

    def observations(self, flow: flow_pb2.Flow) -> list[Observation]:
        """What histograms observe in this flow."""
        return list(self._observations(flow))

    @abstractmethod
    def _increments(self, flow: flow_pb2.Flow) -> Iterator[Increment]:
        """As `increments`."""

    def _observations(self, _flow: flow_pb2.Flow) -> Iterator[Observation]:
        yield from ()

    def forget_pod(self, namespace: str, pod: str) -> None:
        """Drop the series that are about a pod."""
        count = len(self.context.names)
        for instrument in self.instruments:
            instrument.forget(lambda values: self.context.is_of_pod(values[:count], namespace, pod))


class Dns(Plugin):
    """Queries and answers of DNS."""

    name = "dns"
    options = frozenset({"query", "ignoreaaaa"})

    def __init__(self, context: ContextOptions, options: Options) -> None:
        super().__init__(context, options)
        self._query, self._no_aaaa = "query" in options, "ignoreaaaa" in options
        query = ("query",) if self._query else ()
        labels = (*query, "rcode", "qtypes", "ips_returned")
        self._queries = self._counter("dns_queries_total", "DNS queries observed.", *labels)
        self._responses = self._counter("dns_responses_total", "DNS responses observed.", *labels)
        self._types = self._counter(
            "dns_response_types_total",
            "DNS responses observed, by type of record.",
            *query,
            "type",
            "qtypes",
        )

    def _increments(self, flow: flow_pb2.Flow) -> Iterator[Increment]:
        if flow.l7.WhichOneof("record") != "dns":
            return
        dns = flow.l7.dns
        if self._no_aaaa and list(dns.qtypes) == ["AAAA"]:
            return
        lead = self.context.values(flow)
        if self._query:
            lead += (dns.query,)
        qtypes, ips = ",".join(dns.qtypes), str(len(dns.ips))
        if flow.verdict == flow_pb2.DROPPED:
            yield self._queries, (*lead, "Policy denied", qtypes, ips)
        elif not flow.is_reply.value:
            yield self._queries, (*lead, "", qtypes, ips)
        else:
            yield self._responses, (*lead, _RCODES.get(dns.rcode, ""), qtypes, ips)
            for rrtype in dns.rrtypes:
                yield self._types, (*lead, rrtype, qtypes)


class Drop(Plugin):
    """Packets and requests that were dropped."""

    name = "drop"
    columns = ("type", "verdict", "drop_reason", "protocol", "flags")

    def __init__(self, context: ContextOptions, options: Options) -> None:
        super().__init__(context, options)
        self._drops = self._counter("drop_total", "Drops.", "reason", "protocol")

    def _increments(self, flow: flow_pb2.Flow) -> Iterator[Increment]:
        if flow.verdict == flow_pb2.DROPPED:
            reason = flow_pb2.DropReason.Name(flow.drop_reason_desc)
            yield self._drops, (*self.context.values(flow), reason, protocol_of(flow))


class FlowPlugin(Plugin):
    """Every flow."""

    name = "flow"
    columns = ("type", "subtype", "verdict", "protocol", "flags")

    def __init__(self, context: ContextOptions, options: Options) -> None:
        super().__init__(context, options)
        self._flows = self._counter(
            "flows_processed_total", "Flows processed.", "protocol", "type", "subtype", "verdict"
        )

    def _increments(self, flow: flow_pb2.Flow) -> Iterator[Increment]:
        kind, sub = flow.event_type.type, flow.event_type.sub_type
        subtype = ""
        if kind == TYPE_L7:
            subtype = _L7_NAMES.get(flow.l7.WhichOneof("record") or "", "")
        elif kind == TYPE_TRACE:
            subtype = TRACE_POINTS.get(sub, "")
        elif kind not in _TYPES:
            subtype = str(kind)
        labels = (protocol_of(flow), _TYPES.get(kind, "Unknown"), subtype, _verdict(flow))
        yield self._flows, (*self.context.values(flow), *labels)


class FlowsToWorld(Plugin):
    """Flows that leave the cluster."""

    name = "flows-to-world"
    columns = (
        "type",
        "verdict",
        "drop_reason",
        "protocol",
        "flags",
        "reply",
        "tcp_flags",
        "destination_row",
    )
    options = frozenset({"any-drop", "port", "syn-only"})

    def __init__(self, context: ContextOptions, options: Options) -> None:
        super().__init__(context, options)
        self._any_drop = "any-drop" in options
        self._port = "port" in options
        self.port_of = (REPLY_NO, REPLY_UNKNOWN) if self._port else ()
        self._syn_only = "syn-only" in options
        labels = ("protocol", "verdict", *(("port",) if self._port else ()))
        self._flows = self._counter("flows_to_world_total", "Flows to reserved:world.", *labels)

    def _increments(self, flow: flow_pb2.Flow) -> Iterator[Increment]:
        dropped = flow.verdict == flow_pb2.DROPPED
        if _WORLD.isdisjoint(flow.destination.labels) or not flow.HasField("l4"):
            return
        if dropped and not self._any_drop and flow.drop_reason_desc != flow_pb2.POLICY_DENIED:
            return
        if not dropped and flow.is_reply.value:
            return
        if self._syn_only and flow.l4.HasField("TCP") and not flow.l4.TCP.flags.SYN:
            return
        labels = (*self.context.values(flow), protocol_of(flow), _verdict(flow))
        yield self._flows, (*labels, _port(flow)) if self._port else labels


def _port(flow: flow_pb2.Flow) -> str:
    name = flow.l4.WhichOneof("protocol")
    return str(getattr(flow.l4, name).destination_port) if name in ("TCP", "UDP", "SCTP") else "0"


class Http(Plugin):
    """HTTP requests and responses, counted apart."""

    name = "http"
    options = frozenset({"exemplars"})

    def __init__(self, context: ContextOptions, options: Options) -> None:
        super().__init__(context, options)
        self._exemplars = options.get("exemplars") == ("true",)
        self._requests = self._counter(
            "http_requests_total", "HTTP requests.", "method", "protocol", "reporter"
        )
        self._responses = self._counter(
            "http_responses_total", "HTTP responses.", "method", "protocol", "status", "reporter"
        )
        self._duration = self._histogram(
            "http_request_duration_seconds", "Seconds HTTP requests took.", "method", "reporter"
        )

    def _increments(self, flow: flow_pb2.Flow) -> Iterator[Increment]:
        if flow.l7.WhichOneof("record") != "http":
            return
        http, lead = flow.l7.http, self.context.values(flow)
        if flow.l7.type == flow_pb2.REQUEST:
            yield self._requests, (*lead, http.method, http.protocol, _reporter(flow))
        elif flow.l7.type == flow_pb2.RESPONSE:
            labels = (http.method, http.protocol, str(http.code), _reporter(flow))
            yield self._responses, (*lead, *labels)

    def _observations(self, flow: flow_pb2.Flow) -> Iterator[Observation]:
        if flow.l7.WhichOneof("record") == "http" and flow.l7.type == flow_pb2.RESPONSE:
            labels = (*self.context.values(flow), flow.l7.http.method, _reporter(flow))
            yield self._duration, flow.l7.latency_ns / 1e9, labels

    def exemplar(self, flow: flow_pb2.Flow) -> str:
        """The trace a flow belongs to, where exemplars are wanted."""
        return flow.trace_context.parent.trace_id if self._exemplars else ""


class HttpV2(Http):
    """HTTP by its responses alone, seen from the client whoever reports."""

    name = "httpV2"

    def __init__(self, context: ContextOptions, options: Options) -> None:
        Plugin.__init__(self, context, options)
        self._exemplars = options.get("exemplars") == ("true",)
        labels = ("method", "protocol", "status", "reporter")
        self._requests = self._counter("http_requests_total", "HTTP requests.", *labels)
        self._duration = self._histogram(
            "http_request_duration_seconds", "Seconds HTTP requests took.", "method", "reporter"
        )

    def _increments(self, flow: flow_pb2.Flow) -> Iterator[Increment]:
        if flow.l7.WhichOneof("record") == "http" and flow.l7.type == flow_pb2.RESPONSE:
            http = flow.l7.http
            labels = (http.method, http.protocol, str(http.code), _reporter(flow))
            yield self._requests, (*self.context.values(flow, swapped=True), *labels)

    def _observations(self, flow: flow_pb2.Flow) -> Iterator[Observation]:
        if flow.l7.WhichOneof("record") == "http" and flow.l7.type == flow_pb2.RESPONSE:
            lead = self.context.values(flow, swapped=True)
            labels = (*lead, flow.l7.http.method, _reporter(flow))
            yield self._duration, flow.l7.latency_ns / 1e9, labels


class Icmp(Plugin):
    """ICMP messages."""

    name = "icmp"
    columns = ("protocol", "flags")

    def __init__(self, context: ContextOptions, options: Options) -> None:
        super().__init__(context, options)
        self._messages = self._counter("icmp_total", "ICMP messages.", "family", "type")

    def _increments(self, flow: flow_pb2.Flow) -> Iterator[Increment]:
        name = flow.l4.WhichOneof("protocol")
        if name not in ("ICMPv4", "ICMPv6"):
            return
        kind = flow.Summary.removeprefix(f"{name} ")
        family = name.replace("ICMP", "IP")
        yield self._messages, (*self.context.values(flow), family, kind)


class Kafka(Plugin):
    """Kafka requests."""

    name = "kafka"

    def __init__(self, context: ContextOptions, options: Options) -> None:
        super().__init__(context, options)
        self._requests = self._counter(
            "kafka_requests_total", "Kafka requests.", "topic", "api_key", "error_code", "reporter"
        )
        self._duration = self._histogram(
            "kafka_request_duration_seconds",
            "Seconds Kafka requests took.",
            "topic",
            "api_key",
            "reporter",
        )

    def _increments(self, flow: flow_pb2.Flow) -> Iterator[Increment]:
        if _is_kafka_request(flow):
            kafka = flow.l7.kafka
            labels = (kafka.topic, kafka.api_key, str(kafka.error_code), _reporter(flow))
            yield self._requests, (*self.context.values(flow), *labels)

    def _observations(self, flow: flow_pb2.Flow) -> Iterator[Observation]:
        if _is_kafka_request(flow):
            labels = (flow.l7.kafka.topic, flow.l7.kafka.api_key, _reporter(flow))
            seconds = flow.l7.latency_ns / 1e9
            yield self._duration, seconds, (*self.context.values(flow), *labels)


def _is_kafka_request(flow: flow_pb2.Flow) -> bool:
    return flow.l7.WhichOneof("record") == "kafka" and flow.l7.type == flow_pb2.REQUEST


class PortDistribution(Plugin):
    """Destination ports of what was asked."""

    name = "port-distribution"
    columns = ("verdict", "reply", "protocol", "flags")

    def __init__(self, context: ContextOptions, options: Options) -> None:
        super().__init__(context, options)
        self.port_of = (REPLY_NO,)
        self._ports = self._counter(
            "port_distribution_total", "Flows by destination port.", "protocol", "port"
        )

    def _increments(self, flow: flow_pb2.Flow) -> Iterator[Increment]:
        asked = flow.HasField("is_reply") and not flow.is_reply.value
        if flow.verdict in _PASSED and asked and (name := flow.l4.WhichOneof("protocol")):
            yield self._ports, (*self.context.values(flow), name, _port(flow))


class PolicyVerdicts(Plugin):
    """Verdicts of policies."""

    name = "policy"
    columns = ("type", "match", "direction", "verdict", "source_row")

    def __init__(self, context: ContextOptions, options: Options) -> None:
        super().__init__(context, options)
        self._verdicts = self._counter(
            "policy_verdicts_total", "Verdicts of policies.", "direction", "match", "action"
        )

    def _increments(self, flow: flow_pb2.Flow) -> Iterator[Increment]:
        kind = flow.event_type.type
        if kind == TYPE_VERDICT and flow.source.identity != _HOST:
            match = _MATCHES.get(flow.policy_match_type, "unknown")
        elif kind == TYPE_L7 and (record := flow.l7.WhichOneof("record")):
            match = f"l7/{record}"
        else:
            return
        direction = DIRECTIONS.get(flow.traffic_direction, "unknown")
        labels = (direction, match, _verdict(flow).lower())
        yield self._verdicts, (*self.context.values(flow), *labels)


class Sctp(Plugin):
    """Chunks that begin and end associations of SCTP."""

    name = "sctp"
    columns = ("verdict", "protocol", "tcp_flags", "flags")

    def __init__(self, context: ContextOptions, options: Options) -> None:
        super().__init__(context, options)
        self._chunks = self._counter(
            "sctp_chunk_types_total", "SCTP chunks seen.", "chunk_type", "family"
        )

    def _increments(self, flow: flow_pb2.Flow) -> Iterator[Increment]:
        chunk = flow.l4.SCTP.chunk_type
        if flow.verdict in _PASSED and chunk != flow_pb2.UNSUPPORTED:
            family = "IPv6" if flow.IP.ipVersion == flow_pb2.IPv6 else "IPv4"
            labels = (flow_pb2.SCTPChunkType.Name(chunk), family)
            yield self._chunks, (*self.context.values(flow), *labels)


class Tcp(Plugin):
    """Flags of TCP segments."""

    name = "tcp"
    columns = ("verdict", "protocol", "tcp_flags", "flags")

    def __init__(self, context: ContextOptions, options: Options) -> None:
        super().__init__(context, options)
        self._flags = self._counter("tcp_flags_total", "TCP flags seen.", "flag", "family")

    def _increments(self, flow: flow_pb2.Flow) -> Iterator[Increment]:
        if flow.verdict not in _PASSED or not flow.l4.HasField("TCP"):
            return
        flags = flow.l4.TCP.flags
        lead = self.context.values(flow)
        family = "IPv6" if flow.IP.ipVersion == flow_pb2.IPv6 else "IPv4"
        if flags.FIN:
            yield self._flags, (*lead, "FIN", family)
        if flags.SYN:
            yield self._flags, (*lead, "SYN-ACK" if flags.ACK else "SYN", family)
        if flags.RST:
            yield self._flags, (*lead, "RST", family)


PLUGINS: Final[dict[str, type[Plugin]]] = {
    plugin.name: plugin
    for plugin in (
        Dns,
        Drop,
        FlowPlugin,
        FlowsToWorld,
        Http,
        HttpV2,
        Icmp,
        Kafka,
        PortDistribution,
        PolicyVerdicts,
        Sctp,
        Tcp,
    )
}


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as configured: name and options, without filters."""

    name: str
    options: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def make(self) -> Plugin:
        """The plugin. Raises MetricsConfigError."""
        if self.name not in PLUGINS:
            raise MetricsConfigError(
                f"there is no metric {self.name!r}; there are {', '.join(sorted(PLUGINS))}"
            )
        context, rest = ContextOptions.parse(self.name, self.options)
        return PLUGINS[self.name](context, rest)
