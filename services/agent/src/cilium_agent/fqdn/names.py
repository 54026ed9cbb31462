"""The name manager: from what clients are about to be told to identities in the kernel.

Proxies report answers; each address then gets the `fqdn:` labels of all selectors in force that
mean one of its names, whoever on the node asked for it. `observe` returns when the kernel has them,
and only then the answer leaves the proxy; what the kernel has already costs nothing. Names go the
other way round: they expire, their addresses stay while connections live, and then the labels go.

Everything happens on the event loop. One `apply` runs at a time, with all that came meanwhile
together in the next; what fails stays to be done and is tried again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cilium.metadata.v1 import metadata_pb2
from cilium_core.errors import UnavailableError
from cilium_core.policy.fqdn import compile_name
from cilium_core.telemetry import counter, gauge, get_logger

from cilium_agent.fqdn import storing
from cilium_agent.fqdn.caches import ZOMBIE_MIN_S, Address, EndpointNames, Lookup

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

    from cilium.proxy.v1 import proxy_pb2
    from cilium_core.labels import Label, LabelSet
    from cilium_core.policy.fqdn import NamePattern
    from cilium_core.policy.selectors import FqdnSelector

    Apply = Callable[[Mapping[Address, frozenset[Label]]], Awaitable[None]]
    """Gives addresses these `fqdn:` labels; returns when the kernel has them."""

    Owner = Callable[[str], int | None]
    """The endpoint that has an address."""

    Connections = Callable[[], Awaitable[Collection[tuple[str, str]]]]
    """Live connections of the node's endpoints: own address, remote address."""

log = get_logger()

GC_DELETIONS = counter("cilium_fqdn_gc_deletions_total", "Names that expired.")
SELECTORS = gauge("cilium_fqdn_selectors", "Selectors of names in force.")
ACTIVE_NAMES = gauge("cilium_fqdn_active_names", "Names that are learned.", "endpoint")
ACTIVE_IPS = gauge("cilium_fqdn_active_ips", "Addresses of these names.", "endpoint")
ZOMBIES = gauge(
    "cilium_fqdn_alive_zombie_connections",
    "Addresses without a current name that are kept for connections.",
    "endpoint",
)

GC_INTERVAL_S: Final = 60.0
SAVE_INTERVAL_S: Final = 1.0
RETRY_S: Final = 1.0
NODE: Final = 0
"""Stands for the endpoint of names that nobody on the node asked for."""


@dataclass(frozen=True, slots=True)
class NameOptions:
    """Options, under the names of the settings; times in seconds."""

    tofqdns_min_ttl: int = 0
    tofqdns_endpoint_max_ip_per_hostname: int = 1000
    tofqdns_max_deferred_connection_deletes: int = 10_000
    tofqdns_idle_connection_grace_period: float = 0.0
    tofqdns_pre_cache: Path | None = None


class NameRow(NamedTuple):
    """A line of `cilium fqdn cache list`."""

    endpoint: int
    source: str
    """`lookup`, or `connection` for names kept for their connections only."""
    name: str
    ttl_s: int
    looked_up_s: float
    expires_s: float
    addresses: tuple[str, ...]


class NameManager:
    """What the node knows of names."""

    def __init__(
        self,
        path: Path,
        options: NameOptions,
        *,
        apply: Apply,
        owner: Owner,
        connections: Connections,
        identities: Callable[[], Mapping[int, LabelSet]] = dict,
        publish: Callable[[Iterable[metadata_pb2.Update]], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`path` is the file on disk, `identities` those of names in use, to be kept there too."""
        self._path = path
        self._options = options
        self._apply = apply
        self._owner = owner
        self._connections = connections
        self._identities = identities
        self._publish = publish
        self._clock = clock
        self._endpoints: dict[int, EndpointNames] = {}
        self._selectors: frozenset[FqdnSelector] = frozenset()
        self._exact: dict[str, frozenset[Label]] = {}
        self._patterns: list[tuple[NamePattern, Label]] = []
        self._labels_of_name: dict[str, frozenset[Label]] = {}
        self._applied: dict[Address, frozenset[Label]] = {}
        self._dirty: set[Address] = set()
        self._restored = asyncio.Event()
        self._settling = asyncio.Lock()
        self._work = asyncio.Event()
        self._unsaved = asyncio.Event()

    # ---- what arrives ----

    async def observe(self, observations: Sequence[proxy_pb2.NameObservation]) -> list[float]:
        """Learn what clients are about to be told; returns when the kernel knows.

        For each, the seconds for which it will at least. Raises `UnavailableError` when the kernel
        cannot be told now; it will be as soon as it can. Waits for `restore`: proxies are there
        before the endpoints that asked.
        """
        await self._restored.wait()
        lifetimes, concerned = [], set[Address]()
        now = self._clock()
        for observation in observations:
            expires_s = 0.0
            endpoint = self._owner(_text(observation.client))
            for packed in observation.addresses:
                lookup = self._lookup(observation, packed, now)
                if lookup is not None:
                    concerned.add(lookup.address)
                    self._learn(NODE if endpoint is None else endpoint, lookup)
                    expires_s = lookup.expires_s
            # A name that expires now is treated as known until it is collected.
            lifetimes.append(max(expires_s - now, 0.0) + ZOMBIE_MIN_S / 2)
        if any(self._labels(address) != self._known(address) for address in concerned):
            try:
                await self._settle()
            except Exception as error:
                log.warning("names not in the kernel yet", error=str(error))
                self._work.set()
                raise UnavailableError(f"the data plane cannot be told now: {error}") from error
        return lifetimes

    def set_selectors(self, selectors: Iterable[FqdnSelector]) -> None:
        """Have exactly these selectors in force; addresses get or lose labels soon."""
        selectors = frozenset(selectors)
        if selectors == self._selectors:
            return
        self._selectors = selectors
        self._labels_of_name.clear()
        compiled = [
            (compile_name(name=one.name, pattern=one.pattern), one.label) for one in selectors
        ]
        self._exact = {}
        for pattern, label in compiled:
            if pattern.exact is not None:
                self._exact[pattern.exact] = self._exact.get(pattern.exact, frozenset()) | {label}
        self._patterns = [item for item in compiled if item[0].exact is None]
        SELECTORS.set(len(selectors))
        self._dirty.update(self._applied)
        for names in self._endpoints.values():
            self._dirty.update(names.names)
        self._work.set()

    def endpoint_gone(self, endpoint: int) -> None:
        """An endpoint is no more, nor are its connections."""
        names = self._endpoints.pop(endpoint, None)
        if names is not None:
            self._changed(endpoint, names.names)
            for metric in (ACTIVE_NAMES, ACTIVE_IPS, ZOMBIES):
                metric.remove(str(endpoint))

    # ---- life ----

    async def restore(self, living: Collection[int] | None = None) -> None:
        """Know what an earlier run knew; the kernel gets it with the next `settle`.

        `living` are the endpoints there are; what others learned is forgotten.
        """
        self._endpoints = {
            number: names
            for number, names in storing.load(self._path).items()
            if number == NODE or living is None or number in living
        }
        if self._options.tofqdns_pre_cache is not None:
            for lookup in storing.load_pre_cache(self._options.tofqdns_pre_cache):
                self._learn(NODE, lookup)
        for number, names in self._endpoints.items():
            self._changed(number, names.names)
        self._restored.set()
        log.info(
            "names restored",
            endpoints=len(self._endpoints),
            names=sum(len(names.lookups) for names in self._endpoints.values()),
        )

    async def run(self) -> None:
        """Carry out what is left to do, collect and save, until cancelled; then save once more."""
        try:
            await asyncio.gather(self._run_settling(), self._run_collecting(), self._run_saving())
        finally:
            self._save(storing.encode(self._endpoints, self._identities()))

    async def settle(self) -> None:
        """Return once the kernel has all labels as they are now; raises what `apply` raises."""
        await self._settle()

    async def collect(self) -> None:
        """Turn what has expired into zombies, and let zombies without connections go."""
        now = self._clock()
        most = self._options.tofqdns_max_deferred_connection_deletes
        for number, names in self._endpoints.items():
            expired, changed = names.expire(now, most)
            GC_DELETIONS.add(expired)
            self._changed(number, changed, saved=bool(expired) or names.prolonged)
            names.prolonged = False
        if any(names.zombies for names in self._endpoints.values()):
            seen_s = self._clock()
            await self.collected(await self._connections(), seen_s)
        for number in [n for n, names in self._endpoints.items() if not names.names]:
            del self._endpoints[number]
        self._work.set()

    async def collected(self, pairs: Iterable[tuple[str, str]], seen_s: float) -> None:
        """Live connections as of a time: what endpoints' zombies are kept for."""
        connected: dict[int | None, set[Address]] = {}
        everyone = set[Address]()
        owners: dict[str, int | None] = {}
        for own, remote in pairs:
            if own not in owners:
                owners[own] = self._owner(own)
            address = ipaddress.ip_address(remote)
            connected.setdefault(owners[own], set()).add(address)
            everyone.add(address)
        now, grace_s = self._clock(), self._options.tofqdns_idle_connection_grace_period
        for number, names in self._endpoints.items():
            alive = everyone if number == NODE else connected.get(number, set())
            self._changed(number, names.collect(alive, seen_s, now, grace_s))

    # ---- what users see and do ----

    def rows(self, endpoint: int | None = None, pattern: str = "") -> list[NameRow]:
        """What is known, by endpoint and name; of one endpoint, or of names that match."""
        matches = compile_name(pattern=pattern).matches_normal if pattern else None
        rows = []
        for number, names in sorted(self._endpoints.items()):
            if endpoint is not None and number != endpoint:
                continue
            rows += [_lookup_row(number, name, found) for name, found in names.lookups.items()]
            rows += [
                NameRow(number, "connection", name, 0, z.died_s, z.kept_until_s, (str(z.address),))
                for z in names.zombies.values()
                for name in sorted(z.names)
            ]
        return [row for row in rows if matches is None or matches(row.name)]

    async def clean(self, pattern: str = "") -> int:
        """Forget names that match a pattern, or all; returns how many addresses they had.

        Addresses with live connections keep their labels until these end.
        """
        compiled = compile_name(pattern=pattern or "*")
        now, most = self._clock(), self._options.tofqdns_max_deferred_connection_deletes
        total = 0
        for number, names in self._endpoints.items():
            cleaned, changed = names.clean(
                lambda one: compiled.matches_normal(one.name), now - ZOMBIE_MIN_S, most
            )
            total += cleaned
            self._changed(number, changed, saved=True)
        await self.collect()
        return total

    def selectors(self) -> dict[FqdnSelector, list[str]]:
        """Every selector in force with the addresses that it stands for now."""
        by_label: dict[Label, list[str]] = {}
        for address, labels in self._applied.items():
            for label in labels:
                by_label.setdefault(label, []).append(str(address))
        return {one: sorted(by_label.get(one.label, ())) for one in self._selectors}

    def names_of(self, address: Address) -> frozenset[str]:
        """All names by which the node knows an address."""
        return frozenset().union(
            *(names.names.get(address, ()) for names in self._endpoints.values())
        )

    def refresh_metrics(self) -> None:
        """Bring the gauges up to date."""
        for number, names in self._endpoints.items():
            ACTIVE_NAMES.set(len(names.lookups), str(number))
            ACTIVE_IPS.set(sum(len(found) for found in names.lookups.values()), str(number))
            ZOMBIES.set(len(names.zombies), str(number))

    # ---- learning ----

    def _lookup(
        self, observation: proxy_pb2.NameObservation, packed: bytes, now: float
    ) -> Lookup | None:
        """What an answer says of one address, None for one that no connection leaves the pod to."""
        address = _address(packed)
        if address is None or address.is_loopback or address.is_unspecified:
            return None
        looked_up_s = min(observation.time_ns / 1e9, now)
        ttl_s = max(observation.ttl_s, self._options.tofqdns_min_ttl)
        return Lookup(observation.name, address, ttl_s, looked_up_s, looked_up_s + ttl_s)

    def _learn(self, endpoint: int, lookup: Lookup) -> None:
        names = self._endpoints.setdefault(endpoint, EndpointNames())
        changed = names.learn(
            lookup,
            self._options.tofqdns_endpoint_max_ip_per_hostname,
            self._options.tofqdns_max_deferred_connection_deletes,
        )
        self._changed(endpoint, changed)

    def _changed(self, endpoint: int, addresses: Iterable[Address], *, saved: bool = False) -> None:
        """Addresses have other names as far as an endpoint is concerned."""
        addresses = list(addresses)
        if addresses or saved:
            self._unsaved.set()
        if not addresses:
            return
        self._dirty.update(addresses)
        self._work.set()
        if endpoint == NODE:
            return
        names = self._endpoints.get(endpoint)
        known: Mapping[Address, set[str]] = names.names if names else {}
        self._publish(
            metadata_pb2.Update(
                names=metadata_pb2.Names(
                    endpoint=endpoint,
                    ip=str(address),
                    names=sorted(name.rstrip(".") for name in known.get(address, ())),
                )
            )
            for address in addresses
        )

    # ---- labels ----

    def _labels(self, address: Address) -> frozenset[Label]:
        """The labels that an address is to have."""
        found: frozenset[Label] = frozenset()
        for names in self._endpoints.values():
            for name in names.names.get(address, ()):
                found |= self._labels_of(name)
        return found

    def _labels_of(self, name: str) -> frozenset[Label]:
        labels = self._labels_of_name.get(name)
        if labels is None:
            labels = self._exact.get(name, frozenset()).union(
                label for pattern, label in self._patterns if pattern.matches_normal(name)
            )
            if len(self._labels_of_name) > 100_000:
                self._labels_of_name.clear()
            self._labels_of_name[name] = labels
        return labels

    def _known(self, address: Address) -> frozenset[Label]:
        return self._applied.get(address, frozenset())

    async def _settle(self) -> None:
        """Have the kernel know all labels as they are now."""
        async with self._settling:
            dirty, self._dirty = self._dirty, set()
            wanted = {address: self._labels(address) for address in dirty}
            changes = {a: labels for a, labels in wanted.items() if labels != self._known(a)}
            if not changes:
                return
            try:
                await self._apply(changes)
            except BaseException:
                self._dirty |= dirty
                raise
            for address, labels in changes.items():
                if labels:
                    self._applied[address] = labels
                else:
                    self._applied.pop(address, None)
            self._unsaved.set()

    # ---- tasks ----

    async def _run_settling(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                await self._settle()
            except Exception as error:  # whatever the data plane says, it is asked again
                log.warning("names not in the kernel yet", error=str(error))
                await asyncio.sleep(RETRY_S)
                self._work.set()

    async def _run_collecting(self) -> None:
        while True:
            await asyncio.sleep(GC_INTERVAL_S)
            try:
                await self.collect()
            except Exception as error:  # the connections cannot be read now; next time
                log.warning("names not collected", error=str(error))

    async def _run_saving(self) -> None:
        while True:
            await self._unsaved.wait()
            self._unsaved.clear()
            began = time.monotonic()
            await self.save()
            # A write that fails is repeated with the next change. However much there is to write,
            # most of the time is for other things.
            await asyncio.sleep(max(SAVE_INTERVAL_S, 20 * (time.monotonic() - began)))

    async def save(self) -> None:
        """Have the disk know what is known now."""
        document = storing.encode(self._endpoints, self._identities())
        await asyncio.to_thread(self._save, document)

    def _save(self, document: Mapping[str, Any]) -> None:
        try:
            storing.save(self._path, document)
        except OSError as error:
            log.error("names not saved", file=str(self._path), error=str(error))


def _lookup_row(endpoint: int, name: str, found: Mapping[Address, Lookup]) -> NameRow:
    last = max(found.values(), key=lambda one: one.expires_s)
    addresses = tuple(str(address) for address in found)
    return NameRow(
        endpoint, "lookup", name, last.ttl_s, last.looked_up_s, last.expires_s, addresses
    )


def _address(packed: bytes) -> Address | None:
    """4 or 16 bytes as an address; IPv4 written as IPv6 is what clients connect to, IPv4."""
    if len(packed) == 4:
        return ipaddress.IPv4Address(packed)
    if len(packed) != 16:
        return None
    address = ipaddress.IPv6Address(packed)
    return address.ipv4_mapped or address


def _text(packed: bytes) -> str:
    return str(_address(packed) or "")
