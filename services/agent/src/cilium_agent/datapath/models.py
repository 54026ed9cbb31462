"""The values that cross the data plane's public face; plain data, no behaviour of the kernel.

Ports are in host byte order here and addresses are `ipaddress` objects: byte orders end at the
edge of this package. MAC addresses are text (`02:00:00:00:00:01`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cilium_core import abi
from cilium_core.policy import PolicyEntry, PolicyKey
from cilium_core.services.hashing import DEFAULT_SEED
from cilium_core.services.maglev import DEFAULT_TABLE_SIZE

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

HAIRPIN_IPV4 = ipaddress.IPv4Address("169.254.42.1")
HAIRPIN_IPV6 = ipaddress.IPv6Address("fe80::1")

EndpointFlag = abi.enum("endpoint_flag")
ConfigFlag = abi.enum("config_flag")
Aggregation = abi.enum("aggregation")
Direction = abi.enum("direction")


@dataclass(frozen=True, slots=True)
class DatapathPaths:
    """Where the data plane keeps its things on this node."""

    bpf_root: Path = Path("/sys/fs/bpf/cilium")
    """Folder of the pinned maps and programs; on a bpffs."""
    template_dir: Path = Path("/var/lib/cilium/templates")
    """Compiled programs; may be shared by all agents of the machine."""


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """How services are translated."""

    pods: bool = True
    """Packet by packet, where sockets have not been asked."""
    nodes: bool = True
    """What comes from outside: NodePorts, external addresses and hostPorts."""
    sockets: bool = False
    """When processes in the cgroup connect."""
    sockets_of_host_only: bool = False
    socket_trace: bool = True
    """Write events of translations at sockets."""
    cgroup: Path | None = None
    """Folder of the cgroup; None is the mount of cgroup v2."""
    reject: bool = True
    """Refuse where there is no backend, rather than stay silent."""
    dsr_tcp: bool = False
    dsr_udp: bool = False
    external_clusterip: bool = False
    acceleration: str = "disabled"
    """disabled, native, best-effort or testing-only (generic XDP)."""
    node_port_min: int = 30000
    node_port_max: int = 32767
    maglev_size: int = DEFAULT_TABLE_SIZE
    maglev_seed: str = DEFAULT_SEED
    """Twelve bytes in base64, the same on all nodes."""
    hairpin_ipv4: ipaddress.IPv4Address = HAIRPIN_IPV4
    hairpin_ipv6: ipaddress.IPv6Address = HAIRPIN_IPV6
    """Sources of what a pod sends itself through a service."""
    timeout_tcp_s: int = 8000
    """How long a connection keeps its backend without a packet."""
    timeout_any_s: int = 60


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What the programs and devices of this node need to know."""

    node_ipv4: ipaddress.IPv4Address | None = None
    node_ipv6: ipaddress.IPv6Address | None = None
    router_ipv4: ipaddress.IPv4Address | None = None
    """Gateway of the pods, on cilium_host; None without IPv4 pods."""
    router_ipv6: ipaddress.IPv6Address | None = None
    pod_cidrs: tuple[Network, ...] = ()
    """Of this node; routed to cilium_host."""
    devices: tuple[str, ...] = ()
    """The node's own devices, the first one carries the node's addresses."""
    tunnel: bool = True
    tunnel_port: int = 8472
    mtu: int = 1500
    """Of every device; routes to remote pods and the pods' routes have `route_mtu`."""
    masquerade_ipv4: bool = True
    masquerade_ipv6: bool = True
    hubble: bool = True
    """Write trace events."""
    policy_verdicts: bool = True
    drop_events: bool = True
    debug_events: bool = False
    """Write debug and capture events, several for each packet."""
    kernel_drops_per_second: int = 0
    """Most events a second and processor of packets that the kernel drops; 0 tells of none."""
    audit: bool = False
    host_firewall: bool = False
    """Judge the node's own traffic by the policy of the endpoint that `upsert_node` has written."""
    proxy: bool = True
    """Follow redirects to proxies; without it, policy entries that want one drop."""
    aggregation: int = 3
    """abi enum aggregation: 0 none, 1 low, 3 medium, 4 maximum."""
    aggregation_flags: int = 0x07
    """TCP flags whose first sight is reported: FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32."""
    aggregation_interval_s: int = 5
    nat_port_min: int = 32768
    nat_port_max: int = 65535
    ct_timeout_tcp_s: int = 8000
    ct_timeout_tcp_syn_s: int = 60
    ct_timeout_tcp_fin_s: int = 10
    ct_timeout_any_s: int = 60
    cluster_id: int = 0
    services: ServiceConfig = ServiceConfig()

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions that pods use."""
        routers = {4: self.router_ipv4, 6: self.router_ipv6}
        return tuple(version for version, router in routers.items() if router is not None)

    @property
    def route_mtu(self) -> int:
        """MTU of routes whose packets may go into the tunnel, in bytes."""
        return self.mtu - TUNNEL_OVERHEAD if self.tunnel else self.mtu


TUNNEL_OVERHEAD = 50
"""Bytes that VXLAN over IPv4 adds: Ethernet 14, IPv4 20, UDP 8, VXLAN 8."""


@dataclass(frozen=True, slots=True)
class EndpointInfo:
    """A local endpoint as the programs see it: a pod, or (id 0) an address of the host."""

    id: int
    """1 to 65535, 0 for the host."""
    identity: int
    ifindex: int = 0
    """Of the host-side device."""
    ipv4: ipaddress.IPv4Address | None = None
    ipv6: ipaddress.IPv6Address | None = None
    mac: str = "00:00:00:00:00:00"
    """Of the pod."""
    node_mac: str = "00:00:00:00:00:00"
    """Of the host-side device."""
    flags: int = 0
    """abi enum endpoint_flag, e.g. ENDPOINT_ENFORCE_INGRESS; NOT_READY drops everything."""
    policy_rev: int = 0
    """Set by the data plane; ignored on upsert."""


@dataclass(frozen=True, slots=True)
class IpcacheEntry:
    """What an address prefix is: whose identity, and behind which node."""

    prefix: Network
    identity: int
    tunnel_ipv4: ipaddress.IPv4Address | None = None
    skip_tunnel: bool = False


NO_PORT = -1
"""As a proxy's port in `PolicyEntry.redirect`: there is none yet, and the traffic is dropped."""


@dataclass(frozen=True, slots=True)
class PolicyOverflow:
    """A policy that did not fit into its endpoint's map, of which only a part is in place."""

    endpoint_id: int
    needed: int
    capacity: int
    missing: frozenset[int]
    """Cookies of the entries that are left out."""
    closed: bool
    """Nothing of it is in place: what refuses traffic does not fit by itself."""

    def __str__(self) -> str:
        return (
            f"{self.needed} policy entries do not fit into the map of {self.capacity}; "
            "raise bpf-policy-map-max or let the policies select fewer peers"
        )


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """New contents of a policy map, or what to add and remove."""

    add: Mapping[PolicyKey, PolicyEntry] = field(default_factory=dict)
    remove: Iterable[PolicyKey] = ()
    replace: bool = False
    """`add` is everything the map shall hold."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A tracked connection, told from its initiator."""

    proto: int
    source: Address
    source_port: int
    """ICMP: the identifier."""
    destination: Address
    destination_port: int
    kind: int
    """abi enum ct_kind."""
    zone: int
    """abi enum ct_zone."""
    flags: int
    """abi enum ct_flag."""
    expires_s: int
    """On the monotonic clock."""
    source_identity: int
    destination_identity: int
    tx_packets: int
    tx_bytes: int
    rx_packets: int
    rx_bytes: int
    tx_tcp_flags: int
    rx_tcp_flags: int
    out_rev: int
    in_rev: int
    cookie: int
    proxy_port: int
    rev_nat: int
    backend: int = 0
    """Id of who serves; only where `kind` is CT_SERVICE, a client and its frontend."""


@dataclass(frozen=True, slots=True)
class GcResult:
    """What one pass of the connection tracking collector did."""

    scanned: int
    deleted: int
    nat_deleted: int
    fill: float
    """Share of the fullest tracking map in use after the pass, 0 to 1."""


@dataclass(frozen=True, slots=True)
class NatEntry:
    """One half of a masqueraded connection."""

    proto: int
    direction: int
    """abi enum nat_direction."""
    source: Address
    source_port: int
    destination: Address
    destination_port: int
    to_address: Address
    to_port: int
    created_ns: int
    """On the monotonic clock."""
    rev_nat: int = 0
    """Id of the frontend that was asked from outside, 0 for none; of the inward half."""


@dataclass(frozen=True, slots=True)
class Counter:
    """Packets and bytes by outcome and place, summed over the processors."""

    reason: int
    """Drop code, or one of the codes below 130 that count something else; 0 is forwarded."""
    direction: int
    line: int
    file: int
    """abi enum source_file."""
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class PrefilterState:
    """What the XDP prefilter refuses."""

    cidrs: Mapping[Network, int]
    """Denied source prefixes and the packets each has dropped."""
    rate_limit_pps: int
    """Packets per second and source, 0 is off."""
    rate_limit_burst: int
    attached: Mapping[str, str]
    """Device to mode (`native` or `generic`), empty while nothing is refused."""


@dataclass(frozen=True, slots=True)
class RemoteNode:
    """A node whose pods are reached through the tunnel."""

    name: str
    pod_cidrs: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class PodInterface:
    """A pod's network interface and its host side."""

    host_name: str
    ifindex: int
    """Of the host side, in the agent's namespace."""
    node_mac: str
    """Of the host side."""
    ifname: str
    """Inside the pod."""
    peer_ifindex: int
    """Inside the pod's namespace."""
    mac: str
    """Of the pod."""
    mtu: int
    netns_inode: int
    """Identifies the pod's network namespace on this machine."""
