"""Which backend a client of a service gets, and why: the choice of the programs, told step by step.

What programs in the kernel remember (session affinity, connections, Maglev tables) is handed in;
nothing here reads it. Pure functions over values.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilium_core.drops import DropReason
from cilium_core.services.hashing import flow_hash
from cilium_core.services.models import (
    Address,
    Algorithm,
    Backend,
    BackendState,
    Frontend,
    FrontendKind,
    L4Address,
    Scope,
)
from cilium_core.services.objects import WHOLE_ADDRESS, anywhere, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cilium_core.services.objects import NodeFacts

Find = Callable[[L4Address, Scope], Frontend | None]
"""The frontend at a place, such as `ServiceTable.frontend`."""


class Place(enum.Enum):
    """Where it is chosen: at a socket, by the program of a pod, by that of the node's device."""

    SOCKET = "socket"
    POD = "pod"
    DEVICE = "device"


class Choice(enum.Enum):
    """How a backend comes to be chosen."""

    RANDOM = "random"
    MAGLEV = "maglev"
    AFFINITY = "affinity"
    CONNECTION = "connection"
    REFUSED = "refused"
    NOT_TRANSLATED = "not translated"


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks. The address is None where it plays no role, port 0 where it is not known.

    `exempt` says that the client serves by local redirects that leave their own pods alone.
    """

    place: Place
    address: Address | None = None
    port: int = 0
    exempt: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What the kernel remembers of the client and the frontend.

    `affinity` is who served the client before, within the timeout; `connection` whom the very
    connection has. `table` is the Maglev table with the backend of each entry, `seed` that of
    flows.
    """

    affinity: L4Address | None = None
    connection: L4Address | None = None
    table: Sequence[L4Address | None] | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one backend: its chance from 0 to 1, and the reason."""

    backend: Backend
    chance: float
    text: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer. `backend` is set where it can be but this one; `reason` is that of a drop."""

    frontend: Frontend
    choice: Choice
    steps: tuple[str, ...]
    backend: Backend | None = None
    fates: tuple[Fate, ...] = ()
    reason: int | None = None
    entry: int | None = None
    hash: int | None = None


def asked(
    find: Find, at: L4Address, place: Place, node: NodeFacts, *, of_node: bool = True
) -> Frontend | None:
    """The frontend that a client finds at an address and port, as its program looks for it.

    `of_node` says that it is a process of the node, whose loopback address is the node's. None
    where there is no frontend: the traffic goes to the address itself.
    """
    found = find(at, Scope.EXTERNAL)
    near = _is_node(at.address, node) and (of_node or not at.address.is_loopback)
    if found is None and place is Place.SOCKET and near:
        found = find(L4Address(anywhere(at.address.version), at.port, at.protocol), Scope.EXTERNAL)
        own = at.address.is_loopback or at.address in node.addresses
        if found is not None and found.kind is FrontendKind.HOST_PORT and not own:
            found = None
    if found is None:
        of_node = place is Place.DEVICE and at.address in node.addresses
        return None if of_node else find(whole(at.address), Scope.EXTERNAL)
    if place is not Place.DEVICE and found.two_scopes:
        return find(found.at, Scope.INTERNAL) or found
    return found


def _is_node(address: Address, node: NodeFacts) -> bool:
    return address.is_loopback or address in node.addresses or address in node.remote_addresses


def explain(
    frontend: Frontend, client: Client, facts: Facts | None = None, *, node: NodeFacts | None = None
) -> Explanation:
    """Follow the choice for a client of a frontend, as `asked` found it."""
    facts = facts or Facts()
    steps = [_introduction(frontend)]
    ended = _refused(frontend, client, node, steps)
    if ended is not None:
        choice, reason = ended
        fates = tuple(
            Fate(one, 0.0, "the request does not come so far") for one in frontend.backends
        )
        return Explanation(frontend, choice, tuple(steps), None, fates, reason)
    if facts.connection is not None and client.place is not Place.SOCKET:
        kept = _find(frontend.backends, facts.connection)
        if kept is not None:
            steps.append(f"the connection is tracked and keeps {kept.at}, {_told(kept)}")
            return _one(frontend, Choice.CONNECTION, steps, kept, "has the connection")
        steps.append(f"the connection had {facts.connection}, which is gone; it gets another one")
    if not frontend.eligible:
        steps.append(_nobody(frontend))
        fates = tuple(Fate(one, 0.0, _told(one)) for one in frontend.backends)
        reason = int(DropReason["SERVICE_BACKEND_NOT_FOUND"])
        return Explanation(frontend, Choice.REFUSED, tuple(steps), None, fates, reason)
    steps += _narrowed(frontend)
    if frontend.affinity_timeout:
        kept = _affine(frontend, facts, steps)
        if kept is not None:
            return _one(frontend, Choice.AFFINITY, steps, kept, "served the client before")
    if frontend.algorithm is Algorithm.MAGLEV and client.place is Place.DEVICE:
        return _by_table(frontend, client, facts, steps)
    return _any(frontend, client, steps)


def _introduction(frontend: Frontend) -> str:
    text = f"{frontend.at} is {frontend.kind.value} of {frontend.service}"
    if frontend.at.port == WHOLE_ADDRESS:
        return f"{frontend.at.address} belongs to {frontend.service}, which has no such port"
    if frontend.two_scopes:
        who = "from outside" if frontend.scope is Scope.EXTERNAL else "from inside the cluster"
        text += f", as it is asked {who}"
    return text


def _refused(
    frontend: Frontend, client: Client, node: NodeFacts | None, steps: list[str]
) -> tuple[Choice, int | None] | None:
    """What ends the matter before any backend is looked at."""
    if frontend.at.port == WHOLE_ADDRESS:
        steps.append("what is no port of a service's address is refused, not passed on")
        return Choice.REFUSED, int(DropReason["SERVICE_BACKEND_NOT_FOUND"])
    if client.place is not Place.DEVICE:
        if frontend.skip_own and client.exempt:
            steps.append("the client serves by this redirect, which leaves its own pods alone")
            return Choice.NOT_TRANSLATED, None
        if client.place is Place.SOCKET and _is_foreign(frontend, node):
            steps.append(
                "at sockets, external addresses and host ports are translated only where they are "
                "a node's; the packets are looked at on their way"
            )
            return Choice.NOT_TRANSLATED, None
        return None
    if not frontend.routable:
        steps.append("it is not to be asked from outside (bpf-lb-external-clusterip)")
        return Choice.REFUSED, int(DropReason["IS_A_CLUSTERIP"])
    if frontend.source_ranges is None:
        return None
    if client.address is None:
        steps.append("who may ask is limited, and the client's address is not known")
        return None
    hit = next((one for one in frontend.source_ranges if client.address in one), None)
    if (hit is None) != frontend.source_ranges_deny:
        why = f"is in {hit}, which may not ask" if hit else "is in none of the ranges that may ask"
        steps.append(f"{client.address} {why}")
        return Choice.REFUSED, int(DropReason["DENIED_BY_LB_SRC_RANGE_CHECK"])
    why = f"is in {hit}, which may ask" if hit else "is in none of the ranges that may not ask"
    steps.append(f"{client.address} {why}")
    return None


def _is_foreign(frontend: Frontend, node: NodeFacts | None) -> bool:
    address = frontend.at.address
    if node is None or address.is_loopback or address.is_unspecified:
        return False
    if frontend.kind is FrontendKind.HOST_PORT:
        return address not in node.addresses
    if frontend.kind is FrontendKind.EXTERNAL_IPS:
        return not _is_node(address, node)
    return False


def _find(backends: Sequence[Backend], at: L4Address) -> Backend | None:
    return next((one for one in backends if one.at == at), None)


def _told(backend: Backend) -> str:
    where = "on this node" if backend.local else f"on node {backend.node}" if backend.node else ""
    return f"{backend.state.value} {where}".rstrip()


def _nobody(frontend: Frontend) -> str:
    if not frontend.backends:
        local = frontend.external_local if frontend.scope is Scope.EXTERNAL else False
        local = local or (frontend.internal_local and not frontend.two_scopes)
        return "it has no backends on this node" if local else "it has no backends"
    return "none of its backends takes new connections"


def _narrowed(frontend: Frontend) -> Iterator[str]:
    """Why some backends are out of the question."""
    eligible, everybody = frontend.eligible, frontend.backends
    if all(one.state is not BackendState.ACTIVE for one in eligible):
        yield "no backend is active; those that terminate and still serve step in"
    elif len(eligible) < len(everybody):
        yield f"{len(eligible)} of {len(everybody)} backends take new connections"


def _affine(frontend: Frontend, facts: Facts, steps: list[str]) -> Backend | None:
    timeout = frontend.affinity_timeout
    if facts.affinity is None:
        steps.append(f"nobody served the client in the last {timeout} s; whoever does now stays")
        return None
    kept = _find(frontend.eligible, facts.affinity)
    if kept is None:
        steps.append(f"{facts.affinity} served the client before, and takes no new connections")
        return None
    steps.append(f"{kept.at} served the client in the last {timeout} s, and does so again")
    return kept


def _one(
    frontend: Frontend, choice: Choice, steps: list[str], chosen: Backend, why: str
) -> Explanation:
    fates = tuple(
        Fate(one, float(one.at == chosen.at), why if one.at == chosen.at else _told(one))
        for one in frontend.backends
    )
    return Explanation(frontend, choice, tuple(steps), chosen, fates)


def _by_table(frontend: Frontend, client: Client, facts: Facts, steps: list[str]) -> Explanation:
    table = facts.table
    if not table:
        steps.append("its Maglev table is not there (yet); any backend may be chosen")
        return _any(frontend, client, steps)
    affinity = frontend.affinity_timeout > 0
    if client.address is None or (not client.port and not affinity):
        missing = "address" if client.address is None else "port"
        steps.append(f"the client's {missing} is not known, so that any entry of the table may be")
        size = len(table)
        shares = {one.at: 0 for one in frontend.backends}
        for at in table:
            if at in shares:
                shares[at] += 1
        fates = tuple(
            Fate(one, shares[one.at] / size, f"has {shares[one.at]} of {size} entries")
            for one in frontend.backends
        )
        alone = [one.backend for one in fates if one.chance]
        chosen = alone[0] if len(alone) == 1 else None
        return Explanation(frontend, Choice.MAGLEV, tuple(steps), chosen, fates)
    source = L4Address(client.address, client.port, frontend.at.protocol)
    number = flow_hash(source, frontend.at, facts.seed, affinity=affinity)
    entry = number % len(table)
    at = table[entry]
    chosen = _find(frontend.backends, at) if at is not None else None
    what = "client and frontend" if affinity else "the connection"
    steps.append(f"the hash of {what} is {number:#010x}: entry {entry} of {len(table)}")
    if chosen is None:
        steps.append(f"the entry holds {at}, which is no backend" if at else "the entry is empty")
        fates = tuple(Fate(one, 0.0, _told(one)) for one in frontend.backends)
        reason = int(DropReason["SERVICE_BACKEND_NOT_FOUND"])
        return Explanation(
            frontend, Choice.REFUSED, tuple(steps), None, fates, reason, entry, number
        )
    steps.append(f"the entry leads to {chosen.at}, {_told(chosen)}")
    made = _one(frontend, Choice.MAGLEV, steps, chosen, f"has entry {entry}")
    return Explanation(frontend, made.choice, made.steps, chosen, made.fates, None, entry, number)


def _any(frontend: Frontend, client: Client, steps: list[str]) -> Explanation:
    count = len(frontend.eligible)
    possible = {one.at for one in frontend.eligible}
    if count == 1:
        steps.append("there is but one")
    else:
        by = "at random, once for each connection"
        if client.place is Place.SOCKET and frontend.at.protocol.name == "UDP":
            by = "by the socket, whose datagrams stay together"
        steps.append(f"one of {count} is chosen {by}")
    fates = tuple(
        Fate(one, 1 / count, f"one of {count}")
        if one.at in possible
        else Fate(one, 0.0, _why_not(one))
        for one in frontend.backends
    )
    chosen = frontend.eligible[0] if count == 1 else None
    return Explanation(frontend, Choice.RANDOM, tuple(steps), chosen, fates)


def _why_not(backend: Backend) -> str:
    match backend.state:
        case BackendState.ACTIVE:
            return "active, and farther away than others (topology)"
        case BackendState.TERMINATING:
            return "terminating: keeps its connections, gets no new ones"
        case BackendState.QUARANTINED:
            return "quarantined: gets no new connections until it is well again"
        case BackendState.MAINTENANCE:
            return "in maintenance (not ready): gets no new connections"
