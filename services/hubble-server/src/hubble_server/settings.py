"""Settings of hubble-server; keys are those of Hubble where it has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cilium_core.errors import InvalidError
from cilium_core.settings import (
    ClusterSettings,
    NodeSettings,
    Problem,
    Seconds,
    TelemetrySettings,
    setting,
)

from hubble_server.drops import DropRules, reasons_of
from hubble_server.errors import CapacityError
from hubble_server.exporting.configuring import parse_filters
from hubble_server.exporting.exporters import Export
from hubble_server.flows.store import DEFAULT_CAPACITY, check_capacity
from hubble_server.metrics.configuring import parse_static
from hubble_server.metrics.contexts import MetricsConfigError
from hubble_server.records.redacting import Redaction

if TYPE_CHECKING:
    from collections.abc import Iterator

_RING = "Ring"
_SERVING = "Serving"
_TLS = "TLS of the TCP listener"
_METRICS = "Metrics of flows"
_EXPORTING = "Export of flows"
_OTLP = "Flows for OpenTelemetry"
_DROPS = "Events of drops"
_HISTORY = "History of flows"
_RECORDING = "Recording of packets"
_REDACTING = "Redaction of what proxies saw"


@dataclass(frozen=True)
class ServerSettings(TelemetrySettings, NodeSettings, ClusterSettings):
    """What can be set."""

    hubble_event_buffer_capacity: int = setting(
        DEFAULT_CAPACITY,
        "Flows and events kept: one less than a power of two. More reach further back in time.",
        group=_RING,
    )
    hubble_poll_interval: Seconds = setting(
        0.025,
        "How often the kernel's events are looked at. Each processor has room for 32,768 of them.",
        group=_RING,
        low=0.001,
        high=1,
    )
    hubble_lost_event_send_interval: Seconds = setting(
        1.0, "Shortest time between two reports of lost events.", group=_RING
    )
    hubble_socket_path: Path | None = setting(
        None, "Unix socket to serve on; hubble.sock in state-dir when empty.", group=_SERVING
    )
    hubble_listen_address: str = setting(
        "",
        "Address to serve other nodes on, such as :4244; none when empty. Peers are told its port.",
        group=_SERVING,
    )
    hubble_prefer_ipv6: bool = setting(
        False, "Tell peers the IPv6 addresses of nodes that have both.", group=_SERVING
    )
    hubble_observability_address: str = setting(
        "",
        "Address of /healthz and /metrics, such as 127.0.0.1:9965; none when empty.",
        group=_SERVING,
    )
    hubble_disable_tls: bool = setting(True, "Serve TCP in plain text.", group=_TLS)
    hubble_tls_cert_file: Path | None = setting(None, "Certificate of the server.", group=_TLS)
    hubble_tls_key_file: Path | None = setting(None, "Private key of the server.", group=_TLS)
    hubble_tls_client_ca_files: tuple[Path, ...] = setting(
        (), "CAs of client certificates; with any, clients must show one.", group=_TLS
    )
    hubble_access_file: Path | None = setting(
        None,
        "File of rules that limit clients of the TCP listener to namespaces by their certificates; "
        "changes count within 2 s. Without it they may see everything.",
        group=_TLS,
    )

    hubble_metrics_server: str = setting(
        "", "Address of the metrics of flows, such as :9965; none when empty.", group=_METRICS
    )
    hubble_metrics: str = setting(
        "",
        "What to count, separated by blanks: name[:option[=value[|value]][;option...]], such as "
        "'dns:query drop flow:sourceContext=workload-name|reserved-identity'.",
        group=_METRICS,
    )
    hubble_dynamic_metrics_config_path: Path | None = setting(
        None,
        "File that says what to count, with filters; changes count within 10 s.",
        group=_METRICS,
    )
    enable_hubble_open_metrics: bool = setting(
        False, "Serve OpenMetrics, with exemplars, to whoever accepts it.", group=_METRICS
    )
    hubble_metrics_server_enable_tls: bool = setting(
        False, "Serve metrics over TLS.", group=_METRICS
    )
    hubble_metrics_server_tls_cert_file: Path | None = setting(
        None, "Certificate of the metrics server.", group=_METRICS
    )
    hubble_metrics_server_tls_key_file: Path | None = setting(
        None, "Private key of the metrics server.", group=_METRICS
    )
    hubble_metrics_server_tls_client_ca_files: tuple[Path, ...] = setting(
        (), "CAs of client certificates; with any, clients must show one.", group=_METRICS
    )

    hubble_export_file_path: str = setting(
        "",
        "File to write flows to as JSON; stdout for the output, none when empty.",
        group=_EXPORTING,
    )
    hubble_export_file_max_size_mb: int = setting(
        10, "Megabytes after which a file is begun anew.", group=_EXPORTING, low=1
    )
    hubble_export_file_max_backups: int = setting(
        5, "Full files that are kept; 0 keeps all.", group=_EXPORTING, low=0
    )
    hubble_export_file_compress: bool = setting(False, "Compress full files.", group=_EXPORTING)
    hubble_export_allowlist: str = setting(
        "", "Filters one of which flows must pass: JSON, one after another.", group=_EXPORTING
    )
    hubble_export_denylist: str = setting(
        "", "Filters none of which flows may pass, likewise.", group=_EXPORTING
    )
    hubble_export_fieldmask: tuple[str, ...] = setting(
        (),
        "Fields of flows to write, such as source.pod_name; all when empty.",
        group=_EXPORTING,
    )
    hubble_export_fieldaggregate: tuple[str, ...] = setting(
        (), "Fields to gather flows by, with the interval below.", group=_EXPORTING
    )
    hubble_export_aggregation_interval: Seconds = setting(
        0.0, "How long flows are gathered; 0 writes each.", group=_EXPORTING
    )
    hubble_flowlogs_config_path: Path | None = setting(
        None, "File that lists exporters; changes count within 5 s.", group=_EXPORTING
    )

    hubble_otlp_flows: bool = setting(
        False, "Send flows to otlp-endpoint as log records.", group=_OTLP
    )
    hubble_otlp_metrics: bool = setting(
        False,
        "Send what hubble-metrics counts to otlp-endpoint, every otlp-interval.",
        group=_OTLP,
    )
    hubble_otlp_allowlist: str = setting(
        "", "Filters one of which flows must pass: JSON, one after another.", group=_OTLP
    )
    hubble_otlp_denylist: str = setting(
        "", "Filters none of which flows may pass, likewise.", group=_OTLP
    )
    hubble_otlp_fieldmask: tuple[str, ...] = setting(
        (), "Fields of flows to send, such as source.pod_name; all when empty.", group=_OTLP
    )
    hubble_otlp_fieldaggregate: tuple[str, ...] = setting(
        (), "Fields to gather flows by, with the interval below.", group=_OTLP
    )
    hubble_otlp_aggregation_interval: Seconds = setting(
        0.0, "How long flows are gathered; 0 sends each.", group=_OTLP
    )
    hubble_otlp_queue_size: int = setting(
        16_384,
        "Flows that wait while the collector is slow or away; what has no room is lost to it and "
        "counted. Each takes about half a kilobyte.",
        group=_OTLP,
        low=512,
    )

    hubble_drop_events: bool = setting(
        False,
        "Write an Event object to the pod of this node whose packets are dropped, by way of the "
        "agent.",
        group=_DROPS,
    )
    hubble_drop_events_interval: Seconds = setting(
        120.0, "Shortest time between two events that say the same.", group=_DROPS, low=1
    )
    hubble_drop_events_reasons: tuple[str, ...] = setting(
        ("auth_required", "policy_denied"), "Reasons that events are written for.", group=_DROPS
    )
    hubble_drop_events_extended: bool = setting(
        False, "Name the policies that denied in the event.", group=_DROPS
    )
    hubble_drop_events_rate_limit: int = setting(
        1, "Most events in a second; others are left out.", group=_DROPS, low=1, high=50
    )

    hubble_history_dir: Path | None = setting(
        None,
        "Directory to keep flows in for longer than the ring has them; none are kept when empty. "
        "Queries and counts that reach further back than the ring read them. Beside them is kept "
        "what the agent tells of endpoints, identities and policies, for hubble observe --at.",
        group=_HISTORY,
    )
    hubble_history_max_size_mb: int = setting(
        1024,
        "Megabytes of flows that are kept; the oldest go first. What the agent tells takes up to "
        "an eighth more.",
        group=_HISTORY,
        low=128,
    )
    hubble_history_max_age: Seconds = setting(
        0.0, "How long flows are kept; 0 keeps them while there is room.", group=_HISTORY
    )
    hubble_history_rotate_interval: Seconds = setting(
        300.0,
        "How long flows stand in the journal before they are compressed into a file of their own; "
        "64 MB of them do not wait.",
        group=_HISTORY,
        low=1,
    )

    enable_hubble_recorder_api: bool = setting(
        True, "Record packets for who asks with `hubble record`.", group=_RECORDING
    )
    hubble_recorder_storage_path: Path | None = setting(
        None,
        "Directory of files of recorded packets; pcaps in state-dir when empty.",
        group=_RECORDING,
    )
    hubble_recorder_file_max_size_mb: int = setting(
        100, "Megabytes after which a recording goes on in the next file.", group=_RECORDING, low=1
    )
    hubble_recorder_file_max_backups: int = setting(
        9, "Full files of a recording that are kept; the oldest go first.", group=_RECORDING, low=0
    )

    hubble_redact_enabled: bool = setting(
        False, "Take out of L7 flows what the settings below name.", group=_REDACTING
    )
    hubble_redact_http_urlquery: bool = setting(
        False, "Take query and fragment out of URLs.", group=_REDACTING
    )
    hubble_redact_http_userinfo: bool = setting(
        True, "Take passwords out of URLs.", group=_REDACTING
    )
    hubble_redact_http_headers_allow: tuple[str, ...] = setting(
        (), "Headers whose values are shown; those of all others are not.", group=_REDACTING
    )
    hubble_redact_http_headers_deny: tuple[str, ...] = setting(
        (),
        "Headers whose values are not shown; those of all others are. With neither this nor the "
        "list of allowed ones, no header's value is shown.",
        group=_REDACTING,
    )
    hubble_redact_kafka_apikey: bool = setting(
        False, "Take the kind of request out of Kafka records.", group=_REDACTING
    )

    @property
    def redaction(self) -> Redaction | None:
        """What to take out of records, None for nothing."""
        if not self.hubble_redact_enabled:
            return None
        return Redaction(
            url_query=self.hubble_redact_http_urlquery,
            user_info=self.hubble_redact_http_userinfo,
            headers_allowed=frozenset(map(str.lower, self.hubble_redact_http_headers_allow)),
            headers_denied=frozenset(map(str.lower, self.hubble_redact_http_headers_deny)),
            kafka_api_key=self.hubble_redact_kafka_apikey,
        )

    @property
    def export(self) -> Export | None:
        """The exporter of the settings, None for none. Raises InvalidError."""
        if not self.hubble_export_file_path:
            return None
        export = Export(
            name="static",
            path=self.hubble_export_file_path,
            allow=parse_filters(self.hubble_export_allowlist, "hubble-export-allowlist"),
            deny=parse_filters(self.hubble_export_denylist, "hubble-export-denylist"),
            field_mask=self.hubble_export_fieldmask,
            aggregate=self.hubble_export_fieldaggregate,
            interval_s=self.hubble_export_aggregation_interval,
            megabytes=self.hubble_export_file_max_size_mb,
            backups=self.hubble_export_file_max_backups,
            compress=self.hubble_export_file_compress,
        )
        export.check()
        return export

    @property
    def otlp_export(self) -> Export | None:
        """What goes to the collector, None for nothing. Raises InvalidError."""
        if not self.hubble_otlp_flows:
            return None
        export = Export(
            name="otlp",
            path=self.otlp_endpoint,
            allow=parse_filters(self.hubble_otlp_allowlist, "hubble-otlp-allowlist"),
            deny=parse_filters(self.hubble_otlp_denylist, "hubble-otlp-denylist"),
            field_mask=self.hubble_otlp_fieldmask,
            aggregate=self.hubble_otlp_fieldaggregate,
            interval_s=self.hubble_otlp_aggregation_interval,
        )
        export.check()
        return export

    @property
    def drop_notices(self) -> DropRules | None:
        """Which drops become events, None for none. Raises InvalidError."""
        if not self.hubble_drop_events:
            return None
        return DropRules(
            reasons_of(self.hubble_drop_events_reasons),
            interval_s=self.hubble_drop_events_interval,
            rate=self.hubble_drop_events_rate_limit,
            extended=self.hubble_drop_events_extended,
        )

    @property
    def socket_path(self) -> Path:
        """Unix socket to serve on."""
        return self.hubble_socket_path or self.state_dir / "hubble.sock"

    @property
    def recorder_path(self) -> Path:
        """Directory of files of recorded packets."""
        return self.hubble_recorder_storage_path or self.state_dir / "pcaps"

    @property
    def metadata_path(self) -> Path:
        """Unix socket of the agent's metadata service."""
        return self.state_dir / "metadata.sock"

    @property
    def agent_path(self) -> Path:
        """Unix socket of the agent's own service."""
        return self.state_dir / "cilium.sock"

    def check(self) -> Iterator[Problem]:
        """Rules across fields, and the ring's capacity."""
        try:
            check_capacity(self.hubble_event_buffer_capacity)
        except CapacityError as error:
            yield Problem("hubble-event-buffer-capacity", str(error))
        if self.hubble_redact_http_headers_allow and self.hubble_redact_http_headers_deny:
            yield Problem(
                "hubble-redact-http-headers-deny",
                "excludes hubble-redact-http-headers-allow; name either what is shown or what "
                "is not",
            )
        try:
            _ = self.export
        except InvalidError as error:
            yield Problem("hubble-export-file-path", str(error))
        try:
            _ = self.otlp_export
        except InvalidError as error:
            yield Problem("hubble-otlp-flows", str(error))
        try:
            _ = self.drop_notices
        except InvalidError as error:
            yield Problem("hubble-drop-events-reasons", str(error))
        for key, wanted in (
            ("hubble-otlp-flows", self.hubble_otlp_flows),
            ("hubble-otlp-metrics", self.hubble_otlp_metrics),
        ):
            if wanted and not self.otlp_endpoint:
                yield Problem(key, "needs otlp-endpoint, the collector to send to")
        if self.hubble_metrics and self.hubble_dynamic_metrics_config_path:
            yield Problem(
                "hubble-dynamic-metrics-config-path",
                "excludes hubble-metrics; name the metrics in one place",
            )
        try:
            for metric in parse_static(self.hubble_metrics.split()):
                metric.make()
        except MetricsConfigError as error:
            yield Problem("hubble-metrics", str(error))
        if not self.hubble_disable_tls and self.hubble_listen_address:
            for key, value in (
                ("hubble-tls-cert-file", self.hubble_tls_cert_file),
                ("hubble-tls-key-file", self.hubble_tls_key_file),
            ):
                if value is None:
                    yield Problem(key, "is needed while hubble-disable-tls is false")
        served_openly = self.hubble_disable_tls or not self.hubble_tls_client_ca_files
        if self.hubble_access_file and self.hubble_listen_address and served_openly:
            yield Problem(
                "hubble-access-file",
                "needs to know its clients by certificates: set hubble-disable-tls to false and "
                "hubble-tls-client-ca-files",
            )
        if self.hubble_metrics_server_enable_tls:
            for key, value in (
                ("hubble-metrics-server-tls-cert-file", self.hubble_metrics_server_tls_cert_file),
                ("hubble-metrics-server-tls-key-file", self.hubble_metrics_server_tls_key_file),
            ):
                if value is None:
                    yield Problem(key, "is needed with hubble-metrics-server-enable-tls")
