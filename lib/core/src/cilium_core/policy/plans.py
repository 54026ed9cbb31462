"""Plans: which rules count in one direction of an endpoint, and what becomes of all other traffic.

A plan is settled before any peer is looked at: from the options, from who the endpoint is, and from
the rules that select it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from cilium_core.identities import ReservedIdentity
from cilium_core.labels import LabelSet
from cilium_core.policy.options import EnforcementMode
from cilium_core.policy.ports import ContainerPort
from cilium_core.policy.rules import Direction, Origin, Rule, Tier, Verdict
from cilium_core.policy.selectors import EntitySelector, LabelSelector

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cilium_core.policy.options import PolicyOptions


@dataclass(frozen=True, slots=True)
class Subject:
    """An endpoint as policy sees it: who it is and which ports it serves under a name.

    The host endpoint has the identity of the host, and the labels of its node beside those of the
    identity. With `audit` proxies only report what its rules refuse; whoever writes its entries
    sees to the same for packets.
    """

    identity: int
    labels: LabelSet
    named_ports: frozenset[ContainerPort] = frozenset()
    audit: bool = False

    @property
    def is_host(self) -> bool:
        """Whether this is the node itself, which obeys rules about nodes and no others."""
        return self.identity == ReservedIdentity.HOST


def selects(rule: Rule, subject: Subject) -> bool:
    """Whether a rule is about a subject."""
    return rule.nodes == subject.is_host and rule.subject.matches(subject.labels)


def _synthetic(direction: Direction, name: str, peers: tuple[EntitySelector, ...] | None) -> Rule:
    origin = Origin("", "", "", (f"reserved:{name}",))
    return Rule(
        direction, LabelSelector(), Verdict.ALLOW, peers, None, default_deny=False, origin=origin
    )


ALLOW_ANY: Final = {
    Direction.INGRESS: _synthetic(Direction.INGRESS, "allow-any-ingress", None),
    Direction.EGRESS: _synthetic(Direction.EGRESS, "allow-any-egress", None),
}
"""What stands in a direction that is not enforced, or without default deny."""

ALLOW_LOCALHOST: Final = _synthetic(
    Direction.INGRESS,
    "allow-localhost-ingress",
    (EntitySelector("host", frozenset((ReservedIdentity.HOST.label,))),),
)
"""The node's own access to its pods, past every proxy; a deny rule still beats it."""


class ResolutionKey(NamedTuple):
    """Everything that a resolved policy depends on; subjects with equal keys share one."""

    rules: frozenset[Rule]
    init: bool
    host: bool
    named_ports: frozenset[ContainerPort]
    audit: bool = False


def resolution_key(
    subject: Subject, rules: frozenset[Rule], options: PolicyOptions
) -> ResolutionKey:
    """The key of a subject that `rules` select; the host obeys rules with its firewall on only."""
    host = subject.is_host
    if host and not options.host_firewall:
        rules = frozenset()
    uses_names = any(rule.named_ports for rule in rules if rule.direction is Direction.INGRESS)
    init = ReservedIdentity.INIT.label in subject.labels
    named_ports = subject.named_ports if uses_names else frozenset[ContainerPort]()
    audit = subject.audit and any(rule.l7 is not None for rule in rules)
    return ResolutionKey(rules, init, host, named_ports, audit)


class Closing(NamedTuple):
    """What becomes of traffic that no rule decides about.

    `isolated`: it is denied after the normal tier, for some rule of that tier turns default deny
    on. `final`: it is denied after the last tier, whatever the rules say.
    """

    isolated: bool
    final: bool

    @property
    def open(self) -> bool:
        """Whether it passes in the end."""
        return not (self.isolated or self.final)


_OPEN: Final = Closing(isolated=False, final=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """One direction of an endpoint.

    `evaluated` plans have rules of several tiers, passes or audited rules, and are decided prefix
    by prefix. `closing` is what holds with all rules, `enforced_closing` with those that are not
    audited. `closers` are the origins of the rules that turn default deny on, and
    `enforced_closers` of those that are not audited. With `audit` all that proxies refuse passes.
    """

    direction: Direction
    enforced: bool
    rules: frozenset[Rule]
    evaluated: bool = False
    closing: Closing = _OPEN
    enforced_closing: Closing = _OPEN
    closers: frozenset[Origin] = frozenset()
    enforced_closers: frozenset[Origin] = frozenset()
    audit: bool = False

    def builds_like(self, other: Plan) -> bool:
        """Whether the same rules at the same place give the same entries under both plans."""
        if self.audit != other.audit:
            return False
        if self.evaluated or other.evaluated:
            return (
                self.evaluated == other.evaluated
                and self.closing == other.closing
                and self.enforced_closing == other.enforced_closing
                and self.closers == other.closers
                and self.enforced_closers == other.enforced_closers
            )
        return self.closing.open == other.closing.open


def make_plan(options: PolicyOptions, direction: Direction, key: ResolutionKey) -> Plan:
    """The plan for one direction of the subjects with a key."""
    never = options.enforcement is EnforcementMode.NEVER
    rules = frozenset(rule for rule in key.rules if rule.direction is direction)
    final = options.enforcement is EnforcementMode.ALWAYS or key.init
    if never or (key.host and not options.host_firewall) or not (rules or final):
        return Plan(direction, enforced=False, rules=frozenset((ALLOW_ANY[direction],)))
    closing = Closing(_isolated(rules), final)
    evaluated = any(
        rule.audit or rule.tier is not Tier.NORMAL or rule.verdict is Verdict.PASS for rule in rules
    )
    closers = [rule for rule in rules if rule.default_deny and rule.tier is Tier.NORMAL]
    if direction is Direction.INGRESS and options.allow_localhost and not key.host:
        rules |= {ALLOW_LOCALHOST}
    if closing.open and not evaluated:
        rules |= {ALLOW_ANY[direction]}
    return Plan(
        direction,
        enforced=True,
        rules=rules,
        evaluated=evaluated,
        closing=closing,
        enforced_closing=Closing(_isolated(rule for rule in rules if not rule.audit), final),
        closers=frozenset(rule.origin for rule in closers),
        enforced_closers=frozenset(rule.origin for rule in closers if not rule.audit),
        audit=key.audit,
    )


def _isolated(rules: Iterable[Rule]) -> bool:
    return any(rule.default_deny and rule.tier is Tier.NORMAL for rule in rules)
