"""What the settings mean to the data plane and to policy; pure functions."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

from cilium_core.policy import EnforcementMode, PolicyOptions
from cilium_core.policy.options import HeaderRegex
from cilium_core.proxying.redirects import DnsOptions
from cilium_core.services import Algorithm, PortRange, ServiceOptions

from cilium_agent.datapath import NodeConfig
from cilium_agent.datapath.exemptions import Exemption
from cilium_agent.datapath.models import Direction, ServiceConfig
from cilium_agent.fqdn import NameOptions
from cilium_agent.proxies.envoy.options import EnvoyOptions
from cilium_agent.settings import AGGREGATION_LEVELS, AgentSettings, tcp_flag_mask

if TYPE_CHECKING:
    from cilium_core.identities import Families

    from cilium_agent.addresses import PodAddresses
    from cilium_agent.hosts import Host


SLOTS_PER_FRONTEND = 8
"""Places for ids of backends; frontends with the same backends share them."""


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
        "cilium_lb4_services_v2": settings.bpf_lb_map_max,
        "cilium_lb6_services_v2": settings.bpf_lb_map_max,
        "cilium_lb_slots": settings.bpf_lb_map_max * SLOTS_PER_FRONTEND,
        "cilium_lb_maglev": settings.bpf_lb_maglev_table_size,
        "cilium_lb_affinity": settings.bpf_lb_map_max,
        "cilium_lb_affinity_match": settings.bpf_lb_map_max,
        "cilium_lb4_source_range": settings.bpf_lb_map_max,
        "cilium_lb6_source_range": settings.bpf_lb_map_max,
        "cilium_lb_reverse_sk": settings.bpf_sock_rev_map_max,
    }


def policy_options(settings: AgentSettings, families: Families) -> PolicyOptions:
    """How policies are read and resolved on this node."""
    return PolicyOptions(
        cluster=settings.cluster_name,
        families=families,
        enforcement=EnforcementMode(settings.enable_policy),
        allow_localhost=settings.allow_localhost != "policy",
        default_local_cluster=settings.policy_default_local_cluster,
        non_default_deny=settings.enable_non_default_deny_policies,
        icmp_rules=settings.enable_icmp_rules,
        extended_protocols=settings.enable_extended_ip_protocols,
        l7_proxy=settings.enable_l7_proxy,
        header_regex=HeaderRegex(settings.header_regex),
        node_selector_labels=settings.enable_node_selector_labels,
        host_firewall=settings.enable_host_firewall,
        ip_block_pods=settings.network_policy_ip_block_pods,
    )


def envoy_options(settings: AgentSettings) -> EnvoyOptions:
    """How Envoy runs on this node."""
    return EnvoyOptions(
        binary=settings.proxy_envoy_binary,
        concurrency=settings.proxy_envoy_concurrency,
        ipv6=settings.enable_ipv6,
        denied_body=settings.http_403_msg,
        normalize_path=settings.http_normalize_path,
        request_timeout_s=settings.http_request_timeout,
        idle_timeout_s=settings.http_idle_timeout,
        stream_idle_timeout_s=settings.http_stream_idle_timeout,
        max_grpc_timeout_s=settings.http_max_grpc_timeout,
        retry_count=settings.http_retry_count,
        retry_timeout_s=settings.http_retry_timeout,
        connect_timeout_s=settings.proxy_connect_timeout,
        upstream_idle_timeout_s=settings.proxy_idle_timeout_seconds,
        max_connections=settings.proxy_max_active_downstream_connections,
        cluster_max_connections=settings.proxy_cluster_max_connections,
        cluster_max_requests=settings.proxy_cluster_max_requests,
        log_rate_per_s=settings.proxy_http_flow_limit,
    )


def name_options(settings: AgentSettings) -> NameOptions:
    """How long names that were looked up are known on this node."""
    return NameOptions(
        tofqdns_min_ttl=settings.tofqdns_min_ttl,
        tofqdns_endpoint_max_ip_per_hostname=settings.tofqdns_endpoint_max_ip_per_hostname,
        tofqdns_max_deferred_connection_deletes=settings.tofqdns_max_deferred_connection_deletes,
        tofqdns_idle_connection_grace_period=settings.tofqdns_idle_connection_grace_period,
        tofqdns_pre_cache=settings.tofqdns_pre_cache,
    )


def dns_options(settings: AgentSettings) -> DnsOptions:
    """How the DNS proxy behaves on this node."""
    return DnsOptions(
        reject_rcode={"refused": 5, "nameError": 3}[settings.tofqdns_dns_reject_response_code],
        response_max_delay_s=settings.tofqdns_proxy_response_max_delay,
        concurrency_limit=settings.dnsproxy_concurrency_limit,
        concurrency_grace_s=settings.dnsproxy_concurrency_processing_grace_period,
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
        proxy=settings.enable_l7_proxy,
        host_firewall=settings.enable_host_firewall,
        kernel_drops_per_second=settings.hubble_kernel_drop_events_per_second,
        aggregation=AGGREGATION_LEVELS[settings.monitor_aggregation],
        aggregation_flags=tcp_flag_mask(settings.monitor_aggregation_flags),
        aggregation_interval_s=round(settings.monitor_aggregation_interval),
        nat_port_min=max(NodeConfig().nat_port_min, settings.node_ports()[1] + 1),
        cluster_id=settings.cluster_id,
        services=service_config(settings),
    )


def service_config(settings: AgentSettings) -> ServiceConfig:
    """How the data plane translates services."""
    first, last = settings.node_ports()
    mode = settings.bpf_lb_mode
    return ServiceConfig(
        nodes=settings.kube_proxy_replacement,
        sockets=settings.bpf_lb_sock,
        sockets_of_host_only=settings.bpf_lb_sock_hostns_only,
        socket_trace=settings.trace_sock and settings.enable_hubble,
        cgroup=settings.cgroup_root,
        reject=settings.service_no_backend_response == "reject",
        dsr_tcp=mode in ("dsr", "hybrid"),
        dsr_udp=mode == "dsr",
        external_clusterip=settings.bpf_lb_external_clusterip,
        acceleration=settings.bpf_lb_acceleration,
        node_port_min=first,
        node_port_max=last,
        maglev_size=settings.bpf_lb_maglev_table_size,
        maglev_seed=settings.bpf_lb_maglev_hash_seed,
        hairpin_ipv4=settings.ipv4_service_loopback_address,
        hairpin_ipv6=settings.ipv6_service_loopback_address,
    )


def service_options(settings: AgentSettings) -> ServiceOptions:
    """How objects become frontends on this node."""
    return ServiceOptions(
        kube_proxy_replacement=settings.kube_proxy_replacement,
        node_port_range=PortRange(*settings.node_ports()),
        external_cluster_ip=settings.bpf_lb_external_clusterip,
        source_range_all_types=settings.bpf_lb_source_range_all_types,
        session_affinity=settings.enable_session_affinity,
        service_topology=settings.enable_service_topology,
        service_proxy_name=settings.k8s_service_proxy_name,
        algorithm=Algorithm(settings.bpf_lb_algorithm),
        local_redirects=settings.enable_local_redirect_policy,
        local_redirect_networks=settings.lrp_address_matcher_cidrs,
    )


def exemptions(settings: AgentSettings) -> list[Exemption]:
    """What the node's own policy never stops: the way to the key-value store."""
    found = []
    for address in settings.etcd_addresses():
        host, _, port = address.rpartition(":")
        try:
            peer = ipaddress.ip_address(host.strip("[]"))
        except ValueError:
            peer = None  # a name: its addresses may change
        if port.isdecimal() and 0 < int(port) < 65536:
            found.append(Exemption(int(Direction.DIR_EGRESS), socket.IPPROTO_TCP, int(port), peer))
    return found
