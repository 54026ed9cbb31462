"""The policy engine: policies, identities and endpoints in; map changes out.

The agent tells it what changes and then calls `flush`, which returns how each affected endpoint's
policy map has to change. Changes made between two flushes reach an endpoint as one update, so that
no map ever holds half of a policy. Work is proportional to what a change touches.

Purely computing: no I/O, no clock, no locks. One thread calls it. An update that could not be
written is not lost: `policy` gives the whole of what an endpoint should have.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cilium_core.identities import RESERVED_IDENTITIES, NumericIdentity
from cilium_core.labels import KEY_NAMESPACE, SOURCE_K8S
from cilium_core.policy import parsing
from cilium_core.policy.caching import SelectorCache
from cilium_core.policy.columns import Numbering
from cilium_core.policy.cookies import CookieTable
from cilium_core.policy.entries import NO_CHANGE, Changes, EndpointPolicy, PolicyDelta
from cilium_core.policy.groups import CidrGroup
from cilium_core.policy.named_ports import NamedPorts
from cilium_core.policy.options import PolicyOptions
from cilium_core.policy.plans import ResolutionKey, Subject, resolution_key, selects
from cilium_core.policy.redirects import RedirectTable
from cilium_core.policy.repositories import Repository, RepositoryChange
from cilium_core.policy.resolving import ResolvedPolicy, Resources
from cilium_core.policy.rules import Direction, Policy, PolicyRef, Rule
from cilium_core.policy.substitutes import MOST_ENTRIES, Substitutes, too_large
from cilium_core.policy.unions import Conflict, find_conflicts, find_meetings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from cilium_core.identities import Prefix
    from cilium_core.labels import LabelSet
    from cilium_core.policy.bindings import Bindings
    from cilium_core.policy.networks import Networks
    from cilium_core.policy.ports import ContainerPort
    from cilium_core.policy.selectors import FqdnSelector, PeerSelector
    from cilium_core.policy.services import Services


@dataclass(frozen=True, slots=True)
class EndpointUpdate:
    """How one endpoint's policy changes.

    Write the entries first, then the enforcement flags. `full` says that the map must hold exactly
    `delta.add` afterwards, whatever it held before: the endpoint is new to the engine. `redirects`
    are all that the endpoint's entries name afterwards; have them realised before writing.

    With `conflicts` the endpoint's rules contradict each other, so that it keeps the policy that it
    had; one that never had any denies what the rules in question would allow. The same goes for a
    policy of more than `MOST_ENTRIES` entries, whose conflict names one rule twice; without an
    earlier policy that is small enough, nothing is allowed then.
    """

    endpoint: Hashable
    ingress_enforced: bool
    egress_enforced: bool
    delta: PolicyDelta
    revision: int
    full: bool = False
    redirects: frozenset[int] = frozenset()
    conflicts: tuple[Conflict, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """What a new, changed or deleted policy does: the endpoints whose rules are others now."""

    ref: PolicyRef
    revision: int
    affected: frozenset[Hashable]
    policy: Policy | None


@dataclass(frozen=True, slots=True)
class BindingChange:
    """What a change of something that policies refer to does, and by way of which policies."""

    name: str
    revision: int
    policies: frozenset[PolicyRef]
    affected: frozenset[Hashable]


@dataclass(slots=True)
class _Endpoint:
    """`accepted` are the latest of its rules that it could have: in harmony, and not too many."""

    subject: Subject
    rules: frozenset[Rule]
    accepted: frozenset[Rule] | None = None
    conflicts: tuple[Conflict, ...] = ()
    resolved: ResolvedPolicy | None = None


class PolicyEngine:
    """Everything that policy needs to know, on one node."""

    def __init__(self, options: PolicyOptions | None = None) -> None:
        self.options = options or PolicyOptions()
        self.repository = Repository()
        self.selectors = SelectorCache()
        self.named_ports = NamedPorts()
        self.cookies = CookieTable()
        self.redirects = RedirectTable()
        self._resources = Resources(
            self.options,
            self.selectors,
            self.named_ports,
            Numbering(self.cookies, self.redirects),
        )
        self._endpoints: dict[Hashable, _Endpoint] = {}
        self._by_namespace: dict[str, set[Hashable]] = {}
        self._resolved: dict[ResolutionKey, ResolvedPolicy] = {}
        self._built: list[ResolvedPolicy] = []
        self._dirty: set[Hashable] = set()
        self._changed_identities: set[NumericIdentity] = set()
        self._changed_names: set[str] = set()
        self._fewer_identities = False
        self._substitutes = Substitutes()
        for identity in RESERVED_IDENTITIES.values():
            self.selectors.upsert_identity(identity.id, identity.labels)

    # ---- policies ----

    @property
    def revision(self) -> int:
        """The repository's revision; it grows with every accepted change."""
        return self.repository.revision

    def parse(self, obj: object) -> Policy:
        """Read a policy object under this engine's options, without taking it in.

        Raises `PolicyError`. The policy's `prefixes` tell which identities it needs.
        """
        policy = parsing.parse(obj, self.options)
        return replace(self.bindings, audited=frozenset()).bind(policy, policy)

    def upsert_policy(self, policy: Policy | object) -> PolicyChange:
        """Take in a policy, parsed or as an object.

        Raises `PolicyError` for an object that is refused; then nothing has changed, and an earlier
        accepted version stays in force.
        """
        parsed = policy if isinstance(policy, Policy) else self.parse(policy)
        return self._follow(self.repository.upsert(parsed))

    def delete_policy(self, kind: str, namespace: str, name: str) -> PolicyChange:
        """Take a policy out; `namespace` is empty for cluster-wide kinds."""
        return self._follow(self.repository.delete(kind, namespace, name))

    # ---- what policies refer to ----

    @property
    def bindings(self) -> Bindings:
        """What policies may refer to, as it is now."""
        return self.repository.bindings

    def set_bindings(self, bindings: Bindings, name: str = "") -> BindingChange:
        """Have policies refer to other things; those concerned follow. `name` says what changed.

        The prefixes that `prefixes_under` tells should have identities before.
        """
        changes = [self._follow(change) for change in self.repository.set_bindings(bindings)]
        policies = frozenset(change.ref for change in changes)
        affected = frozenset(endpoint for change in changes for endpoint in change.affected)
        return BindingChange(name, self.revision, policies, affected)

    def prefixes_under(self, bindings: Bindings) -> frozenset[Prefix]:
        """The prefixes of all policies that other bindings would change."""
        return self.repository.prefixes_under(bindings)

    def upsert_cidr_group(self, group: CidrGroup | object) -> BindingChange:
        """Take in a CIDR group, parsed or as an object; the policies that refer to it follow.

        Raises `PolicyError` for an object that is refused; then nothing has changed.
        """
        parsed = group if isinstance(group, CidrGroup) else parsing.parse_cidr_group(group)
        groups = self.bindings.groups.with_group(parsed)
        return self.set_bindings(replace(self.bindings, groups=groups), parsed.name)

    def delete_cidr_group(self, name: str) -> BindingChange:
        """Take a CIDR group out; policies that refer to it select nobody by it."""
        groups = self.bindings.groups.without(name)
        return self.set_bindings(replace(self.bindings, groups=groups), name)

    def group_prefixes(self, group: CidrGroup) -> frozenset[Prefix]:
        """The prefixes that need identities before a group may be taken in."""
        groups = self.bindings.groups.with_group(group)
        return self.prefixes_under(replace(self.bindings, groups=groups))

    def set_services(self, services: Services, name: str = "") -> BindingChange:
        """Have other services, which are `bindings.services` with one more, less or changed."""
        return self.set_bindings(replace(self.bindings, services=services), name)

    def service_prefixes(self, services: Services) -> frozenset[Prefix]:
        """The prefixes that need identities before services may be set."""
        return self.prefixes_under(replace(self.bindings, services=services))

    def set_addresses(self, networks: Networks) -> BindingChange:
        """Tell all addresses in the cluster, for networks of tiered policies."""
        return self.set_bindings(replace(self.bindings, networks=networks))

    def set_audited_namespaces(self, namespaces: Iterable[str]) -> BindingChange:
        """Tell the namespaces of which every policy only tells what it would refuse."""
        return self.set_bindings(replace(self.bindings, audited=frozenset(namespaces)))

    def fqdn_selectors(self) -> frozenset[FqdnSelector]:
        """Every DNS name and pattern that policies in force have as peers."""
        return self.repository.names()

    def required_prefixes(self) -> frozenset[Prefix]:
        """Every address prefix that needs an identity of its own."""
        return self.repository.required_prefixes()

    def _follow(self, change: RepositoryChange) -> PolicyChange:
        """Give the endpoints concerned their new rules."""
        affected = set()
        if change.effective:
            old = change.old.rules if change.old else ()
            new = change.new.rules if change.new else ()
            namespace = change.ref.namespace
            candidates = self._by_namespace.get(namespace, set()) if namespace else self._endpoints
            known: dict[tuple[LabelSet, bool, frozenset[Rule]], frozenset[Rule]] = {}
            for name in candidates:
                endpoint = self._endpoints[name]
                subject = endpoint.subject
                memo = (subject.labels, subject.is_host, endpoint.rules)
                if memo not in known:
                    matching = (rule for rule in new if selects(rule, subject))
                    known[memo] = endpoint.rules.difference(old).union(matching)
                if known[memo] != endpoint.rules:
                    endpoint.rules = known[memo]
                    affected.add(name)
            self._dirty |= affected
        return PolicyChange(change.ref, change.revision, frozenset(affected), change.new)

    # ---- identities and names ----

    def upsert_identity(self, identity: int, labels: LabelSet) -> None:
        """Make an identity known, or give it other labels; reserved ones are known already."""
        if self.selectors.upsert_identity(identity, labels):
            self._changed_identities.add(NumericIdentity(identity))

    def delete_identity(self, identity: int) -> None:
        """Forget an identity. Reserved ones go back to their own labels instead."""
        number = NumericIdentity(identity)
        reserved = RESERVED_IDENTITIES.get(number)
        if reserved is not None:
            self.upsert_identity(number, reserved.labels)
        elif self.selectors.delete_identity(number):
            self._changed_identities.add(number)
            self._fewer_identities = True

    def set_named_ports(self, pod: Hashable, identity: int, ports: Iterable[ContainerPort]) -> None:
        """Tell which ports a pod, anywhere in the cluster, serves under a name."""
        self._changed_names |= self.named_ports.update(pod, identity, ports)

    def remove_named_ports(self, pod: Hashable) -> None:
        """Forget a pod's ports."""
        self._changed_names |= self.named_ports.remove(pod)

    # ---- endpoints ----

    def upsert_endpoint(self, endpoint: Hashable, subject: Subject) -> None:
        """Add an endpoint of this node under any name, or tell its new labels or ports."""
        known = self._endpoints.get(endpoint)
        if known is not None and known.subject == subject:
            return
        if known is not None:
            self._namespace(known.subject).discard(endpoint)
        rules = frozenset(self.repository.rules_for(subject))
        if known is None:
            self._endpoints[endpoint] = _Endpoint(subject, rules)
        else:
            known.subject, known.rules = subject, rules
        self._namespace(subject).add(endpoint)
        self._dirty.add(endpoint)

    def remove_endpoint(self, endpoint: Hashable) -> None:
        """Forget an endpoint; no update follows."""
        known = self._endpoints.pop(endpoint, None)
        if known is None:
            return
        self._namespace(known.subject).discard(endpoint)
        self._dirty.discard(endpoint)
        self._leave(known.resolved)

    def _namespace(self, subject: Subject) -> set[Hashable]:
        namespace = subject.labels.value(KEY_NAMESPACE, SOURCE_K8S)
        return self._by_namespace.setdefault(namespace, set())

    # ---- results ----

    def flush(self) -> list[EndpointUpdate]:
        """Work off all changes since the last call; one update for each endpoint with changes."""
        changes = self._follow_identities()
        self._forget_stale_names()
        self._retry_large()
        replaced: dict[tuple[ResolvedPolicy, ResolvedPolicy], PolicyDelta] = {}
        deltas = {resolved: noted.delta() for resolved, noted in changes.items()}
        judged: dict[frozenset[Rule], tuple[Conflict, ...]] = {}
        left = []
        updates = []
        for name in list(self._endpoints) if changes else list(self._dirty):
            endpoint = self._endpoints[name]
            old = endpoint.resolved
            conflicts = endpoint.conflicts
            new = self._resolve(endpoint, judged) if name in self._dirty or old is None else old
            endpoint.resolved = new
            if old is None:
                delta = PolicyDelta(new.entries(), frozenset())
            elif new is old:
                delta = deltas.get(old, NO_CHANGE)
            else:
                left.append(old)
                if (old, new) not in replaced:
                    noted = changes[old].copy() if old in changes else Changes()
                    new.note_changes_from(old, noted)
                    replaced[old, new] = noted.delta()
                delta = replaced[old, new]
            changed = conflicts != endpoint.conflicts
            if old is None or delta or old.enforced != new.enforced or changed:
                updates.append(
                    EndpointUpdate(
                        name,
                        *new.enforced,
                        delta,
                        self.revision,
                        full=old is None,
                        redirects=new.redirects(),
                        conflicts=endpoint.conflicts,
                    )
                )
        self._dirty.clear()
        for resolved in self._built:
            resolved.settle()
        self._built.clear()
        for resolved in left:
            self._leave(resolved)
        return updates

    def policy(self, endpoint: Hashable) -> EndpointPolicy | None:
        """The whole policy of an endpoint as of the last flush; None before its first."""
        known = self._endpoints.get(endpoint)
        if known is None or known.resolved is None:
            return None
        return known.resolved.snapshot(self.revision)

    def resolve(self, subject: Subject) -> EndpointPolicy:
        """The policy that a subject would have now, computed from scratch and not kept."""
        rules = frozenset(self.repository.rules_for(subject))
        resolved = ResolvedPolicy(self._resources, resolution_key(subject, rules, self.options))
        policy = resolved.snapshot(self.revision)
        resolved.release()
        return policy

    def selector_users(self) -> dict[PeerSelector, tuple[frozenset[PolicyRef], frozenset[int]]]:
        """Every peer selector with the policies that name it and the identities it selects now."""
        users: dict[PeerSelector, set[PolicyRef]] = {}
        for policy in self.repository:
            for rule in policy.rules:
                for peer in rule.peers or ():
                    users.setdefault(peer, set()).add(policy.ref)
        identities = self.selectors.identities.items()
        return {
            peer: (
                frozenset(refs),
                frozenset(number for number, labels in identities if peer.matches(labels)),
            )
            for peer, refs in users.items()
        }

    def ambiguous_names(self) -> dict[PolicyRef, frozenset[str]]:
        """Port names that open nothing because the cluster's pods number them differently.

        Only egress rules that look names up in the whole cluster are concerned; the user should
        be told, since the policy says more than it does.
        """
        found: dict[PolicyRef, set[str]] = {}
        for policy in self.repository:
            for rule in policy.rules:
                if rule.direction is Direction.EGRESS and not rule.named_ports_of_peer:
                    for port in rule.named_ports:
                        if self.named_ports.is_ambiguous(port.name, port.protocol):
                            found.setdefault(policy.ref, set()).add(port.name)
        return {ref: frozenset(names) for ref, names in found.items()}

    def conflicts(self) -> dict[Hashable, tuple[Conflict, ...]]:
        """The endpoints whose rules contradict each other, as of the last flush."""
        return {
            name: endpoint.conflicts
            for name, endpoint in self._endpoints.items()
            if endpoint.conflicts
        }

    def meetings(self) -> dict[Hashable, tuple[Conflict, ...]]:
        """The endpoints of which rules for different peers meet in one and cannot be united.

        The second rule of each pair allows nothing where it meets the first; the user should be
        told, since the policy says more than it does.
        """
        known: dict[frozenset[Rule], tuple[Conflict, ...]] = {}
        found: dict[Hashable, tuple[Conflict, ...]] = {}
        for name, endpoint in self._endpoints.items():
            rules = endpoint.accepted
            if rules is None or endpoint.resolved is None:
                continue
            if rules not in known:
                asking = [rule for rule in rules if rule.l7 is not None]
                known[rules] = tuple(
                    pair
                    for direction in Direction
                    for pair in find_meetings(
                        (r for r in asking if r.direction is direction), self._selected
                    )
                )
            if known[rules]:
                found[name] = known[rules]
        return found

    def _selected(self, selector: PeerSelector) -> Collection[int]:
        cached = self.selectors.find(selector)
        return cached.selections if cached is not None else ()

    def redirects_in_use(self) -> frozenset[int]:
        """The redirects that entries of any endpoint name, as of the last flush."""
        return frozenset(
            number for resolved in self._resolved.values() for number in resolved.redirects()
        )

    def sweep_cookies(self) -> int:
        """Forget cookies and redirects out of use for two sweeps; call it every few minutes."""
        self.redirects.sweep(self.redirects_in_use())
        known = {rule for endpoint in self._endpoints.values() for rule in endpoint.rules}
        self._substitutes.sweep(known)
        return self.cookies.sweep(
            {cookie for resolved in self._resolved.values() for cookie in resolved.cookies()}
        )

    # ---- inside ----

    def _follow_identities(self) -> dict[ResolvedPolicy, Changes]:
        """Bring every resolved policy up to date with the identities that changed."""
        changes = {resolved: Changes() for resolved in self._resolved.values()}
        for identity in self._changed_identities:
            matching = self.selectors.matching_identity(identity)
            for resolved, noted in list(changes.items()):
                resolved.refresh(identity, matching, noted)
                if len(noted) > MOST_ENTRIES:
                    del changes[resolved]
                    self._start_over(resolved)
        self._changed_identities.clear()
        for resolved in [one for one, noted in changes.items() if noted.adds]:
            if resolved.size > MOST_ENTRIES:
                del changes[resolved]
                self._start_over(resolved)
        return {resolved: noted for resolved, noted in changes.items() if noted}

    def _start_over(self, resolved: ResolvedPolicy) -> None:
        """Have the endpoints with a policy get one anew, in full, in place of changes to it."""
        for name, endpoint in self._endpoints.items():
            if endpoint.resolved is resolved:
                endpoint.resolved = None
                self._dirty.add(name)
                self._leave(resolved)

    def _retry_large(self) -> None:
        """Once there are fewer identities, a policy that was too large may be none any more."""
        if self._fewer_identities:
            self._fewer_identities = False
            self._dirty |= {
                name
                for name, endpoint in self._endpoints.items()
                if any(conflict.first is conflict.second for conflict in endpoint.conflicts)
            }

    def _forget_stale_names(self) -> None:
        """Have policies resolved anew whose port names mean something else now."""
        names = frozenset(self._changed_names)
        self._changed_names.clear()
        if not names:
            return
        stale = {resolved for resolved in self._resolved.values() if resolved.uses_names(names)}
        for resolved in stale:
            del self._resolved[resolved.key]
        self._dirty |= {
            name for name, endpoint in self._endpoints.items() if endpoint.resolved in stale
        }

    def _resolve(
        self, endpoint: _Endpoint, judged: dict[frozenset[Rule], tuple[Conflict, ...]]
    ) -> ResolvedPolicy:
        """The resolved policy for an endpoint's present subject and rules, shared if possible.

        `judged` remembers which conflicts sets of rules have.
        """
        rules = endpoint.rules
        if rules not in judged:
            judged[rules] = tuple(
                conflict
                for direction in Direction
                for conflict in find_conflicts(r for r in rules if r.direction is direction)
            )
        endpoint.conflicts = judged[rules]
        if endpoint.conflicts:
            kept = endpoint.accepted
            rules = (
                kept if kept is not None else self._substitutes.without(rules, endpoint.conflicts)
            )
        resolved = self._resolved_for(endpoint, rules)
        if resolved.size > MOST_ENTRIES:
            endpoint.conflicts = (*endpoint.conflicts, too_large(rules, resolved.size))
            self._drop_unused(resolved)
            resolved = self._smaller(endpoint, rules)
        elif not endpoint.conflicts:
            endpoint.accepted = rules
        if resolved is not endpoint.resolved:
            resolved.users += 1
        return resolved

    def _smaller(self, endpoint: _Endpoint, rules: frozenset[Rule]) -> ResolvedPolicy:
        """What an endpoint has in place of a policy too large: the one before, or none at all."""
        if endpoint.accepted is not None and endpoint.accepted is not rules:
            resolved = self._resolved_for(endpoint, endpoint.accepted)
            if resolved.size <= MOST_ENTRIES:
                return resolved
            self._drop_unused(resolved)
        return self._resolved_for(endpoint, self._substitutes.closed(rules))

    def _drop_unused(self, resolved: ResolvedPolicy) -> None:
        """Forget a policy that was resolved in vain."""
        if not resolved.users:
            del self._resolved[resolved.key]
            self._built.remove(resolved)
            resolved.release()

    def _resolved_for(self, endpoint: _Endpoint, rules: frozenset[Rule]) -> ResolvedPolicy:
        """An endpoint's policy by some rules, shared if possible."""
        key = resolution_key(endpoint.subject, rules, self.options)
        resolved = self._resolved.get(key)
        if resolved is None:
            old = endpoint.resolved
            reusable = (
                old is not None
                and self._resolved.get(old.key) is old
                and old.key.named_ports == key.named_ports
            )
            resolved = ResolvedPolicy(self._resources, key, old if reusable else None)
            self._resolved[key] = resolved
            self._built.append(resolved)
        return resolved

    def _leave(self, resolved: ResolvedPolicy | None) -> None:
        """Give up one use of a resolved policy."""
        if resolved is None:
            return
        resolved.users -= 1
        if not resolved.users:
            if self._resolved.get(resolved.key) is resolved:
                del self._resolved[resolved.key]
            resolved.release()
