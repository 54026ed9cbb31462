"""Services as messages: as the agent knows them, with the ids that the kernel has for them."""

from __future__ import annotations

import time
from collections import Counter as CountOf
from typing import TYPE_CHECKING

from cilium.agent.v1 import agent_pb2
from cilium_core import abi

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from cilium_core.services.models import Backend, Frontend, L4Address

    from cilium_agent.datapath.models import Address
    from cilium_agent.datapath.servicedumps import (
        BackendRow,
        FrontendRow,
        ServiceAddress,
        ServiceDumps,
    )

_FLAGS = [
    (int(flag), str(flag.name).removeprefix("LB_").lower().replace("_", "-"))
    for flag in abi.enum("lb_flag")
]
_STATES = {
    int(state): str(state.name).removeprefix("LB_BACKEND_").lower()
    for state in abi.enum("lb_backend_state")
}
_SCOPES = {int(abi.LB_EXTERNAL): "external", int(abi.LB_INTERNAL): "internal"}
_NUMBERS = {name: number for number, name in _SCOPES.items()}

Place = tuple["Address", int, int]
"""Address, port and protocol number."""


class Ids:
    """The kernel's ids of frontends, by place and scope, and of backends by place."""

    def __init__(self, dumps: ServiceDumps) -> None:
        """Read them; blocks."""
        self.frontends: dict[tuple[Place, int], int] = {
            (row.at, row.scope): row.rev_nat for row in dumps.frontends()
        }
        self.backends: dict[Place, int] = {row.at: row.id for row in dumps.backends()}

    def of(self, frontend: Frontend) -> int:
        """Id of a frontend, 0 while the kernel has none."""
        return self.frontends.get((place(frontend.at), _NUMBERS[frontend.scope.value]), 0)


def place(at: L4Address) -> Place:
    """Where a frontend or a backend is, as the ids are sorted by."""
    return at.address, at.port, int(at.protocol) if at.port else 0


def service(frontend: Frontend, ids: Ids) -> agent_pb2.Service:
    """Tell a frontend."""
    scope = frontend.scope.value
    eligible = set(frontend.eligible)
    return agent_pb2.Service(
        id=ids.of(frontend),
        frontend=address(frontend.at),
        scope=scope,
        type=frontend.kind.value,
        namespace=frontend.service.namespace,
        name=frontend.service.name,
        port_name=frontend.port_name,
        backends=[backend(one, ids, eligible=one in eligible) for one in frontend.backends],
        external_traffic_policy="Local" if frontend.external_local else "Cluster",
        internal_traffic_policy="Local" if frontend.internal_local else "Cluster",
        affinity_timeout_s=frontend.affinity_timeout,
        source_ranges=[str(one) for one in frontend.source_ranges or ()],
        source_ranges_deny=frontend.source_ranges_deny,
        algorithm=frontend.algorithm.value,
        forwarding=frontend.forwarding.value,
        routable=frontend.routable,
    )


def backend(one: Backend, ids: Ids, *, eligible: bool) -> agent_pb2.ServiceBackend:
    """Tell a backend."""
    return agent_pb2.ServiceBackend(
        id=ids.backends.get(place(one.at), 0),
        address=address(one.at),
        state=one.state.value,
        weight=one.weight,
        node=one.node,
        zone=one.zone,
        local=one.local,
        eligible=eligible,
    )


def address(at: L4Address) -> agent_pb2.ServiceAddress:
    """Tell an address with port and protocol."""
    return agent_pb2.ServiceAddress(
        ip=str(at.address), port=at.port, protocol=int(at.protocol) if at.port else 0
    )


# ---- the maps ----


def frontends(dumps: ServiceDumps) -> Iterator[agent_pb2.MapEntry]:
    """Frontends of the kernel, each with its slots."""
    known = {row.id: row for row in dumps.backends()}
    for row in sorted(dumps.frontends(), key=_by_place):
        yield agent_pb2.MapEntry(
            lb_frontend=agent_pb2.LBFrontendEntry(
                address=_address(row.at),
                scope=_SCOPES[row.scope],
                rev_nat=row.rev_nat,
                flags=[name for bit, name in _FLAGS if row.flags & bit],
                affinity_timeout_s=row.affinity_timeout_s,
                first_slot=row.first,
                backends=[_backend(number, known) for number in row.slots],
            )
        )


def backends(dumps: ServiceDumps) -> Iterator[agent_pb2.MapEntry]:
    """Backends of the kernel."""
    known = {row.id: row for row in dumps.backends()}
    for number in known:
        yield agent_pb2.MapEntry(lb_backend=_backend(number, known))


def reverse(dumps: ServiceDumps) -> Iterator[agent_pb2.MapEntry]:
    """The addresses that answers get."""
    for number, at in dumps.reverse():
        entry = agent_pb2.LBReverseNATEntry(rev_nat=number, address=_address(at))
        yield agent_pb2.MapEntry(lb_reverse_nat=entry)


def ranges(dumps: ServiceDumps) -> Iterator[agent_pb2.MapEntry]:
    """Who may ask, or may not."""
    for number, prefix in sorted(dumps.ranges(), key=lambda row: (row[0], str(row[1]))):
        entry = agent_pb2.LBSourceRangeEntry(rev_nat=number, prefix=str(prefix))
        yield agent_pb2.MapEntry(lb_source_range=entry)


def maglev(dumps: ServiceDumps, only: int) -> Iterator[agent_pb2.MapEntry]:
    """All tables in short, or one of them whole."""
    for number in [only] if only else dumps.maglev_ids():
        table = dumps.maglev(number)
        if table is None:
            continue
        entry = agent_pb2.LBMaglevEntry(
            rev_nat=number,
            size=len(table),
            shares=CountOf(table.tolist()),
            table=table.tolist() if only else (),
        )
        yield agent_pb2.MapEntry(lb_maglev=entry)


def affinity(dumps: ServiceDumps) -> Iterator[agent_pb2.MapEntry]:
    """Who served whom."""
    now = int(time.clock_gettime(time.CLOCK_MONOTONIC))
    for row in sorted(dumps.affinity(), key=lambda row: (row.rev_nat, str(row.client))):
        client = f"netns:{row.client}" if isinstance(row.client, int) else str(row.client)
        entry = agent_pb2.LBAffinityEntry(
            client=client,
            rev_nat=row.rev_nat,
            backend=row.backend,
            age_s=max(0, now - row.last_used_s),
        )
        yield agent_pb2.MapEntry(lb_affinity=entry)


def _by_place(row: FrontendRow) -> tuple[int, bytes, int, int, int]:
    at = row.at
    return at.address.version, at.address.packed, at.port, at.protocol, row.scope


def _address(at: ServiceAddress) -> agent_pb2.ServiceAddress:
    return agent_pb2.ServiceAddress(ip=str(at.address), port=at.port, protocol=at.protocol)


def _backend(number: int, known: Mapping[int, BackendRow]) -> agent_pb2.LBBackendEntry:
    row = known.get(number)
    if row is None:
        return agent_pb2.LBBackendEntry(id=number)
    return agent_pb2.LBBackendEntry(
        id=number, address=_address(row.at), state=_STATES[row.state], local=row.local
    )


def in_order(found: Iterable[Frontend]) -> list[Frontend]:
    """Sort frontends by address."""
    return sorted(
        found,
        key=lambda one: (
            one.at.address.version,
            one.at.address.packed,
            one.at.port,
            int(one.at.protocol),
            one.scope.value,
        ),
    )
