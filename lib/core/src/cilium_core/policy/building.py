"""How a column comes about: merged, united or evaluated, the cheapest way that will do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cilium_core.policy.columns import Base
from cilium_core.policy.entries import PolicyEntry
from cilium_core.policy.evaluating import evaluate_column
from cilium_core.policy.merging import merge_column, unite_column
from cilium_core.policy.ports import ANY_L4
from cilium_core.policy.rules import Verdict, precedence

if TYPE_CHECKING:
    from cilium_core.policy.columns import Numbering, RulesByPrefix
    from cilium_core.policy.entries import Column
    from cilium_core.policy.plans import Plan


def build_column(
    rules: RulesByPrefix, base: Base | None, plan: Plan, numbering: Numbering
) -> Column:
    """The column of a peer's rules, or with None as the base that of rules for any peer."""
    if plan.evaluated:
        return evaluate_column(rules, base, plan, numbering)
    under = base or Base()
    asking = any(rule.l7 is not None for there in rules.values() for rule in there)
    if asking or under.redirecting:
        column = unite_column(rules, under, numbering, observe=plan.closing.open)
    else:
        column = merge_column(rules, under, numbering)
    if base is None and plan.closers:
        # Nothing is decided by it; it tells whose doing it is that nothing else passes.
        cookie = numbering.cookies.cookie(plan.closers)
        column.setdefault(ANY_L4, PolicyEntry(precedence(Verdict.PASS), True, cookie=cookie))
    return column
