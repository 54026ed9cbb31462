"""The few netlink operations that devices, filters and routes need; pyroute2 stays behind it.

Sockets are opened for one piece of work and in the calling thread, so everything happens in the
network namespace of that thread, and threads do not disturb each other.
"""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from cilium_agent.datapath.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "EGRESS",
    "INGRESS",
    "XDP_FLAGS",
    "IPRoute",
    "NetlinkError",
    "attach",
    "detach",
    "filter_names",
    "index_of",
    "link",
    "reserve_ports",
    "session",
    "set_xdp",
    "write_sysctl",
    "xdp_of",
]

INGRESS, EGRESS = "ffff:fff2", "ffff:fff3"
"""Parents of the clsact filters."""
_PARENTS = {INGRESS: 0xFFFFFFF2, EGRESS: 0xFFFFFFF3}

_HANDLE = 1
_PRIORITY = 1
_ALL_PROTOCOLS = 3  # ETH_P_ALL
_NO_HOOK = (errno.ENOENT, errno.EINVAL)
"""What a filter request meets on a device without a clsact hook."""
_XDP_MODES = {"xdp": "native", "xdpgeneric": "generic"}
XDP_FLAGS = {"generic": 2, "native": 4}
"""XDP_FLAGS_SKB_MODE and XDP_FLAGS_DRV_MODE."""


@contextlib.contextmanager
def session(what: str) -> Iterator[Any]:
    """Open a netlink socket; a refusal becomes a DeviceError that says what was being done."""
    try:
        with IPRoute() as netlink:
            yield netlink
    except NetlinkError as error:
        raise DeviceError(f"{what}: {error.args[-1]} (error {error.code})") from error


def index_of(netlink: Any, name: str) -> int | None:
    """Index of a device, None when there is none of that name."""
    found = netlink.link_lookup(ifname=name)
    return int(found[0]) if found else None


def link(netlink: Any, index: int) -> Any:
    """Everything the kernel tells of a device."""
    return netlink.link("get", index=index)[0]


def attach(netlink: Any, index: int, parent: str, fd: int, name: str) -> None:
    """Put a program on a device in the place of the one before it, in one step."""
    try:
        _set_filter(netlink, index, parent, fd, name)
    except NetlinkError as error:
        if error.code not in _NO_HOOK:
            raise
        with contextlib.suppress(NetlinkError):  # another has made it meanwhile
            netlink.tc("add", "clsact", index)
        _set_filter(netlink, index, parent, fd, name)


def _set_filter(netlink: Any, index: int, parent: str, fd: int, name: str) -> None:
    netlink.tc(
        "replace-filter",
        "bpf",
        index,
        handle=_HANDLE,
        fd=fd,
        name=name,
        parent=parent,
        prio=_PRIORITY,
        protocol=_ALL_PROTOCOLS,
        classid=1,
        direct_action=True,
    )


def detach(netlink: Any, index: int) -> None:
    """Take our programs off a device, and the hook itself when nobody else uses it."""
    for parent in _PARENTS:
        with contextlib.suppress(NetlinkError):
            netlink.tc(
                "del-filter",
                "bpf",
                index,
                handle=_HANDLE,
                parent=parent,
                prio=_PRIORITY,
                protocol=_ALL_PROTOCOLS,
            )
    with contextlib.suppress(NetlinkError):
        if not any(netlink.get_filters(index=index, parent=number) for number in _PARENTS.values()):
            netlink.tc("del", "clsact", index)


def filter_names(netlink: Any, index: int) -> dict[str, str]:
    """Names of the programs on a device by parent."""
    found = {}
    for parent, number in _PARENTS.items():
        for entry in netlink.get_filters(index=index, parent=number):
            options = entry.get_attr("TCA_OPTIONS")
            if options is not None and (name := options.get_attr("TCA_BPF_NAME")):
                found[parent] = str(name)
    return found


def set_xdp(netlink: Any, index: int, fd: int, flags: int = 0) -> None:
    """Put an XDP program on a device in one step; descriptor -1 takes it off."""
    attributes = [("IFLA_XDP_FD", fd), ("IFLA_XDP_FLAGS", flags)]
    netlink.link("set", index=index, xdp={"attrs": attributes})


def xdp_of(netlink: Any, index: int) -> tuple[int, str]:
    """Kernel's number of the XDP program on a device and its mode, 0 without one.

    The mode is `native`, `generic`, or the kernel's word for another.
    """
    xdp = link(netlink, index).get_attr("IFLA_XDP")
    number = xdp.get_attr("IFLA_XDP_PROG_ID") if xdp is not None else None
    if not number:
        return 0, ""
    mode = str(xdp.get_attr("IFLA_XDP_ATTACHED"))
    return int(number), _XDP_MODES.get(mode, mode)


def write_sysctl(name: str, value: int) -> None:
    """Set a kernel setting below /proc/sys, of the calling thread's network namespace.

    Raises DeviceError when it does not exist or refuses.
    """
    path = Path("/proc/sys") / name
    try:
        if path.read_text(encoding="ascii").strip() != str(value):
            path.write_text(str(value), encoding="ascii")
    except OSError as error:
        raise DeviceError(f"sysctl {name}={value}: {error.strerror}") from error


def reserve_ports(first: int, last: int) -> None:
    """Keep the kernel from giving a range of ports to sockets that ask for any.

    Ranges that are kept already stay so. Raises DeviceError when the kernel refuses.
    """
    path = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")
    try:
        kept = path.read_text(encoding="ascii").strip()
        wanted = f"{first}-{last}" if first != last else str(first)
        if wanted not in kept.split(","):
            path.write_text(f"{kept},{wanted}" if kept else wanted, encoding="ascii")
    except OSError as error:
        raise DeviceError(f"reserved ports {first} to {last}: {error.strerror}") from error
