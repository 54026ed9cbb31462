"""What the settings mean to the data plane and to policy; pure functions."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from cilium_core.policy import EnforcementMode, PolicyOptions

from cilium_agent.datapath import NodeConfig
from cilium_agent.settings import AGGREGATION_LEVELS, AgentSettings, tcp_flag_mask

if TYPE_CHECKING:
    from cilium_core.identities import Families

    from cilium_agent.addresses import PodAddresses
    from cilium_agent.hosts import Host


def map_sizes(settings: AgentSettings) -> dict[str, int]:
    """Entries by pin name of the maps whose size can be chosen."""
    return {
        "cilium_policy": settings.bpf_policy_map_max,
        "cilium_ct4_global": settings.bpf_ct_global_tcp_max,
        "cilium_ct6_global": settings.bpf_ct_global_tcp_max,
        "cilium_ct_any4_global": settings.bpf_ct_global_any_max,
        "cilium_ct_any6_global": settings.bpf_ct_global_any_max,
        "cilium_snat_v4_external": settings.bpf_nat_global_max,
        "cilium_snat_v6_external": settings.bpf_nat_global_max,
    }


def policy_options(settings: AgentSettings, families: Families) -> PolicyOptions:
    """How policies are read and resolved on this node."""
    return PolicyOptions(
        cluster=settings.cluster_name,
        families=families,
        enforcement=EnforcementMode(settings.enable_policy),
        allow_localhost=settings.allow_localhost != "policy",
    )


def node_config(settings: AgentSettings, host: Host, addresses: PodAddresses) -> NodeConfig:
    """The data plane's configuration; `addresses` must have its pod CIDRs."""
    router4, router6 = addresses.routers()
    return NodeConfig(
        node_ipv4=host.ipv4,
        node_ipv6=host.ipv6,
        router_ipv4=ipaddress.IPv4Address(router4) if router4 else None,
        router_ipv6=ipaddress.IPv6Address(router6) if router6 else None,
        pod_cidrs=addresses.pool.pod_cidrs,
        devices=host.devices,
        tunnel_port=settings.tunnel_port,
        mtu=host.mtu,
        masquerade_ipv4=settings.enable_ipv4 and settings.enable_ipv4_masquerade,
        masquerade_ipv6=settings.enable_ipv6
        and settings.enable_ipv6_masquerade
        and host.ipv6 is not None,
        hubble=settings.enable_hubble,
        audit=settings.policy_audit_mode,
        aggregation=AGGREGATION_LEVELS[settings.monitor_aggregation],
        aggregation_flags=tcp_flag_mask(settings.monitor_aggregation_flags),
        aggregation_interval_s=round(settings.monitor_aggregation_interval),
        cluster_id=settings.cluster_id,
    )
