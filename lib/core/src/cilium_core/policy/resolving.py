"""Resolution: from the rules that select a subject to the entries of its policy map.

A resolved policy is a table of *columns*, one for each direction and peer identity, and one for
"any peer". A column depends on nothing but the rules that match its identity and on the any-peer
column, so a change is cheap: a new identity adds one column, a changed rule rebuilds the columns of
the identities that it selects, and identities that the same rules match share one column.

Endpoints that the same rules select share one `ResolvedPolicy`; the engine owns them and calls in
from one thread.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from cilium_core.identities import NumericIdentity
from cilium_core.policy.building import build_column
from cilium_core.policy.columns import Base, Contribution, Numbering, by_prefix
from cilium_core.policy.entries import (
    Changes,
    Column,
    ColumnDifference,
    EndpointPolicy,
    PolicyEntry,
    PolicyKey,
    difference,
    strongest_change,
)
from cilium_core.policy.plans import Plan, ResolutionKey, make_plan
from cilium_core.policy.ports import ContainerPort, L4Prefix
from cilium_core.policy.rules import Direction, Rule, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from cilium_core.policy.caching import CachedSelector, SelectorCache
    from cilium_core.policy.named_ports import NamedPorts
    from cilium_core.policy.options import PolicyOptions

_PORT_BITS: Final = 24


class _Peer(NamedTuple):
    """The column of one identity, the rules that it was made of and the redirects it names."""

    rules: frozenset[Rule]
    column: Column
    redirects: frozenset[int]


class Resources(NamedTuple):
    """What resolution reads beside the rules."""

    options: PolicyOptions
    selectors: SelectorCache
    named_ports: NamedPorts
    numbering: Numbering


class ResolvedPolicy:
    """Both directions of a policy, kept up to date as identities come and go."""

    __slots__ = ("_built_on", "_sides", "key", "users")

    _sides: tuple[_Side, _Side]
    _built_on: ResolvedPolicy | None

    def __init__(
        self,
        resources: Resources,
        key: ResolutionKey,
        previous: ResolvedPolicy | None = None,
    ) -> None:
        """Resolve; what `previous`, a policy of mostly the same rules, already has is taken over.

        The previous policy stays as it is. It must be current in all but its rules, its subject's
        ports included.
        """
        self.key = key
        self.users = 0
        self._built_on = previous
        ingress, egress = (None, None) if previous is None else previous._sides
        self._sides = (
            _Side(resources, Direction.INGRESS, key, ingress),
            _Side(resources, Direction.EGRESS, key, egress),
        )

    @property
    def enforced(self) -> tuple[bool, bool]:
        """Whether ingress and egress are enforced."""
        ingress, egress = self._sides
        return ingress.plan.enforced, egress.plan.enforced

    def uses_names(self, names: frozenset[str]) -> bool:
        """Whether some egress rule depends on one of these port names."""
        return any(
            port.name in names
            for rule in self.key.rules
            if rule.direction is Direction.EGRESS
            for port in rule.named_ports
        )

    def refresh(
        self,
        identity: NumericIdentity,
        matching: Iterable[CachedSelector],
        changes: Changes,
    ) -> None:
        """Follow a change of one identity, now selected by `matching`; what changes is noted."""
        for side in self._sides:
            before, after = side.refresh(identity, matching)
            changes.note(side.direction, identity, before, after)

    def note_changes_from(self, old: ResolvedPolicy, changes: Changes) -> None:
        """Note what turns another policy's entries into this one's."""
        for side, old_side in zip(self._sides, old._sides, strict=True):
            differences: dict[tuple[int, int], ColumnDifference] = {}
            places = side.columns.keys() | old_side.columns.keys()
            for identity in side.changed if self._built_on is old else places:
                before, after = old_side.columns.get(identity), side.columns.get(identity)
                if before is after:
                    continue
                pair = id(before), id(after)
                if pair not in differences:
                    differences[pair] = difference(
                        before.column if before else {}, after.column if after else {}
                    )
                changes.note_difference(side.direction, identity, differences[pair])

    def settle(self) -> None:
        """Forget which policy this one was built on; to be called when all changes are noted."""
        self._built_on = None
        for side in self._sides:
            side.changed.clear()

    def entries(self) -> dict[PolicyKey, PolicyEntry]:
        """Every entry of both directions."""
        return {
            PolicyKey(int(side.direction), identity, *prefix): entry
            for side in self._sides
            for identity, peer in side.columns.items()
            for prefix, entry in peer.column.items()
        }

    @property
    def size(self) -> int:
        """How many entries both directions have."""
        return sum(side.size for side in self._sides)

    def snapshot(self, revision: int) -> EndpointPolicy:
        """The policy as an immutable value."""
        ingress, egress = self.enforced
        return EndpointPolicy(ingress, egress, self.entries(), revision)

    def cookies(self) -> Iterator[int]:
        """The cookies of all entries; some more than once."""
        return (
            entry.cookie
            for side in self._sides
            for peer in side.columns.values()
            for entry in peer.column.values()
        )

    def redirects(self) -> frozenset[int]:
        """The numbers of the redirects that entries name."""
        return frozenset().union(*(side.redirects() for side in self._sides))

    def release(self) -> None:
        """Give the selectors back; the policy must not be used afterwards."""
        for side in self._sides:
            side.release()


class _Side:
    """One direction of a resolved policy. Column 0 is any peer's."""

    __slots__ = (
        "_base",
        "_memo",
        "_numbering",
        "_own_ports",
        "_redirects",
        "_resources",
        "_selectors",
        "changed",
        "columns",
        "direction",
        "plan",
        "size",
    )

    direction: Direction
    plan: Plan
    columns: dict[int, _Peer]
    size: int
    """Entries of all columns, counted as columns come and go."""
    changed: set[int]
    """The identities of which building on another policy changed the column."""
    _base: Base

    def __init__(
        self,
        resources: Resources,
        direction: Direction,
        key: ResolutionKey,
        previous: _Side | None,
    ) -> None:
        self.direction = direction
        self._resources = resources
        self._own_ports = key.named_ports
        self.plan = make_plan(resources.options, direction, key)
        self._numbering = resources.numbering._replace(audit=key.audit)
        self._selectors: dict[CachedSelector, frozenset[Rule]] = {}
        self._memo: dict[tuple[frozenset[Rule], int], _Peer] = {}
        self._redirects: Counter[int] = Counter()
        self.columns = {}
        self.size = 0
        self.changed = set()
        if previous is not None:
            self._selectors.update(previous._selectors)
            self.columns.update(previous.columns)
            self.size = previous.size
            self._redirects.update(previous._redirects)
            for cached in self._selectors:
                cached.uses += 1
        self._base = previous._base if previous is not None else Base()
        self._build(previous)

    def _build(self, previous: _Side | None) -> None:
        """Bring the columns from the rules before to the rules now."""
        before = previous.plan.rules if previous is not None else frozenset[Rule]()
        added, removed = self.plan.rules - before, before - self.plan.rules
        touched: dict[int, tuple[Rule, ...]] = {}
        identity: int
        for rule in removed:
            for identity in self._identities(rule):
                touched[identity] = (*touched.get(identity, ()), rule)
            self._drop_selectors(rule)
        for rule in added:
            self._add_selectors(rule)
            for identity in self._identities(rule):
                touched[identity] = (*touched.get(identity, ()), rule)
        for identity in self._unsettled(previous, added | removed):
            touched.setdefault(identity, ())
        self._renew(touched, added, removed)

    def _unsettled(self, previous: _Side | None, changed: frozenset[Rule]) -> list[int]:
        """The identities whose columns may be others for what changed around them.

        The base is renewed on the way, if need be.
        """
        anew = previous is None or not self.plan.builds_like(previous.plan)
        if not (anew or any(rule.peers is None for rule in changed)):
            if previous is not None and previous.plan.closers != self.plan.closers:
                # Who denies by default bears on no column but that of any peer.
                self._set_base()
            return []
        old = self._base
        self._set_base()
        anew |= self.plan.evaluated or self._base.redirecting or old.redirecting
        strongest = strongest_change(old.column, self._base.column)
        depends: dict[int, bool] = {}
        found = []
        for identity, peer in self.columns.items():
            place = id(peer)
            if place not in depends:
                depends[place] = anew or any(
                    rule.l7 is not None or _may_hide(strongest, rule) for rule in peer.rules
                )
            if depends[place] and identity:
                found.append(identity)
        return found

    def _renew(
        self,
        touched: Mapping[int, tuple[Rule, ...]],
        added: frozenset[Rule],
        removed: frozenset[Rule],
    ) -> None:
        """Give identities the columns that they have with the rules that came and went for each.

        Most of them share a column before and share one afterwards.
        """
        by_peer = any(rule.named_ports_of_peer and rule.named_ports for rule in self.plan.rules)
        renewed: dict[tuple[int, tuple[Rule, ...], int], _Peer | None] = {}
        for identity, changed in touched.items():
            old = self.columns.get(identity)
            place = id(old), changed, identity if by_peer else 0
            if place not in renewed:
                rules = old.rules if old is not None else frozenset[Rule]()
                if changed:
                    rules = (rules - removed) | added.intersection(changed)
                renewed[place] = self._make(identity, rules, old)
            new = renewed[place]
            if new is not old:
                self._put(identity, new)
                self.changed.add(identity)

    def refresh(
        self, identity: NumericIdentity, matching: Iterable[CachedSelector]
    ) -> tuple[Column, Column]:
        """Give an identity the column that the selectors matching it ask for."""
        rules: set[Rule] = set()
        for cached in matching:
            rules |= self._selectors.get(cached, frozenset())
        rules.update(rule for rule in self._named_rules() if identity in self._identities(rule))
        before = self.columns.get(identity)
        after = self._make(identity, frozenset(rules), before)
        self._put(identity, after)
        return before.column if before else {}, after.column if after else {}

    def release(self) -> None:
        for cached in self._selectors:
            self._resources.selectors.release(cached)

    def redirects(self) -> frozenset[int]:
        return frozenset(self._redirects)

    def _named_rules(self) -> Iterator[Rule]:
        """Rules for every peer with ports that each peer numbers for itself."""
        if self.direction is Direction.INGRESS:
            return iter(())
        return (
            rule
            for rule in self.plan.rules
            if rule.peers is None and rule.named_ports_of_peer and rule.named_ports
        )

    def _identities(self, rule: Rule) -> set[NumericIdentity]:
        """The identities in whose columns a rule takes part, other than 0."""
        if rule.peers is not None:
            found: set[NumericIdentity] = set()
            for selector in rule.peers:
                cached = self._resources.selectors.find(selector)
                if cached is not None:
                    found |= cached.selections
            return found
        if self.direction is Direction.EGRESS and rule.named_ports_of_peer:
            return {
                NumericIdentity(peer)
                for port in rule.named_ports
                for peer in self._resources.named_ports.peers(port.name, port.protocol)
            }
        return set()

    def _add_selectors(self, rule: Rule) -> None:
        cache = self._resources.selectors
        for selector in rule.peers or ():
            cached = cache.find(selector)
            if cached is None or cached not in self._selectors:
                cached = cache.acquire(selector)
            self._selectors[cached] = self._selectors.get(cached, frozenset()) | {rule}

    def _drop_selectors(self, rule: Rule) -> None:
        cache = self._resources.selectors
        for selector in rule.peers or ():
            cached = cache.find(selector)
            if cached is None or cached not in self._selectors:
                continue
            rest = self._selectors[cached] - {rule}
            if rest:
                self._selectors[cached] = rest
            else:
                del self._selectors[cached]
                cache.release(cached)

    def _set_base(self) -> None:
        rules = frozenset(rule for rule in self.plan.rules if rule.peers is None)
        found = by_prefix(
            Contribution(rule.prefixes + self._named(rule, 0), rule) for rule in rules
        )
        column = build_column(found, None, self.plan, self._numbering)
        self._base = Base(column, found)
        self._put(0, _peer(rules, column))
        self.changed.add(0)

    def _make(self, identity: int, rules: frozenset[Rule], old: _Peer | None) -> _Peer | None:
        """The column of an identity that some rules match; the old one if it is no other."""
        if not rules:
            return None
        by_peer = any(rule.named_ports and rule.named_ports_of_peer for rule in rules)
        memo = (rules, identity if by_peer else 0)
        peer = self._memo.get(memo)
        if peer is None:
            found = by_prefix(
                Contribution(
                    (() if rule.peers is None else rule.prefixes) + self._named(rule, identity),
                    rule,
                )
                for rule in rules
            )
            column = build_column(found, self._base, self.plan, self._numbering)
            peer = _peer(rules, column)
            if old is not None and old.rules == rules and old.column == column:
                peer = old
            self._memo[memo] = peer
        return peer

    def _put(self, identity: int, peer: _Peer | None) -> None:
        """Replace a column, keeping count of the entries and of the redirects in use."""
        before = self.columns.get(identity)
        if before is peer:
            return
        self.size += len(peer.column) if peer is not None else 0
        self.size -= len(before.column) if before is not None else 0
        if peer is None:
            del self.columns[identity]
        else:
            self.columns[identity] = peer
        old = before.redirects if before is not None else _NO_REDIRECTS
        new = peer.redirects if peer is not None else _NO_REDIRECTS
        if old != new:
            self._redirects.update(new)
            self._redirects.subtract(old)
            self._redirects = +self._redirects

    def _named(self, rule: Rule, identity: int) -> tuple[L4Prefix, ...]:
        return named_prefixes(rule, identity, self._own_ports, self._resources.named_ports)


_NO_REDIRECTS: Final = frozenset[int]()


def _peer(rules: frozenset[Rule], column: Column) -> _Peer:
    redirects = frozenset(entry.redirect for entry in column.values() if entry.redirect)
    return _Peer(rules, column, redirects or _NO_REDIRECTS)


def named_prefixes(
    rule: Rule, identity: int, own_ports: frozenset[ContainerPort], table: NamedPorts
) -> tuple[L4Prefix, ...]:
    """The numbers that a rule's port names stand for with one peer (0: with any).

    `own_ports` are the subject's, `table` has those of all pods.
    """
    if not rule.named_ports:
        return ()
    found: set[tuple[int, int]] = set()
    for wanted in rule.named_ports:
        protocol = int(wanted.protocol)
        if rule.direction is Direction.INGRESS:
            found |= {
                (protocol, port.port)
                for port in own_ports
                if port.name == wanted.name and port.protocol == protocol
            }
        elif rule.named_ports_of_peer:
            numbers = table.of_peer(identity, wanted.name, protocol) if identity else ()
            found |= {(protocol, number) for number in numbers}
        else:
            number = table.in_cluster(wanted.name, protocol)
            found |= {(protocol, number)} if number is not None else set()
    return tuple(L4Prefix(protocol, port, _PORT_BITS) for protocol, port in sorted(found))


def _may_hide(precedence: int, rule: Rule) -> bool:
    """Whether an any-peer entry of some precedence may hide entries of a rule."""
    if rule.verdict is Verdict.DENY:
        return rule.precedence <= precedence
    return rule.precedence < precedence
