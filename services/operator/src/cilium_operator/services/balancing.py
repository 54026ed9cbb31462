"""Addresses of load balancers: which pool gives which to which Service.

A `PoolBook` knows the CiliumLoadBalancerIPPools and who uses which of their addresses. A Service
keeps what it has for as long as a pool that selects it contains it; an address serves several
Services only if they share a key and differ in their ports. A pool that is disabled, or overlaps
an older one, gives nothing new.

Pure bookkeeping, like the ledger in `allocating`.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cilium_operator.services.conditions import Condition
from cilium_operator.services.reading import (
    LOAD_BALANCER,
    VERSIONS,
    Name,
    address,
    age_key,
    annotations_of,
    is_local,
    labels_of,
    mapping,
    mappings,
    name_of,
    protocol_of,
    selects,
    spec_of,
    texts,
    type_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cilium_core.records import Address
    from cilium_core.resources.model import Object

SATISFIED: Final = "cilium.io/IPAMRequestSatisfied"
CONFLICT: Final = "cilium.io/PoolConflict"
TOTAL: Final = "cilium.io/IPsTotal"
AVAILABLE: Final = "cilium.io/IPsAvailable"
USED: Final = "cilium.io/IPsUsed"

_REQUESTED: Final = ("lbipam.cilium.io/ips", "io.cilium/lb-ipam-ips")
_SHARING_KEY: Final = ("lbipam.cilium.io/sharing-key", "io.cilium/lb-ipam-sharing-key")
_ACROSS: Final = (
    "lbipam.cilium.io/sharing-cross-namespace",
    "io.cilium/lb-ipam-sharing-cross-namespace",
)
_CLASSES: Final = (None, "", "io.cilium/bgp-control-plane", "io.cilium/l2-announcer")
_NAMESPACE_LABEL: Final = "io.kubernetes.service.namespace"
_NAME_LABEL: Final = "io.kubernetes.service.name"


def is_served(item: Object) -> bool:
    """Whether a Service gets addresses here: a load balancer, and of no other's class."""
    spec = spec_of(item)
    return type_of(spec) == LOAD_BALANCER and spec.get("loadBalancerClass") in _CLASSES


def addresses_of(item: Object) -> list[Address]:
    """The load balancer's addresses as the status of a Service has them."""
    balancer = mapping(mapping(item.get("status")).get("loadBalancer"))
    found = (address(one.get("ip")) for one in mappings(balancer.get("ingress")))
    return [one for one in found if one is not None]


@dataclass(frozen=True, slots=True)
class _Use:
    """How a Service uses an address: all that matters to those who would share it."""

    namespace: str
    key: str
    across: tuple[str, ...]
    ports: frozenset[tuple[str, object]]
    local_to: str
    """Its selector where only nodes with a backend answer for it; empty otherwise."""

    def goes_with(self, other: _Use) -> bool:
        if not self.key or self.key != other.key or self.ports & other.ports:
            return False
        if self.local_to != other.local_to:
            return False  # who announces the address would be right for one of them only
        return self.namespace == other.namespace or (
            self._permits(other.namespace) and other._permits(self.namespace)
        )

    def _permits(self, namespace: str) -> bool:
        return "*" in self.across or namespace in self.across


def _use_of(item: Object) -> _Use:
    spec = spec_of(item)
    ports = frozenset((protocol_of(port), port.get("port")) for port in mappings(spec.get("ports")))
    selector = sorted(mapping(spec.get("selector")).items())
    return _Use(
        name_of(item)[0],
        _annotation(item, _SHARING_KEY),
        tuple(one.strip() for one in _annotation(item, _ACROSS).split(",")),
        ports,
        f"local {selector}" if is_local(spec) else "",
    )


def _annotation(item: Object, names: tuple[str, ...]) -> str:
    found = annotations_of(item)
    return next((str(found[name]) for name in names if found.get(name)), "")


def _requested(item: Object) -> tuple[list[Address], list[str]]:
    """The addresses a Service asks for, and what of its wish is no address."""
    wish = [one.strip() for one in _annotation(item, _REQUESTED).split(",")]
    wish += texts([spec_of(item).get("loadBalancerIP")])
    pairs = [(one, address(one)) for one in dict.fromkeys(wish) if one]
    found = [one for _text, one in pairs if one is not None]
    return list(dict.fromkeys(found)), [text for text, one in pairs if one is None]


class _Span:
    """Addresses without a gap; `low` is below every one that is free."""

    def __init__(self, first: Address, last: Address) -> None:
        self.version = first.version
        self.make = type(first)
        self.first, self.last = int(first), int(last)
        self.low = self.first

    def __contains__(self, found: Address) -> bool:
        return found.version == self.version and self.first <= int(found) <= self.last

    def overlaps(self, other: _Span) -> bool:
        return (
            self.version == other.version and self.first <= other.last and other.first <= self.last
        )


class _Pool:
    """A pool as its object describes it."""

    def __init__(self, item: Object) -> None:
        spec = spec_of(item)
        self.item = item
        self.name = name_of(item)[1]
        self.selector = spec.get("serviceSelector")
        self.disabled = spec.get("disabled") is True or "deletionTimestamp" in item["metadata"]
        self.conflict = ""
        self.used = 0
        edges = spec.get("allowFirstLastIPs") != "No"
        self.spans: list[_Span] = []
        for block in mappings(spec.get("blocks")):
            try:
                self.spans.append(_span(block, edges=edges))
            except ValueError:
                continue  # the object was not checked; what of it is right counts

    def selects(self, item: Object) -> bool:
        """Whether it serves a Service."""
        namespace, name = name_of(item)
        extra = {_NAMESPACE_LABEL: namespace, _NAME_LABEL: name}
        return selects(self.selector, {**labels_of(item), **extra})

    def contains(self, found: Address) -> bool:
        return any(found in span for span in self.spans)

    def free(self, found: Address) -> None:
        """Note that an address has no user any more."""
        for span in self.spans:
            if found in span:
                span.low = min(span.low, int(found))
        self.used -= self.contains(found)

    def overlap_with(self, other: _Pool) -> bool:
        return any(a.overlaps(b) for a in self.spans for b in other.spans)

    @property
    def total(self) -> int:
        return sum(span.last - span.first + 1 for span in self.spans)

    @property
    def gives(self) -> bool:
        return not self.disabled and not self.conflict


def _span(block: dict[str, object], *, edges: bool) -> _Span:
    """Raises ValueError unless the block is a prefix or a range."""
    if block.get("cidr"):
        network = ipaddress.ip_network(str(block["cidr"]), strict=False)
        inner = 1 if not edges and network.num_addresses > 2 else 0
        return _Span(network[inner], network[-1 - inner])
    first = ipaddress.ip_address(str(block.get("start")))
    last = ipaddress.ip_address(str(block.get("stop") or block.get("start")))
    if first.version != last.version or int(last) < int(first):
        raise ValueError(f"{last} does not lie behind {first}")
    return _Span(first, last)


class PoolBook:
    """The pools, and who uses which address."""

    def __init__(self) -> None:
        self._pools: dict[str, _Pool] = {}
        self._users: dict[Address, dict[Name, _Use]] = {}
        self._addresses: dict[Name, list[Address]] = {}
        self._by_key: dict[str, dict[Address, int]] = {}
        """Addresses in use under a sharing key, and by how many Services."""

    def put_pool(self, item: Object) -> None:
        """Note a pool, new or changed."""
        pool = _Pool(item)
        pool.used = sum(pool.contains(found) for found in self._users)
        self._pools[pool.name] = pool
        self._find_conflicts()

    def remove_pool(self, name: str) -> None:
        """Note that a pool is gone; its addresses go when their users are settled again."""
        self._pools.pop(name, None)
        self._find_conflicts()

    def pools(self) -> list[Object]:
        """The pools' objects, oldest first."""
        return [pool.item for pool in self._ordered()]

    def _ordered(self) -> list[_Pool]:
        return sorted(self._pools.values(), key=lambda pool: age_key(pool.item))

    def _find_conflicts(self) -> None:
        good: list[_Pool] = []
        for pool in self._ordered():
            other = next((one for one in good if one.overlap_with(pool)), None)
            pool.conflict = other.name if other else ""
            if other is None:
                good.append(pool)

    def conditions_of_pool(self, name: str) -> list[Condition]:
        """What is to be said of a pool: its conflict, and how full it is."""
        pool = self._pools[name]
        conflict = Condition(CONFLICT, "False", "resolved")
        if pool.conflict:
            conflict = Condition(
                CONFLICT,
                "True",
                "cidr_overlap",
                f"its blocks overlap those of the older pool {pool.conflict}; until one is "
                "changed this pool gives no addresses",
            )
        numbers = ((TOTAL, pool.total), (AVAILABLE, pool.total - pool.used), (USED, pool.used))
        return [
            conflict,
            *(Condition(kind, "Unknown", "noreason", str(count)) for kind, count in numbers),
        ]

    def holding(self, name: Name) -> frozenset[Address]:
        """The addresses that a Service has."""
        return frozenset(self._addresses.get(name, ()))

    def users(self, found: Address) -> list[Name]:
        """The Services that have an address."""
        return sorted(self._users.get(found, ()))

    def release(self, name: Name) -> None:
        """Note that a Service is gone, or wants no address any more."""
        for found in self._addresses.pop(name, ()):
            use = self._users[found].pop(name)
            if not self._users[found]:
                del self._users[found]
                for pool in self._pools.values():
                    pool.free(found)
            if use.key:
                shared = self._by_key[use.key]
                shared[found] -= 1
                if not shared[found]:
                    del shared[found]
                if not shared:
                    del self._by_key[use.key]

    def claim(self, item: Object) -> None:
        """Note the addresses that a Service has, as far as it may have them; gives nothing."""
        name, use = name_of(item), _use_of(item)
        self.release(name)
        if is_served(item):
            self._take(name, use, [one for one in addresses_of(item) if self._free(one, use)])

    def settle(self, item: Object) -> tuple[list[Address], Condition]:
        """Decide which addresses a served Service has from now on, IP versions as its spec says."""
        name, use = name_of(item), _use_of(item)
        versions = [
            VERSIONS[text] for text in texts(spec_of(item).get("ipFamilies")) if text in VERSIONS
        ] or [4]
        held = self._addresses.get(name, [])
        self.release(name)
        matching = [pool for pool in self._ordered() if pool.selects(item)]
        wish, wrong = _requested(item)
        kept = [
            one
            for one in dict.fromkeys([*held, *addresses_of(item)])
            if one.version in versions
            and (not (wish or wrong) or one in wish)
            and any(pool.contains(one) for pool in matching)
            and self._free(one, use)
        ]
        if wish or wrong:
            found, trouble = self._fulfil(wish, wrong, kept, versions, matching, use)
        else:
            found, trouble = self._choose(kept, versions, matching, use)
        self._take(name, use, found)
        if trouble is not None:
            return found, Condition(SATISFIED, "False", *trouble)
        return found, Condition(SATISFIED, "True", "satisfied")

    def _fulfil(
        self,
        wish: list[Address],
        wrong: list[str],
        kept: list[Address],
        versions: list[int],
        matching: list[_Pool],
        use: _Use,
    ) -> tuple[list[Address], tuple[str, str] | None]:
        """Give what is asked for by name."""
        found: list[Address] = []
        trouble = None
        for text in wrong:
            trouble = ("invalid_request", f"{text!r} is not an IP address")
        for one in wish:
            if one in kept:
                found.append(one)
                continue
            pools = [pool for pool in matching if pool.contains(one)]
            if one.version not in versions:
                trouble = ("wrong_family", f"{one}: spec.ipFamilies has no IPv{one.version}")
            elif not pools:
                trouble = ("no_pool", f"{one} is in no CiliumLoadBalancerIPPool for this Service")
            elif not any(pool.gives for pool in pools):
                trouble = ("pool_disabled", f"{one}: the pool {pools[0].name} is disabled")
            elif not self._free(one, use):
                holders = ", ".join("/".join(name) for name in self.users(one))
                remedy = f"share it by the annotation {_SHARING_KEY[0]}, with other ports"
                trouble = (
                    "already_allocated",
                    f"{one} is used by {holders}; {remedy}, or ask for another",
                )
            else:
                found.append(one)
        return found, trouble

    def _choose(
        self, kept: list[Address], versions: list[int], matching: list[_Pool], use: _Use
    ) -> tuple[list[Address], tuple[str, str] | None]:
        """Give one address of each family."""
        found: list[Address] = []
        trouble = None
        giving = [pool for pool in matching if pool.gives]
        for version in versions:
            one = next((one for one in kept if one.version == version), None)
            one = one or self._shared(version, giving, use) or self._first_free(version, giving)
            if one is not None:
                found.append(one)
            elif any(span.version == version for pool in giving for span in pool.spans):
                names = ", ".join(pool.name for pool in giving)
                trouble = ("out_of_ips", f"no IPv{version} address is left in {names}")
            else:
                trouble = (
                    "no_pool",
                    f"no enabled CiliumLoadBalancerIPPool selects this Service for IPv{version}",
                )
        return found, trouble

    def _free(self, found: Address, use: _Use) -> bool:
        """Whether an address has no user but such as `use` goes with."""
        return all(use.goes_with(other) for other in self._users.get(found, {}).values())

    def _shared(self, version: int, pools: list[_Pool], use: _Use) -> Address | None:
        """An address in use that can be shared."""
        for found in self._by_key.get(use.key, ()) if use.key else ():
            inside = found.version == version and any(pool.contains(found) for pool in pools)
            if inside and self._free(found, use):
                return found
        return None

    def _first_free(self, version: int, pools: list[_Pool]) -> Address | None:
        for span in self._spans(version, pools):
            while span.low <= span.last:
                found = span.make(span.low)
                if found not in self._users:
                    return found
                span.low += 1
        return None

    def _spans(self, version: int, pools: list[_Pool]) -> Iterator[_Span]:
        return (span for pool in pools for span in pool.spans if span.version == version)

    def _take(self, name: Name, use: _Use, found: list[Address]) -> None:
        if not found:
            return
        self._addresses[name] = found
        for one in found:
            if one not in self._users:
                for pool in self._pools.values():
                    pool.used += pool.contains(one)
            self._users.setdefault(one, {})[name] = use
            if use.key:
                shared = self._by_key.setdefault(use.key, {})
                shared[one] = shared.get(one, 0) + 1
