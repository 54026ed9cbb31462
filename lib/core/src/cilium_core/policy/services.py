"""Services: named pods or addresses that policies refer to by `toServices`.

A policy names a service, or selects services by their labels; what its rules then match depends on
the services that exist. A service with a pod selector stands for those pods, one without for the
addresses of its backends, as far as they are outside the cluster. `Services.bind` writes that into
a policy's selectors, and is asked again whenever a service or its backends change; a service that
does not exist stands for nobody. Ports of the service play no role.

Immutable values; no I/O.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from cilium_core.identities import Families, Prefix
from cilium_core.labels import KEY_CLUSTER, KEY_NAMESPACE, SOURCE_K8S, Label, LabelSet
from cilium_core.policy.selectors import (
    LabelSelector,
    PeerSelector,
    cidr_selector,
    equals,
)

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator

    from cilium_core.policy.rules import Policy, Rule

SERVICE_KIND: Final = "Service"
SLICE_KIND: Final = "EndpointSlice"
_SERVICE_LABEL: Final = "kubernetes.io/service-name"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Service:
    """A service as far as policy goes; `selector` is None when it selects no pods."""

    namespace: str
    name: str
    labels: LabelSet
    selector: tuple[tuple[str, str], ...] | None = None


@dataclass(frozen=True, slots=True)
class ServiceSelector:
    """Whom some services stand for.

    Services are named, or selected by their own labels, in one namespace or (empty) in all.
    `cluster` limits pods to a cluster, if not empty. `peers` are whom the services that exist
    stand for; until the selector is bound, there are none.
    """

    namespace: str
    name: str
    labels: LabelSelector | None
    cluster: str
    families: Families
    peers: frozenset[PeerSelector] = frozenset()

    def means(self, service: Service) -> bool:
        """Whether a service is one of those."""
        if self.namespace and service.namespace != self.namespace:
            return False
        if self.labels is not None:
            return self.labels.matches(service.labels)
        return service.name == self.name

    def matches(self, labels: LabelSet) -> bool:
        """Whether an identity with these labels is selected."""
        return any(peer.matches(labels) for peer in self.peers)

    def anchors(self) -> tuple[Hashable, ...] | None:
        """Those of everyone that the services stand for."""
        found: list[Hashable] = []
        for peer in self.peers:
            anchors = peer.anchors()
            if anchors is None:
                return None
            found += anchors
        return tuple(dict.fromkeys(found))

    def prefixes(self) -> Iterable[Prefix]:
        """The addresses of backends that are no pods."""
        return frozenset(prefix for peer in self.peers for prefix in peer.prefixes())

    def __str__(self) -> str:
        space = self.namespace or "*"
        if self.labels is not None:
            return f"services:[{self.labels}] in {space}"
        return f"service:{space}/{self.name}"


@dataclass(frozen=True, slots=True)
class Services:
    """All services, and the addresses behind them by endpoint slice."""

    services: Mapping[tuple[str, str], Service] = field(default_factory=dict)
    slices: Mapping[tuple[str, str], tuple[tuple[str, str], frozenset[Address]]] = field(
        default_factory=dict
    )

    def with_service(self, service: Service) -> Services:
        """The services with one added or replaced."""
        key = (service.namespace, service.name)
        return replace(self, services={**self.services, key: service})

    def without_service(self, namespace: str, name: str) -> Services:
        """The services without one."""
        rest = {key: one for key, one in self.services.items() if key != (namespace, name)}
        return replace(self, services=rest)

    def with_slice(
        self, namespace: str, name: str, service: str, addresses: Iterable[Address]
    ) -> Services:
        """The services with an endpoint slice of one of them added or replaced."""
        entry = ((namespace, service), frozenset(addresses))
        return replace(self, slices={**self.slices, (namespace, name): entry})

    def without_slice(self, namespace: str, name: str) -> Services:
        """The services without an endpoint slice."""
        rest = {key: one for key, one in self.slices.items() if key != (namespace, name)}
        return replace(self, slices=rest)

    def backends(self, namespace: str, name: str) -> frozenset[Address]:
        """The addresses behind a service."""
        parts = (
            addresses for owner, addresses in self.slices.values() if owner == (namespace, name)
        )
        return frozenset[Address]().union(*parts)

    def bind(self, policy: Policy) -> Policy:
        """The policy with whom its service selectors stand for now.

        Rules in which nothing changes stay the same objects, and so does the policy.
        """
        rules = tuple(self._bind_rule(rule) for rule in policy.rules)
        unchanged = all(new is old for new, old in zip(rules, policy.rules, strict=True))
        return policy if unchanged else replace(policy, rules=rules)

    def __iter__(self) -> Iterator[Service]:
        return iter(self.services.values())

    def __len__(self) -> int:
        return len(self.services)

    def _bind_rule(self, rule: Rule) -> Rule:
        if not any(isinstance(peer, ServiceSelector) for peer in rule.peers or ()):
            return rule
        peers = tuple(
            self._bind_peer(peer) if isinstance(peer, ServiceSelector) else peer
            for peer in rule.peers or ()
        )
        return rule if peers == rule.peers else replace(rule, peers=peers)

    def _bind_peer(self, selector: ServiceSelector) -> ServiceSelector:
        found = (one for one in self.services.values() if selector.means(one))
        peers = frozenset(peer for one in found for peer in self._peers(one, selector))
        return replace(selector, peers=peers)

    def _peers(self, service: Service, selector: ServiceSelector) -> Iterator[PeerSelector]:
        if service.selector is not None:
            pods = [equals(key, value) for key, value in service.selector]
            pods.append(equals(KEY_NAMESPACE, service.namespace))
            if selector.cluster:
                pods.append(equals(KEY_CLUSTER, selector.cluster))
            yield LabelSelector(tuple(pods))
            return
        for address in self.backends(service.namespace, service.name):
            yield cidr_selector(ipaddress.ip_network(address), (), selector.families)


def read_service(obj: Mapping[str, Any]) -> Service:
    """The policy's part of a Service object; what is malformed in it counts as not written."""
    metadata, spec = _mapping(obj.get("metadata")), _mapping(obj.get("spec"))
    namespace, name = str(metadata.get("namespace") or "default"), str(metadata.get("name") or "")
    selector = _texts(spec.get("selector"))
    labels = (
        Label(SOURCE_K8S, key, value) for key, value in _texts(metadata.get("labels")).items()
    )
    return Service(namespace, name, LabelSet(labels), tuple(sorted(selector.items())) or None)


def read_slice(obj: Mapping[str, Any]) -> tuple[str, str, str, frozenset[Address]]:
    """Namespace, name, service and addresses of an EndpointSlice; what is malformed is left out.

    Backends that say that they are not ready count: they may still have connections.
    """
    metadata = _mapping(obj.get("metadata"))
    namespace, name = str(metadata.get("namespace") or "default"), str(metadata.get("name") or "")
    service = _texts(metadata.get("labels")).get(_SERVICE_LABEL, "")
    endpoints = obj.get("endpoints")
    addresses = set()
    for endpoint in endpoints if isinstance(endpoints, list) else ():
        texts = _mapping(endpoint).get("addresses")
        for text in texts if isinstance(texts, list) else ():
            try:
                addresses.add(ipaddress.ip_address(text) if isinstance(text, str) else None)
            except ValueError:
                continue
    return namespace, name, service, frozenset(one for one in addresses if one is not None)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _texts(value: object) -> dict[str, str]:
    return {
        key: text
        for key, text in _mapping(value).items()
        if isinstance(key, str) and isinstance(text, str)
    }
