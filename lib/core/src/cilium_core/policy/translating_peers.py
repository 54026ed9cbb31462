"""Whom list items and subjects name, from model to normal form.

Here is settled which namespace and cluster a selector is limited to where it names none, and what
an absent or empty list stands for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
from cilium_core.policy.findings import Findings
from cilium_core.policy.models_peers import EgressDenyItem, EgressItem, IngressItem
from cilium_core.policy.options import PolicyOptions
from cilium_core.policy.selectors import (
    EntitySelector,
    FqdnSelector,
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
from cilium_core.policy.services import ServiceSelector

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cilium_core.policy.models_peers import CidrRule, PeerItem, ServiceModel
    from cilium_core.policy.models_values import Selector

_OPERATORS: Final = {
    "In": Operator.IN,
    "NotIn": Operator.NOT_IN,
    "Exists": Operator.EXISTS,
    "DoesNotExist": Operator.NOT_EXISTS,
}
_OBJECT_SOURCES: Final = frozenset((SOURCE_K8S, SOURCE_ANY))
_RESERVED: Final = frozenset((SOURCE_RESERVED,))
_REMOTE_NODE: Final = ReservedIdentity.REMOTE_NODE.label_name
_CLUSTER_MEMBERS: Final = (
    ReservedIdentity.HOST,
    ReservedIdentity.REMOTE_NODE,
    ReservedIdentity.INIT,
    ReservedIdentity.INGRESS,
    ReservedIdentity.HEALTH,
    ReservedIdentity.UNMANAGED,
    ReservedIdentity.KUBE_APISERVER,
)


@dataclass(frozen=True, slots=True)
class PeerReader:
    """Reads the peers of one rule of an object; `namespace` is empty in a cluster-wide policy."""

    options: PolicyOptions
    findings: Findings
    namespace: str
    subject: LabelSelector

    def read(self, item: PeerItem, path: str) -> tuple[PeerSelector, ...] | None:
        """The peers of a list item: None is everyone, nothing at all is nobody."""
        self._refuse(item, path)
        if all(peers is None for peers in item.peer_lists()):
            return None if item.to_ports or item.icmps else ()
        if "all" in (item.entities or ()):
            return None
        families = self.options.families
        return (
            *(self._limit(read_selector(selector)) for selector in item.endpoints or ()),
            *(entity_selector(entity, self.options.cluster) for entity in item.entities or ()),
            *(cidr_selector(cidr, (), families) for cidr in item.cidr or ()),
            *(self._cidr_rule(rule) for rule in item.cidr_set or ()),
            *(self._node(read_selector(selector)) for selector in item.nodes or ()),
            *self._egress_only(item),
        )

    def _refuse(self, item: PeerItem, path: str) -> None:
        if item.nodes and not self.options.node_selector_labels:
            self.findings.problem(
                f"{path}.{item.public_name('nodes')}",
                "needs the option enable-node-selector-labels",
            )
        if item.groups:
            self.findings.unsupported(
                f"{path}.{item.public_name('groups')}",
                "is not available: there is no cloud provider to ask for the group's addresses; "
                "list them in a CiliumCIDRGroup",
            )
        wanted = item.authentication if isinstance(item, IngressItem | EgressItem) else None
        if wanted is not None and wanted.mode != "disabled":
            self.findings.unsupported(
                f"{path}.authentication",
                "is not available: there is no mutual authentication between pods",
            )

    def _egress_only(self, item: PeerItem) -> Iterator[PeerSelector]:
        if isinstance(item, EgressItem | EgressDenyItem):
            yield from map(self._service, item.services or ())
        if isinstance(item, EgressItem):
            for name in item.fqdns or ():
                yield FqdnSelector(name.match_name or "", name.match_pattern or "")

    def _cidr_rule(self, rule: CidrRule) -> PeerSelector:
        excepts, families = rule.excepted or (), self.options.families
        if rule.cidr is not None:
            return cidr_selector(rule.cidr, excepts, families)
        if rule.cidr_group_ref is not None:
            return cidr_group_selector(groups.named(rule.cidr_group_ref), excepts, families)
        return cidr_group_selector(read_selector(rule.cidr_group_selector), excepts, families)

    def _service(self, service: ServiceModel) -> PeerSelector:
        cluster = self.options.cluster if self.options.default_local_cluster else ""
        families = self.options.families
        if service.k8s_service is not None:
            named = service.k8s_service
            space = named.namespace or ""
            return ServiceSelector(space, named.service_name, None, cluster, families)
        chosen = service.k8s_service_selector
        written = read_selector(chosen.selector if chosen is not None else None)
        # Services have labels of one source only, and whichever is written is ignored.
        labels = LabelSelector(
            tuple(replace(one, source=SOURCE_ANY) for one in written.requirements)
        )
        space = chosen.namespace or "" if chosen is not None else ""
        return ServiceSelector(space, "", labels, cluster, families)

    def _node(self, peer: LabelSelector) -> LabelSelector:
        return self._limit_cluster(peer.require(exists(_REMOTE_NODE, SOURCE_RESERVED)))

    def _limit(self, peer: LabelSelector) -> LabelSelector:
        """Limit a peer to the policy's namespace and cluster where it names none."""
        if peer.mentions_reserved():
            return peer
        names_namespace = peer.mentions(KEY_NAMESPACE, sources=_OBJECT_SOURCES)
        if self.namespace:
            if not names_namespace and not peer.mentions_namespace_labels():
                peer = peer.require(equals(KEY_NAMESPACE, self.namespace))
        elif not names_namespace and not mentions_init(self.subject):
            peer = peer.require(exists(KEY_NAMESPACE))
        return self._limit_cluster(peer)

    def _limit_cluster(self, peer: LabelSelector) -> LabelSelector:
        if self.options.default_local_cluster and not peer.mentions(
            KEY_CLUSTER, sources=_OBJECT_SOURCES
        ):
            return peer.require(equals(KEY_CLUSTER, self.options.cluster))
        return peer


def mentions_init(selector: LabelSelector) -> bool:
    """Whether a selector is about endpoints whose labels are not known yet."""
    return selector.mentions(ReservedIdentity.INIT.label_name, sources=_RESERVED)


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
