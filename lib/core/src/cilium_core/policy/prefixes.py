"""Address prefixes that policies name, and their node-local identities.

Every prefix that some policy names, excepts included, gets an identity, so that an address takes
that of the most specific prefix around it. The agent writes them to the address table; selectors
then see an address as its prefix's labels.

One object per agent, used from one thread; no I/O.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilium_core.identities import (
    Families,
    Identity,
    LocalIdentityAllocator,
    NumericIdentity,
    Prefix,
    cidr_labels,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class PrefixChange:
    """Prefixes that came and went, with their identities.

    New identities must be known to the policy maps before the address table points at them, and old
    ones forgotten only after it has ceased to.
    """

    added: Mapping[Prefix, Identity]
    removed: Mapping[Prefix, Identity]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed)


class PrefixIdentities:
    """The identities of the prefixes in use."""

    def __init__(self, families: Families, allocator: LocalIdentityAllocator | None = None) -> None:
        """`allocator` may hold numbers restored after a restart."""
        self._families = families
        self._allocator = LocalIdentityAllocator() if allocator is None else allocator
        self._identities: dict[Prefix, Identity] = {}

    def add(self, prefixes: Iterable[Prefix]) -> dict[Prefix, Identity]:
        """Give identities to the prefixes that have none yet; returns just those."""
        added = {}
        for prefix in prefixes:
            if prefix not in self._identities:
                added[prefix] = self._identities[prefix] = self._acquire(prefix)
        return added

    def remove(self, prefixes: Iterable[Prefix]) -> dict[Prefix, Identity]:
        """Let go of prefixes; returns those that had an identity."""
        removed = {}
        for prefix in prefixes:
            identity = self._identities.pop(prefix, None)
            if identity is not None:
                removed[prefix] = identity
                if prefix.prefixlen:
                    self._allocator.release(identity.id)
        return removed

    def reconcile(self, wanted: Iterable[Prefix]) -> PrefixChange:
        """Have exactly the wanted prefixes."""
        keep = set(wanted)
        return PrefixChange(self.add(keep), self.remove(self._identities.keys() - keep))

    def identity_of(self, address: Address) -> Identity:
        """The identity of an outside address: its most specific prefix's, or the world's."""
        inside = (prefix for prefix in self._identities if address in prefix)
        best = max(inside, key=lambda prefix: prefix.prefixlen, default=None)
        return self._world(address.version) if best is None else self._identities[best]

    def items(self) -> Mapping[Prefix, Identity]:
        """Every prefix in use."""
        return dict(self._identities)

    def _acquire(self, prefix: Prefix) -> Identity:
        if prefix.prefixlen == 0:
            return self._world(prefix.version)
        labels = cidr_labels(prefix, self._families)
        number, _ = self._allocator.acquire(labels)
        return Identity(number, labels)

    def _world(self, version: int) -> Identity:
        world = self._families.world(version)
        return Identity(NumericIdentity(world), world.labels)
