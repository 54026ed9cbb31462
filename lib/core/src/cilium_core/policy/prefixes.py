"""Address prefixes that policies name, addresses that names stand for, and their identities.

Every prefix that some policy names, excepts included, gets a node-local identity, so that an
address takes that of the most specific prefix around it. An address that was learned under a name
that policies select by gets one too: its labels are those names' and the label of the most specific
prefix around it. The agent writes them to the address table; selectors then see an address as its
labels.

One object per agent, used from one thread; no I/O.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
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
from cilium_core.labels import Label, LabelSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Names = Mapping[Address, frozenset[Label]]


@dataclass(frozen=True, slots=True)
class PrefixChange:
    """Prefixes that got another identity, and those that have none any more.

    The identities of `added` must be known to the policy maps before the address table points at
    them, and those `unused` forgotten only after it has ceased to. `added` holds new prefixes and
    those whose labels changed; `removed` says what identity each had.
    """

    added: Mapping[Prefix, Identity]
    removed: Mapping[Prefix, Identity]
    unused: tuple[Identity, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed)


class PrefixIdentities:
    """The identities of the prefixes in use."""

    def __init__(self, families: Families, allocator: LocalIdentityAllocator | None = None) -> None:
        """`allocator` may hold numbers restored after a restart."""
        self._families = families
        self._allocator = LocalIdentityAllocator() if allocator is None else allocator
        self._identities: dict[Prefix, Identity] = {}
        self._named: set[Prefix] = set()
        self._lengths: dict[int, Counter[int]] = {4: Counter(), 6: Counter()}
        self._names: dict[Prefix, frozenset[Label]] = {}

    def change(
        self,
        add: Iterable[Prefix] = (),
        remove: Iterable[Prefix] = (),
        names: Names | None = None,
    ) -> PrefixChange:
        """Take prefixes of policies in and out, and give addresses the labels of their names.

        `names` maps an address to all labels that its names give it now; none at all forget it.
        What is in `add` and `remove` stays in.
        """
        come = {prefix for prefix in add if prefix not in self._named}
        go = {prefix for prefix in remove if prefix in self._named} - set(add)
        self._named |= come
        self._named -= go
        for prefix in come:
            self._lengths[prefix.version][prefix.prefixlen] += 1
        for prefix in go:
            lengths = self._lengths[prefix.version]
            lengths[prefix.prefixlen] -= 1
            if not lengths[prefix.prefixlen]:
                del lengths[prefix.prefixlen]
        concerned = come | go | self._names_inside(come | go)
        for address, labels in (names or {}).items():
            host: Prefix = ipaddress.ip_network(address)
            if self._names.get(host, frozenset()) == labels:
                continue
            if labels:
                self._names[host] = labels
            else:
                del self._names[host]
            concerned.add(host)
        return self._settle(concerned)

    def add(self, prefixes: Iterable[Prefix]) -> dict[Prefix, Identity]:
        """Take prefixes of policies in; returns those that have another identity now."""
        return dict(self.change(add=prefixes).added)

    def reconcile(self, wanted: Iterable[Prefix]) -> PrefixChange:
        """Have exactly these prefixes of policies."""
        keep = set(wanted)
        return self.change(add=keep, remove=self._named - keep)

    def identity_of(self, address: Address) -> Identity:
        """The identity of an outside address: its most specific prefix's, or the world's."""
        host: Prefix = ipaddress.ip_network(address)
        known = self._identities.get(host)
        if known is not None:
            return known
        around = self._around(host)
        return self._world(address.version) if around is None else self._identities[around]

    def items(self) -> Mapping[Prefix, Identity]:
        """Every prefix and named address in use."""
        return dict(self._identities)

    @property
    def named(self) -> frozenset[Prefix]:
        """The prefixes of policies."""
        return frozenset(self._named)

    @property
    def names(self) -> Mapping[Prefix, frozenset[Label]]:
        """The labels that addresses have of their names."""
        return dict(self._names)

    def _settle(self, concerned: Iterable[Prefix]) -> PrefixChange:
        added: dict[Prefix, Identity] = {}
        removed: dict[Prefix, Identity] = {}
        for prefix in concerned:
            old, labels = self._identities.get(prefix), self._labels(prefix)
            if labels is None:
                if old is not None:
                    removed[prefix] = self._identities.pop(prefix)
            elif old is None or old.labels != labels:
                added[prefix] = self._identities[prefix] = self._acquire(prefix, labels)
                if old is not None:
                    removed[prefix] = old
        unused = [old for old in removed.values() if self._release(old)]
        gone = {prefix: old for prefix, old in removed.items() if prefix not in added}
        return PrefixChange(added, gone, tuple(unused))

    def _labels(self, prefix: Prefix) -> LabelSet | None:
        """The labels that a prefix is to have; None when nothing needs it."""
        names = self._names.get(prefix)
        if prefix in self._named:
            base = cidr_labels(prefix, self._families)
        elif names:
            around = self._around(prefix)
            base = (
                self._families.world(prefix.version).labels
                if around is None
                else cidr_labels(around, self._families)
            )
        else:
            return None
        return LabelSet((*base, *names)) if names else base

    def _around(self, inner: Prefix) -> Prefix | None:
        """The most specific prefix of a policy around another prefix, or itself."""
        return next(
            (outer for outer in _supernets(inner, self._lengths) if outer in self._named), None
        )

    def _names_inside(self, prefixes: set[Prefix]) -> set[Prefix]:
        """The named addresses within some prefixes."""
        if not prefixes or not self._names:
            return set()
        lengths: dict[int, Counter[int]] = {4: Counter(), 6: Counter()}
        for prefix in prefixes:
            lengths[prefix.version][prefix.prefixlen] += 1
        return {
            host
            for host in self._names
            if any(outer in prefixes for outer in _supernets(host, lengths))
        }

    def _acquire(self, prefix: Prefix, labels: LabelSet) -> Identity:
        if prefix.prefixlen == 0:
            return self._world(prefix.version)
        number, _ = self._allocator.acquire(labels)
        return Identity(number, labels)

    def _release(self, identity: Identity) -> bool:
        """Whether nobody uses the number any more; the world's own number is always used."""
        return self._allocator.labels(identity.id) is not None and self._allocator.release(
            identity.id
        )

    def _world(self, version: int) -> Identity:
        world = self._families.world(version)
        return Identity(NumericIdentity(world), world.labels)


def _supernets(inner: Prefix, lengths: Mapping[int, Counter[int]]) -> Iterator[Prefix]:
    """The prefixes of some lengths around a prefix, the most specific first."""
    for length in sorted(lengths[inner.version], reverse=True):
        if length <= inner.prefixlen:
            yield inner.supernet(new_prefix=length)
