"""Rules in normal form: what every kind of policy object is translated into.

One rule is one list item of a policy with one of its port lists: a direction, whom it applies to,
which peers on which ports, and the verdict. The union of all rules, ordered by precedence, is the
policy; nothing downstream knows which kind of object a rule came from.

All values are immutable. Two rules are never equal, even with equal content: a rule is an event in
the repository, and resolved policies remember which ones they were made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from cilium_core.labels import SOURCE_K8S, Label
from cilium_core.policy.l7 import L7Kind, L7Match
from cilium_core.policy.ports import ANY_L4, L4Prefix, NamedPort, PortMatch, PortRange
from cilium_core.policy.selectors import LabelSelector, PeerSelector

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cilium_core.identities import Prefix


class Direction(IntEnum):
    """The direction of a connection as seen by the endpoint; the numbers are the data plane's."""

    INGRESS = 1
    EGRESS = 2


class Verdict(Enum):
    """What a rule says about the traffic that it matches."""

    ALLOW = "allow"
    DENY = "deny"
    PASS = "pass"  # noqa: S105 - no password
    """Leave the matching traffic to the next tier."""


class Tier(IntEnum):
    """Groups of rules; the first one that decides about a packet has the last word."""

    ADMIN = 0
    NORMAL = 1
    """CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy and NetworkPolicy."""
    BASELINE = 2


PRECEDENCE_MAX_PRIORITY: Final = (1 << 24) - 1
_KEYS: Final = "io.cilium.k8s.policy."
_LOW_BYTE: Final = {Verdict.DENY: 255, Verdict.ALLOW: 1, Verdict.PASS: 0}

LISTENER_PRIORITY: Final = {
    L7Kind.HTTP: 101,
    L7Kind.KAFKA: 106,
    L7Kind.TLS: 116,
    L7Kind.DNS: 121,
}
"""Which proxy gets the traffic of a peer that rules send to several; the lowest wins."""


def precedence(verdict: Verdict, priority: int = 0, kind: L7Kind | None = None) -> int:
    """The 32-bit precedence of an entry; the higher one wins.

    The upper 24 bits hold the inverted priority (0 is the strongest, at most 2^24-1), the low byte
    ranks the verdicts of one priority: deny above everything, then allow by way of a proxy of some
    kind, a plain allow, and what only names who denies by default at the bottom (as PASS).
    """
    low = _LOW_BYTE[verdict] if kind is None else 255 - LISTENER_PRIORITY[kind]
    return (PRECEDENCE_MAX_PRIORITY - priority) << 8 | low


class PolicyRef(NamedTuple):
    """What names a policy object; `namespace` is empty for cluster-wide kinds."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.namespace}/{self.name}" if self.namespace else " ".join(self[::2])
        )


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a rule came from, as flow records name it.

    `labels` are the rule's labels in text form, sorted by key. `revision` is the repository's at
    the time of import; it does not take part in comparisons, so that an entry which an update
    leaves as it was keeps its cookie.
    """

    kind: str
    namespace: str
    name: str
    labels: tuple[str, ...] = ()
    log: str = ""
    revision: int = field(default=0, compare=False)


def make_origin(
    ref: PolicyRef, uid: str | None = None, labels: Iterable[Label] = (), log: str = ""
) -> Origin:
    """The origin of rules from one object: the user's `labels` and those that name the object."""
    own = {
        "derived-from": ref.kind,
        "name": ref.name,
        "namespace": ref.namespace,
        "uid": uid or "",
    }
    named = (Label(SOURCE_K8S, _KEYS + key, value) for key, value in own.items() if value)
    texts = tuple(str(label) for label in sorted((*labels, *named)))
    return Origin(ref.kind, ref.namespace, ref.name, texts, log)


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One allow or deny rule of one direction.

    `peers` is None for every peer, in or outside the cluster, and an empty tuple for nobody.
    `ports` is None for every port and protocol, and an empty tuple for none at all. A rule that
    selects nobody still turns enforcement on for its subject, and default deny if `default_deny`.
    """

    direction: Direction
    subject: LabelSelector
    verdict: Verdict
    peers: tuple[PeerSelector, ...] | None
    ports: tuple[PortMatch, ...] | None
    default_deny: bool
    origin: Origin
    named_ports_of_peer: bool = False
    """Whether a named egress port means each peer's own port of that name (as NetworkPolicy has it)
    rather than the one number that the name has in the whole cluster."""

    l7: L7Match | None = None
    """What the rule demands above the transport layer; None is nothing."""

    tier: Tier = Tier.NORMAL
    priority: tuple[int, ...] = ()
    """Rank within the tier, the lowest first; `()` for rules that have none."""

    audit: bool = False
    """Whether the rule only tells what it would refuse."""

    nodes: bool = False
    """Whether `subject` selects nodes, that is the host endpoint, by their labels."""

    path: str = ""
    """Where in its object the rule stands, such as `spec.ingress[0]`."""

    prefixes: tuple[L4Prefix, ...] = field(init=False)
    """The ports given by number, as prefixes."""

    named_ports: tuple[NamedPort, ...] = field(init=False)
    """The ports given by name."""

    precedence: int = field(init=False)
    """The precedence of the rule's entries, among those of its tier and priority."""

    def __post_init__(self) -> None:
        kind = self.l7.kind if self.l7 is not None else None
        object.__setattr__(self, "precedence", precedence(self.verdict, kind=kind))
        ports = self.ports or ()
        prefixes = (
            prefix for port in ports if isinstance(port, PortRange) for prefix in port.prefixes()
        )
        every = (ANY_L4,) if self.ports is None else tuple(dict.fromkeys(prefixes))
        object.__setattr__(self, "prefixes", every)
        named = tuple(port for port in ports if isinstance(port, NamedPort))
        object.__setattr__(self, "named_ports", named)

    @property
    def ref(self) -> PolicyRef:
        """The policy that the rule is from."""
        return PolicyRef(self.origin.kind, self.origin.namespace, self.origin.name)


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy object after parsing.

    `warnings` tell the user about conversions and fields without effect. `source` is the object as
    it was given. `revision` is 0 until a repository has taken it in.
    """

    ref: PolicyRef
    rules: tuple[Rule, ...]
    source: Mapping[str, object] = field(repr=False, compare=False)
    warnings: tuple[str, ...] = ()
    uid: str = ""
    revision: int = 0

    @property
    def prefixes(self) -> frozenset[Prefix]:
        """Every address prefix that the policy names, excepts included."""
        return frozenset(
            prefix for rule in self.rules for peer in rule.peers or () for prefix in peer.prefixes()
        )
