"""Where requests go on: to the address that the client wanted.

Out of a pod (egress) the proxy speaks under the client's own address: the listener sets address and
mark of each connection. Into a pod (ingress) it speaks under the node's, marked here. The data
plane knows by the mark that a packet was judged already.
"""

from __future__ import annotations

import hashlib
import socket
from enum import Enum
from typing import TYPE_CHECKING

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2
from envoy.config.core.v3 import address_pb2, socket_option_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2

from cilium_agent.proxies.envoy import tls
from cilium_agent.proxies.envoy.packing import pack
from cilium_agent.proxies.envoy.routes import duration

if TYPE_CHECKING:
    from cilium_core.policy.l7 import TlsContext

    from cilium_agent.proxies.envoy.options import EnvoyOptions

MARK_INGRESS = 0x0A00
MARK_EGRESS = 0x0B00

_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


class Speech(Enum):
    """Which version of HTTP the server is spoken to with."""

    AS_CLIENT = "same"
    HTTP1 = "http1"
    HTTP2 = "http2"
    NEGOTIATED = "alpn"
    """What the server chooses in the TLS handshake."""


def cluster_name(ingress: bool, speech: Speech, originating: TlsContext | None) -> str:
    """The name of a cluster, made of all that distinguishes it."""
    name = f"{'ingress' if ingress else 'egress'}-{speech.value}"
    if originating is not None:
        digest = hashlib.blake2b(repr(originating).encode(), digest_size=6).hexdigest()
        name += f"-tls-{digest}"
    return name


def cluster(
    ingress: bool,
    speech: Speech,
    originating: TlsContext | None,
    needs: tls.TlsNeeds,
    options: EnvoyOptions,
) -> cluster_pb2.Cluster:
    """A cluster; with `originating`, connections to servers are encrypted."""
    made = cluster_pb2.Cluster(
        name=cluster_name(ingress, speech, originating),
        type=cluster_pb2.Cluster.ORIGINAL_DST,
        lb_policy=cluster_pb2.Cluster.CLUSTER_PROVIDED,
        connect_timeout=duration(options.connect_timeout_s),
        circuit_breakers=_limits(options),
    )
    if ingress:
        made.upstream_bind_config.CopyFrom(
            address_pb2.BindConfig(socket_options=[mark(MARK_INGRESS)])
        )
    checked = originating is not None and tls.checks_server(originating, needs.secrets)
    protocol = _protocol(speech, options, encrypted=originating is not None, checked=checked)
    made.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(pack(protocol))
    if originating is not None:
        made.transport_socket.CopyFrom(tls.client_socket(originating, needs))
    return made


def mark(value: int) -> socket_option_pb2.SocketOption:
    """What makes every packet of a socket carry a mark."""
    return socket_option_pb2.SocketOption(
        description="mark of the data plane",
        level=socket.SOL_SOCKET,
        name=socket.SO_MARK,
        int_value=value,
        state=socket_option_pb2.SocketOption.STATE_PREBIND,
    )


def _limits(options: EnvoyOptions) -> circuit_breaker_pb2.CircuitBreakers:
    limits = circuit_breaker_pb2.CircuitBreakers.Thresholds()
    limits.max_connections.value = options.cluster_max_connections
    limits.max_requests.value = options.cluster_max_requests
    limits.max_pending_requests.value = options.cluster_max_requests
    return circuit_breaker_pb2.CircuitBreakers(thresholds=[limits])


def _protocol(
    speech: Speech, options: EnvoyOptions, *, encrypted: bool, checked: bool
) -> http_protocol_options_pb2.HttpProtocolOptions:
    protocol = http_protocol_options_pb2.HttpProtocolOptions()
    protocol.common_http_protocol_options.idle_timeout.CopyFrom(
        duration(options.upstream_idle_timeout_s)
    )
    if encrypted:
        protocol.upstream_http_protocol_options.auto_sni = True
        protocol.upstream_http_protocol_options.auto_san_validation = checked
    if speech is Speech.AS_CLIENT:
        protocol.use_downstream_protocol_config.http_protocol_options.SetInParent()
        protocol.use_downstream_protocol_config.http2_protocol_options.SetInParent()
    elif speech is Speech.HTTP1:
        protocol.explicit_http_config.http_protocol_options.SetInParent()
    elif speech is Speech.HTTP2:
        protocol.explicit_http_config.http2_protocol_options.SetInParent()
    else:
        protocol.auto_config.http_protocol_options.SetInParent()
        protocol.auto_config.http2_protocol_options.SetInParent()
    return protocol
