"""Settings of the operator."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING

from cilium_core.settings import (
    ClusterSettings,
    KvstoreSettings,
    NodeSettings,
    Problem,
    Seconds,
    TelemetrySettings,
    setting,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cilium_core.policy.options import PolicyOptions

_POOLS = "Pod CIDRs"
_SERVING = "Serving"
_LEADING = "Leader election"
_IDENTITIES = "Identity garbage collection"
_VALIDATION = "Policy validation"
_SERVICES = "Services"
_MOST_BITS = 32


@dataclass(frozen=True)
class ValidationSettings:
    """How policies are judged; the agents should be told the same."""

    validate_network_policy: bool = setting(
        True,
        "Write into the status of every stored policy whether it is valid, and events about it.",
        group=_VALIDATION,
    )
    enable_l7_proxy: bool = setting(
        True, "Policies about HTTP, DNS, Kafka and TLS are valid.", group=_VALIDATION
    )
    enable_icmp_rules: bool = setting(True, "icmps in policies are valid.", group=_VALIDATION)
    enable_extended_ip_protocols: bool = setting(
        False, "VRRP, IGMP and items without a port are valid.", group=_VALIDATION
    )
    enable_node_selector_labels: bool = setting(
        False, "fromNodes and toNodes in policies are valid.", group=_VALIDATION
    )
    enable_host_firewall: bool = setting(
        False, "Policies that select nodes have an effect.", group=_VALIDATION
    )


@dataclass(frozen=True)
class ServiceSettings:
    """What Services are given where there is no Kubernetes to do it."""

    manage_services: bool = setting(
        True,
        "Give the Services in etcd their addresses and ports, and keep their EndpointSlices. Turn "
        "it off where something else does.",
        group=_SERVICES,
    )
    service_cluster_ip_range: tuple[IPv4Network | IPv6Network, ...] = setting(
        (IPv4Network("10.96.0.0/16"), IPv6Network("fd00:96::/112")),
        "Networks of cluster addresses, at most one per family. Services that ask for no family "
        "get the first one's.",
        group=_SERVICES,
    )
    service_node_port_range: str = setting(
        "30000-32767", "Node ports, first and last; the agents' too.", group=_SERVICES
    )
    enable_lb_ipam: bool = setting(
        True,
        "Give load balancers addresses of CiliumLoadBalancerIPPools.",
        group=_SERVICES,
    )

    def node_ports(self) -> range:
        """The node ports. Raises ValueError when the setting is no range of ports."""
        first, _, last = self.service_node_port_range.partition("-")
        if not (first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last) < 65536):
            raise ValueError(f"{self.service_node_port_range!r} is no range such as 30000-32767")
        return range(int(first), int(last) + 1)


@dataclass(frozen=True)
class OperatorSettings(
    ServiceSettings,
    ValidationSettings,
    TelemetrySettings,
    NodeSettings,
    ClusterSettings,
    KvstoreSettings,
):
    """Everything the operator can be told."""

    enable_ipv4: bool = setting(True, "Give each node an IPv4 pod CIDR.", group=_POOLS)
    enable_ipv6: bool = setting(True, "Give each node an IPv6 pod CIDR.", group=_POOLS)
    cluster_pool_ipv4_cidr: tuple[IPv4Network, ...] = setting(
        (IPv4Network("10.244.0.0/16"),),
        "Pools that IPv4 pod CIDRs are cut from, in this order. Pools may be added at any time; "
        "a pool that is removed keeps what nodes hold of it.",
        group=_POOLS,
    )
    cluster_pool_ipv4_mask_size: int = setting(
        24, "Prefix length of a node's IPv4 pod CIDR.", group=_POOLS, low=1, high=30
    )
    cluster_pool_ipv6_cidr: tuple[IPv6Network, ...] = setting(
        (IPv6Network("fd00:244::/48"),),
        "Pools that IPv6 pod CIDRs are cut from, in this order.",
        group=_POOLS,
    )
    cluster_pool_ipv6_mask_size: int = setting(
        64, "Prefix length of a node's IPv6 pod CIDR.", group=_POOLS, low=1, high=126
    )
    pod_cidr_release_grace: Seconds = setting(
        300.0,
        "How long a node keeps its pod CIDRs after its record went (which itself outlives a dead "
        "agent by kvstore-lease-ttl). Only then may another node get them.",
        group=_POOLS,
        low=0,
    )
    enable_leader_election: bool = setting(
        True,
        "Stand for election among replicas; only the leader acts. Turn it off only where a "
        "single operator can ever run.",
        group=_LEADING,
    )
    leader_election_lease_duration: Seconds = setting(
        3.0,
        "How long after its death a leader is replaced. Longer values bear longer pauses.",
        group=_LEADING,
        low=2,
        high=300,
    )
    identity_gc_interval: Seconds = setting(
        900.0,
        "Time between two looks for identities that no node uses; one that is unused in two "
        "looks in a row is deleted. 0 turns it off.",
        group=_IDENTITIES,
        low=0,
    )
    identity_gc_rate_limit: int = setting(
        2500, "Most identities deleted per minute.", group=_IDENTITIES, low=1
    )
    operator_api_serve_addr: str = setting(
        "127.0.0.1:9234", "Address of /healthz and /metrics.", group=_SERVING
    )
    operator_prometheus_serve_addr: str = setting(
        "",
        "Further address of /metrics, for scrapers on other machines; usually :9963.",
        group=_SERVING,
    )
    operator_socket: str = setting(
        "/var/run/cilium/operator.sock",
        "Where the gRPC API listens: a path, or host:port; empty for nowhere.",
        group=_SERVING,
    )

    def policy_options(self) -> PolicyOptions:
        """The options under which policies are judged."""
        from cilium_core.policy.options import PolicyOptions

        return PolicyOptions(
            cluster=self.cluster_name,
            l7_proxy=self.enable_l7_proxy,
            icmp_rules=self.enable_icmp_rules,
            extended_protocols=self.enable_extended_ip_protocols,
            node_selector_labels=self.enable_node_selector_labels,
            host_firewall=self.enable_host_firewall,
        )

    def check(self) -> Iterator[Problem]:
        """Compare settings with each other."""
        for version, enabled, pools, size in (
            (4, self.enable_ipv4, self.cluster_pool_ipv4_cidr, self.cluster_pool_ipv4_mask_size),
            (6, self.enable_ipv6, self.cluster_pool_ipv6_cidr, self.cluster_pool_ipv6_mask_size),
        ):
            if enabled:
                yield from _check_pools(version, pools, size)
        if self.manage_services:
            yield from self._check_services()

    def _check_services(self) -> Iterator[Problem]:
        networks = self.service_cluster_ip_range
        key = "service-cluster-ip-range"
        if not networks:
            yield Problem(key, "is empty; give a network, or set manage-services to false")
        if len({network.version for network in networks}) < len(networks):
            yield Problem(key, "has two networks of one family; keep one of them")
        for network in networks:
            pools: tuple[IPv4Network | IPv6Network, ...] = (
                *self.cluster_pool_ipv4_cidr,
                *self.cluster_pool_ipv6_cidr,
            )
            for pool in pools:
                if network.overlaps(pool):
                    yield Problem(key, f"{network} overlaps the pod CIDR pool {pool}")
        try:
            self.node_ports()
        except ValueError as error:
            yield Problem("service-node-port-range", str(error))


def _check_pools(
    version: int, pools: Sequence[IPv4Network | IPv6Network], size: int
) -> Iterator[Problem]:
    key = f"cluster-pool-ipv{version}-cidr"
    if not pools:
        yield Problem(key, f"is empty; give a pool, or set enable-ipv{version} to false")
    for at, pool in enumerate(pools):
        if size - pool.prefixlen > _MOST_BITS:
            yield Problem(key, f"{pool} has more than 2^{_MOST_BITS} blocks; use a smaller pool")
        if pool.prefixlen > size:
            yield Problem(
                key,
                f"{pool} is smaller than one block (cluster-pool-ipv{version}-mask-size {size})",
            )
        for other in pools[:at]:
            if pool.overlaps(other):
                yield Problem(key, f"the pools {other} and {pool} overlap; keep one of them")
