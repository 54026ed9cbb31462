"""Unions: what a proxy enforces where several rules meet, and which rules cannot meet.

All allow rules that cover one peer on one port are one policy: a request passes if any of them lets
it pass. A rule that says nothing about requests lets every request pass. The exception is DNS,
where only a rule for exactly that port frees the port; a rule for every port does not.

Two rules for the same peers on the same ports that ask for different proxies, or for different
certificates, contradict each other: that is a `Conflict`. Where rules for *different* peers happen
to meet in one identity and cannot be united, the kind that ranks higher has its way and the others
allow nothing there.

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
    from collections.abc import Iterable, Mapping, Sequence

    from cilium_core.policy.l7 import TlsContext
    from cilium_core.policy.ports import L4Prefix
    from cilium_core.policy.selectors import PeerSelector

T = TypeVar("T")

_SPOKEN: Final = (L7Kind.HTTP, L7Kind.KAFKA)
"""Kinds that TLS may wrap."""

_NOBODY: Final = "none"
"""The entity that no identity belongs to."""


class Conflict(NamedTuple):
    """Two rules that one endpoint cannot obey together."""

    first: Rule
    second: Rule
    reason: str

    @property
    def policies(self) -> tuple[PolicyRef, PolicyRef]:
        """The policies that the rules are from; both may be the same."""
        return self.first.ref, self.second.ref

    def __str__(self) -> str:
        return f"{_place(self.first)} and {_place(self.second)} conflict: {self.reason}"


def _place(rule: Rule) -> str:
    return f"{rule.ref} {rule.path}".rstrip()


def find_conflicts(rules: Iterable[Rule]) -> tuple[Conflict, ...]:
    """The rules among those of one direction that contradict each other, pair by pair.

    An audited rule contradicts none: it must not keep others from being enforced.
    """
    meeting: dict[tuple[object, ...], list[Rule]] = {}
    for rule in rules:
        if rule.l7 is None or rule.verdict is not Verdict.ALLOW or rule.audit:
            continue
        for peer in rule.peers if rule.peers is not None else (None,):
            if peer is None or not _never_selects(peer):
                for port in rule.ports or ():
                    place = (peer, port, rule.tier, rule.priority)
                    meeting.setdefault(place, []).append(rule)
    found: dict[tuple[Rule, Rule], str] = {}
    for group in meeting.values():
        for pair in combinations(sorted(group, key=_order) if len(group) > 1 else group, 2):
            if pair[0] is not pair[1] and pair not in found and (reason := _clash(*pair)):
                found[pair] = reason
    pairs = sorted(found, key=lambda pair: (_order(pair[0]), _order(pair[1])))
    return tuple(Conflict(*pair, found[pair]) for pair in pairs)


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
    if len(kinds) > 1 and not (L7Kind.TLS in kinds and kinds & set(_SPOKEN)):
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
