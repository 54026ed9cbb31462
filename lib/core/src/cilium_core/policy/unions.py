"""Unions: what a proxy enforces where several rules meet, and which rules cannot meet.

All allow rules that cover one peer on one port are one policy: a request passes if any of them lets
it pass. A rule that says nothing about requests lets every request pass. The exception is DNS,
where only a rule for exactly that port frees the port; a rule for every port does not.

Two rules for the same peers on the same ports that ask for different proxies, or for different
certificates, contradict each other: that is a `Conflict`. Where rules for *different* peers happen
to meet in one identity and cannot be united, the kind that ranks higher has its way and the others
allow nothing there; `find_meetings` tells which these are.

Pure functions of values.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from cilium_core.policy.l7 import HttpRule, KafkaRule, L7Kind, L7Match, Redirect
from cilium_core.policy.ports import PortRange
from cilium_core.policy.rules import LISTENER_PRIORITY, Direction, PolicyRef, Rule, Verdict
from cilium_core.policy.selectors import EntitySelector

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from cilium_core.policy.l7 import TlsContext
    from cilium_core.policy.ports import L4Prefix
    from cilium_core.policy.selectors import PeerSelector

T = TypeVar("T")

_SPOKEN: Final = (L7Kind.HTTP, L7Kind.KAFKA)
"""Kinds that TLS may wrap."""

_MOST_COMPARISONS: Final = 200_000
"""Of ports, when looking for rules that meet; a fraction of a second."""

_NOBODY: Final = "none"
"""The entity that no identity belongs to."""


class Conflict(NamedTuple):
    """Two rules that one endpoint cannot obey together; or twice one that it cannot obey at all."""

    first: Rule
    second: Rule
    reason: str

    @property
    def policies(self) -> tuple[PolicyRef, PolicyRef]:
        """The policies that the rules are from; both may be the same."""
        return self.first.ref, self.second.ref

    def __str__(self) -> str:
        if self.first is self.second:
            return f"{_place(self.first)}: {self.reason}"
        return f"{_place(self.first)} and {_place(self.second)} conflict: {self.reason}"


def _place(rule: Rule) -> str:
    return f"{rule.ref} {rule.path}".rstrip()


def find_conflicts(rules: Iterable[Rule]) -> tuple[Conflict, ...]:
    """The rules among those of one direction that contradict others.

    Each is in some pair with one that it contradicts, not in a pair with every such one. An audited
    rule contradicts none: it must not keep others from being enforced.
    """
    meeting: dict[tuple[object, ...], list[Rule]] = {}
    for rule in rules:
        if _may_clash(rule):
            for peer in rule.peers if rule.peers is not None else (None,):
                if peer is None or not _never_selects(peer):
                    for port in rule.ports or ():
                        place = (peer, port, rule.tier, rule.priority)
                        meeting.setdefault(place, []).append(rule)
    found: dict[tuple[Rule, Rule], str] = {}
    for group in meeting.values():
        if len(group) > 1:
            found.update(_clashes(group))
    pairs = sorted(found, key=lambda pair: (_order(pair[0]), _order(pair[1])))
    return tuple(Conflict(*pair, found[pair]) for pair in pairs)


def find_meetings(
    rules: Iterable[Rule], selected: Callable[[PeerSelector], Collection[int]]
) -> tuple[Conflict, ...]:
    """The rules for different peers that cannot be united and meet in some identity all the same.

    The rules are those of one direction; `selected` tells which identities a selector selects.
    There the weaker rule of a pair, its second, allows nothing. Pairs are as in `find_conflicts`;
    where the search would take long, some may be missing.
    """
    effort = _Effort()
    alike: dict[_Likeness, list[Rule]] = {}
    for rule in sorted((rule for rule in rules if _may_clash(rule)), key=_order):
        alike.setdefault(_likeness(rule), []).append(rule)
    found: dict[Rule, Conflict] = {}
    for pair in combinations(alike.values(), 2):
        stronger, weaker = sorted(pair, key=lambda group: _rank(group[0], pair[0][0], pair[1][0]))
        reason = _clash(stronger[0], weaker[0])
        for second in weaker if reason else ():
            first = next((one for one in stronger if effort.meet(one, second, selected)), None)
            if first is not None:
                found.setdefault(second, Conflict(first, second, reason))
    return tuple(found.values())


_Likeness = tuple[object, ...]


def _likeness(rule: Rule) -> _Likeness:
    """What decides about whom a rule contradicts; rules that are alike never do."""
    match = rule.l7
    assert match is not None  # noqa: S101 - only such rules are compared
    names = bool(match.server_names)
    return match.kind, names, match.terminating, match.originating, rule.tier, rule.priority


def _may_clash(rule: Rule) -> bool:
    return rule.l7 is not None and rule.verdict is Verdict.ALLOW and not rule.audit


def _clashes(group: Iterable[Rule]) -> Iterator[tuple[tuple[Rule, Rule], str]]:
    """For every rule that contradicts another one of a group, a pair with such a one."""
    alike: dict[_Likeness, list[Rule]] = {}
    for rule in sorted(group, key=_order):
        alike.setdefault(_likeness(rule), []).append(rule)
    for likeness, rules in alike.items():
        for other, others in alike.items():
            if other != likeness and _clash(rules[0], others[0]):
                for rule in rules:
                    first, second = sorted((rule, others[0]), key=_order)
                    yield (first, second), _clash(first, second)
                break


class _Effort:
    """Compares rules as long as that does not take too long."""

    def __init__(self) -> None:
        self._left = _MOST_COMPARISONS

    def meet(
        self, one: Rule, other: Rule, selected: Callable[[PeerSelector], Collection[int]]
    ) -> bool:
        """Whether two rules have a port and an identity in common."""
        self._left -= 1 + len(one.prefixes) * len(other.prefixes)
        if self._left < 0 or not _share_a_port(one, other):
            return False
        if one.peers is None or other.peers is None:
            peers = [*(one.peers or ()), *(other.peers or ())]
            return one.peers is other.peers or any(selected(peer) for peer in peers)
        self._left -= len(one.peers) + len(other.peers)
        found = {number for peer in one.peers for number in selected(peer)}
        return any(not found.isdisjoint(selected(peer)) for peer in other.peers)


def _share_a_port(one: Rule, other: Rule) -> bool:
    if not set(one.named_ports).isdisjoint(other.named_ports):
        return True
    return any(
        first.covers(second.protocol, second.port) or second.covers(first.protocol, first.port)
        for first in one.prefixes
        for second in other.prefixes
    )


def _rank(rule: Rule, one: Rule, other: Rule) -> tuple[object, ...]:
    """Sort key: which of two rules has its way where they meet, as `unite` has it."""
    assert rule.l7 is not None  # noqa: S101 - only such rules are compared
    assert one.l7 is not None  # noqa: S101
    assert other.l7 is not None  # noqa: S101
    for side in ("terminating", "originating"):
        contexts = {getattr(one.l7, side), getattr(other.l7, side)}
        if len(contexts - {None}) > 1 and not _differ(one.l7, other.l7):
            return (repr(getattr(rule.l7, side)),)
    return (LISTENER_PRIORITY[rule.l7.kind],)


def _differ(one: L7Match, other: L7Match) -> bool:
    """Whether one proxy cannot parse for both."""
    kinds = {one.kind, other.kind}
    return len(kinds) > 1 and not (L7Kind.TLS in kinds and kinds & set(_SPOKEN))


def _order(rule: Rule) -> tuple[PolicyRef, str, str]:
    return rule.ref, rule.path, repr(rule.l7)


def _never_selects(peer: PeerSelector) -> bool:
    return isinstance(peer, EntitySelector) and peer.name == _NOBODY


def _clash(first: Rule, second: Rule) -> str:
    """Why two rules cannot be united; empty when they can."""
    one, other = first.l7, second.l7
    if one is None or other is None:
        return ""
    kinds = {one.kind, other.kind}
    if _differ(one, other):
        return f"a port cannot be parsed as {one.kind.value} and as {other.kind.value}"
    for side in ("terminating", "originating"):
        contexts = {getattr(one, side), getattr(other, side)} - {None}
        if len(contexts) > 1:
            names = " and ".join(
                sorted(f"{context.secret.namespace}/{context.secret.name}" for context in contexts)
            )
            return f"they name different {side}TLS contexts, of the secrets {names}"
    opened = one.terminating or other.terminating
    if (one.server_names or other.server_names) and kinds & set(_SPOKEN) and not opened:
        return "serverNames beside rules about requests need terminatingTLS"
    return ""


class Union(NamedTuple):
    """A redirect and the rules that it is made of."""

    redirect: Redirect
    rules: tuple[Rule, ...]


def unite(rules: Sequence[Rule], prefix: L4Prefix, *, observe: bool) -> Union | None:
    """What a proxy enforces for a peer on a prefix that all these allow rules cover.

    None when none of them asks for a proxy. With `observe`, requests are reported and all pass.
    """
    asking = {rule: rule.l7 for rule in rules if rule.l7 is not None}
    if not asking:
        return None
    kind = min((match.kind for match in asking.values()), key=LISTENER_PRIORITY.__getitem__)
    used = _compatible(kind, asking)
    matches = list(used.values())
    freeing = [rule for rule in rules if rule.l7 is None and frees(rule, prefix, kind)]
    names = frozenset[str]()
    if not freeing and not observe and all(match.server_names for match in matches):
        names = frozenset(name for match in matches for name in match.server_names)
    redirect = Redirect(
        rules[0].direction is Direction.INGRESS,
        kind,
        server_names=names,
        terminating=_first(match.terminating for match in matches),
        originating=_first(match.originating for match in matches),
    )
    https = _https(matches) if kind is L7Kind.HTTP else set()
    if observe or freeing or _allows_all(redirect, matches, https):
        # Rules that change headers have their effect even where nothing is refused.
        acting = {rule for rule in https if any(header.mismatch for header in rule.headers)}
        redirect = replace(redirect, http=_sorted(acting), allow_all=True)
    else:
        redirect = replace(
            redirect,
            http=_sorted(https),
            dns=_sorted({rule for match in matches for rule in match.dns}),
            kafka=_sorted({rule for match in matches for rule in match.kafka}),
        )
    return Union(redirect, (*used, *freeing))


def frees(rule: Rule, prefix: L4Prefix, kind: L7Kind) -> bool:
    """Whether a rule that says nothing about requests allows them all on a prefix it covers.

    A name stands for single ports, and so does what a rule covers but by its numbers.
    """
    if kind is not L7Kind.DNS:
        return True
    by_number = any(other.covers(prefix.protocol, prefix.port) for other in rule.prefixes)
    return not by_number or any(
        isinstance(port, PortRange)
        and port.protocol == prefix.protocol
        and port.first == port.last == prefix.port
        for port in rule.ports or ()
    )


def _compatible(kind: L7Kind, asking: Mapping[Rule, L7Match]) -> dict[Rule, L7Match]:
    """What a proxy of one kind can enforce together; what it cannot is left out."""
    kinds = (kind, L7Kind.TLS) if kind in _SPOKEN else (kind,)
    used = {rule: match for rule, match in asking.items() if match.kind in kinds}
    for side in ("terminating", "originating"):
        chosen = _first(getattr(match, side) for match in used.values())
        used = {
            rule: match for rule, match in used.items() if getattr(match, side) in (None, chosen)
        }
    if kind in _SPOKEN and not any(match.terminating for match in used.values()):
        used = {rule: match for rule, match in used.items() if not match.server_names}
    return used


def _https(matches: Sequence[L7Match]) -> set[HttpRule]:
    """The rules about HTTP, each with the server names that it is limited to if these differ."""
    differ = len({match.server_names for match in matches}) > 1
    return {
        replace(rule, server_names=tuple(sorted(match.server_names))) if differ else rule
        for match in matches
        for rule in match.http or (HttpRule(),)
    }


def _allows_all(redirect: Redirect, matches: Sequence[L7Match], https: set[HttpRule]) -> bool:
    match redirect.kind:
        case L7Kind.HTTP:
            return HttpRule() in https
        case L7Kind.TLS:
            return not redirect.server_names
        case L7Kind.DNS:
            return any(not match.dns for match in matches)
        case L7Kind.KAFKA:
            return any(not match.kafka or KafkaRule() in match.kafka for match in matches)


def _first(contexts: Iterable[TlsContext | None]) -> TlsContext | None:
    return min((context for context in contexts if context is not None), key=repr, default=None)


def _sorted(rules: set[T]) -> tuple[T, ...]:
    return tuple(sorted(rules, key=repr))
