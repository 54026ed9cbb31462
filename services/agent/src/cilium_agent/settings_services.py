"""Settings about services; key names and meanings are Cilium's where Cilium has them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cilium_core.errors import InvalidError
from cilium_core.services.hashing import DEFAULT_SEED, read_seed
from cilium_core.services.maglev import DEFAULT_TABLE_SIZE, TABLE_SIZES
from cilium_core.settings import Problem, setting

if TYPE_CHECKING:
    from collections.abc import Iterator

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class ServiceSettings:
    """How services are translated on this node."""

    kube_proxy_replacement: bool = setting(
        True,
        "Serve NodePorts, external addresses and hostPorts; otherwise cluster addresses alone.",
        group="Services",
    )
    bpf_lb_sock: bool = setting(
        True, "Translate when a process connects, rather than packet by packet.", group="Services"
    )
    bpf_lb_sock_hostns_only: bool = setting(
        False,
        "Translate at the socket for processes of the node alone; pods' packets one by one.",
        group="Services",
    )
    bpf_lb_sock_terminate_pod_connections: bool = setting(
        True,
        "Destroy UDP sockets of pods that are connected to a vanished backend.",
        group="Services",
    )
    trace_sock: bool = setting(
        True, "Write events of translations at the socket.", group="Services"
    )
    cgroup_root: Path | None = setting(
        None,
        "Folder of the cgroup whose processes are served at their sockets; empty takes the mount "
        "of cgroup v2.",
        group="Services",
    )
    bpf_lb_mode: Literal["snat", "dsr", "hybrid"] = setting(
        "snat",
        "How backends of other nodes are reached from outside: with this node's address, with "
        "direct answers, or (hybrid) with direct answers for TCP.",
        group="Services",
    )
    bpf_lb_algorithm: Literal["random", "maglev"] = setting(
        "random", "How a backend is chosen for what comes from outside.", group="Services"
    )
    bpf_lb_maglev_table_size: int = setting(
        DEFAULT_TABLE_SIZE,
        f"Entries of a Maglev table, one of {', '.join(map(str, TABLE_SIZES))}; a hundred for "
        "each backend spread well.",
        group="Services",
    )
    bpf_lb_maglev_hash_seed: str = setting(
        DEFAULT_SEED,
        "Seed of Maglev, 12 bytes in base64; the same on all nodes.",
        group="Services",
    )
    bpf_lb_acceleration: Literal["disabled", "native", "best-effort", "testing-only"] = setting(
        "disabled",
        "Forward to backends of other nodes in XDP: never, in native mode, in native mode where "
        "that works, or in generic mode.",
        group="Services",
    )
    bpf_lb_external_clusterip: bool = setting(
        False, "Serve cluster addresses from outside too.", group="Services"
    )
    bpf_lb_source_range_all_types: bool = setting(
        False,
        "Have source ranges of a LoadBalancer hold for its NodePorts and cluster addresses too.",
        group="Services",
    )
    bpf_lb_map_max: int = setting(
        65536, "Most frontends of a family, and affinities.", group="Maps", low=1024, high=1048576
    )
    bpf_sock_rev_map_max: int = setting(
        262144, "Most sockets with a translation.", group="Maps", low=1024, high=4194304
    )
    node_port_range: tuple[str, ...] = setting(
        ("30000", "32767"), "First and last port of NodePorts.", group="Services"
    )
    nodeport_addresses: tuple[Network, ...] = setting(
        (),
        "Networks whose addresses of this node serve NodePorts; empty takes the addresses of the "
        "node's devices.",
        group="Services",
    )
    service_no_backend_response: Literal["reject", "drop"] = setting(
        "reject",
        "What a client of a service without backends gets: a refusal, or nothing.",
        group="Services",
    )
    enable_session_affinity: bool = setting(
        True, "Honour sessionAffinity of services.", group="Services"
    )
    enable_service_topology: bool = setting(
        False, "Prefer backends as topology hints of endpoint slices say.", group="Services"
    )
    enable_local_redirect_policy: bool = setting(
        True, "Honour CiliumLocalRedirectPolicy.", group="Services"
    )
    lrp_address_matcher_cidrs: tuple[Network, ...] = setting(
        (),
        "Networks whose addresses a CiliumLocalRedirectPolicy may redirect; empty is all.",
        group="Services",
    )
    enable_health_check_nodeport: bool = setting(
        True,
        "Tell load balancers on healthCheckNodePort how many backends are here.",
        group="Services",
    )
    k8s_service_proxy_name: str = setting(
        "",
        "Serve services whose label service.kubernetes.io/service-proxy-name is this.",
        group="Services",
    )
    ipv4_service_loopback_address: ipaddress.IPv4Address = setting(
        ipaddress.IPv4Address("169.254.42.1"),
        "Source of what a pod sends itself through a service.",
        group="Services",
    )
    ipv6_service_loopback_address: ipaddress.IPv6Address = setting(
        ipaddress.IPv6Address("fe80::1"),
        "The same over IPv6.",
        group="Services",
    )

    def check(self) -> Iterator[Problem]:
        """Values that make no sense."""
        try:
            self.node_ports()
        except ValueError as error:
            yield Problem("node-port-range", str(error))
        if self.bpf_lb_maglev_table_size not in TABLE_SIZES:
            sizes = ", ".join(map(str, TABLE_SIZES))
            yield Problem(
                "bpf-lb-maglev-table-size",
                f"expected one of {sizes}, got {self.bpf_lb_maglev_table_size}",
            )
        try:
            read_seed(self.bpf_lb_maglev_hash_seed)
        except InvalidError as error:
            yield Problem("bpf-lb-maglev-hash-seed", str(error))

    def node_ports(self) -> tuple[int, int]:
        """First and last NodePort. Raises ValueError."""
        texts = self.node_port_range
        parts = texts if len(texts) != 1 else tuple(texts[0].split("-"))
        if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
            raise ValueError(f"expected two ports such as 30000,32767, got {','.join(texts)!r}")
        first, last = (int(part) for part in parts)
        if not 0 < first <= last < 65000:
            raise ValueError(f"{first} to {last} is no range of ports within 1 to 64999")
        return first, last
