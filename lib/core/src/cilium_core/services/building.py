"""Which frontends a service has on a node, and those of host ports. Pure functions.

Every kind of address of every port becomes a frontend, with the backends of the address's own
family. Where outside and inside are served by different backends, a frontend is there twice, once
for each scope. Addresses that belong to services alone have an entry for the address as a whole.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from cilium_core.services.backends import choose
from cilium_core.services.models import (
    Algorithm,
    Backend,
    Frontend,
    FrontendKind,
    L4Address,
    Scope,
    ServiceName,
)
from cilium_core.services.objects import anywhere, whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from cilium_core.services.models import Address
    from cilium_core.services.objects import (
        Candidate,
        LocalPod,
        NodeFacts,
        ServiceObject,
        ServiceOptions,
        ServicePort,
    )

_OUTSIDE = (FrontendKind.NODE_PORT, FrontendKind.LOAD_BALANCER, FrontendKind.EXTERNAL_IPS)


class Place(NamedTuple):
    """Where a frontend is, before it is known who serves."""

    kind: FrontendKind
    address: Address
    port: int
    surrogate: bool = False


def build(
    service: ServiceObject,
    backends: Mapping[ServicePort, tuple[Candidate, ...]],
    node: NodeFacts,
    options: ServiceOptions,
) -> tuple[Frontend, ...]:
    """All frontends of a service."""
    found: list[Frontend] = []
    hints = service.topology or (
        options.service_topology and service.topology_annotation is not False
    )
    for port in service.ports:
        chosen = _Choices(backends[port], node, hints=hints)
        for place in places(service, port, node, options):
            found += _frontends(service, port, place, chosen, options)
    found += _whole_addresses(service, found, node)
    return tuple(found)


def places(
    service: ServiceObject, port: ServicePort, node: NodeFacts, options: ServiceOptions
) -> Iterator[Place]:
    """Every address and port that a service's port is asked at."""
    kinds = service.kinds
    if FrontendKind.CLUSTER_IP in kinds:
        for address in service.cluster_ips:
            yield Place(FrontendKind.CLUSTER_IP, address, port.port)
    if not options.kube_proxy_replacement:
        return
    if FrontendKind.NODE_PORT in kinds and port.node_port:
        versions = _versions(service)
        for address in node.node_port_addresses:
            if address.version in versions:
                yield Place(FrontendKind.NODE_PORT, address, port.node_port)
        for version in versions:
            yield Place(FrontendKind.NODE_PORT, anywhere(version), port.node_port, surrogate=True)
    if FrontendKind.LOAD_BALANCER in kinds:
        for address in service.load_balancer_ips:
            yield Place(FrontendKind.LOAD_BALANCER, address, port.port)
    if FrontendKind.EXTERNAL_IPS in kinds:
        for address in service.external_ips:
            yield Place(FrontendKind.EXTERNAL_IPS, address, port.port)


class _Choices:
    """Who serves a port, worked out once for all frontends that are served alike."""

    def __init__(self, known: tuple[Candidate, ...], node: NodeFacts, *, hints: bool) -> None:
        self._known = known
        self._node = node
        self._hints = hints
        self._made: dict[tuple[int, bool], tuple[tuple[Backend, ...], tuple[Backend, ...]]] = {}

    def of(
        self, version: int, *, local_only: bool
    ) -> tuple[tuple[Backend, ...], tuple[Backend, ...]]:
        """All backends of a family and the eligible ones; the same question has the same answer."""
        made = self._made.get((version, local_only))
        if made is None:
            family = [one for one in self._known if one.at.address.version == version]
            made = choose(family, local_only=local_only, hints=self._hints, node=self._node)
            self._made[version, local_only] = made
        return made


def _versions(service: ServiceObject) -> list[int]:
    """The families of a service: those of its cluster addresses, or both while it has none."""
    return sorted({address.version for address in service.cluster_ips}) or [4, 6]


def _frontends(
    service: ServiceObject,
    port: ServicePort,
    place: Place,
    chosen: _Choices,
    options: ServiceOptions,
) -> Iterator[Frontend]:
    outside = place.kind in _OUTSIDE
    two_scopes = outside and service.external_local != service.internal_local
    scopes = (Scope.EXTERNAL, Scope.INTERNAL) if two_scopes else (Scope.EXTERNAL,)
    routable = not place.surrogate and (outside or options.external_cluster_ip)
    algorithm = service.algorithm or options.algorithm
    ranged = place.kind is FrontendKind.LOAD_BALANCER or (
        outside and options.source_range_all_types
    )
    ranges = service.source_ranges if ranged else None
    for scope in scopes:
        local = (
            service.external_local
            if outside and scope is Scope.EXTERNAL
            else service.internal_local
        )
        backends, eligible = chosen.of(place.address.version, local_only=local)
        asked_outside = routable and scope is Scope.EXTERNAL
        yield Frontend(
            at=L4Address(place.address, place.port, port.protocol),
            scope=scope,
            kind=place.kind,
            service=service.name,
            port_name=port.name,
            backends=backends,
            eligible=eligible,
            two_scopes=two_scopes,
            external_local=outside and service.external_local,
            internal_local=service.internal_local,
            routable=routable,
            affinity_timeout=service.affinity_timeout if options.session_affinity else 0,
            source_ranges=None
            if ranges is None or scope is Scope.INTERNAL
            else tuple(one for one in ranges if one.version == place.address.version),
            source_ranges_deny=ranges is not None and service.source_ranges_deny,
            algorithm=algorithm if asked_outside else Algorithm.RANDOM,
            forwarding=service.forwarding,
        )


def _whole_addresses(
    service: ServiceObject, made: Iterable[Frontend], node: NodeFacts
) -> Iterator[Frontend]:
    """Entries for addresses that nobody but services has: not those of nodes."""
    done: set[Address] = set()
    for one in made:
        address = one.at.address
        if one.kind is FrontendKind.NODE_PORT or address in done:
            continue
        done.add(address)
        if one.kind is not FrontendKind.CLUSTER_IP and (
            address in node.addresses
            or address in node.node_port_addresses
            or address in node.remote_addresses
        ):
            continue
        yield Frontend(
            whole(address), Scope.EXTERNAL, one.kind, service.name, routable=one.routable
        )


def host_port_service(pod: LocalPod) -> ServiceName:
    """What the host ports of a pod are called; no object can have the name."""
    return ServiceName(pod.name.namespace, f"{pod.name.name}:host-port")


def host_ports(
    pod: LocalPod, node: NodeFacts, options: ServiceOptions
) -> tuple[tuple[Frontend, ...], tuple[str, ...]]:
    """The frontends of a pod's host ports, and what is wrong with others."""
    found: list[Frontend] = []
    wrong: list[str] = []
    for number, port in enumerate(pod.host_ports):
        if port.host_port in options.node_port_range:
            first, last = options.node_port_range
            wrong.append(
                f"{port.host_port} is in the range of NodePorts, {first} to {last}; the host port "
                "is left out"
            )
            continue
        for address in pod.addresses:
            backend = Backend(L4Address(address, port.port, port.protocol), node=node.name)
            backend = replace(backend, zone=node.zone, local=True)
            wanted = port.address
            if wanted is not None and wanted.version != address.version:
                continue
            if wanted is None or wanted.is_unspecified:
                places = [one for one in node.node_port_addresses if one.version == address.version]
                places.append(anywhere(address.version))
            else:
                places = [wanted]
            found += (
                Frontend(
                    L4Address(place, port.host_port, port.protocol),
                    Scope.EXTERNAL,
                    FrontendKind.HOST_PORT,
                    host_port_service(pod),
                    str(number),
                    (backend,),
                    (backend,),
                    routable=not (place.is_unspecified or place.is_loopback),
                )
                for place in places
            )
    return tuple(found), tuple(wrong)
