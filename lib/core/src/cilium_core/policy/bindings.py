"""Bindings: what policies refer to that exists or not, and changes without them.

A policy may name CIDR groups, services and networks, and be in an audited namespace. What its rules
then say depends on those; `Bindings.bind` writes it into the rules, and is asked again whenever
something of that kind comes, changes or goes.

Immutable values; no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from cilium_core.policy.groups import CidrGroups
from cilium_core.policy.networks import Networks, NetworkSelector
from cilium_core.policy.selectors import CidrGroupSelector
from cilium_core.policy.services import Services, ServiceSelector

if TYPE_CHECKING:
    from cilium_core.policy.rules import Policy, Rule

_BOUND: Final = (CidrGroupSelector, ServiceSelector, NetworkSelector)


def is_bound(policy: Policy) -> bool:
    """Whether some peer of a policy depends on what exists beside it."""
    return any(isinstance(peer, _BOUND) for rule in policy.rules for peer in rule.peers or ())


@dataclass(frozen=True, slots=True)
class Bindings:
    """Everything that policies may refer to; `audited` are namespaces."""

    groups: CidrGroups = field(default_factory=CidrGroups)
    services: Services = field(default_factory=Services)
    networks: Networks = field(default_factory=Networks)
    audited: frozenset[str] = frozenset()

    def bind(self, policy: Policy, written: Policy) -> Policy:
        """What a policy, bound earlier or not, says now; `written` is as it was read.

        Rules in which nothing changes stay the same objects, and so does the policy.
        """
        policy = self.networks.bind(self.services.bind(self.groups.bind(policy)))
        audited = bool(policy.ref.namespace) and policy.ref.namespace in self.audited
        rules = tuple(
            _with_audit(rule, was.audit or audited)
            for rule, was in zip(policy.rules, written.rules, strict=True)
        )
        unchanged = all(new is old for new, old in zip(rules, policy.rules, strict=True))
        return policy if unchanged else replace(policy, rules=rules)


def _with_audit(rule: Rule, audit: bool) -> Rule:
    return rule if rule.audit == audit else replace(rule, audit=audit)
