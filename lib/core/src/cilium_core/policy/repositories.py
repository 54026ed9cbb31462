"""The policy repository: the accepted policies and the revision that they are at.

It knows which rules select a subject, which namespace a change can concern, which address prefixes
the policies name, and the CIDR groups that they refer to. It holds what was accepted and nothing
else: a refused object never gets here, so that the version before it stays in force.

One repository per engine, used from one thread.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cilium_core.labels import KEY_NAMESPACE, SOURCE_K8S
from cilium_core.policy.groups import CidrGroup, CidrGroups
from cilium_core.policy.plans import selects
from cilium_core.policy.rules import Policy, PolicyRef, Rule

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
        self._prefixes: Counter[Prefix] = Counter()
        self.groups = CidrGroups()
        self.revision = 1

    def upsert(self, policy: Policy) -> RepositoryChange:
        """Take a policy in, in place of an earlier version of the same object.

        A version that says the same as the one before changes nothing, the revision included.
        """
        old = self.get(policy.ref)
        if old is not None and _same(old, policy):
            return RepositoryChange(policy.ref, old, old, self.revision)
        self.revision += 1
        new = _at_revision(self.groups.bind(policy), self.revision)
        self._policies.setdefault(policy.ref.namespace, {})[policy.ref] = new
        self._count_prefixes(old, new)
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
        self._count_prefixes(old, None)
        return RepositoryChange(ref, old, None, self.revision)

    def set_groups(self, groups: CidrGroups) -> list[RepositoryChange]:
        """Have other CIDR groups; returns how that changes policies, all at one new revision."""
        self.groups = groups
        changed = [(old, new) for old in self if (new := groups.bind(old)) is not old]
        self.revision += bool(changed)
        for old, new in changed:
            self._policies[new.ref.namespace][new.ref] = new
            self._count_prefixes(old, new)
        return [RepositoryChange(new.ref, old, new, self.revision) for old, new in changed]

    def group_prefixes(self, group: CidrGroup) -> frozenset[Prefix]:
        """The prefixes that policies which a group concerns would need if it were as given."""
        groups = self.groups.with_group(group)
        bound = (new for old in self if (new := groups.bind(old)) is not old)
        return frozenset(prefix for policy in bound for prefix in policy.prefixes)

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

    def __iter__(self) -> Iterator[Policy]:
        return iter([policy for scope in self._policies.values() for policy in scope.values()])

    def __len__(self) -> int:
        return sum(len(scope) for scope in self._policies.values())

    def _count_prefixes(self, old: Policy | None, new: Policy | None) -> None:
        if new is not None:
            self._prefixes.update(new.prefixes)
        if old is not None:
            self._prefixes.subtract(old.prefixes)
            for prefix in old.prefixes:
                if not self._prefixes[prefix]:
                    del self._prefixes[prefix]


def _same(old: Policy, new: Policy) -> bool:
    """Whether two versions of an object say the same; rules themselves are never equal."""
    return (
        old.uid == new.uid
        and old.source.get("spec") == new.source.get("spec")
        and old.source.get("specs") == new.source.get("specs")
        and [rule.origin for rule in old.rules] == [rule.origin for rule in new.rules]
    )


def _at_revision(policy: Policy, revision: int) -> Policy:
    rules = tuple(
        replace(rule, origin=replace(rule.origin, revision=revision)) for rule in policy.rules
    )
    return replace(policy, rules=rules, revision=revision)
