"""Settings of the agent; key names and meanings are Cilium's where Cilium has them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cilium_core.settings import (
    ClusterSettings,
    KvstoreSettings,
    NodeSettings,
    Problem,
    Seconds,
    TelemetrySettings,
    setting,
)

from cilium_agent.settings_policy import PolicySettings
from cilium_agent.settings_proxies import ProxySettings
from cilium_agent.settings_services import ServiceSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

Aggregation = Literal["none", "low", "medium", "maximum"]

AGGREGATION_LEVELS: dict[str, int] = {"none": 0, "low": 1, "medium": 3, "maximum": 4}
"""Numbers of the data plane's `enum aggregation`."""

TCP_FLAG_BITS = {
    "fin": 0x01,
    "syn": 0x02,
    "rst": 0x04,
    "psh": 0x08,
    "ack": 0x10,
    "urg": 0x20,
    "ece": 0x40,
    "cwr": 0x80,
}


def tcp_flag_mask(names: tuple[str, ...]) -> int:
    """The bits of TCP flag names; `all` names every flag. Raises `ValueError` naming a bad one."""
    mask = 0
    for name in names:
        if name.lower() == "all":
            return 0xFF
        bit = TCP_FLAG_BITS.get(name.lower())
        if bit is None:
            known = ", ".join(TCP_FLAG_BITS)
            raise ValueError(f"{name!r} is not a TCP flag; write some of {known}, or all")
        mask |= bit
    return mask


@dataclass(frozen=True)
class AgentSettings(
    TelemetrySettings,
    ClusterSettings,
    NodeSettings,
    KvstoreSettings,
    PolicySettings,
    ProxySettings,
    ServiceSettings,
):
    """What an agent can be told."""

    node_ipv4: ipaddress.IPv4Address | None = setting(
        None, "This node's IPv4 address; empty takes the first one of the device.", group="Node"
    )
    node_ipv6: ipaddress.IPv6Address | None = setting(
        None,
        "This node's IPv6 address; empty takes the first global one of the device.",
        group="Node",
    )
    device: tuple[str, ...] = setting(
        (),
        "The node's own devices; the first carries the node's addresses. Empty takes the device "
        "that has node-ipv4, else the one with the default route.",
        group="Node",
    )
    node_labels: dict[str, str] = setting(
        {},
        "Labels of this node, beside those of its Node object, for policies that select nodes.",
        group="Node",
    )
    template_dir: Path = setting(
        Path("/var/lib/cilium/templates"),
        "Directory of compiled programs; agents of one machine may share it.",
        group="Node",
    )
    cni_conf_dir: Path | None = setting(
        None,
        "Where to write the container runtime's network configuration, usually /etc/cni/net.d; "
        "empty writes none.",
        group="Node",
    )
    mtu: int = setting(
        0,
        "MTU of the pods' devices in bytes; 0 takes the node device's.",
        group="Node",
        low=0,
        high=65535,
    )
    enable_ipv4: bool = setting(True, "Give pods IPv4 addresses.", group="Addresses")
    enable_ipv6: bool = setting(True, "Give pods IPv6 addresses.", group="Addresses")
    enable_ipv4_masquerade: bool = setting(
        True, "Give traffic from pods to the outside the node's IPv4 address.", group="Addresses"
    )
    enable_ipv6_masquerade: bool = setting(
        True, "Give traffic from pods to the outside the node's IPv6 address.", group="Addresses"
    )
    routing_mode: Literal["tunnel"] = setting(
        "tunnel", "How pods of other nodes are reached.", group="Routing"
    )
    tunnel_protocol: Literal["vxlan"] = setting(
        "vxlan", "Encapsulation between nodes.", group="Routing"
    )
    tunnel_port: int = setting(
        8472, "UDP port of the encapsulation.", group="Routing", low=1, high=65535
    )
    bpf_ct_global_tcp_max: int = setting(
        524288, "Most tracked TCP connections per family.", group="Maps", low=1024, high=16777216
    )
    bpf_ct_global_any_max: int = setting(
        262144,
        "Most tracked other connections per family.",
        group="Maps",
        low=1024,
        high=16777216,
    )
    bpf_nat_global_max: int = setting(
        524288, "Most source translations per family.", group="Maps", low=1024, high=16777216
    )
    conntrack_gc_interval: Seconds = setting(
        0.0, "Time between sweeps of dead connections; 0 adapts to their number.", group="Maps"
    )
    conntrack_gc_max_interval: Seconds = setting(
        0.0, "Longest adapted time between sweeps; 0 is 12 hours.", group="Maps"
    )
    enable_hubble: bool = setting(True, "Write events for hubble-server.", group="Observability")
    monitor_aggregation: Aggregation = setting(
        "medium", "How much of an established connection is reported.", group="Observability"
    )
    monitor_aggregation_interval: Seconds = setting(
        5.0, "Time between reports of a live connection.", group="Observability", low=1, high=3600
    )
    monitor_aggregation_flags: tuple[str, ...] = setting(
        ("syn", "fin", "rst"),
        "TCP flags whose first sight is always reported; all names every flag.",
        group="Observability",
    )
    hubble_kernel_drop_events_per_second: int = setting(
        100,
        "Most flows a second and processor of packets that the kernel itself drops, such as those"
        " to a port where nobody listens; 0 tells of none.",
        group="Observability",
        low=0,
        high=100000,
    )
    agent_health_port: int = setting(
        9879,
        "Loopback TCP port of /healthz; 0 serves none.",
        group="Observability",
        low=0,
        high=65535,
    )
    prometheus_serve_addr: str = setting(
        "", "Address (host:port) of the metrics; empty serves none.", group="Observability"
    )

    def check(self) -> Iterator[Problem]:
        """Combinations that make no sense."""
        if not (self.enable_ipv4 or self.enable_ipv6):
            yield Problem("enable-ipv4", "one of enable-ipv4 and enable-ipv6 must be true")
        if self.node_ipv4 is not None and self.node_ipv4.is_unspecified:
            yield Problem("node-ipv4", "0.0.0.0 is no node's address; leave it empty to detect it")
        yield from ProxySettings.check(self)
        yield from ServiceSettings.check(self)
        try:
            tcp_flag_mask(self.monitor_aggregation_flags)
        except ValueError as error:
            yield Problem("monitor-aggregation-flags", str(error))
        if not self.node_name:
            yield Problem("node-name", "is empty; give this node a name")
        if self.prometheus_serve_addr:
            port = self.prometheus_serve_addr.rpartition(":")[2]
            if not port.isdecimal() or not 0 < int(port) < 65536:
                yield Problem(
                    "prometheus-serve-addr",
                    f"expected host:port, got {self.prometheus_serve_addr!r}",
                )

    @property
    def endpoint_dir(self) -> Path:
        """Directory of the endpoints' files."""
        return self.state_dir / "state"

    @property
    def accepted_dir(self) -> Path:
        """Directory of the policy objects that were accepted last."""
        return self.state_dir / "policies"

    @property
    def delete_queue_dir(self) -> Path:
        """Directory of the plugin's queued deletes."""
        return self.state_dir / "deleteQueue"
