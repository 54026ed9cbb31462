"""The node's configuration as the programs read it: the one entry of cilium_config.

The programs read it through a direct pointer, so a write is live at once. The rate limit's fields
belong to the prefilter and pass through every other write.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from cilium_core import abi
from cilium_core.services.hashing import read_seed

from cilium_agent.datapath.errors import DatapathError

if TYPE_CHECKING:
    from cilium_agent.datapath.maps import Maps
    from cilium_agent.datapath.models import NodeConfig, ServiceConfig

_KEY = bytes(4)
_PORT_MAX = 0xFFFF
LIVE_FIELDS = frozenset(
    {
        "aggregation",
        "aggregation_flags",
        "aggregation_interval_s",
        "audit",
        "ct_timeout_any_s",
        "ct_timeout_tcp_fin_s",
        "ct_timeout_tcp_s",
        "ct_timeout_tcp_syn_s",
        "debug_events",
        "drop_events",
        "host_firewall",
        "hubble",
        "masquerade_ipv4",
        "masquerade_ipv6",
        "nat_port_max",
        "nat_port_min",
        "policy_verdicts",
        "proxy",
    }
)
"""Fields of NodeConfig that nothing but the programs reads."""


class Configuration:
    """The configuration entry."""

    def __init__(self, maps: Maps) -> None:
        self._map = maps["CONFIG"]

    def read(self) -> dict[str, Any]:
        """Fields as the programs see them."""
        return abi.as_dict(abi.unpack("config", self._map.get(_KEY) or b""))

    def patch(self, **changed: Any) -> None:
        """Change some fields of the entry and leave the others."""
        entry = abi.unpack("config", self._map.get(_KEY) or bytes(abi.sizeof("config")))
        for name, value in changed.items():
            if isinstance(value, bytes):
                abi.ffi.memmove(getattr(entry, name), value, len(value))
            else:
                setattr(entry, name, value)
        self._map.set(_KEY, abi.as_bytes(entry))


def fields(config: NodeConfig) -> dict[str, Any]:
    """Return the fields of struct config that come from the node's configuration.

    Raises DatapathError for a value that the programs cannot take.
    """
    if not 0 < config.nat_port_min <= config.nat_port_max <= _PORT_MAX:
        raise DatapathError(
            f"nat ports {config.nat_port_min} to {config.nat_port_max} are no range of 1 to 65535"
        )
    flags = {
        abi.CONFIG_HUBBLE: config.hubble,
        abi.CONFIG_MASQUERADE_IPV4: config.masquerade_ipv4,
        abi.CONFIG_MASQUERADE_IPV6: config.masquerade_ipv6,
        abi.CONFIG_POLICY_VERDICTS: config.policy_verdicts,
        abi.CONFIG_TUNNEL: config.tunnel,
        abi.CONFIG_AUDIT: config.audit,
        abi.CONFIG_DROPS: config.drop_events,
        abi.CONFIG_DEBUG: config.debug_events,
        abi.CONFIG_PROXY: config.proxy,
        abi.CONFIG_HOST_FIREWALL: config.host_firewall,
        **_service_flags(config.services),
    }
    return {
        "flags": sum(flag for flag, on in flags.items() if on),
        "aggregation": config.aggregation,
        "aggregation_flags": config.aggregation_flags,
        "aggregation_interval": config.aggregation_interval_s,
        "node_ipv4": _number(config.node_ipv4),
        "node_ipv6": _bytes(config.node_ipv6),
        "router_ipv4": _number(config.router_ipv4),
        "router_ipv6": _bytes(config.router_ipv6),
        "masquerade_ipv4": _number(config.node_ipv4),
        "masquerade_ipv6": _bytes(config.node_ipv6),
        "nat_port_min": config.nat_port_min,
        "nat_port_max": config.nat_port_max,
        "ct_timeout_tcp": config.ct_timeout_tcp_s,
        "ct_timeout_tcp_syn": config.ct_timeout_tcp_syn_s,
        "ct_timeout_tcp_fin": config.ct_timeout_tcp_fin_s,
        "ct_timeout_any": config.ct_timeout_any_s,
        "cluster_id": config.cluster_id,
        "tunnel_port": socket.htons(config.tunnel_port),
        **_service_fields(config.services),
    }


def _service_flags(services: ServiceConfig) -> dict[int, bool]:
    return {
        abi.CONFIG_LB_PODS: services.pods,
        abi.CONFIG_LB_NODES: services.nodes,
        abi.CONFIG_LB_REJECT: services.reject,
        abi.CONFIG_LB_DSR_TCP: services.dsr_tcp,
        abi.CONFIG_LB_DSR_UDP: services.dsr_udp,
        abi.CONFIG_LB_EXTERNAL_CLUSTERIP: services.external_clusterip,
        abi.CONFIG_LB_SOCKET_TRACE: services.socket_trace,
        abi.CONFIG_LB_SOCKET_HOST: services.sockets_of_host_only,
        abi.CONFIG_LB_XDP: services.nodes and services.acceleration != "disabled",
    }


def _service_fields(services: ServiceConfig) -> dict[str, Any]:
    if not 0 < services.node_port_min <= services.node_port_max <= _PORT_MAX:
        raise DatapathError(
            f"node ports {services.node_port_min} to {services.node_port_max} are no range of"
            " 1 to 65535"
        )
    return {
        "node_port_min": services.node_port_min,
        "node_port_max": services.node_port_max,
        "maglev_size": services.maglev_size,
        "lb_hash_seed": read_seed(services.maglev_seed).flows,
        "hairpin_ipv4": _number(services.hairpin_ipv4),
        "hairpin_ipv6": _bytes(services.hairpin_ipv6),
        "ct_timeout_service_tcp": services.timeout_tcp_s,
        "ct_timeout_service_any": services.timeout_any_s,
    }


def _number(address: Any) -> int:
    return 0 if address is None else int.from_bytes(address.packed, "little")


def _bytes(address: Any) -> bytes:
    return bytes(16) if address is None else bytes(address.packed)
