"""What Envoy logs, as parts of its configuration; `accesslogs.py` reads what arrives.

The name of a log says which redirect it is about, so that entries can be understood whatever became
of the redirect meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cilium_core.policy.l7 import L7Kind, Redirect
from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import config_source_pb2
from envoy.data.accesslog.v3 import accesslog_pb2 as entries_pb2
from envoy.extensions.access_loggers.grpc.v3 import als_pb2

from cilium_agent.proxies import encoding
from cilium_agent.proxies.envoy.packing import pack
from cilium_agent.proxies.envoy.routes import duration

if TYPE_CHECKING:
    from cilium_agent.proxies.envoy.options import EnvoyOptions

AGENT_CLUSTER = "agent"
"""Where Envoy finds the agent, for configuration and logs."""


class LogName(NamedTuple):
    """What the name of a log, and of its listener, says."""

    ingress: bool
    kind: L7Kind
    port: int
    key: str

    @classmethod
    def of(cls, redirect: Redirect, port: int) -> LogName:
        """The name for a redirect on a port."""
        return cls(redirect.ingress, redirect.kind, port, encoding.key(redirect))

    @classmethod
    def parse(cls, text: str) -> LogName | None:
        """Read a name; None for one that this agent does not give."""
        direction, *rest = text.split("-")
        if direction not in ("ingress", "egress") or len(rest) != 3:
            return None
        kind, port, key = rest
        try:
            return cls(direction == "ingress", L7Kind(kind), int(port), key)
        except ValueError:
            return None

    def __str__(self) -> str:
        direction = "ingress" if self.ingress else "egress"
        return f"{direction}-{self.kind.value}-{self.port}-{self.key}"


def http_log(name: LogName, redirect: Redirect, options: EnvoyOptions) -> accesslog_pb2.AccessLog:
    """One entry per request."""
    named = {match.name for rule in redirect.http for match in rule.headers}
    config = als_pb2.HttpGrpcAccessLogConfig(common_config=_common(name, options))
    config.additional_request_headers_to_log.extend(sorted(named.union(options.log_headers)))
    return accesslog_pb2.AccessLog(name="envoy.access_loggers.http_grpc", typed_config=pack(config))


def connection_log(
    name: LogName, options: EnvoyOptions, *, connected: bool
) -> accesslog_pb2.AccessLog:
    """Entries for connections: with `connected` those that reached the server, else every end."""
    config = als_pb2.TcpGrpcAccessLogConfig(common_config=_common(name, options))
    log = accesslog_pb2.AccessLog(name="envoy.access_loggers.tcp_grpc", typed_config=pack(config))
    if connected:
        log.filter.log_type_filter.types.append(entries_pb2.TcpUpstreamConnected)
    return log


def _common(name: LogName, options: EnvoyOptions) -> als_pb2.CommonGrpcAccessLogConfig:
    common = als_pb2.CommonGrpcAccessLogConfig(
        log_name=str(name), transport_api_version=config_source_pb2.V3
    )
    common.grpc_service.envoy_grpc.cluster_name = AGENT_CLUSTER
    common.buffer_flush_interval.CopyFrom(duration(options.log_flush_s))
    common.buffer_size_bytes.value = options.log_buffer_bytes
    return common
