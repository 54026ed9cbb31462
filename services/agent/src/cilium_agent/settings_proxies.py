"""Settings about the proxies; key names and meanings are Cilium's where Cilium has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cilium_core.settings import Problem, Seconds, setting

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOWEST_PORT, _HIGHEST_PORT = 1024, 65535


@dataclass(frozen=True)
class ProxySettings:
    """How traffic is handled that a policy sends through a proxy."""

    enable_l7_proxy: bool = setting(
        True, "Accept policies about HTTP, DNS, Kafka and TLS, and run the proxies.", group="L7"
    )
    proxy_port_range: str = setting(
        "10000-20000", "First and last local port that proxies listen on.", group="L7"
    )
    proxy_flow_limit: int = setting(
        5000, "Most L7 flows reported per second; 0 is any number.", group="L7", low=0
    )
    proxy_http_flow_limit: int = setting(
        500,
        "Most HTTP requests reported per second, and most refused ones; 0 is any number.",
        group="L7",
        low=0,
    )
    proxy_envoy_binary: str = setting(
        "", "Path of Envoy; empty takes the one that came with the agent.", group="L7"
    )
    proxy_envoy_concurrency: int = setting(
        2, "Worker threads of Envoy.", group="L7", low=1, high=1024
    )
    http_403_msg: str = setting(
        "", "Body of an answer to a refused request; empty is a text of our own.", group="L7"
    )
    http_normalize_path: bool = setting(
        True, "Bring paths to one form before policies see them.", group="L7"
    )
    http_request_timeout: Seconds = setting(
        3600.0, "Longest time that a request may take; 0 is no limit.", group="L7", low=0
    )
    http_idle_timeout: Seconds = setting(
        0.0, "Longest time that a request may be idle; 0 is no limit.", group="L7", low=0
    )
    http_stream_idle_timeout: Seconds = setting(
        300.0, "Longest time that a stream may be idle; 0 is no limit.", group="L7", low=0
    )
    http_max_grpc_timeout: Seconds = setting(
        0.0, "Most that a gRPC client may ask for; 0 is no limit.", group="L7", low=0
    )
    http_retry_count: int = setting(
        3, "How often a request is repeated on a 5xx answer.", group="L7", low=0, high=100
    )
    http_retry_timeout: Seconds = setting(
        0.0, "Longest time of one try; 0 is no limit.", group="L7", low=0
    )
    proxy_connect_timeout: Seconds = setting(
        2.0, "Longest time that connecting to a server may take.", group="L7", low=0.001
    )
    proxy_idle_timeout_seconds: int = setting(
        60, "Seconds that an unused connection to a server is kept.", group="L7", low=0
    )
    proxy_max_active_downstream_connections: int = setting(
        50000, "Most connections of clients through Envoy.", group="L7", low=1
    )
    proxy_cluster_max_connections: int = setting(
        1024, "Most connections of Envoy to servers.", group="L7", low=1
    )
    proxy_cluster_max_requests: int = setting(
        1024, "Most requests of Envoy in flight.", group="L7", low=1
    )
    tofqdns_min_ttl: int = setting(
        0, "Shortest time in seconds that a learned address is kept.", group="DNS", low=0
    )
    tofqdns_endpoint_max_ip_per_hostname: int = setting(
        1000, "Most addresses of one name and pod.", group="DNS", low=1
    )
    tofqdns_max_deferred_connection_deletes: int = setting(
        10000,
        "Most expired addresses per pod that live connections keep.",
        group="DNS",
        low=0,
    )
    tofqdns_idle_connection_grace_period: Seconds = setting(
        0.0, "How long an expired address is kept after its last connection.", group="DNS", low=0
    )
    tofqdns_pre_cache: Path | None = setting(
        None, "File of names and addresses that are known from the start.", group="DNS"
    )
    tofqdns_proxy_response_max_delay: Seconds = setting(
        0.1,
        "Longest time that an answer is held back while policy takes up its addresses.",
        group="DNS",
        low=0,
        high=60,
    )
    tofqdns_dns_reject_response_code: Literal["refused", "nameError"] = setting(
        "refused", "Answer to a query that policy does not allow.", group="DNS"
    )
    dnsproxy_concurrency_limit: int = setting(
        0, "Most DNS queries in flight; 0 is any number.", group="DNS", low=0
    )
    dnsproxy_concurrency_processing_grace_period: Seconds = setting(
        0.0, "How long a query above the limit waits for its turn.", group="DNS", low=0
    )

    @property
    def proxy_ports(self) -> range:
        """The ports that proxies may listen on. Raises ValueError for a bad range."""
        first, dash, last = self.proxy_port_range.partition("-")
        if not (dash and first.strip().isdecimal() and last.strip().isdecimal()):
            raise ValueError(
                f"expected two ports such as 10000-20000, got {self.proxy_port_range!r}"
            )
        ports = range(int(first), int(last) + 1)
        if not ports or ports[0] < _LOWEST_PORT or ports[-1] > _HIGHEST_PORT:
            raise ValueError(
                f"expected a range within {_LOWEST_PORT}-{_HIGHEST_PORT}, "
                f"got {self.proxy_port_range!r}"
            )
        return ports

    def check(self) -> Iterator[Problem]:
        """Combinations that make no sense."""
        try:
            _ = self.proxy_ports
        except ValueError as error:
            yield Problem("proxy-port-range", str(error))
