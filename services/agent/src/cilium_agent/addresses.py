"""Addresses of the node's pods: both families together, each with its owner."""

from __future__ import annotations

import contextlib
import ipaddress
from typing import TYPE_CHECKING

from cilium_core.errors import CiliumError, NotFoundError
from cilium_core.ipam import NodeAddresses
from cilium_core.telemetry import counter, get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cilium_core.records import Network

log = get_logger()

EVENTS = counter("cilium_ipam_events_total", "Addresses given and taken back.", "action", "family")

ROUTER = "router"


class PodAddresses:
    """Gives a pod one address per family. Event loop only."""

    def __init__(self, *, ipv4: bool, ipv6: bool) -> None:
        self.pool = NodeAddresses()
        self._versions = tuple(v for v, on in ((4, ipv4), (6, ipv6)) if on)

    def set_pod_cidrs(self, pod_cidrs: Iterable[Network]) -> None:
        """Use these CIDRs; the first address of the first one per family is the router's."""
        self.pool.set_pod_cidrs(c for c in pod_cidrs if c.version in self._versions)
        for router in self.routers():
            if router:
                self.pool.reserve(ipaddress.ip_address(router), ROUTER)

    @property
    def complete(self) -> bool:
        """Whether every family has a CIDR."""
        return {cidr.version for cidr in self.pool.pod_cidrs} == set(self._versions)

    def routers(self) -> tuple[str, str]:
        """The pods' gateways, IPv4 and IPv6; empty for a family without."""
        found = {4: "", 6: ""}
        for cidr in self.pool.pod_cidrs:
            found[cidr.version] = found[cidr.version] or str(cidr[1])
        return found[4], found[6]

    def allocate(self, owner: str) -> tuple[str, str]:
        """Give `owner` an address of each family; raises `ExhaustedError`, then it has none."""
        given = {4: "", 6: ""}
        try:
            for version in self._versions:
                given[version] = str(self.pool.allocate(owner, version))
                EVENTS.add(1, "allocate", f"ipv{version}")
        except CiliumError:
            self.release(tuple(given.values()))
            raise
        return given[4], given[6]

    def claim(self, addresses: Sequence[str], owner: str) -> None:
        """Keep addresses that are in use already; raises `ConflictError` if another has one."""
        for address in addresses:
            self.pool.reserve(ipaddress.ip_address(address), owner)

    def release(self, addresses: Sequence[str]) -> None:
        """Take addresses back; empty and unknown ones are passed over."""
        for address in addresses:
            if not address:
                continue
            parsed = ipaddress.ip_address(address)
            with contextlib.suppress(NotFoundError):
                self.pool.release(parsed)
                EVENTS.add(1, "release", f"ipv{parsed.version}")
