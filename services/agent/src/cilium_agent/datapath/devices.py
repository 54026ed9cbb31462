"""The node's devices and the programs on them.

`cilium_host` carries the pods' gateway addresses and the host's routes to pods; `cilium_net` is its
other end; `cilium_vxlan` is the tunnel whose key carries the source identity. All functions bring
about a state and change nothing when it is there already, so they run over a living data plane.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cilium_agent.datapath import netlink as nl
from cilium_agent.datapath.errors import DeviceError
from cilium_agent.datapath.netlink import NetlinkError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cilium_agent.datapath.models import Address, NodeConfig

HOST, NET, TUNNEL = "cilium_host", "cilium_net", "cilium_vxlan"

ENDPOINT_PREFIX = "lxc"
"""How the names of the pods' host-side devices begin."""
ENDPOINT_HOOKS = ((nl.INGRESS, "cil_from_container"), (nl.EGRESS, "cil_to_container"))
_HOST_HOOKS = ((nl.EGRESS, "cil_from_host"), (nl.INGRESS, "cil_to_host"))
_NET_HOOKS = ((nl.INGRESS, "cil_to_host"),)
_TUNNEL_HOOKS = ((nl.INGRESS, "cil_from_overlay"), (nl.EGRESS, "cil_to_overlay"))
_NODE_HOOKS = ((nl.INGRESS, "cil_from_netdev"), (nl.EGRESS, "cil_to_netdev"))

_IFF_NOARP = 0x80
_NO_DAD = 0x02
_ADDRGEN_NONE = 1


@dataclass(frozen=True, slots=True)
class Devices:
    """Indices of the node's devices."""

    host: int
    net: int
    tunnel: int
    """0 without a tunnel."""
    host_mac: str
    net_mac: str
    node: Mapping[str, int] = field(default_factory=dict)
    """The node's own devices by name."""

    def config_fields(self) -> dict[str, int | bytes]:
        """Return the fields of struct config that come from the devices."""
        return {
            "tunnel_ifindex": self.tunnel,
            "host_ifindex": self.host,
            "device_ifindex": next(iter(self.node.values()), 0),
            "host_mac": bytes.fromhex(self.host_mac.replace(":", "")),
            "net_mac": bytes.fromhex(self.net_mac.replace(":", "")),
        }


def ensure(config: NodeConfig) -> Devices:
    """Make the devices that a node's configuration asks for, and tell what they are.

    Raises DeviceError naming the device and what refused.
    """
    with nl.session("devices of the node") as netlink:
        _ensure_host_pair(netlink, config)
        host, net = _required(netlink, HOST), _required(netlink, NET)
        tunnel = _ensure_tunnel(netlink, config) if config.tunnel else 0
        node = {name: _required(netlink, name) for name in config.devices}
        _settings(config, [HOST, NET, *([TUNNEL] if tunnel else []), *node])
        for index in filter(None, (host, net, tunnel)):
            netlink.link("set", index=index, state="up")
        _addresses(netlink, host, [config.router_ipv4, config.router_ipv6])
        return Devices(
            host=host,
            net=net,
            tunnel=tunnel,
            host_mac=str(nl.link(netlink, host).get_attr("IFLA_ADDRESS")),
            net_mac=str(nl.link(netlink, net).get_attr("IFLA_ADDRESS")),
            node=node,
        )


def _required(netlink: Any, name: str) -> int:
    index = nl.index_of(netlink, name)
    if index is None:
        raise DeviceError(f"device {name} does not exist; name the node's device in `device`")
    return index


def _ensure_host_pair(netlink: Any, config: NodeConfig) -> None:
    if nl.index_of(netlink, HOST) is None:
        if (stray := nl.index_of(netlink, NET)) is not None:
            netlink.link("del", index=stray)
        netlink.link("add", ifname=HOST, kind="veth", mtu=config.mtu, peer={"ifname": NET})
    for name in (HOST, NET):
        index = _required(netlink, name)
        netlink.link("set", index=index, mtu=config.mtu, flags=_IFF_NOARP, change=_IFF_NOARP)


def _ensure_tunnel(netlink: Any, config: NodeConfig) -> int:
    index = nl.index_of(netlink, TUNNEL)
    if index is not None and _tunnel_port(netlink, index) != config.tunnel_port:
        netlink.link("del", index=index)
        index = None
    if index is None:
        netlink.link(
            "add",
            ifname=TUNNEL,
            kind="vxlan",
            vxlan_collect_metadata=True,
            vxlan_learning=False,
            vxlan_port=config.tunnel_port,
            vxlan_udp_zero_csum6_rx=True,
        )
        index = _required(netlink, TUNNEL)
    netlink.link("set", index=index, mtu=config.mtu)
    return index


def _tunnel_port(netlink: Any, index: int) -> int:
    """UDP port of the tunnel device, 0 when it is of another kind."""
    info = nl.link(netlink, index).get_attr("IFLA_LINKINFO")
    if info is None or info.get_attr("IFLA_INFO_KIND") != "vxlan":
        return 0
    data = info.get_attr("IFLA_INFO_DATA")
    if not data.get_attr("IFLA_VXLAN_COLLECT_METADATA"):
        return 0
    return int(data.get_attr("IFLA_VXLAN_PORT"))


def _settings(config: NodeConfig, managed: Iterable[str]) -> None:
    """Let the kernel forward, and leave the judgement of sources to the programs."""
    nl.write_sysctl("net/ipv4/ip_forward", 1)
    if config.services.nodes:
        nl.reserve_ports(config.services.node_port_min, config.services.node_port_max)
    names = list(managed)
    for name in ("all", "default", *names):
        nl.write_sysctl(f"net/ipv4/conf/{_path(name)}/rp_filter", 0)
    for name in (HOST, NET):
        nl.write_sysctl(f"net/ipv4/conf/{name}/forwarding", 1)
        # The node's own packets to pods come back in here when a proxy has to see them.
        nl.write_sysctl(f"net/ipv4/conf/{name}/accept_local", 1)
    if config.router_ipv6 is not None:
        nl.write_sysctl("net/ipv6/conf/all/disable_ipv6", 0)
        nl.write_sysctl("net/ipv6/conf/all/forwarding", 1)
        for name in names:
            nl.write_sysctl(f"net/ipv6/conf/{_path(name)}/disable_ipv6", 0)
            if name not in config.devices:
                nl.write_sysctl(f"net/ipv6/conf/{name}/addr_gen_mode", _ADDRGEN_NONE)


def _path(name: str) -> str:
    """Name of a device below /proc/sys, where a dot separates."""
    return name.replace("/", ".")


def _addresses(netlink: Any, index: int, wanted: Iterable[Address | None]) -> None:
    """Give a device these addresses and take its others, but for link-local ones."""
    addresses = {str(address): address for address in wanted if address is not None}
    for entry in netlink.get_addr(index=index):
        held = entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS")
        if held not in addresses and not held.startswith("fe80:"):
            netlink.addr("del", index=index, address=held, prefixlen=entry["prefixlen"])
        addresses.pop(held, None)
    for text, address in addresses.items():
        if address.version == 4:
            netlink.addr("add", index=index, address=text, prefixlen=32, scope=253)
        else:
            netlink.addr("add", index=index, address=text, prefixlen=128, flags=_NO_DAD)


def attach_all(
    devices: Devices, programs: Mapping[str, int], endpoint_ifindexes: Iterable[int]
) -> list[int]:
    """Put the programs on every device, each in the place of the one before it.

    Returns the devices of endpoints that no longer exist.
    """
    gone = []
    with nl.session("programs of the node's devices") as netlink:
        _attach(netlink, devices.host, _HOST_HOOKS, programs)
        _attach(netlink, devices.net, _NET_HOOKS, programs)
        if devices.tunnel:
            _attach(netlink, devices.tunnel, _TUNNEL_HOOKS, programs)
        for index in endpoint_ifindexes:
            if _is_endpoint(netlink, index):
                _attach(netlink, index, ENDPOINT_HOOKS, programs)
            else:
                gone.append(index)
        for index in devices.node.values():
            _attach(netlink, index, _NODE_HOOKS, programs)
    return gone


def attach_endpoint(index: int, programs: Mapping[str, int]) -> None:
    """Put the programs on the host side of a pod. Raises DeviceError when there is no device."""
    with nl.session(f"programs of device {index}") as netlink:
        _attach(netlink, index, ENDPOINT_HOOKS, programs)


def _attach(
    netlink: Any, index: int, hooks: Iterable[tuple[str, str]], programs: Mapping[str, int]
) -> None:
    for parent, program in hooks:
        nl.attach(netlink, index, parent, programs[program], program)


def _is_endpoint(netlink: Any, index: int) -> bool:
    """Tell whether an index is a pod's device still, and not another that got its number."""
    try:
        name = nl.link(netlink, index).get_attr("IFLA_IFNAME")
    except NetlinkError:
        return False
    return str(name).startswith(ENDPOINT_PREFIX)


def remove(node_devices: Iterable[str], endpoint_ifindexes: Iterable[int]) -> None:
    """Take the programs off the devices that stay and remove our own devices."""
    with nl.session("removal of the node's devices") as netlink:
        for name in node_devices:
            if (index := nl.index_of(netlink, name)) is not None:
                nl.detach(netlink, index)
        for index in endpoint_ifindexes:
            if _is_endpoint(netlink, index):
                nl.detach(netlink, index)
        for name in (HOST, TUNNEL):
            if (index := nl.index_of(netlink, name)) is not None:
                with contextlib.suppress(NetlinkError):
                    netlink.link("del", index=index)
