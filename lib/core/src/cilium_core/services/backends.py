"""Who serves a port of a service: the endpoints of all its slices, and the choice among them.

Pure functions. Endpoints that are ready serve, even while they terminate; those that terminate and
still serve step in where no other is left; those that terminate and no longer serve keep the
connections they have; those that are not ready are kept as in maintenance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cilium_core.services.models import Backend, BackendState, L4Address
from cilium_core.services.objects import Candidate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cilium_core.policy.ports import Protocol
    from cilium_core.services.models import Address
    from cilium_core.services.objects import (
        Endpoint,
        NodeFacts,
        ServiceObject,
        ServicePort,
        SliceObject,
    )

_RANK: Final = {
    (BackendState.ACTIVE, True): 0,
    (BackendState.TERMINATING, True): 1,
    (BackendState.TERMINATING, False): 2,
    (BackendState.MAINTENANCE, False): 3,
    (BackendState.QUARANTINED, False): 4,
}
"""Where two slices speak of one backend, as while it moves from one to the other: who counts."""


def state_of(endpoint: Endpoint, *, publish_not_ready: bool) -> tuple[BackendState, bool]:
    """The state that conditions mean, and whether it may get connections if nobody is active."""
    if endpoint.ready or publish_not_ready:
        return BackendState.ACTIVE, True
    if endpoint.terminating:
        return BackendState.TERMINATING, endpoint.serving
    return BackendState.MAINTENANCE, False


def order(at: L4Address) -> tuple[int, int, int, int]:
    """Sorts addresses the same way everywhere."""
    return at.address.version, int(at.address), at.port, int(at.protocol)


def candidates(
    service: ServiceObject,
    port: ServicePort,
    slices: Iterable[SliceObject],
    node: NodeFacts,
    local_pods: frozenset[Address] | Mapping[Address, object],
    overrides: Mapping[L4Address, BackendState],
) -> tuple[Candidate, ...]:
    """All backends of a service's port, of both families, each once and in a stable order."""
    found: dict[L4Address, Candidate] = {}
    for part in slices:
        numbers = [
            one.port
            for one in part.ports
            if one.name == port.name and one.protocol is port.protocol
        ]
        for number in numbers:
            for endpoint in part.endpoints:
                for one in _of_endpoint(service, endpoint, port.protocol, number, node, local_pods):
                    other = found.get(one.at)
                    if other is None or _precedence(one) < _precedence(other):
                        found[one.at] = one
    for at, state in overrides.items():
        known = found.get(at)
        if known is not None and known.state is BackendState.ACTIVE:
            usable = state is BackendState.TERMINATING
            found[at] = known._replace(state=state, usable=usable)
    return tuple(found[at] for at in sorted(found, key=order))


def _of_endpoint(
    service: ServiceObject,
    endpoint: Endpoint,
    protocol: Protocol,
    number: int,
    node: NodeFacts,
    local_pods: frozenset[Address] | Mapping[Address, object],
) -> Iterable[Candidate]:
    state, usable = state_of(endpoint, publish_not_ready=service.publish_not_ready)
    for index, address in enumerate(endpoint.addresses):
        local = (
            endpoint.node == node.name
            if endpoint.node
            else address in node.addresses or address in local_pods
        )
        yield Candidate(
            L4Address(address, number, protocol),
            state,
            usable,
            endpoint.weights[index] if endpoint.weights else 1,
            endpoint.node,
            endpoint.zone,
            local,
            endpoint.hint_zones,
            endpoint.hint_nodes,
        )


def _precedence(one: Candidate) -> tuple[int, bool, int]:
    return _RANK[one.state, one.usable], not one.local, -one.weight


def choose(
    known: Iterable[Candidate], *, local_only: bool, hints: bool, node: NodeFacts
) -> tuple[tuple[Backend, ...], tuple[Backend, ...]]:
    """All backends that a frontend has, and those that new connections may go to.

    `local_only` leaves those of this node. With `hints`, connections stay in the zone (or on the
    node) that every active backend names, as long as one names this; other backends keep theirs.
    """
    kept = [one for one in known if one.local] if local_only else list(known)
    active = [one for one in kept if one.state is BackendState.ACTIVE]
    if hints and not local_only:
        active = _near(active, node)
    eligible = active or [one for one in kept if one.usable]
    made = {one.at: _backend(one) for one in kept}
    return tuple(made.values()), tuple(made[one.at] for one in eligible)


def _near(active: list[Candidate], node: NodeFacts) -> list[Candidate]:
    if all(one.hint_nodes for one in active):
        here = [one for one in active if node.name in (one.hint_nodes or ())]
        if here:
            return here
    if node.zone and all(one.hint_zones for one in active):
        here = [one for one in active if node.zone in (one.hint_zones or ())]
        if here:
            return here
    return active


def _backend(one: Candidate) -> Backend:
    return Backend(one.at, one.state, one.weight, one.node, one.zone, one.local)
