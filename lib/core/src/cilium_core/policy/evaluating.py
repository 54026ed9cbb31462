"""Evaluation: what rules of several tiers say, passes and audited rules included.

The tiers are asked in their order. Within one, the rules of the strongest priority that cover a
packet decide: a denial before everything, then an allowance; a pass leaves the packet to the next
tier. The normal tier ends the matter for endpoints that it isolates. What no rule decides passes.

An audited rule never refuses: where it makes the difference between passing and not, the packet
passes and is reported. It never opens anything either, so what passes is decided without it.

Pure functions of values.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from cilium_core.policy.columns import found_at, lengths_of, rules_at
from cilium_core.policy.entries import Column, PolicyEntry
from cilium_core.policy.plans import ALLOW_ANY, ALLOW_LOCALHOST, Closing, Plan
from cilium_core.policy.ports import ANY_L4
from cilium_core.policy.rules import Rule, Tier, Verdict, precedence
from cilium_core.policy.unions import unite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cilium_core.policy.columns import Base, Numbering, RulesByPrefix
    from cilium_core.policy.l7 import Redirect
    from cilium_core.policy.ports import L4Prefix

OWN_LEVEL: Final = 0
ANY_PEER_LEVEL: Final = 1
"""Priorities in the precedence of entries: a peer's own column says everything about the peer, so
it outranks that of any peer."""


class Decision(NamedTuple):
    """What rules say about a packet; `verdict` PASS stands for default deny."""

    verdict: Verdict
    rules: tuple[Rule, ...]


def decide(rules: Sequence[Rule], closing: Closing, plan: Plan) -> Decision:
    """What the rules that cover a packet say, and those of them that decide."""
    for tier in Tier:
        there = [rule for rule in rules if rule.tier is tier]
        if there:
            strongest = min(rule.priority for rule in there)
            first = [rule for rule in there if rule.priority == strongest]
            for verdict in (Verdict.DENY, Verdict.ALLOW):
                found = tuple(rule for rule in first if rule.verdict is verdict)
                if found:
                    return Decision(verdict, found)
        if tier is Tier.NORMAL and closing.isolated:
            return Decision(Verdict.PASS, ())
    if closing.final:
        return Decision(Verdict.PASS, ())
    return Decision(Verdict.ALLOW, (ALLOW_ANY[plan.direction],))


class Judgement(NamedTuple):
    """What becomes of the packets of a prefix; `verdict` PASS is default deny.

    With `audit` they are reported as refused and pass all the same. No rules stand behind default
    deny but those that turn it on.
    """

    verdict: Verdict
    rules: tuple[Rule, ...]
    redirect: Redirect | None = None
    audit: bool = False


def judge(prefix: L4Prefix, rules: Sequence[Rule], plan: Plan) -> Judgement:
    """What becomes of the packets of a prefix that these rules cover."""
    told = enforced = decide(rules, plan.closing, plan)
    if any(rule.audit for rule in plan.rules):
        enforced = decide([r for r in rules if not r.audit], plan.enforced_closing, plan)
    if enforced.verdict is not Verdict.ALLOW:
        return Judgement(*enforced)
    redirect, made_of = _redirect(enforced, prefix, plan.enforced_closing)
    if told.verdict is not Verdict.ALLOW:
        return Judgement(*told, redirect, audit=True)
    if told is not enforced and (redirect is None or not redirect.restricts):
        reported, told_of = _redirect(told, prefix, plan.closing)
        if reported is not None and reported != redirect:
            redirect = replace(reported, audit=reported.restricts)
            made_of = told_of
    return Judgement(Verdict.ALLOW, made_of, redirect)


def _redirect(
    decision: Decision, prefix: L4Prefix, closing: Closing
) -> tuple[Redirect | None, tuple[Rule, ...]]:
    """The redirect of what is allowed, if any, and the rules behind the allowance."""
    if ALLOW_LOCALHOST in decision.rules:
        return None, (ALLOW_LOCALHOST,)
    united = unite(decision.rules, prefix, observe=closing.open)
    return united if united is not None else (None, decision.rules)


def evaluate(
    prefix: L4Prefix, rules: Sequence[Rule], plan: Plan, numbering: Numbering, level: int
) -> PolicyEntry:
    """The entry of a prefix that these rules cover."""
    judged = judge(prefix, rules, plan)
    closers = plan.closers if judged.audit else plan.enforced_closers
    cookie = numbering.cookie(judged.rules) or numbering.cookies.cookie(closers)
    number = numbering.redirect(judged.redirect)
    if judged.audit:
        return PolicyEntry(precedence(Verdict.DENY, level), True, number, True, cookie)
    denied = judged.verdict is not Verdict.ALLOW
    kind = judged.redirect.kind if judged.redirect is not None else None
    return PolicyEntry(precedence(judged.verdict, level, kind), denied, number, cookie=cookie)


def evaluate_column(
    rules: RulesByPrefix, base: Base | None, plan: Plan, numbering: Numbering
) -> Column:
    """The column of a peer, or of any peer where `base` is None, decided prefix by prefix."""
    any_peer = base.rules if base is not None else {}
    base_column = base.column if base is not None else {}
    places = {ANY_L4, *rules, *any_peer}
    lengths = lengths_of(places)
    level = ANY_PEER_LEVEL if base is None else OWN_LEVEL
    column: Column = {}
    for prefix in sorted(places, key=lambda prefix: prefix.length):
        there = rules_at(prefix, lengths, rules, any_peer)
        entry = evaluate(prefix, there, plan, numbering, level)
        around = found_at(prefix, lengths, column, base_column)
        if around is None and _is_default(entry):
            continue
        if around is not None and _says_the_same(around, entry):
            continue
        column[prefix] = entry
    return column


def _is_default(entry: PolicyEntry) -> bool:
    """Whether the entry says what the data plane does without one, and names nobody."""
    return entry.deny and not entry.audit and not entry.precedence & 0xFF and not entry.cookie


def _says_the_same(one: PolicyEntry, other: PolicyEntry) -> bool:
    """Whether two entries differ in nothing but whose column they are of."""
    return one[1:] == other[1:] and one.precedence & 0xFF == other.precedence & 0xFF
