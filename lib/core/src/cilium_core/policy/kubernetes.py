"""NetworkPolicy of networking.k8s.io/v1, from model to normal form.

Selectors see Kubernetes labels only. Namespace selectors read the namespace's labels, which every
pod carries under a prefix. A direction that `policyTypes` leaves out is left alone, whatever its
section says. Peers are pods of the own cluster: host-network pods and nodes are not selectable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cilium_core.labels import (
    KEY_CLUSTER,
    KEY_NAMESPACE,
    KEY_NAMESPACE_LABELS_PREFIX,
    SOURCE_K8S,
)
from cilium_core.policy import auditing
from cilium_core.policy.networks import NetworkSelector
from cilium_core.policy.ports import NamedPort, PortMatch, PortRange, Protocol
from cilium_core.policy.rules import Direction, Policy, PolicyRef, Rule, Verdict, make_origin
from cilium_core.policy.selectors import PeerSelector, cidr_selector, equals, exists
from cilium_core.policy.translating_peers import read_selector

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cilium_core.policy.findings import Findings
    from cilium_core.policy.models_kubernetes import (
        KubernetesEgress,
        KubernetesIngress,
        KubernetesPeer,
        KubernetesPolicy,
        KubernetesPort,
    )
    from cilium_core.policy.options import PolicyOptions
    from cilium_core.policy.selectors import LabelSelector

KIND: Final = "NetworkPolicy"

_NAME_ANNOTATIONS: Final = ("policy.cilium.io/name", "io.cilium.name")


def translate(
    model: KubernetesPolicy,
    source: Mapping[str, object],
    options: PolicyOptions,
    findings: Findings,
) -> Policy:
    """Bring a checked NetworkPolicy into normal form; it cannot have problems left."""
    metadata = model.metadata
    namespace = metadata.namespace or "default"
    ref = PolicyRef(KIND, namespace, metadata.name)
    annotations = metadata.annotations or {}
    shown = next((annotations[key] for key in _NAME_ANNOTATIONS if key in annotations), ref.name)
    origin = make_origin(ref._replace(name=shown), metadata.uid)
    audit = auditing.check(annotations, findings)
    subject = read_selector(model.spec.pod_selector, SOURCE_K8S).require(
        equals(KEY_NAMESPACE, namespace)
    )
    defaults: list[str] = ["Ingress", "Egress"] if model.spec.egress else ["Ingress"]
    types: Sequence[str] = model.spec.policy_types or defaults
    sections: tuple[
        tuple[Direction, str, Sequence[KubernetesIngress | KubernetesEgress] | None], ...
    ] = (
        (Direction.INGRESS, "Ingress", model.spec.ingress),
        (Direction.EGRESS, "Egress", model.spec.egress),
    )
    rules = []
    for direction, name, items in sections:
        if name not in types:
            if items:
                findings.warnings.append(
                    f"spec.{name.lower()}: has no effect, since policyTypes leaves {name} out"
                )
            continue
        # Without an item the direction is still closed: a rule for nobody says so.
        path = f"spec.{name.lower()}"
        matches = [
            (_peers(item.peers, namespace, options), _ports(item.ports), f"{path}[{index}]")
            for index, item in enumerate(items or ())
        ] or [((), None, path)]
        rules += [
            Rule(
                direction,
                subject,
                Verdict.ALLOW,
                peers,
                ports,
                default_deny=True,
                origin=origin,
                named_ports_of_peer=True,
                audit=audit,
                path=path,
            )
            for peers, ports, path in matches
        ]
    return Policy(ref, tuple(rules), source, tuple(findings.warnings), metadata.uid or "")


def _peers(
    peers: Sequence[KubernetesPeer] | None, namespace: str, options: PolicyOptions
) -> tuple[PeerSelector, ...] | None:
    """The peers of an item; None, everyone, when it lists none."""
    if not peers:
        return None
    blocks = tuple(
        cidr_selector(peer.ip_block.cidr, peer.ip_block.excepted or (), options.families)
        for peer in peers
        if peer.ip_block is not None
    )
    pods = (_pods(peer, namespace, options) for peer in peers if peer.ip_block is None)
    if blocks and options.ip_block_pods:
        # All of them together, so that a pod with addresses of both families can be inside.
        return (NetworkSelector(blocks, closed=False), *pods)
    return (*blocks, *pods)


def _pods(peer: KubernetesPeer, namespace: str, options: PolicyOptions) -> LabelSelector:
    pods: LabelSelector = read_selector(peer.pod_selector, SOURCE_K8S)
    if peer.namespace_selector is None:
        selector = pods.require(equals(KEY_NAMESPACE, namespace))
    else:
        spaces = read_selector(peer.namespace_selector, SOURCE_K8S, KEY_NAMESPACE_LABELS_PREFIX)
        # Negative requirements alone would also match what is not a pod at all.
        selector = pods.require(*spaces.requirements, exists(KEY_NAMESPACE))
    if options.default_local_cluster:
        selector = selector.require(equals(KEY_CLUSTER, options.cluster))
    return selector


def _ports(ports: Sequence[KubernetesPort] | None) -> tuple[PortMatch, ...] | None:
    """The ports of an item; None, everything, when it lists none."""
    return tuple(_port(port) for port in ports) if ports else None


def _port(port: KubernetesPort) -> PortMatch:
    protocol = Protocol[port.protocol]
    if port.port is None:
        return PortRange(protocol)
    if isinstance(port.port, str):
        return NamedPort(protocol, port.port)
    return PortRange(protocol, port.port, port.end_port or port.port)
