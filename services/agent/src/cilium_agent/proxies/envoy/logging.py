"""What Envoy logs, as parts of its configuration; `accesslogs.py` reads what arrives.

The name of a log says which redirect it is about, so that entries can be understood whatever became
of the redirect meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from cilium_core.policy.l7 import L7Kind, Redirect
from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import config_source_pb2
from envoy.data.accesslog.v3 import accesslog_pb2 as entries_pb2
from envoy.extensions.access_loggers.filters.process_ratelimit.v3 import process_ratelimit_pb2
from envoy.extensions.access_loggers.grpc.v3 import als_pb2
from envoy.service.discovery.v3 import discovery_pb2
from envoy.type.v3 import token_bucket_pb2

from cilium_agent.proxies import encoding
from cilium_agent.proxies.envoy.packing import pack
from cilium_agent.proxies.envoy.routes import duration

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any

    from cilium_agent.proxies.envoy.options import EnvoyOptions

_Comparison: TypeAlias = accesslog_pb2.ComparisonFilter

_HTTP_LOG = "envoy.access_loggers.http_grpc"
_REQUESTS = "requests"
_REFUSALS = "refusals"
"""Rates of log entries. Refusals are those answered with 403, by whomever."""

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


def http_logs(
    name: LogName, redirect: Redirect, options: EnvoyOptions
) -> list[accesslog_pb2.AccessLog]:
    """One entry per request, within the rate that there is for refusals and for all else."""
    named = {match.name for rule in redirect.http for match in rule.headers}
    config = als_pb2.HttpGrpcAccessLogConfig(common_config=_common(name, options))
    config.additional_request_headers_to_log.extend(
        [":method", *sorted(named.union(options.log_headers))]
    )
    packed = pack(config)
    if not options.log_rate_per_s:
        return [accesslog_pb2.AccessLog(name=_HTTP_LOG, typed_config=packed)]
    logs = []
    for rate, operator in ((_REQUESTS, _Comparison.NE), (_REFUSALS, _Comparison.EQ)):
        log = accesslog_pb2.AccessLog(name=_HTTP_LOG, typed_config=packed)
        status, limit = log.filter.and_filter.filters.add(), log.filter.and_filter.filters.add()
        status.status_code_filter.comparison.op = operator
        status.status_code_filter.comparison.value.default_value = 403
        status.status_code_filter.comparison.value.runtime_key = "proxy.status_of_refusals"
        limit.extension_filter.CopyFrom(_limit(rate))
        logs.append(log)
    return logs


def _limit(rate: str) -> accesslog_pb2.ExtensionFilter:
    source = config_source_pb2.ConfigSource(resource_api_version=config_source_pb2.V3)
    source.ads.SetInParent()
    bucket = process_ratelimit_pb2.DynamicTokenBucket(resource_name=rate, config_source=source)
    return accesslog_pb2.ExtensionFilter(
        name="envoy.access_loggers.extension_filters.process_ratelimit",
        typed_config=pack(process_ratelimit_pb2.ProcessRateLimitFilter(dynamic_config=bucket)),
    )


def rates(options: EnvoyOptions) -> dict[str, Any]:
    """How many entries there may be, as resources."""
    bucket = token_bucket_pb2.TokenBucket(max_tokens=options.log_burst, fill_interval=duration(0.1))
    bucket.tokens_per_fill.value = max(1, options.log_rate_per_s // 10)
    packed = pack(bucket)
    return {
        name: pack(discovery_pb2.Resource(name=name, resource=packed))
        for name in (_REQUESTS, _REFUSALS)
    }


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
