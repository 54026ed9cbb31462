"""CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy, from model to normal form.

Here the meaning of what is *not* written is settled: which namespace and cluster a selector is
limited to, what an absent or empty list stands for, and whether a rule turns default deny on. Pure
functions; problems that only show here are collected with their field paths.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cilium_core.identities import WORLD_LABELS, ReservedIdentity
from cilium_core.labels import (
    KEY_CLUSTER,
    KEY_NAMESPACE,
    SOURCE_ANY,
    SOURCE_K8S,
    SOURCE_RESERVED,
    Label,
)
from cilium_core.policy import groups
from cilium_core.policy.errors import Problem
from cilium_core.policy.models import (
    CiliumRule,
)
from cilium_core.policy.options import PolicyOptions
from cilium_core.policy.ports import (
    EXTENDED_PROTOCOLS,
    PORT_MAX,
    PROTOCOL_NAMES,
    NamedPort,
    PortMatch,
    PortRange,
    parse_port,
)
from cilium_core.policy.rules import (
    Direction,
    Origin,
    Policy,
    PolicyRef,
    Rule,
    Verdict,
    make_origin,
)
from cilium_core.policy.selectors import (
    EntitySelector,
    LabelSelector,
    Operator,
    PeerSelector,
    Requirement,
    cidr_group_selector,
    cidr_selector,
    equals,
    exists,
    parse_key,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cilium_core.policy.models import (
        CidrRule,
        CiliumPolicy,
        PeerItem,
        PortProtocol,
        Selector,
    )

KIND_NAMESPACED: Final = "CiliumNetworkPolicy"
KIND_CLUSTERWIDE: Final = "CiliumClusterwideNetworkPolicy"

_OPERATORS: Final = {
    "In": Operator.IN,
    "NotIn": Operator.NOT_IN,
    "Exists": Operator.EXISTS,
    "DoesNotExist": Operator.NOT_EXISTS,
}
_OBJECT_NAMESPACE: Final = f"{SOURCE_K8S}:{KEY_NAMESPACE}"
_OBJECT_SOURCES: Final = frozenset((SOURCE_K8S, SOURCE_ANY))
_INIT: Final = ReservedIdentity.INIT.label
_CLUSTER_MEMBERS: Final = (
    ReservedIdentity.HOST,
    ReservedIdentity.REMOTE_NODE,
    ReservedIdentity.INIT,
    ReservedIdentity.INGRESS,
    ReservedIdentity.HEALTH,
    ReservedIdentity.UNMANAGED,
    ReservedIdentity.KUBE_APISERVER,
)
_DIRECTIONS: Final = (
    (Direction.INGRESS, Verdict.ALLOW, "ingress"),
    (Direction.INGRESS, Verdict.DENY, "ingressDeny"),
    (Direction.EGRESS, Verdict.ALLOW, "egress"),
    (Direction.EGRESS, Verdict.DENY, "egressDeny"),
)


@dataclass(slots=True)
class Findings:
    """What there is to say about an object beside its rules."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def translate(
    model: CiliumPolicy, source: Mapping[str, object], options: PolicyOptions, findings: Findings
) -> Policy:
    """Bring a checked object into normal form; if that finds problems, the result is void."""
    namespace = "" if model.kind == KIND_CLUSTERWIDE else model.metadata.namespace or "default"
    if not namespace and model.metadata.namespace:
        findings.warnings.append("metadata.namespace: has no effect on a cluster-wide policy")
    ref = PolicyRef(model.kind, namespace, model.metadata.name)
    specs = [] if model.spec is None else [("spec", model.spec)]
    specs += [(f"specs[{index}]", spec) for index, spec in enumerate(model.specs or [])]
    rules: list[Rule] = []
    for path, spec in specs:
        labels = [label.to_label() for label in spec.labels or ()]
        origin = make_origin(ref, model.metadata.uid, labels, spec.log.value if spec.log else "")
        context = _Context(options, findings, namespace, spec, path, origin)
        rules += context.translate()
    uid = model.metadata.uid or ""
    return Policy(ref, tuple(rules), source, tuple(findings.warnings), uid)


@dataclass(frozen=True, slots=True)
class _Context:
    """One rule of an object; `namespace` is empty in a cluster-wide policy."""

    options: PolicyOptions
    findings: Findings
    namespace: str
    spec: CiliumRule
    path: str
    origin: Origin

    def translate(self) -> list[Rule]:
        subject = self._subject()
        lists = (
            self.spec.ingress,
            self.spec.ingress_deny,
            self.spec.egress,
            self.spec.egress_deny,
        )
        rules = []
        for (direction, verdict, name), items in zip(_DIRECTIONS, lists, strict=True):
            default_deny = self._default_deny(direction)
            for index, item in enumerate(items or ()):
                path = f"{self.path}.{name}[{index}]"
                peers = self._peers(item, subject)
                rules += [
                    Rule(
                        direction,
                        subject,
                        verdict,
                        peers,
                        ports,
                        default_deny,
                        self.origin,
                        path=path,
                    )
                    for ports in self._port_lists(item, path)
                ]
        self._warn_about_idle_default_deny()
        return rules

    def _subject(self) -> LabelSelector:
        if self.spec.node_selector is not None:
            path = f"{self.path}.nodeSelector"
            self.findings.problems.append(
                Problem(path, "only a cluster-wide policy can select nodes")
                if self.namespace
                else Problem(path, "is not supported yet", unsupported=True)
            )
        written = self.spec.endpoint_selector
        if not self.namespace or written is None:
            return read_selector(written)
        path = f"{self.path}.endpointSelector"
        labels = dict(written.match_labels or {})
        if labels.pop(_OBJECT_NAMESPACE, self.namespace) != self.namespace:
            self.findings.warnings.append(
                f"{path}: a namespaced policy selects in its own namespace only, {self.namespace}"
            )
        selector = read_selector(written.model_copy(update={"match_labels": labels}))
        if selector.mentions(_INIT.key, sources=frozenset((SOURCE_RESERVED,))):
            self.findings.warnings.append(
                f"{path}: reserved:init endpoints have no namespace; use a {KIND_CLUSTERWIDE}"
            )
        return selector.require(equals(KEY_NAMESPACE, self.namespace))

    def _default_deny(self, direction: Direction) -> bool:
        if not self.options.non_default_deny or self.spec.enable_default_deny is None:
            return True
        setting = self.spec.enable_default_deny
        chosen = setting.ingress if direction is Direction.INGRESS else setting.egress
        return chosen is not False

    def _warn_about_idle_default_deny(self) -> None:
        setting, spec = self.spec.enable_default_deny, self.spec
        if setting is None:
            return
        for name, chosen, lists in (
            ("ingress", setting.ingress, (spec.ingress, spec.ingress_deny)),
            ("egress", setting.egress, (spec.egress, spec.egress_deny)),
        ):
            if chosen and not any(lists):
                self.findings.warnings.append(
                    f"{self.path}.enableDefaultDeny.{name}: has no effect without a rule of that "
                    f"direction; add `{name}: [{{}}]`"
                )

    # ---- peers ----

    def _peers(self, item: PeerItem, subject: LabelSelector) -> tuple[PeerSelector, ...] | None:
        """The peers of a list item: None is everyone, nothing at all is nobody."""
        if all(peers is None for peers in item.peer_lists()):
            return None if item.to_ports or item.icmps else ()
        if "all" in (item.entities or ()):
            return None
        families = self.options.families
        return (
            *(self._limit(read_selector(selector), subject) for selector in item.endpoints or ()),
            *(entity_selector(entity, self.options.cluster) for entity in item.entities or ()),
            *(cidr_selector(cidr, (), families) for cidr in item.cidr or ()),
            *(self._cidr_rule(rule) for rule in item.cidr_set or ()),
        )

    def _cidr_rule(self, rule: CidrRule) -> PeerSelector:
        excepts, families = rule.excepted or (), self.options.families
        if rule.cidr is not None:
            return cidr_selector(rule.cidr, excepts, families)
        if rule.cidr_group_ref is not None:
            return cidr_group_selector(groups.named(rule.cidr_group_ref), excepts, families)
        return cidr_group_selector(read_selector(rule.cidr_group_selector), excepts, families)

    def _limit(self, peer: LabelSelector, subject: LabelSelector) -> LabelSelector:
        """Limit a peer to the policy's namespace and cluster where it names none."""
        if peer.mentions_reserved():
            return peer
        added = []
        names_namespace = peer.mentions(KEY_NAMESPACE, sources=_OBJECT_SOURCES)
        if self.namespace:
            if not names_namespace and not peer.mentions_namespace_labels():
                added.append(equals(KEY_NAMESPACE, self.namespace))
        elif not names_namespace and not subject.mentions(
            _INIT.key, sources=frozenset((SOURCE_RESERVED,))
        ):
            added.append(exists(KEY_NAMESPACE))
        if self.options.default_local_cluster and not peer.mentions(
            KEY_CLUSTER, sources=_OBJECT_SOURCES
        ):
            added.append(equals(KEY_CLUSTER, self.options.cluster))
        return peer.require(*added)

    # ---- ports ----

    def _port_lists(self, item: PeerItem, path: str) -> list[tuple[PortMatch, ...] | None]:
        """One list of ports for each rule that the item becomes; None is every port."""
        if item.icmps:
            if not self.options.icmp_rules:
                self.findings.problems.append(
                    Problem(f"{path}.icmps", "needs the option enable-icmp-rules")
                )
            types = [field.to_range() for rule in item.icmps for field in rule.fields or ()]
            return [tuple(types)]
        if not item.to_ports:
            return [None]
        lists: list[tuple[PortMatch, ...] | None] = []
        for index, rule in enumerate(item.to_ports):
            ports: list[PortMatch] = []
            for position, port in enumerate(rule.ports or ()):
                ports += self._ports(port, f"{path}.toPorts[{index}].ports[{position}]")
            lists.append(tuple(ports))
        return lists

    def _ports(self, written: PortProtocol, path: str) -> Sequence[PortMatch]:
        protocols = PROTOCOL_NAMES[written.protocol]
        extended = self.options.extended_protocols
        if not extended and not EXTENDED_PROTOCOLS.isdisjoint(protocols):
            self._problem(f"{path}.protocol", "needs the option enable-extended-ip-protocols")
        if written.port is None:
            if not extended:
                self._problem(f"{path}.port", "is required")
            return [PortRange(protocol) for protocol in protocols]
        port = parse_port(written.port)
        if port != 0 and not EXTENDED_PROTOCOLS.isdisjoint(protocols):
            self._problem(f"{path}.port", f"{written.protocol} has no ports; leave port out")
        if isinstance(port, str):
            if written.end_port:
                self.findings.warnings.append(f"{path}.endPort: has no effect on a named port")
            return [NamedPort(protocol, port) for protocol in protocols]
        if port == 0:
            return [PortRange(protocol) for protocol in protocols]
        last = max(port, written.end_port or 0)
        return [PortRange(protocol, port, min(last, PORT_MAX)) for protocol in protocols]

    def _problem(self, path: str, message: str) -> None:
        self.findings.problems.append(Problem(path, message))


def read_selector(
    selector: Selector | None, source: str | None = None, prefix: str = ""
) -> LabelSelector:
    """A selector in normal form; None and the empty selector match everything.

    With `source`, keys are taken as plain label keys of that source (as in NetworkPolicy), with
    `prefix` put before them; otherwise a key may begin with a source of its own.
    """
    if selector is None:
        return LabelSelector()

    def requirement(key: str, operator: Operator, values: Sequence[str]) -> Requirement:
        found_source, found_key = (source, key) if source is not None else parse_key(key)
        return Requirement(found_source, prefix + found_key, operator, frozenset(values))

    labels = [
        requirement(key, Operator.IN, (value,))
        for key, value in (selector.match_labels or {}).items()
    ]
    expressions = [
        requirement(expression.key, _OPERATORS[expression.operator], expression.values or ())
        for expression in selector.match_expressions or ()
    ]
    return LabelSelector((*labels, *expressions))


def entity_selector(name: str, cluster: str) -> EntitySelector:
    """The selector of an entity other than `all`, which is every peer and needs none."""
    labels: tuple[Label, ...]
    match name:
        case "world":
            labels = WORLD_LABELS
        case "cluster":
            own = Label(SOURCE_K8S, KEY_CLUSTER, cluster)
            labels = (*(member.label for member in _CLUSTER_MEMBERS), own)
        case _:
            labels = (Label(SOURCE_RESERVED, name),)
    return EntitySelector(name, frozenset(labels))
