"""Facts about this machine's network namespace: the node's device, its addresses and MTU.

Read from the kernel by ioctl and /proc, once at start, so that a minimal configuration suffices.
"""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cilium_core.errors import InvalidError

if TYPE_CHECKING:
    from cilium_agent.settings import AgentSettings

_SIOCGIFADDR = 0x8915
_SIOCGIFMTU = 0x8921
_GLOBAL = 0x00
_MIN_MTU_IPV6 = 1280


@dataclass(frozen=True)
class Host:
    """The node as the network sees it."""

    devices: tuple[str, ...]
    ipv4: ipaddress.IPv4Address | None
    ipv6: ipaddress.IPv6Address | None
    mtu: int

    @property
    def addresses(self) -> tuple[str, str]:
        """IPv4 and IPv6 address as text, empty for one that is missing."""
        return str(self.ipv4 or ""), str(self.ipv6 or "")


def look(settings: AgentSettings) -> Host:
    """Take what the settings say and find out the rest.

    Raises InvalidError naming the option to set where that is impossible.
    """
    devices = settings.device or (_find_device(settings.node_ipv4),)
    for device in devices:
        try:
            socket.if_nametoindex(device)
        except OSError as error:
            raise InvalidError(f"device: there is no device {device!r} on this node") from error
    ipv4 = settings.node_ipv4 or _ipv4_of(devices[0])
    ipv6 = settings.node_ipv6 or _ipv6_of(devices[0])
    if ipv4 is None:
        raise InvalidError(
            f"node-ipv4: {devices[0]} has no IPv4 address, and tunnels to other nodes need one; "
            "give it one or set node-ipv4"
        )
    mtu = settings.mtu or _mtu_of(devices[0])
    if mtu < _MIN_MTU_IPV6:
        raise InvalidError(f"mtu: {mtu} bytes is less than {_MIN_MTU_IPV6}, which IPv6 asks for")
    return Host(devices=tuple(devices), ipv4=ipv4, ipv6=ipv6, mtu=mtu)


def _find_device(node_ipv4: ipaddress.IPv4Address | None) -> str:
    names = [name for _, name in socket.if_nameindex()]
    if node_ipv4 is not None:
        for name in names:
            if _ipv4_of(name) == node_ipv4:
                return name
        raise InvalidError(f"node-ipv4: no device of this node has the address {node_ipv4}")
    for line in Path("/proc/net/route").read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        if fields[1] == "00000000" and fields[7] == "00000000":
            return fields[0]
    raise InvalidError("device: this node has no default route to tell its device by; set device")


def _ioctl(request: int, device: str) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        return fcntl.ioctl(any_socket, request, struct.pack("256s", device.encode()[:15]))


def _ipv4_of(device: str) -> ipaddress.IPv4Address | None:
    try:
        return ipaddress.IPv4Address(_ioctl(_SIOCGIFADDR, device)[20:24])
    except OSError:
        return None


def _ipv6_of(device: str) -> ipaddress.IPv6Address | None:
    try:
        lines = Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        address, _index, _bits, scope, _flags, name = line.split()
        if name == device and int(scope, 16) == _GLOBAL:
            return ipaddress.IPv6Address(bytes.fromhex(address))
    return None


def _mtu_of(device: str) -> int:
    return int(struct.unpack_from("i", _ioctl(_SIOCGIFMTU, device), 16)[0])
