"""Columns of rules of one tier: merged where rules allow and deny, united where some name a proxy.

The data plane lets the better of two longest matches decide, that of the peer and that of any peer.
So no entry may be hidden behind a longer one that it outranks. A merged column leaves such longer
ones out; in a united column every entry stands for all rules that cover its prefix, and is never
outranked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cilium_core.policy.columns import (
    Base,
    Numbering,
    RulesByPrefix,
    covering,
    found_at,
    lengths_of,
    rules_at,
)
from cilium_core.policy.entries import Column, PolicyEntry
from cilium_core.policy.plans import ALLOW_LOCALHOST
from cilium_core.policy.rules import Rule, Verdict, precedence
from cilium_core.policy.unions import unite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cilium_core.policy.ports import L4Prefix

_DENY: Final = precedence(Verdict.DENY)


def merge_column(rules: RulesByPrefix, base: Base, numbering: Numbering) -> Column:
    """The column of rules that only allow and deny.

    Left out is what a prefix that covers it, here or in the base, outranks, and a deny that an
    equal deny covers. On one prefix the highest precedence stays, with the origins of all rules
    that have it.
    """
    raw = {prefix: max(rule.precedence for rule in there) for prefix, there in rules.items()}
    lengths = lengths_of(raw, base.column)
    column: Column = {}
    for prefix, strongest in raw.items():
        deny = strongest == _DENY
        limit = strongest if deny else strongest + 1
        covered = any(
            (other in raw and other != prefix and raw[other] >= limit)
            or (other in base.column and base.column[other].precedence >= limit)
            for other in covering(prefix, lengths)
        )
        if not covered:
            cookie = numbering.cookie(
                rule for rule in rules[prefix] if rule.precedence == strongest
            )
            column[prefix] = PolicyEntry(strongest, deny, cookie=cookie)
    return column


def unite_column(
    rules: RulesByPrefix, base: Base, numbering: Numbering, *, observe: bool
) -> Column:
    """The column of rules of which some, here or in the base, name a proxy.

    `observe` has proxies report and refuse nothing. The entry of a prefix stands for all rules that
    cover it, so it ranks at least as high as what is around it.
    """
    lengths = lengths_of(rules, base.rules)
    asking = {prefix for prefix, there in rules.items() if any(rule.l7 for rule in there)}
    # Of the prefixes of any peer, those where what is asked there and what is allowed here meet.
    places = rules.keys() | {
        prefix
        for prefix in base.rules
        if any(
            other in asking or (other in rules and _is_redirect(base.column.get(prefix)))
            for other in covering(prefix, lengths)
        )
    }
    column: Column = {}
    for prefix in sorted(places, key=lambda prefix: prefix.length):
        there = rules_at(prefix, lengths, rules, base.rules)
        entry = _united_entry(prefix, there, rules.get(prefix, ()), numbering, observe=observe)
        around = found_at(prefix, lengths, column, base.column)
        if entry is None or entry == around:
            continue
        if entry.deny and around is not None and around.precedence == entry.precedence:
            continue
        column[prefix] = entry
    return column


def _is_redirect(entry: PolicyEntry | None) -> bool:
    return entry is not None and entry.redirect != 0


def _united_entry(
    prefix: L4Prefix,
    rules: Sequence[Rule],
    exactly: Sequence[Rule],
    numbering: Numbering,
    *,
    observe: bool,
) -> PolicyEntry | None:
    """The entry of a prefix that `rules` cover, and `exactly` some of them name in this column."""
    strongest = max(rule.precedence for rule in rules)
    if strongest == _DENY:
        denials = [rule for rule in exactly if rule.precedence == _DENY]
        return PolicyEntry(_DENY, True, cookie=numbering.cookie(denials)) if denials else None
    if ALLOW_LOCALHOST in rules:
        return PolicyEntry(strongest, False, cookie=numbering.cookie((ALLOW_LOCALHOST,)))
    united = unite(rules, prefix, observe=observe)
    if united is None:
        return PolicyEntry(strongest, False, cookie=numbering.cookie(exactly))
    number = numbering.redirect(united.redirect)
    return PolicyEntry(strongest, False, number, cookie=numbering.cookie(united.rules))
