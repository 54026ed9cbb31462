"""The agent's door to the data plane: everything blocking happens behind it, in threads.

`cilium_agent.datapath` makes system calls and, at start, compiles. Its calls go one after the other
through a single worker thread, so it needs no lock and the order in which the agent decides is the
order in which the kernel learns. Work inside pods' network namespaces goes beside it, several at a
time: it touches nothing shared.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from cilium_agent.datapath import PodInterface, netns, sockets
from cilium_agent.datapath.errors import NamespaceError
from cilium_agent.datapath.models import EndpointFlag, IpcacheEntry
from cilium_agent.endpoints.records import Link
from cilium_agent.errors import PodLinkError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from cilium_core.services import L4Address

    from cilium_agent.datapath import Datapath, PolicyChange, PolicyOverflow
    from cilium_agent.datapath.models import EndpointInfo, NodeConfig
    from cilium_agent.endpoints.records import Attachment, Endpoint, EndpointID
    from cilium_agent.ipcaches import Entry

P = ParamSpec("P")
T = TypeVar("T")

NAMESPACE_THREADS = 4


class Plane:
    """The data plane as the control plane uses it."""

    def __init__(self, datapath: Datapath) -> None:
        self.datapath = datapath
        self._kernel = ThreadPoolExecutor(1, thread_name_prefix="datapath")
        self._namespaces = ThreadPoolExecutor(NAMESPACE_THREADS, thread_name_prefix="netns")

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `call` after everything asked for before; once begun it is always finished."""
        return await _within(self._kernel, partial(call, *args, **kwargs))

    def close(self) -> None:
        """Finish what was asked for and end the threads; the kernel goes on by itself."""
        self._namespaces.shutdown(wait=True)
        self._kernel.submit(self.datapath.stop).result()
        self._kernel.shutdown(wait=True)

    # ---- endpoints ----

    async def make_link(self, endpoint: Endpoint) -> Link:
        """Create a pod's interface pair and configure the pod's side."""
        config = self.datapath.config
        made = await _within(
            self._namespaces,
            partial(_make_link, endpoint, config),
        )
        return Link(
            interface=made.host_name, ifindex=made.ifindex, mac=made.mac, node_mac=made.node_mac
        )

    async def remove_link(self, endpoint: Endpoint) -> None:
        """Remove the pair by its host side; one that is gone is fine."""
        await self.remove_link_of(endpoint.attachment)

    async def remove_link_of(self, attachment: Attachment) -> bool:
        """Remove the pair of a container's interface; False when there is none."""
        return await _within(
            self._namespaces,
            partial(netns.delete_host, attachment.container_id, attachment.ifname),
        )

    def has_link(self, endpoint: Endpoint) -> bool:
        """Whether the host side of an endpoint's pair is there."""
        return endpoint.link is not None and link_exists(endpoint.link)

    async def check_link(self, endpoint: Endpoint) -> None:
        """Raise `PodLinkError` where a pod's interface is not as it was made."""
        try:
            await _within(self._namespaces, partial(_check_link, endpoint))
        except NamespaceError as error:
            raise PodLinkError(f"pod {endpoint.pod}: {error}") from error

    async def prepare(self, endpoint_id: EndpointID) -> None:
        """Make room for an endpoint's policy."""
        await self.run(self.datapath.policy.prepare, endpoint_id)

    async def connect(self, row: EndpointInfo) -> None:
        """Write an endpoint's row and attach the programs to its device."""
        await self.run(_connect, self.datapath, row)

    async def disconnect(self, endpoint_id: EndpointID) -> None:
        """Remove an endpoint's rows and policy."""
        await self.run(_disconnect, self.datapath, endpoint_id)

    async def write_policies(
        self, changes: Mapping[int, PolicyChange], changed_rows: list[EndpointInfo]
    ) -> list[PolicyOverflow]:
        """Install policies, then rows; tells which policies did not fit."""
        if not (changes or changed_rows):
            return []
        return await self.run(_write_policies, self.datapath, changes, changed_rows)

    async def scrub(self, addresses: Sequence[str]) -> None:
        """Forget the tracked connections of addresses."""
        parsed = [ipaddress.ip_address(address) for address in addresses]
        if parsed:
            await self.run(self.datapath.conntrack.delete_for, parsed)

    async def live_connections(self) -> frozenset[tuple[str, str]]:
        """Both addresses of every tracked connection, its initiator's first."""
        return await self.run(_live_connections, self.datapath)

    # ---- sockets ----

    async def socket_cookie(self, path: str) -> int:
        """Cookie of a pod's network namespace. Raises NamespaceError when it is not there."""
        return await _within(self._namespaces, partial(sockets.cookie_of, path))

    async def end_sockets(
        self, backends: Collection[L4Address], namespaces: Collection[str]
    ) -> int:
        """End the sockets, of the node too, that got one of the backends; returns how many."""
        paths = [None, *(Path(path) for path in namespaces)]
        end = self.datapath.terminator.terminate
        return await _within(self._namespaces, partial(end, backends, paths))

    # ---- address to identity ----

    async def write_ipcache(self, upserts: Mapping[str, Entry], deletes: Iterable[str]) -> None:
        """Bring the kernel's address table up to date."""
        entries = [_ipcache_entry(prefix, entry) for prefix, entry in upserts.items()]
        gone = [ipaddress.ip_network(prefix) for prefix in deletes]
        await self.run(_write_ipcache, self.datapath, entries, gone)


def ifindex_of(attachment: Attachment) -> int:
    """Index of the host side of a container's interface, 0 when there is none."""
    try:
        return socket.if_nametoindex(netns.host_name(attachment.container_id, attachment.ifname))
    except OSError:
        return 0


def ifindex_exists(ifindex: int) -> bool:
    """Whether there is a device of this index."""
    try:
        socket.if_indextoname(ifindex)
    except OSError:
        return False
    return True


def link_exists(link: Link) -> bool:
    """Whether the host side of a pod's pair is still there, and still the same device."""
    try:
        return socket.if_nametoindex(link.interface) == link.ifindex
    except OSError:
        return False


async def _within(executor: ThreadPoolExecutor, call: Callable[[], T]) -> T:
    return await asyncio.shield(asyncio.get_running_loop().run_in_executor(executor, call))


def _make_link(endpoint: Endpoint, config: NodeConfig) -> PodInterface:
    return netns.create(
        endpoint.attachment.netns,
        endpoint.attachment.ifname,
        endpoint.attachment.container_id,
        ipv4=ipaddress.IPv4Address(endpoint.ipv4) if endpoint.ipv4 else None,
        ipv6=ipaddress.IPv6Address(endpoint.ipv6) if endpoint.ipv6 else None,
        router_ipv4=config.router_ipv4,
        router_ipv6=config.router_ipv6,
        mtu=config.mtu,
        route_mtu=config.route_mtu,
    )


def _check_link(endpoint: Endpoint) -> None:
    netns.check(
        endpoint.attachment.netns,
        endpoint.attachment.ifname,
        ipv4=ipaddress.IPv4Address(endpoint.ipv4) if endpoint.ipv4 else None,
        ipv6=ipaddress.IPv6Address(endpoint.ipv6) if endpoint.ipv6 else None,
    )


def _connect(datapath: Datapath, row: EndpointInfo) -> None:
    datapath.endpoints.upsert(row)
    datapath.attach_endpoint(row.ifindex)


def _disconnect(datapath: Datapath, endpoint_id: EndpointID) -> None:
    datapath.endpoints.delete(endpoint_id)
    datapath.policy.delete(endpoint_id)


def _write_policies(
    datapath: Datapath, changes: Mapping[int, PolicyChange], changed_rows: list[EndpointInfo]
) -> list[PolicyOverflow]:
    overflows = datapath.policy.apply(changes)
    for row in changed_rows:
        if row.flags & EndpointFlag.ENDPOINT_HOST:
            datapath.endpoints.upsert_node(row.id, row.ifindex, row.flags)
        else:
            datapath.endpoints.upsert(row)
    return overflows


def _live_connections(datapath: Datapath) -> frozenset[tuple[str, str]]:
    now = time.monotonic()
    return frozenset(
        (str(one.source), str(one.destination))
        for one in datapath.conntrack.dump()
        if one.expires_s > now
    )


def _ipcache_entry(prefix: str, entry: Entry) -> IpcacheEntry:
    tunnel = ipaddress.IPv4Address(entry.tunnel_ipv4) if entry.tunnel_ipv4 else None
    return IpcacheEntry(ipaddress.ip_network(prefix), entry.identity, tunnel)


def _write_ipcache(
    datapath: Datapath,
    entries: list[IpcacheEntry],
    gone: list[ipaddress.IPv4Network | ipaddress.IPv6Network],
) -> None:
    datapath.ipcache.upsert_many(entries)
    datapath.ipcache.delete_many(gone)
