"""Settings that several services share; a service's model inherits the groups it needs."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cilium_core.settings._fields import setting
from cilium_core.settings._values import Seconds


@dataclass(frozen=True)
class TelemetrySettings:
    """How a service talks about itself."""

    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "Least important message that is written.", group="Logging"
    )
    log_format: Literal["auto", "json", "console"] = setting(
        "auto",
        "json for machines, console for people; auto chooses console on a terminal.",
        group="Logging",
    )
    otlp_endpoint: str = setting(
        "",
        "OpenTelemetry collector (host:port, OTLP over gRPC) that metrics and traces are pushed "
        "to; empty pushes nothing.",
        group="Telemetry",
    )
    otlp_interval: Seconds = setting(
        30.0, "Time between two pushes of metrics to otlp-endpoint.", group="Telemetry", low=0.1
    )
    otlp_trace_ratio: float = setting(
        1.0,
        "Share of calls between the programs that begin a trace; what others have begun is always "
        "followed. 0 makes no traces.",
        group="Telemetry",
        low=0,
        high=1,
    )
    otlp_ca_file: Path | None = setting(
        None,
        "CA that signed the collector's certificate; turns TLS on, as an endpoint with https:// "
        "does with the CAs of the system.",
        group="Telemetry",
    )
    otlp_cert_file: Path | None = setting(
        None, "Certificate shown to the collector.", group="Telemetry"
    )
    otlp_key_file: Path | None = setting(None, "Private key of otlp-cert-file.", group="Telemetry")
    otlp_headers_file: Path | None = setting(
        None,
        "File of headers sent to the collector, one a line, such as 'authorization: Bearer …'.",
        group="Telemetry",
    )


@dataclass(frozen=True)
class ClusterSettings:
    """Which cluster this is."""

    cluster_name: str = setting(
        "default",
        "Name of the cluster, at most 32 lower-case letters, digits and dashes.",
        group="Cluster",
    )
    cluster_id: int = setting(
        0, "Number of the cluster within a mesh; 0 means no mesh.", group="Cluster", low=0, high=255
    )


@dataclass(frozen=True)
class NodeSettings:
    """Where the files of a node are."""

    node_name: str = setting(
        socket.gethostname(), "Name of this node, unique in the cluster.", group="Node"
    )
    state_dir: Path = setting(
        Path("/var/run/cilium"), "Directory of sockets and endpoint state.", group="Node"
    )
    bpf_root: Path = setting(
        Path("/sys/fs/bpf/cilium"), "Directory of the pinned eBPF maps, on a bpffs.", group="Node"
    )


@dataclass(frozen=True)
class KvstoreSettings:
    """How to reach etcd."""

    kvstore: Literal["etcd"] = setting("etcd", "Kind of key-value store.", group="Key-value store")
    etcd_endpoints: tuple[str, ...] = setting(
        ("127.0.0.1:2379",),
        "Addresses (host:port) of the etcd members; all are tried in turn.",
        group="Key-value store",
    )
    kvstore_opt: dict[str, str] = setting(
        {},
        "Options in the form etcd.address=host:port; overrides etcd-endpoints.",
        group="Key-value store",
    )
    etcd_ca_file: Path | None = setting(
        None, "CA that signed etcd's certificate; turns TLS on.", group="Key-value store"
    )
    etcd_cert_file: Path | None = setting(
        None, "Certificate shown to etcd.", group="Key-value store"
    )
    etcd_key_file: Path | None = setting(
        None, "Private key of etcd-cert-file.", group="Key-value store"
    )
    kvstore_lease_ttl: Seconds = setting(
        900.0,
        "How long this process's leased keys outlive it. Short values free the keys of a dead "
        "process sooner; long values survive longer outages of etcd.",
        group="Key-value store",
        low=1,
        high=86400,
    )

    def etcd_addresses(self) -> tuple[str, ...]:
        """Addresses as host:port, whichever setting gave them, scheme removed."""
        given = self.kvstore_opt.get("etcd.address")
        addresses = given.split(",") if given else self.etcd_endpoints
        return tuple(address.strip().rpartition("://")[2].rstrip("/") for address in addresses)
