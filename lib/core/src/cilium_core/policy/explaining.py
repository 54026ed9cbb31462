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
from cilium_core.policy import evaluating
from cilium_core.policy.building import build_column
from cilium_core.policy.columns import Base, Contribution, Numbering, by_prefix
from cilium_core.policy.cookies import CookieTable
from cilium_core.policy.entries import PolicyEntry, PolicyKey, look_up
from cilium_core.policy.l7 import Redirect
from cilium_core.policy.options import EnforcementMode
from cilium_core.policy.plans import ALLOW_LOCALHOST, Plan, Subject, make_plan, resolution_key
from cilium_core.policy.ports import PORT_MAX, ContainerPort, L4Prefix, NamedPort, Protocol
from cilium_core.policy.redirects import RedirectTable
from cilium_core.policy.requests import Request, SecretValue, refusals
from cilium_core.policy.resolving import named_prefixes
from cilium_core.policy.rules import Direction, PolicyRef, Rule, Tier, Verdict
from cilium_core.policy.unions import Conflict, find_conflicts, unite

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
    """What is sent: IP protocol number and destination port (for ICMP: the type).

    Without a `request`, only the connection is asked about.
    """

    protocol: int
    port: int
    request: Request | None = None


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
    REQUEST_REFUSED = "rules allow the connection, but none of them allows the request"
    AUDITED = "it would be denied, but what denies it is only audited"


class Miss(Enum):
    """What a rule has that the traffic has not."""

    DIRECTION = "direction"
    PEER = "peer"
    PROTOCOL = "protocol"
    PORT = "port"
    REQUEST = "request"


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
        return self.rule.ref


@dataclass(frozen=True, slots=True)
class DirectionExplanation:
    """The verdict at one end.

    `entry` is the policy map entry that decides; None where no map is asked or none matches, and
    for a peer that no map knows yet. `rules` are those of the policies that select this end: those
    that decide first, then other matches, then near misses. `default_deny` is what closes the
    direction to all that no rule allows. `redirect` is what a proxy enforces on the connection.
    `isolated` says whether some policy of the normal tier turns default deny on. Where rules have
    `conflicts`, the end keeps the policy that it had before them, and this is not it.
    """

    direction: Direction
    allowed: bool
    enforced: bool
    reason: Reason
    entry: tuple[PolicyKey, PolicyEntry] | None = None
    rules: tuple[RuleTrace, ...] = ()
    default_deny: tuple[str, ...] = ()
    redirect: Redirect | None = None
    isolated: bool = False
    conflicts: tuple[Conflict, ...] = ()

    @property
    def overrulable(self) -> bool:
        """Whether a further allow rule would make the traffic pass."""
        if self.reason in (Reason.DEFAULT_DENY, Reason.REQUEST_REFUSED):
            return True
        deciding = [trace.rule for trace in self.rules if trace.decides]
        denied = self.reason is Reason.DENIED
        return denied and bool(deciding) and all(r.tier is Tier.BASELINE for r in deciding)


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
    """What an explanation reads; without `secret` it knows the value of none."""

    repository: Repository
    options: PolicyOptions
    named_ports: NamedPorts
    secret: SecretValue | None = None


def explain(state: PolicyState, source: Party, destination: Party, traffic: Traffic) -> Explanation:
    """Explain the verdict about traffic from one party to another."""
    return Explanation(
        source,
        destination,
        traffic,
        explain_direction(state, Direction.EGRESS, source, destination, traffic),
        explain_direction(state, Direction.INGRESS, destination, source, traffic),
    )


def is_endpoint(party: Party, options: PolicyOptions) -> bool:
    """Whether policies of this cluster are enforced on a party."""
    if party.identity == ReservedIdentity.HOST:
        return options.host_firewall
    labels = party.labels
    if any(label in labels for label in _ENDPOINT_LABELS):
        return True
    cluster = labels.value(KEY_CLUSTER, SOURCE_K8S, options.cluster)
    return bool(labels.value(KEY_NAMESPACE, SOURCE_K8S)) and cluster == options.cluster


def explain_direction(
    state: PolicyState, direction: Direction, subject: Party, peer: Party, traffic: Traffic
) -> DirectionExplanation:
    """Explain the verdict at one end; `subject` is that end, `peer` the other one."""
    if not is_endpoint(subject, state.options):
        return DirectionExplanation(direction, True, False, Reason.NO_POLICY_HERE)
    seen = Subject(subject.identity, subject.labels, subject.named_ports)
    selecting = frozenset(state.repository.rules_for(seen))
    key = resolution_key(seen, selecting, state.options)
    plan = make_plan(state.options, direction, key)
    trial = _Trial(state, plan, subject, peer, traffic)
    traces = trial.traces()
    reason = _reason(state.options, trial, traces)
    traces += [
        RuleTrace(rule, (Miss.DIRECTION,), (f"it is about {rule.direction.name.lower()}",))
        for rule in selecting
        if rule.direction is not direction
    ]
    written = [trace for trace in traces if trace.rule.origin.kind]
    unknown = trial.found is not None and trial.found[0].identity == _UNKNOWN_PEER
    closing = _closing(state.options, direction, written, init=key.init) if plan.enforced else ()
    return DirectionExplanation(
        direction,
        allowed=reason not in (Reason.DENIED, Reason.DEFAULT_DENY, Reason.REQUEST_REFUSED),
        enforced=plan.enforced,
        reason=reason,
        entry=None if unknown else trial.found,
        rules=tuple(sorted(written, key=_rank)),
        default_deny=closing,
        redirect=trial.redirect,
        isolated=plan.closing.isolated,
        conflicts=find_conflicts(rule for rule in selecting if rule.direction is direction),
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


class _Trial:
    """One end's rules tried on the traffic."""

    def __init__(
        self, state: PolicyState, plan: Plan, subject: Party, peer: Party, traffic: Traffic
    ) -> None:
        self.plan = plan
        self._state = state
        self._subject = subject
        self._peer = peer
        self._traffic = traffic
        self._tried = {rule: self._try(rule) for rule in plan.rules}
        self._redirects = RedirectTable()
        self.found = self._look_up()
        number = self.found[1].redirect if self.found is not None else 0
        self.redirect = self._redirects.get(number)
        self.refused = False
        """Whether the rules behind the redirect refuse the request."""

    def traces(self) -> list[RuleTrace]:
        """How each rule fared."""
        deciding = self._deciding()
        if self.redirect is not None and self._traffic.request is not None:
            deciding = self._hold_request_against(deciding, self.redirect)
        return [
            RuleTrace(rule, *tried, decides=rule in deciding) for rule, tried in self._tried.items()
        ]

    def _hold_request_against(self, rules: set[Rule], redirect: Redirect) -> set[Rule]:
        """The rules that allow the request, of those behind a redirect; the others miss it."""
        allowing = set()
        for rule in rules:
            texts = self._refusals(rule)
            if texts:
                misses, notes = self._tried[rule]
                self._tried[rule] = (*misses, Miss.REQUEST), (*notes, " or ".join(texts))
            else:
                allowing.add(rule)
        if allowing or not redirect.restricts:
            return allowing or rules
        self.refused = True
        return set()

    def _refusals(self, rule: Rule) -> tuple[str, ...]:
        request = self._traffic.request
        if rule.l7 is None or request is None:
            return ()
        return refusals(rule.l7, request, self._state.secret)

    def _try(self, rule: Rule) -> tuple[tuple[Miss, ...], tuple[str, ...]]:
        misses = []
        notes = []
        if rule.peers is not None and not any(one.matches(self._peer.labels) for one in rule.peers):
            misses.append(Miss.PEER)
            named = " or ".join(str(one) for one in rule.peers)
            notes.append(f"its peers are {named}" if named else "it names no peer at all")
        protocol, port, _ = self._traffic
        if not any(
            prefix.covers(protocol, port) for prefix in (*rule.prefixes, *self._named(rule))
        ):
            ports = rule.ports or ()
            same = any(one.protocol == protocol for one in ports)
            misses.append(Miss.PORT if same else Miss.PROTOCOL)
            listed = ", ".join(port_text(one) for one in ports)
            notes.append(f"its ports are {listed}" if listed else "it lists no port at all")
        return tuple(misses), tuple(notes)

    def _named(self, rule: Rule) -> tuple[L4Prefix, ...]:
        ports = self._subject.named_ports
        return named_prefixes(rule, self._peer.identity, ports, self._state.named_ports)

    def _contributed(self, rule: Rule) -> tuple[tuple[L4Prefix, ...], tuple[L4Prefix, ...]]:
        """What a rule whose peer matches adds to the entries of any peer, and to the peer's own."""
        named = self._named(rule)
        if rule.peers is not None:
            return (), rule.prefixes + named
        if rule.direction is Direction.EGRESS and rule.named_ports_of_peer:
            return rule.prefixes, named
        return rule.prefixes + named, ()

    def _look_up(self) -> _Found | None:
        """The entry that the data plane would find for this peer."""
        everyone: list[Contribution] = []
        own: list[Contribution] = []
        for rule, (misses, _) in self._tried.items():
            if Miss.PEER not in misses:
                shared, particular = self._contributed(rule)
                everyone.append(Contribution(shared, rule))
                own.append(Contribution(particular, rule))
        numbering = Numbering(CookieTable(), self._redirects)
        rules = by_prefix(everyone)
        base = Base(build_column(rules, None, self.plan, numbering), rules)
        number = self._peer.identity or _UNKNOWN_PEER
        direction = self.plan.direction
        entries = {
            PolicyKey(int(direction), 0, *prefix): entry for prefix, entry in base.column.items()
        }
        if rules := by_prefix(own):
            for prefix, entry in build_column(rules, base, self.plan, numbering).items():
                entries[PolicyKey(int(direction), number, *prefix)] = entry
        return look_up(entries, direction, number, self._traffic.protocol, self._traffic.port)

    def _deciding(self) -> set[Rule]:
        """The rules behind the entry that decides."""
        if self.found is None:
            return set()
        key, entry = self.found
        prefix = L4Prefix(key.proto, key.port, key.prefixlen)
        there = [
            rule
            for rule, (misses, _) in self._tried.items()
            if Miss.PEER not in misses
            and any(_covers(other, prefix) for part in self._contributed(rule) for other in part)
        ]
        if self.plan.evaluated:
            return set(evaluating.judge(prefix, there, self.plan).rules)
        if entry.redirect:
            united = unite(there, prefix, observe=self.plan.closing.open)
            return set(united.rules) if united is not None else set()
        if ALLOW_LOCALHOST in there and not entry.deny:
            strongest = max(rule.precedence for rule in there)
            if strongest > ALLOW_LOCALHOST.precedence:
                return {ALLOW_LOCALHOST}
        own = 1 if key.identity else 0
        return {
            rule
            for rule in there
            if rule.precedence == entry.precedence and prefix in self._contributed(rule)[own]
        }


def _covers(outer: L4Prefix, inner: L4Prefix) -> bool:
    return outer.length <= inner.length and outer.covers(inner.protocol, inner.port)


def _reason(options: PolicyOptions, trial: _Trial, traces: Iterable[RuleTrace]) -> Reason:
    if not trial.plan.enforced:
        never = options.enforcement is EnforcementMode.NEVER
        return Reason.DISABLED if never else Reason.NOT_ENFORCED
    if trial.found is None:
        return Reason.DEFAULT_DENY
    entry = trial.found[1]
    deciding = [trace.rule for trace in traces if trace.decides]
    if trial.refused and trial.redirect is not None and not trial.redirect.audit:
        return Reason.REQUEST_REFUSED
    if entry.audit or trial.refused:
        return Reason.AUDITED
    if entry.deny:
        denied = any(rule.verdict is Verdict.DENY for rule in deciding)
        return Reason.DENIED if denied else Reason.DEFAULT_DENY
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
