"""Why traffic passes or not: each rule tried, what decided, and what would have to be said.

An explanation judges one packet at the end that sends it and at the end that receives it, by asking
every rule that selects that end. It reaches the verdict by the same merging of entries as
resolution, and beside it tells what resolution forgets: which rules missed, and by what.

Pure: reads the repository and the table of named ports, changes nothing. The cost is that of one
peer, so it may be asked at any time of a busy engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from cilium_core.identities import ReservedIdentity
from cilium_core.labels import KEY_CLUSTER, KEY_NAMESPACE, SOURCE_K8S, LabelSet
from cilium_core.policy.cookies import CookieTable
from cilium_core.policy.entries import Contribution, PolicyEntry, PolicyKey, build_column, look_up
from cilium_core.policy.options import EnforcementMode
from cilium_core.policy.ports import PORT_MAX, ContainerPort, L4Prefix, NamedPort, Protocol
from cilium_core.policy.resolving import (
    ALLOW_LOCALHOST,
    Subject,
    effective_rules,
    named_prefixes,
    resolution_key,
)
from cilium_core.policy.rules import Direction, PolicyRef, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cilium_core.policy.named_ports import NamedPorts
    from cilium_core.policy.options import PolicyOptions
    from cilium_core.policy.ports import PortMatch
    from cilium_core.policy.repositories import Repository

_ENDPOINT_LABELS: Final = tuple(
    reserved.label
    for reserved in (ReservedIdentity.HEALTH, ReservedIdentity.INIT, ReservedIdentity.INGRESS)
)
_UNKNOWN_PEER: Final = -1
"""Stands for the number of a peer that has none yet, so that it is not taken for "any peer"."""


@dataclass(frozen=True, slots=True)
class Party:
    """One end of the traffic. `address` is empty when only the identity is known."""

    identity: int
    labels: LabelSet
    address: str = ""
    named_ports: frozenset[ContainerPort] = frozenset()


class Traffic(NamedTuple):
    """What is sent: IP protocol number and destination port (for ICMP: the type)."""

    protocol: int
    port: int


class Reason(Enum):
    """Why a direction has its verdict."""

    NO_POLICY_HERE = "policies of this cluster are not enforced at this end"
    DISABLED = "enforcement is switched off by enable-policy=never"
    NOT_ENFORCED = "no policy selects this end in this direction"
    NO_DEFAULT_DENY = "no rule denies it, and no policy here has default deny on"
    LOCAL_HOST = "a node always reaches its own pods unless a rule denies it"
    ALLOWED = "a rule allows it"
    DENIED = "a rule denies it"
    DEFAULT_DENY = "no rule allows it"


class Miss(Enum):
    """What a rule has that the traffic has not."""

    DIRECTION = "direction"
    PEER = "peer"
    PROTOCOL = "protocol"
    PORT = "port"


class RuleTrace(NamedTuple):
    """A rule that selects this end, and how it fared; without misses it matches."""

    rule: Rule
    misses: tuple[Miss, ...]
    notes: tuple[str, ...]
    """For each miss, what the rule asks for instead."""

    decides: bool = False

    @property
    def ref(self) -> PolicyRef:
        """The policy that the rule is from."""
        origin = self.rule.origin
        return PolicyRef(origin.kind, origin.namespace, origin.name)


@dataclass(frozen=True, slots=True)
class DirectionExplanation:
    """The verdict at one end.

    `entry` is the policy map entry that decides; None where no map is asked or none matches, and
    for a peer that no map knows yet. `rules` are those of the policies that select this end: those
    that decide first, then other matches, then near misses. `default_deny` is what closes the
    direction to all that no rule allows.
    """

    direction: Direction
    allowed: bool
    enforced: bool
    reason: Reason
    entry: tuple[PolicyKey, PolicyEntry] | None = None
    rules: tuple[RuleTrace, ...] = ()
    default_deny: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """The verdict about traffic between two ends: it passes if both let it."""

    source: Party
    destination: Party
    traffic: Traffic
    egress: DirectionExplanation
    ingress: DirectionExplanation

    @property
    def allowed(self) -> bool:
        """Whether the traffic passes at both ends."""
        return self.egress.allowed and self.ingress.allowed


_Found = tuple[PolicyKey, PolicyEntry]


class PolicyState(NamedTuple):
    """What an explanation reads."""

    repository: Repository
    options: PolicyOptions
    named_ports: NamedPorts


def explain(state: PolicyState, source: Party, destination: Party, traffic: Traffic) -> Explanation:
    """Explain the verdict about traffic from one party to another."""
    return Explanation(
        source,
        destination,
        traffic,
        explain_direction(state, Direction.EGRESS, source, destination, traffic),
        explain_direction(state, Direction.INGRESS, destination, source, traffic),
    )


def is_endpoint(labels: LabelSet, options: PolicyOptions) -> bool:
    """Whether policies of this cluster are enforced on what has these labels."""
    if any(label in labels for label in _ENDPOINT_LABELS):
        return True
    cluster = labels.value(KEY_CLUSTER, SOURCE_K8S, options.cluster)
    return bool(labels.value(KEY_NAMESPACE, SOURCE_K8S)) and cluster == options.cluster


def explain_direction(
    state: PolicyState, direction: Direction, subject: Party, peer: Party, traffic: Traffic
) -> DirectionExplanation:
    """Explain the verdict at one end; `subject` is that end, `peer` the other one."""
    if not is_endpoint(subject.labels, state.options):
        return DirectionExplanation(direction, True, False, Reason.NO_POLICY_HERE)
    selecting = frozenset(state.repository.rules_for(subject.labels))
    seen = Subject(subject.identity, subject.labels, subject.named_ports)
    key = resolution_key(seen, selecting)
    enforced, rules = effective_rules(state.options, direction, key)
    judged = [_judge(rule, state, subject, peer, traffic) for rule in rules]
    found = _look_up(judged, state, subject, peer, traffic)
    traces = [_mark(trace, found, state, subject, peer) for trace in judged]
    reason = _reason(state.options, enforced, found, traces)
    traces += [
        RuleTrace(rule, (Miss.DIRECTION,), (f"it is about {rule.direction.name.lower()}",))
        for rule in selecting
        if rule.direction is not direction
    ]
    written = [trace for trace in traces if trace.rule.origin.kind]
    unknown = found is not None and found[0].identity == _UNKNOWN_PEER
    return DirectionExplanation(
        direction,
        allowed=found is not None and not found[1].deny,
        enforced=enforced,
        reason=reason,
        entry=None if unknown else found,
        rules=tuple(sorted(written, key=_rank)),
        default_deny=_closing(state.options, direction, written, init=key.init) if enforced else (),
    )


def port_text(port: PortMatch) -> str:
    """`80/TCP`, `80-90/UDP`, `web/TCP`, `TCP`, or `ICMP type 8`."""
    name = port.protocol.name.replace("V6", "v6")
    if isinstance(port, NamedPort):
        return f"{port.name}/{name}"
    if port.first == 0 and port.last == PORT_MAX:
        return name
    if port.protocol in (Protocol.ICMP, Protocol.ICMPV6):
        return f"{name} type {port.first}"
    return f"{port.first}/{name}" if port.first == port.last else f"{port.first}-{port.last}/{name}"


def _judge(
    rule: Rule, state: PolicyState, subject: Party, peer: Party, traffic: Traffic
) -> RuleTrace:
    """Try one rule of the traffic's direction."""
    misses = []
    notes = []
    if rule.peers is not None and not any(one.matches(peer.labels) for one in rule.peers):
        misses.append(Miss.PEER)
        named = " or ".join(str(one) for one in rule.peers)
        notes.append(f"its peers are {named}" if named else "it names no peer at all")
    prefixes = (*rule.prefixes, *_named(rule, state, subject, peer))
    if not any(prefix.covers(*traffic) for prefix in prefixes):
        ports = rule.ports or ()
        same = any(port.protocol == traffic.protocol for port in ports)
        misses.append(Miss.PORT if same else Miss.PROTOCOL)
        listed = ", ".join(port_text(port) for port in ports)
        notes.append(f"its ports are {listed}" if listed else "it lists no port at all")
    return RuleTrace(rule, tuple(misses), tuple(notes))


def _named(rule: Rule, state: PolicyState, subject: Party, peer: Party) -> tuple[L4Prefix, ...]:
    return named_prefixes(rule, peer.identity, subject.named_ports, state.named_ports)


def _contributed(
    rule: Rule, state: PolicyState, subject: Party, peer: Party
) -> tuple[tuple[L4Prefix, ...], tuple[L4Prefix, ...]]:
    """What a rule whose peer matches adds to the entries of any peer, and to this peer's own."""
    named = _named(rule, state, subject, peer)
    if rule.peers is not None:
        return (), rule.prefixes + named
    if rule.direction is Direction.EGRESS and rule.named_ports_of_peer:
        return rule.prefixes, named
    return rule.prefixes + named, ()


def _look_up(
    judged: Iterable[RuleTrace],
    state: PolicyState,
    subject: Party,
    peer: Party,
    traffic: Traffic,
) -> _Found | None:
    """The entry that the data plane would find for this peer."""
    everyone: list[Contribution] = []
    own: list[Contribution] = []
    direction = Direction.INGRESS
    for rule, misses, *_ in judged:
        direction = rule.direction
        if Miss.PEER not in misses:
            shared, particular = _contributed(rule, state, subject, peer)
            everyone.append(Contribution(shared, rule.precedence, rule.origin))
            own.append(Contribution(particular, rule.precedence, rule.origin))
    cookies = CookieTable()
    base = build_column(everyone, {}, cookies)
    number = peer.identity or _UNKNOWN_PEER
    entries = {PolicyKey(int(direction), 0, *prefix): entry for prefix, entry in base.items()}
    for prefix, entry in build_column(own, base, cookies).items():
        entries[PolicyKey(int(direction), number, *prefix)] = entry
    return look_up(entries, direction, number, traffic.protocol, traffic.port)


def _mark(
    trace: RuleTrace, found: _Found | None, state: PolicyState, subject: Party, peer: Party
) -> RuleTrace:
    """Note whether a rule is behind the entry that decides."""
    if found is None or trace.misses or trace.rule.precedence != found[1].precedence:
        return trace
    shared, particular = _contributed(trace.rule, state, subject, peer)
    prefix = L4Prefix(found[0].proto, found[0].port, found[0].prefixlen)
    return trace._replace(decides=prefix in (particular if found[0].identity else shared))


def _reason(
    options: PolicyOptions, enforced: bool, found: _Found | None, traces: Iterable[RuleTrace]
) -> Reason:
    if not enforced:
        never = options.enforcement is EnforcementMode.NEVER
        return Reason.DISABLED if never else Reason.NOT_ENFORCED
    if found is None:
        return Reason.DEFAULT_DENY
    if found[1].deny:
        return Reason.DENIED
    deciding = [trace.rule for trace in traces if trace.decides]
    if any(rule.origin.kind for rule in deciding):
        return Reason.ALLOWED
    return Reason.LOCAL_HOST if ALLOW_LOCALHOST in deciding else Reason.NO_DEFAULT_DENY


def _closing(
    options: PolicyOptions, direction: Direction, traces: Iterable[RuleTrace], *, init: bool
) -> tuple[str, ...]:
    """What turns default deny on: an option, the endpoint's state, and policies."""
    found = []
    if options.enforcement is EnforcementMode.ALWAYS:
        found.append("enable-policy=always")
    if init:
        found.append("the endpoint is still being set up (reserved:init)")
    refs = {
        trace.ref
        for trace in traces
        if trace.rule.direction is direction and trace.rule.default_deny
    }
    return (*found, *(str(ref) for ref in sorted(refs)))


def _rank(trace: RuleTrace) -> tuple[object, ...]:
    other_way = Miss.DIRECTION in trace.misses
    return not trace.decides, other_way, len(trace.misses), trace.ref, trace.rule.path
