"""A pod's network interface: made straight inside the pod's namespace, without any process.

One netlink request makes both ends, each where it belongs; a short-lived thread that has entered
the pod's namespace then gives it addresses and routes. The threads of the caller never leave their
own namespace. Functions are independent of each other and of the rest of the data plane, so they
may run in parallel.

A pod has /32 and /128 addresses and reaches everything through its router's address. The router's
neighbour entry is permanent, so that no packet ever waits for a resolution; other questions (ARP,
neighbour discovery) are answered by the program at its device. There is no link-local IPv6 address,
so that pods do not speak unasked. The device keeps the full MTU; routes carry the smaller one that
leaves room for the tunnel.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cilium_agent.datapath import netlink as nl
from cilium_agent.datapath.devices import ENDPOINT_PREFIX
from cilium_agent.datapath.errors import DeviceError, NamespaceError
from cilium_agent.datapath.models import PodInterface
from cilium_agent.datapath.netlink import IPRoute, NetlinkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from ipaddress import IPv4Address, IPv6Address

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703
_SCOPE_LINK = 253
_NO_DAD = 0x02
_ADDRGEN_NONE = 1
_LOOPBACK = 1
_FAMILIES = {4: 2, 6: 10}


def host_name(container_id: str, ifname: str) -> str:
    """Name of the host side of a pod's interface, the same for the same container and name."""
    digest = hashlib.sha256(f"{container_id}/{ifname}".encode()).hexdigest()
    return f"{ENDPOINT_PREFIX}{digest[:12]}"


def create(
    netns: str | Path,
    ifname: str,
    container_id: str,
    *,
    ipv4: IPv4Address | None = None,
    ipv6: IPv6Address | None = None,
    router_ipv4: IPv4Address | None = None,
    router_ipv6: IPv6Address | None = None,
    mtu: int = 1500,
    route_mtu: int = 1450,
) -> PodInterface:
    """Make a pod's interface and configure it; leftovers under its names are replaced.

    `netns` is the path of the pod's namespace. Raises NamespaceError when the namespace is not
    there, is none or is the caller's own, and DeviceError when the kernel refuses; nothing is left
    behind then.
    """
    name = host_name(container_id, ifname)
    node_mac, mac = _random_mac(), _random_mac()
    with _opened(netns) as pod, nl.session(f"interface {ifname} of {netns}") as netlink:
        peer = {"ifname": ifname, "address": mac, "mtu": mtu, "net_ns_fd": pod}
        pair = {"ifname": name, "kind": "veth", "address": node_mac, "mtu": mtu, "peer": peer}
        try:
            netlink.link("add", **pair)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
            _remove(name)
            _in_namespace(pod, lambda: _remove(ifname))
            netlink.link("add", **pair)
        try:
            ifindex = _host_side(netlink, name, ipv6 is not None)
            addresses = [(ipv4, router_ipv4), (ipv6, router_ipv6)]
            peer_ifindex = _in_namespace(
                pod, lambda: _pod_side(ifname, addresses, node_mac, route_mtu)
            )
        except BaseException:
            _remove(name)
            raise
        return PodInterface(
            host_name=name,
            ifindex=ifindex,
            node_mac=node_mac,
            ifname=ifname,
            peer_ifindex=peer_ifindex,
            mac=mac,
            mtu=mtu,
            netns_inode=os.fstat(pod).st_ino,
        )


def delete(netns: str | Path, ifname: str) -> bool:
    """Remove a pod's interface from inside; tells whether it was there."""
    try:
        with _opened(netns) as pod:
            return _in_namespace(pod, lambda: _remove(ifname))
    except NamespaceError:
        return False


def delete_host(container_id: str, ifname: str) -> bool:
    """Remove a pod's interface by its host side; tells whether it was there."""
    return _remove(host_name(container_id, ifname))


def check(
    netns: str | Path,
    ifname: str,
    *,
    ipv4: IPv4Address | None = None,
    ipv6: IPv6Address | None = None,
) -> None:
    """Raise NamespaceError, saying what is wrong, unless the interface is up with its addresses."""
    with _opened(netns) as pod:
        found = _in_namespace(pod, lambda: _look(ifname))
    if found is None:
        raise NamespaceError(f"{netns}: there is no interface {ifname}")
    up, held = found
    if not up:
        raise NamespaceError(f"{netns}: interface {ifname} is down")
    for address in (ipv4, ipv6):
        if address is not None and str(address) not in held:
            raise NamespaceError(f"{netns}: interface {ifname} lacks the address {address}")


def run_inside(netns: str | Path, function: Callable[[], T]) -> T:
    """Run a function in a thread inside a pod's namespace and return its result.

    Raises NamespaceError when the namespace is not there, is none or is the caller's own.
    """
    with _opened(netns) as pod:
        return _in_namespace(pod, function)


def _host_side(netlink: Any, name: str, with_ipv6: bool) -> int:
    nl.write_sysctl(f"net/ipv4/conf/{name}/rp_filter", 0)
    if with_ipv6:
        nl.write_sysctl(f"net/ipv6/conf/{name}/addr_gen_mode", _ADDRGEN_NONE)
    ifindex = nl.index_of(netlink, name)
    if ifindex is None:
        raise DeviceError(f"device {name} vanished while it was being set up")
    netlink.link("set", index=ifindex, state="up")
    return ifindex


def _pod_side(
    ifname: str,
    addresses: list[tuple[IPv4Address | IPv6Address | None, IPv4Address | IPv6Address | None]],
    node_mac: str,
    route_mtu: int,
) -> int:
    """Configure the pod's end; runs inside its namespace."""
    with nl.session(f"interface {ifname}") as netlink:
        ifindex = nl.index_of(netlink, ifname)
        if ifindex is None:
            raise DeviceError(f"interface {ifname} vanished while it was being set up")
        if any(address is not None and address.version == 6 for address, _ in addresses):
            nl.write_sysctl(f"net/ipv6/conf/{ifname}/disable_ipv6", 0)
            nl.write_sysctl(f"net/ipv6/conf/{ifname}/addr_gen_mode", _ADDRGEN_NONE)
        netlink.link("set", index=_LOOPBACK, state="up")
        netlink.link("set", index=ifindex, state="up")
        for address, router in addresses:
            if address is not None:
                _address(netlink, ifindex, address)
                if router is not None:
                    _default_route(netlink, ifindex, router, route_mtu)
                    netlink.neigh(
                        "replace",
                        dst=str(router),
                        lladdr=node_mac,
                        ifindex=ifindex,
                        state="permanent",
                        family=_FAMILIES[router.version],
                    )
        return ifindex


def _address(netlink: Any, ifindex: int, address: IPv4Address | IPv6Address) -> None:
    more = {"flags": _NO_DAD} if address.version == 6 else {}
    netlink.addr(
        "replace", index=ifindex, address=str(address), prefixlen=address.max_prefixlen, **more
    )


def _default_route(
    netlink: Any, ifindex: int, router: IPv4Address | IPv6Address, route_mtu: int
) -> None:
    family = _FAMILIES[router.version]
    scope = {"scope": _SCOPE_LINK} if router.version == 4 else {}
    netlink.route(
        "replace", family=family, dst=f"{router}/{router.max_prefixlen}", oif=ifindex, **scope
    )
    netlink.route(
        "replace",
        family=family,
        dst="default",
        gateway=str(router),
        oif=ifindex,
        metrics={"mtu": route_mtu},
    )


def _look(ifname: str) -> tuple[bool, set[str]] | None:
    """Whether an interface is up, and its addresses; None when there is none."""
    with IPRoute() as netlink:
        index = nl.index_of(netlink, ifname)
        if index is None:
            return None
        up = nl.link(netlink, index).get_attr("IFLA_OPERSTATE") == "UP"
        return up, {entry.get_attr("IFA_ADDRESS") for entry in netlink.get_addr(index=index)}


def _remove(ifname: str) -> bool:
    """Remove a device of the calling thread's namespace; tells whether it was there."""
    with IPRoute() as netlink:
        index = nl.index_of(netlink, ifname)
        if index is None:
            return False
        with contextlib.suppress(NetlinkError):  # its other end has just gone, and it too
            netlink.link("del", index=index)
        return True


def _random_mac() -> str:
    """Return a locally administered unicast address."""
    first, *rest = os.urandom(6)
    return bytes([(first | 0x02) & 0xFE, *rest]).hex(":")


@contextlib.contextmanager
def _opened(netns: str | Path) -> Iterator[int]:
    try:
        fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NamespaceError(f"network namespace {netns}: {error.strerror}") from error
    try:
        _require_other_namespace(fd, netns)
        yield fd
    finally:
        os.close(fd)


def _require_other_namespace(fd: int, netns: str | Path) -> None:
    """Configuring the caller's own namespace as a pod would take the node off the network."""
    try:
        kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != _CLONE_NEWNET:
        raise NamespaceError(f"{netns} is no network namespace")
    if os.path.samestat(os.fstat(fd), Path("/proc/thread-self/ns/net").stat()):
        raise NamespaceError(f"{netns} is the node's own network namespace, not a pod's")


def _in_namespace(fd: int, function: Callable[[], T]) -> T:
    """Run a function in a thread that is inside a namespace, and nowhere else ever after."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def enter_and_run() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(fd, _CLONE_NEWNET):
                number = ctypes.get_errno()
                raise NamespaceError(f"network namespace: {os.strerror(number)}")
            outcome.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=enter_and_run, name="netns")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
