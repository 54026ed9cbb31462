"""The tiered policies of policy.networking.k8s.io, from model to normal form.

Their rules stand in the tier above or below that of all other policies, in an order of their own,
and never turn default deny on. Selectors see Kubernetes labels only, and mean pods of the own
cluster.

What is not known of a rule is never ignored: a peer or port of an unknown kind allows nothing, and
a rule that denies or passes and has one denies everyone, or every port.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cilium_core.identities import ReservedIdentity
from cilium_core.labels import (
    KEY_CLUSTER,
    KEY_NAMESPACE,
    KEY_NAMESPACE_LABELS_PREFIX,
    SOURCE_ANY,
    SOURCE_K8S,
    SOURCE_RESERVED,
)
from cilium_core.policy import auditing
from cilium_core.policy.findings import Findings
from cilium_core.policy.models_tiers import (
    AdminPolicy,
    AdminPort,
    BaselinePolicy,
    ClusterPolicy,
    ClusterProtocol,
    TierEgressPeer,
)
from cilium_core.policy.networks import NetworkSelector
from cilium_core.policy.options import PolicyOptions
from cilium_core.policy.ports import ANY_PROTOCOLS, NamedPort, PortMatch, PortRange, Protocol
from cilium_core.policy.rules import (
    Direction,
    Policy,
    PolicyRef,
    Rule,
    Tier,
    Verdict,
    make_origin,
)
from cilium_core.policy.selectors import (
    FqdnSelector,
    LabelSelector,
    PeerSelector,
    cidr_selector,
    equals,
    exists,
)
from cilium_core.policy.translating_peers import read_selector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cilium_core.policy.models_tiers import (
        EgressRule,
        IngressRule,
        NamespacedPods,
        TierIngressPeer,
        TierSubject,
    )
    from cilium_core.policy.models_values import PlainSelector

ADMIN_KIND: Final = "AdminNetworkPolicy"
BASELINE_KIND: Final = "BaselineAdminNetworkPolicy"
CLUSTER_KIND: Final = "ClusterNetworkPolicy"
KINDS: Final = (ADMIN_KIND, BASELINE_KIND, CLUSTER_KIND)
TierModel = AdminPolicy | BaselinePolicy | ClusterPolicy
MODELS: Final[Mapping[str, type[TierModel]]] = {
    ADMIN_KIND: AdminPolicy,
    BASELINE_KIND: BaselinePolicy,
    CLUSTER_KIND: ClusterPolicy,
}

_VERDICTS: Final = {
    "Allow": Verdict.ALLOW,
    "Accept": Verdict.ALLOW,
    "Deny": Verdict.DENY,
    "Pass": Verdict.PASS,
}
_NODES: Final = (ReservedIdentity.HOST, ReservedIdentity.REMOTE_NODE)


def translate(
    model: TierModel,
    source: Mapping[str, object],
    options: PolicyOptions,
    findings: Findings,
) -> Policy:
    """Bring a checked object into normal form; if that finds problems, the result is void."""
    metadata, spec = model.metadata, model.spec
    ref = PolicyRef(model.kind, "", metadata.name)
    origin = make_origin(ref, metadata.uid)
    audit = auditing.check(metadata.annotations, findings)
    tier, priority = Tier.ADMIN, 0
    if isinstance(model, ClusterPolicy):
        tier = Tier.ADMIN if model.spec.tier == "Admin" else Tier.BASELINE
        priority = model.spec.priority
    elif isinstance(model, AdminPolicy):
        priority = model.spec.priority
    else:
        tier = Tier.BASELINE
    reader = _Reader(options, findings)
    subject = reader.subject(spec.subject)
    sections: tuple[tuple[Direction, Sequence[IngressRule | EgressRule]], ...] = (
        (Direction.INGRESS, spec.ingress or ()),
        (Direction.EGRESS, spec.egress or ()),
    )
    rules = []
    for direction, items in sections:
        for index, item in enumerate(items):
            path = f"spec.{direction.name.lower()}[{index}]"
            verdict, peers, ports = reader.rule(item, path)
            rules.append(
                Rule(
                    direction,
                    subject,
                    verdict,
                    peers,
                    ports,
                    default_deny=False,
                    origin=origin,
                    named_ports_of_peer=True,
                    tier=tier,
                    priority=(priority, index),
                    audit=audit,
                    path=path,
                )
            )
    return Policy(ref, tuple(rules), source, tuple(findings.warnings), metadata.uid or "")


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the parts of one object."""

    options: PolicyOptions
    findings: Findings

    def subject(self, subject: TierSubject) -> LabelSelector:
        return self._pods(subject.namespaces, subject.pods)

    def rule(
        self, rule: IngressRule | EgressRule, path: str
    ) -> tuple[Verdict, tuple[PeerSelector, ...] | None, tuple[PortMatch, ...] | None]:
        """The verdict, peers and ports of a rule; None is everyone and every port."""
        verdict = _VERDICTS[rule.action]
        items: Sequence[TierIngressPeer | TierEgressPeer] = rule.peers
        unknown = [
            f"{path}.{'to' if isinstance(peer, TierEgressPeer) else 'from'}[{index}]"
            for index, peer in enumerate(items)
            if not peer.is_known
        ]
        ports_name = "protocols" if rule.action == "Accept" else "ports"
        unknown_ports = [
            f"{path}.{ports_name}[{index}]"
            for index, port in enumerate(rule.ports or ())
            if not port.is_known
        ]
        closes = verdict is not Verdict.ALLOW and bool(unknown or unknown_ports)
        for place in unknown + unknown_ports:
            self.findings.warn(
                place,
                "is of an unknown kind, so the rule denies all that it may mean"
                if closes
                else "is of an unknown kind and allows nothing",
            )
        everyone = closes and bool(unknown)
        peers = None if everyone else tuple(self._peers(items, path, verdict))
        every_port = rule.ports is None or (closes and bool(unknown_ports))
        ports = None if every_port else tuple(p for one in rule.ports or () for p in _ports(one))
        return Verdict.DENY if closes else verdict, peers, ports

    def _peers(
        self, items: Sequence[TierIngressPeer | TierEgressPeer], path: str, verdict: Verdict
    ) -> Iterator[PeerSelector]:
        families = self.options.families
        networks = []
        for index, peer in enumerate(items):
            if not peer.is_known:
                continue
            if peer.namespaces is not None or peer.pods is not None:
                pods = self._pods(peer.namespaces, peer.pods)
                yield pods.require(equals(KEY_CLUSTER, self.options.cluster))
            elif isinstance(peer, TierEgressPeer):
                if peer.nodes is not None:
                    yield from self._nodes(peer.nodes, f"{path}.to[{index}].nodes")
                networks += [cidr_selector(cidr, (), families) for cidr in peer.networks or ()]
                for name in peer.domain_names or ():
                    yield _domain(name)
        if networks:
            yield NetworkSelector(tuple(dict.fromkeys(networks)), verdict is Verdict.DENY)

    def _pods(self, namespaces: PlainSelector | None, pods: NamespacedPods | None) -> LabelSelector:
        if pods is not None:
            namespaces = pods.namespace_selector
        spaces = read_selector(namespaces, SOURCE_K8S, KEY_NAMESPACE_LABELS_PREFIX)
        chosen = read_selector(pods.pod_selector if pods is not None else None, SOURCE_K8S)
        # Negative requirements alone would also match what is not a pod at all.
        return chosen.require(*spaces.requirements, exists(KEY_NAMESPACE))

    def _nodes(self, nodes: PlainSelector, path: str) -> Iterator[PeerSelector]:
        selector = read_selector(nodes, SOURCE_ANY)
        if selector.requirements and not self.options.node_selector_labels:
            self.findings.problem(path, "needs the option enable-node-selector-labels")
        for node in _NODES:
            yield selector.require(exists(node.label_name, SOURCE_RESERVED))


def _domain(name: str) -> FqdnSelector:
    """A name; a star in front stands for any number of labels, which is two stars elsewhere."""
    if name.startswith("*."):
        return FqdnSelector(pattern=f"*{name}")
    return FqdnSelector(name=name)


def _ports(port: AdminPort | ClusterProtocol) -> Iterator[PortMatch]:
    if not port.is_known:
        return
    name = port.named_port if isinstance(port, AdminPort) else port.destination_named_port
    if name is not None:
        for protocol in ANY_PROTOCOLS:
            yield NamedPort(protocol, name.lower())
    elif isinstance(port, AdminPort):
        if port.port_number is not None:
            one = port.port_number
            yield PortRange(Protocol[one.protocol], one.port, one.port)
        elif port.port_range is not None:
            some = port.port_range
            yield PortRange(Protocol[some.protocol], some.start, some.end)
    else:
        yield from _protocol_ports(port)


def _protocol_ports(port: ClusterProtocol) -> Iterator[PortMatch]:
    for protocol, written in (
        (Protocol.TCP, port.tcp),
        (Protocol.UDP, port.udp),
        (Protocol.SCTP, port.sctp),
    ):
        if written is None:
            continue
        destination = written.destination_port
        if destination is None:
            yield PortRange(protocol)
        elif destination.number is not None:
            yield PortRange(protocol, destination.number, destination.number)
        elif destination.range is not None:
            yield PortRange(protocol, destination.range.start, destination.range.end)
