"""What stands in for rules that cannot be enforced as written, so that nothing opens.

Rules that contradict each other become denials of what they would allow. A policy with more entries
than a map may hold becomes default deny in its directions. Both only where an endpoint has no
earlier policy to keep.

Rules are never equal to one another, so a substitute is made once and kept for as long as the rule
that it stands in for: an endpoint's policy stays the same from one flush to the next.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from cilium_core.policy.rules import Direction, Rule, Tier, Verdict
from cilium_core.policy.unions import Conflict

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

MOST_ENTRIES: Final = 1 << 18
"""Of one endpoint: four times the largest map. What is larger takes too long to be computed."""


class Substitutes:
    """Substitutes by the rule that each stands in for."""

    def __init__(self) -> None:
        self._denials: dict[Rule, Rule] = {}
        self._closures: dict[Rule, Rule] = {}

    def without(self, rules: frozenset[Rule], conflicts: Iterable[Conflict]) -> frozenset[Rule]:
        """The rules with those in conflict turned into denials of what they would allow."""
        refused = {rule for conflict in conflicts for rule in (conflict.first, conflict.second)}
        for rule in refused - self._denials.keys():
            self._denials[rule] = replace(rule, verdict=Verdict.DENY, l7=None)
        return (rules - refused) | {self._denials[rule] for rule in refused}

    def closed(self, rules: frozenset[Rule]) -> frozenset[Rule]:
        """Rules that allow nobody anything in the directions in which others are about."""
        closed = set()
        for direction in Direction:
            about = [one for one in rules if one.direction is direction and not one.audit]
            if about:
                rule = min(about, key=lambda one: (one.ref, one.path))
                if rule not in self._closures:
                    self._closures[rule] = _closure(rule)
                closed.add(self._closures[rule])
        return frozenset(closed)

    def sweep(self, known: Collection[Rule]) -> None:
        """Forget those of rules that are no longer known."""
        for table in (self._denials, self._closures):
            for rule in [rule for rule in table if rule not in known]:
                del table[rule]


def too_large(rules: frozenset[Rule], size: int) -> Conflict:
    """Says of the rule with the most ports, or the first of those, that it makes too much of it."""
    widest = min(rules, key=lambda rule: (-len(rule.prefixes), rule.ref, rule.path))
    reason = f"the endpoint would have {size} entries, more than {MOST_ENTRIES}; name fewer ports"
    return Conflict(widest, widest, reason)


def _closure(rule: Rule) -> Rule:
    """A rule in the direction of another one that turns default deny on, and no more."""
    return replace(
        rule,
        verdict=Verdict.ALLOW,
        peers=(),
        ports=None,
        l7=None,
        default_deny=True,
        tier=Tier.NORMAL,
        priority=(),
    )
