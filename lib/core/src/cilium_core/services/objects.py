"""What is read of services, endpoint slices and pods, and what a node knows of itself.

Immutable values; no I/O.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cilium_core.labels import LabelSet
from cilium_core.policy.ports import Protocol
from cilium_core.services.models import (
    Address,
    Algorithm,
    BackendState,
    Forwarding,
    FrontendKind,
    L4Address,
    Network,
    ServiceName,
)

WHOLE_ADDRESS: Final = 0
"""The port of the entry that stands for an address as a whole."""

AFFINITY_TIMEOUT_S: Final = 10800
AFFINITY_TIMEOUT_MAX_S: Final = 0xFFFFFF

_ANYWHERE: Final = {4: ipaddress.ip_address("0.0.0.0"), 6: ipaddress.ip_address("::")}  # noqa: S104 - a key


def whole(address: Address) -> L4Address:
    """The entry of an address as a whole; its protocol means nothing and is TCP by convention."""
    return L4Address(address, WHOLE_ADDRESS, Protocol.TCP)


def anywhere(version: int) -> Address:
    """The address under which programs at sockets look for NodePorts; `version` is 4 or 6."""
    return _ANYWHERE[version]


@dataclass(frozen=True, slots=True, order=True)
class Remark:
    """Something in an object that was left out, and why; for logs and for users."""

    subject: str
    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.path}: {self.text}"


class PortRange(NamedTuple):
    """Ports from `first` to `last`, both inclusive."""

    first: int
    last: int

    def __contains__(self, port: object) -> bool:
        return isinstance(port, int) and self.first <= port <= self.last


NODE_PORT_RANGE: Final = PortRange(30000, 32767)


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """What the agent is configured to do; names are those of its options."""

    kube_proxy_replacement: bool = True
    node_port_range: PortRange = NODE_PORT_RANGE
    external_cluster_ip: bool = False
    source_range_all_types: bool = False
    session_affinity: bool = True
    service_topology: bool = False
    service_proxy_name: str = ""
    algorithm: Algorithm = Algorithm.RANDOM
    local_redirects: bool = True
    local_redirect_networks: tuple[Network, ...] = ()
    """What address matchers may name; none is everything."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """The node that a table is made for.

    `addresses` are all its own, `node_port_addresses` those on which NodePorts are served,
    `remote_addresses` those of all other nodes.
    """

    name: str
    addresses: frozenset[Address] = frozenset()
    node_port_addresses: tuple[Address, ...] = ()
    zone: str = ""
    labels: LabelSet = field(default_factory=LabelSet)
    remote_addresses: frozenset[Address] = frozenset()


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a service; `node_port` is 0 where there is none."""

    name: str
    protocol: Protocol
    port: int
    node_port: int = 0


@dataclass(frozen=True, slots=True)
class ServiceObject:
    """A Service as far as this node is to translate it.

    `kinds` are the kinds of frontends that its type and its annotations allow. `source_ranges` is
    None where everybody may ask. `node_selector` is the text of a label selector, or empty.
    """

    name: ServiceName
    kinds: frozenset[FrontendKind] = frozenset()
    ports: tuple[ServicePort, ...] = ()
    cluster_ips: tuple[Address, ...] = ()
    load_balancer_ips: tuple[Address, ...] = ()
    external_ips: tuple[Address, ...] = ()
    external_local: bool = False
    internal_local: bool = False
    affinity_timeout: int = 0
    source_ranges: tuple[Network, ...] | None = None
    source_ranges_deny: bool = False
    publish_not_ready: bool = False
    algorithm: Algorithm | None = None
    forwarding: Forwarding = Forwarding.DEFAULT
    health_check_port: int = 0
    topology: bool = False
    topology_annotation: bool | None = None
    proxy_name: str = ""
    node_label: str | None = None
    node_selector: str = ""
    created: str = ""


@dataclass(frozen=True, slots=True)
class SlicePort:
    """A port of an endpoint slice; the name pairs it with the service's."""

    name: str
    protocol: Protocol
    port: int


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Addresses behind a service, and how they are."""

    addresses: tuple[Address, ...]
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node: str = ""
    zone: str = ""
    hint_zones: frozenset[str] | None = None
    hint_nodes: frozenset[str] | None = None
    weights: tuple[int, ...] = ()
    """One for each address, or none at all where all count alike."""


@dataclass(frozen=True, slots=True)
class SliceObject:
    """An EndpointSlice."""

    namespace: str
    name: str
    service: ServiceName
    ports: tuple[SlicePort, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()


class PodName(NamedTuple):
    """Namespace and name of a pod."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class HostPort:
    """A port of the node that leads to a port of a pod.

    `address` None is every one of the node, 0.0.0.0 and :: every one of that family.
    """

    host_port: int
    port: int
    protocol: Protocol = Protocol.TCP
    address: Address | None = None


@dataclass(frozen=True, slots=True)
class LocalPod:
    """A pod of this node, with the labels that policies know it by."""

    name: PodName
    addresses: tuple[Address, ...]
    labels: LabelSet = field(default_factory=LabelSet)
    ready: bool = True
    host_ports: tuple[HostPort, ...] = ()


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """What a load balancer is told on the port for health checks of a service."""

    service: ServiceName
    port: int
    local_endpoints: int


class Candidate(NamedTuple):
    """A backend before it is decided who of all serves.

    `usable` says that it may get new connections when no active backend is left.
    """

    at: L4Address
    state: BackendState
    usable: bool
    weight: int = 1
    node: str = ""
    zone: str = ""
    local: bool = False
    hint_zones: frozenset[str] | None = None
    hint_nodes: frozenset[str] | None = None
