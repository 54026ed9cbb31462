"""CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy, from model to normal form.

Here the meaning of what is *not* written is settled, with the help of `translating_peers`,
`translating_ports` and `translating_l7`: what an absent or empty list stands for, and whether a
rule turns default deny on. Pure functions; problems that only show here are collected with their
field paths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cilium_core.labels import KEY_NAMESPACE, SOURCE_K8S
from cilium_core.policy import auditing
from cilium_core.policy.findings import Findings
from cilium_core.policy.models import CiliumRule
from cilium_core.policy.options import PolicyOptions
from cilium_core.policy.rules import (
    Direction,
    Origin,
    Policy,
    PolicyRef,
    Rule,
    Verdict,
    make_origin,
)
from cilium_core.policy.selectors import LabelSelector, equals
from cilium_core.policy.translating_l7 import L7Reader
from cilium_core.policy.translating_peers import PeerReader, mentions_init, read_selector
from cilium_core.policy.translating_ports import PortReader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cilium_core.policy.models import CiliumPolicy
    from cilium_core.policy.models_peers import PeerItem

KIND_NAMESPACED: Final = "CiliumNetworkPolicy"
KIND_CLUSTERWIDE: Final = "CiliumClusterwideNetworkPolicy"

_OBJECT_NAMESPACE: Final = f"{SOURCE_K8S}:{KEY_NAMESPACE}"
_DIRECTIONS: Final = (
    (Direction.INGRESS, Verdict.ALLOW, "ingress"),
    (Direction.INGRESS, Verdict.DENY, "ingressDeny"),
    (Direction.EGRESS, Verdict.ALLOW, "egress"),
    (Direction.EGRESS, Verdict.DENY, "egressDeny"),
)


def translate(
    model: CiliumPolicy, source: Mapping[str, object], options: PolicyOptions, findings: Findings
) -> Policy:
    """Bring a checked object into normal form; if that finds problems, the result is void."""
    namespace = "" if model.kind == KIND_CLUSTERWIDE else model.metadata.namespace or "default"
    if not namespace and model.metadata.namespace:
        findings.warn("metadata.namespace", "has no effect on a cluster-wide policy")
    ref = PolicyRef(model.kind, namespace, model.metadata.name)
    audit = auditing.check(model.metadata.annotations, findings)
    specs = [] if model.spec is None else [("spec", model.spec)]
    specs += [(f"specs[{index}]", spec) for index, spec in enumerate(model.specs or [])]
    rules: list[Rule] = []
    for path, spec in specs:
        labels = [label.to_label() for label in spec.labels or ()]
        origin = make_origin(ref, model.metadata.uid, labels, spec.log.value if spec.log else "")
        context = _Context(options, findings, namespace, spec, path, origin, audit)
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
    audit: bool

    def translate(self) -> list[Rule]:
        subject = self._subject()
        peers = PeerReader(self.options, self.findings, self.namespace, subject)
        lists = (
            self.spec.ingress,
            self.spec.ingress_deny,
            self.spec.egress,
            self.spec.egress_deny,
        )
        rules: list[Rule] = []
        for (direction, verdict, name), items in zip(_DIRECTIONS, lists, strict=True):
            rules += self._rules(direction, verdict, name, items or (), subject, peers)
        self._warn_about_idle_default_deny()
        return rules

    def _rules(
        self,
        direction: Direction,
        verdict: Verdict,
        name: str,
        items: Sequence[PeerItem],
        subject: LabelSelector,
        peers: PeerReader,
    ) -> list[Rule]:
        nodes = self.spec.node_selector is not None
        l7 = L7Reader(self.options, self.findings, self.namespace, direction, nodes)
        ports = PortReader(self.options, self.findings, l7)
        default_deny = self._default_deny(direction)
        rules = []
        for index, item in enumerate(items):
            path = f"{self.path}.{name}[{index}]"
            whom = peers.read(item, path)
            rules += [
                Rule(
                    direction,
                    subject,
                    verdict,
                    whom,
                    found.ports,
                    default_deny,
                    self.origin,
                    l7=found.l7,
                    audit=self.audit,
                    nodes=nodes,
                    path=path,
                )
                for found in ports.read(item, path)
            ]
        return rules

    def _subject(self) -> LabelSelector:
        if self.spec.node_selector is not None:
            path = f"{self.path}.nodeSelector"
            if self.namespace:
                self.findings.problem(path, "only a cluster-wide policy can select nodes")
            elif not self.options.host_firewall:
                self.findings.warn(path, "has no effect without the option enable-host-firewall")
            return read_selector(self.spec.node_selector)
        written = self.spec.endpoint_selector
        if not self.namespace or written is None:
            return read_selector(written)
        path = f"{self.path}.endpointSelector"
        labels = dict(written.match_labels or {})
        if labels.pop(_OBJECT_NAMESPACE, self.namespace) != self.namespace:
            self.findings.warn(
                path, f"a namespaced policy selects in its own namespace only, {self.namespace}"
            )
        selector = read_selector(written.model_copy(update={"match_labels": labels}))
        if mentions_init(selector):
            self.findings.warn(
                path, f"reserved:init endpoints have no namespace; use a {KIND_CLUSTERWIDE}"
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
                self.findings.warn(
                    f"{self.path}.enableDefaultDeny.{name}",
                    f"has no effect without a rule of that direction; add `{name}: [{{}}]`",
                )
