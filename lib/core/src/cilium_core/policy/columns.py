"""Columns: the entries of one direction and one peer, made of the rules that match the peer.

Values that all ways of making columns share, and look-ups in a column that is being made.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from cilium_core.policy.entries import Column, PolicyEntry, truncate
from cilium_core.policy.ports import L4Prefix
from cilium_core.policy.rules import Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from cilium_core.policy.cookies import CookieTable
    from cilium_core.policy.l7 import Redirect
    from cilium_core.policy.redirects import RedirectTable

RulesByPrefix = dict[L4Prefix, list[Rule]]
"""The rules of a column by the prefixes that they have there."""


class Contribution(NamedTuple):
    """What one rule adds to a column."""

    prefixes: tuple[L4Prefix, ...]
    rule: Rule


class Numbering(NamedTuple):
    """What turns rules and redirects into numbers; with `audit` redirects refuse nothing."""

    cookies: CookieTable
    redirects: RedirectTable
    audit: bool = False

    def cookie(self, rules: Iterable[Rule]) -> int:
        """The cookie of the origins of some rules."""
        return self.cookies.cookie(frozenset(rule.origin for rule in rules))

    def redirect(self, redirect: Redirect | None) -> int:
        """The number of a redirect, 0 for none."""
        if redirect is None:
            return 0
        if self.audit and redirect.restricts:
            redirect = replace(redirect, audit=True)
        return self.redirects.number(redirect)


@dataclass(frozen=True, slots=True)
class Base:
    """The column of any peer, and the rules behind it; it is looked up beside every other one."""

    column: Column = field(default_factory=dict)
    rules: RulesByPrefix = field(default_factory=dict)

    @property
    def redirecting(self) -> bool:
        """Whether some entry names a proxy."""
        return any(entry.redirect for entry in self.column.values())


def by_prefix(contributions: Iterable[Contribution]) -> RulesByPrefix:
    """Contributions put together by prefix."""
    found: RulesByPrefix = {}
    for prefixes, rule in contributions:
        for prefix in prefixes:
            found.setdefault(prefix, []).append(rule)
    return found


def lengths_of(*groups: Iterable[L4Prefix]) -> list[int]:
    """The lengths of prefixes, ascending."""
    return sorted({prefix.length for group in groups for prefix in group})


def covering(prefix: L4Prefix, lengths: Iterable[int]) -> Iterator[L4Prefix]:
    """The prefix itself and all that cover it, as far as their lengths are in use."""
    for length in lengths:
        if length > prefix.length:
            return
        yield truncate(prefix.protocol, prefix.port, length)


def rules_at(
    prefix: L4Prefix, lengths: Iterable[int], *groups: Mapping[L4Prefix, Sequence[Rule]]
) -> list[Rule]:
    """The rules that cover a prefix, each once."""
    return list(
        dict.fromkeys(
            rule
            for other in covering(prefix, lengths)
            for group in groups
            for rule in group.get(other, ())
        )
    )


def longest(
    prefix: L4Prefix, lengths: Iterable[int], column: Column
) -> tuple[int, PolicyEntry] | None:
    """The entry of a column that the packets of a prefix find so far, and its length."""
    found = None
    for other in covering(prefix, lengths):
        entry = column.get(other)
        if entry is not None:
            found = other.length, entry
    return found


def found_at(
    prefix: L4Prefix, lengths: Sequence[int], column: Column, base: Column
) -> PolicyEntry | None:
    """What the data plane finds so far for the packets of a prefix, in a column and its base."""
    own, any_peer = longest(prefix, lengths, column), longest(prefix, lengths, base)
    if own is None or any_peer is None:
        either = own or any_peer
        return either[1] if either else None
    ranks = (any_peer[1].precedence, any_peer[0]), (own[1].precedence, own[0])
    return any_peer[1] if ranks[0] > ranks[1] else own[1]
