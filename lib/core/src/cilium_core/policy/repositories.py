"""The policy repository: the accepted policies and the revision that they are at.

It knows which rules select a subject, which namespace a change can concern, which address prefixes
and names the policies name, and what they refer to. It holds what was accepted and nothing
else: a refused object never gets here, so that the version before it stays in force.

One repository per engine, used from one thread.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cilium_core.labels import KEY_NAMESPACE, SOURCE_K8S
from cilium_core.policy.bindings import Bindings, is_bound
from cilium_core.policy.plans import selects
from cilium_core.policy.rules import Policy, PolicyRef, Rule
from cilium_core.policy.selectors import FqdnSelector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cilium_core.identities import Prefix
    from cilium_core.policy.plans import Subject


@dataclass(frozen=True, slots=True)
class RepositoryChange:
    """What an update or a deletion replaced; `new` is None after a deletion."""

    ref: PolicyRef
    old: Policy | None
    new: Policy | None
    revision: int

    @property
    def effective(self) -> bool:
        """Whether anything is different now."""
        return self.old is not self.new


class Repository:
    """The accepted policies by namespace; the revision starts at 1 and grows with every change."""

    def __init__(self) -> None:
        self._policies: dict[str, dict[PolicyRef, Policy]] = {}
        self._written: dict[PolicyRef, Policy] = {}
        self._bound: set[PolicyRef] = set()
        self._prefixes: Counter[Prefix] = Counter()
        self._names: Counter[FqdnSelector] = Counter()
        self.bindings = Bindings()
        self.revision = 1

    def upsert(self, policy: Policy) -> RepositoryChange:
        """Take a policy in, in place of an earlier version of the same object.

        A version that says the same as the one before changes nothing, the revision included.
        """
        old = self.get(policy.ref)
        if old is not None and _same(self._written[policy.ref], policy):
            return RepositoryChange(policy.ref, old, old, self.revision)
        self.revision += 1
        new = _at_revision(self.bindings.bind(policy, policy), self.revision)
        self._policies.setdefault(policy.ref.namespace, {})[policy.ref] = new
        self._written[policy.ref] = policy
        (self._bound.add if is_bound(policy) else self._bound.discard)(policy.ref)
        self._count(old, new)
        return RepositoryChange(policy.ref, old, new, self.revision)

    def delete(self, kind: str, namespace: str, name: str) -> RepositoryChange:
        """Take a policy out; nothing happens when there is none of that name."""
        ref = PolicyRef(kind, namespace, name)
        old = self.get(ref)
        if old is None:
            return RepositoryChange(ref, None, None, self.revision)
        self.revision += 1
        policies = self._policies[namespace]
        del policies[ref]
        if not policies:
            del self._policies[namespace]
        del self._written[ref]
        self._bound.discard(ref)
        self._count(old, None)
        return RepositoryChange(ref, old, None, self.revision)

    def set_bindings(self, bindings: Bindings) -> list[RepositoryChange]:
        """Have policies refer to other things; returns what changes, all at one new revision."""
        changed = list(self._rebound(bindings))
        self.bindings = bindings
        self.revision += bool(changed)
        for old, new in changed:
            self._policies[new.ref.namespace][new.ref] = new
            self._count(old, new)
        return [RepositoryChange(new.ref, old, new, self.revision) for old, new in changed]

    def prefixes_under(self, bindings: Bindings) -> frozenset[Prefix]:
        """The prefixes that policies which other bindings change would name."""
        changed = self._rebound(bindings)
        return frozenset(prefix for _, new in changed for prefix in new.prefixes)

    def _rebound(self, bindings: Bindings) -> Iterator[tuple[Policy, Policy]]:
        """The policies that other bindings change, as they are and as they would be."""
        spaces = bindings.audited ^ self.bindings.audited
        refs = self._bound | {ref for space in spaces for ref in self._policies.get(space, ())}
        for ref in sorted(refs):
            old = self._policies[ref.namespace][ref]
            new = bindings.bind(old, self._written[ref])
            if new is not old:
                yield old, new

    def get(self, ref: PolicyRef) -> Policy | None:
        """The accepted version of a policy."""
        return self._policies.get(ref.namespace, {}).get(ref)

    def rules_for(self, subject: Subject) -> Iterator[Rule]:
        """The rules that select a subject: cluster-wide ones and those of its namespace."""
        namespace = subject.labels.value(KEY_NAMESPACE, SOURCE_K8S)
        for scope in {"", namespace}:
            for policy in self._policies.get(scope, {}).values():
                for rule in policy.rules:
                    if selects(rule, subject):
                        yield rule

    def required_prefixes(self) -> frozenset[Prefix]:
        """Every address prefix that some policy names, excepts included.

        Each needs an identity of its own in the address table, or the policies cannot tell its
        addresses from the rest of the world.
        """
        return frozenset(self._prefixes)

    def names(self) -> frozenset[FqdnSelector]:
        """Every DNS name and pattern that some policy has as a peer."""
        return frozenset(self._names)

    def __iter__(self) -> Iterator[Policy]:
        return iter([policy for scope in self._policies.values() for policy in scope.values()])

    def __len__(self) -> int:
        return sum(len(scope) for scope in self._policies.values())

    def _count(self, old: Policy | None, new: Policy | None) -> None:
        """Keep count of the prefixes and names in use."""
        for counter, found in ((self._prefixes, _prefixes), (self._names, _names)):
            before, after = found(old), found(new)
            counter.update(after)
            counter.subtract(before)
            for item in before - after:
                if not counter[item]:
                    del counter[item]


def _prefixes(policy: Policy | None) -> frozenset[Any]:
    return policy.prefixes if policy is not None else frozenset()


def _names(policy: Policy | None) -> frozenset[Any]:
    if policy is None:
        return frozenset()
    peers = (peer for rule in policy.rules for peer in rule.peers or ())
    return frozenset(peer for peer in peers if isinstance(peer, FqdnSelector))


def _same(old: Policy, new: Policy) -> bool:
    """Whether two versions of an object say the same; rules themselves are never equal."""
    return (
        old.uid == new.uid
        and old.source.get("spec") == new.source.get("spec")
        and old.source.get("specs") == new.source.get("specs")
        and [(rule.origin, rule.audit) for rule in old.rules]
        == [(rule.origin, rule.audit) for rule in new.rules]
    )


def _at_revision(policy: Policy, revision: int) -> Policy:
    rules = tuple(
        replace(rule, origin=replace(rule.origin, revision=revision)) for rule in policy.rules
    )
    return replace(policy, rules=rules, revision=revision)
