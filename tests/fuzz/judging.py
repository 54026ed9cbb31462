"""One case: a packet between two parties, and what each judge makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from cilium_core import abi
from cilium_core.policy import Direction, look_up

from tests.bpf.harness import TC_SHOT
from tests.fuzz.casts import LOCAL, OTHER_NODE, Cast, packed
from tests.fuzz.packets import ACK, ICMP, ICMP6, SCTP, SYN, TCP, UDP, frame
from tests.unit.policy import oracle

if TYPE_CHECKING:
    from random import Random

    from tests.bpf.harness import Run

DENIED, DENIED_BY_RULE = 133, 181
MARK_HOST = 0x0C00
ASKED: tuple[tuple[int, int], ...] = (
    (TCP, 80),
    (TCP, 53),
    (TCP, 8080),
    (TCP, 79),
    (TCP, 85),
    (TCP, 443),
    (TCP, 65535),
    (UDP, 53),
    (UDP, 80),
    (SCTP, 80),
    (SCTP, 443),
    (ICMP, 8),
    (ICMP, 0),
    (ICMP6, 128),
    (ICMP6, 129),
)


class Case(NamedTuple):
    """A packet of a new connection."""

    source: str
    destination: str
    family: int
    protocol: int
    port: int
    """The type, for ICMP."""

    def __str__(self) -> str:
        names = {TCP: "TCP", UDP: "UDP", SCTP: "SCTP", ICMP: "ICMP", ICMP6: "ICMPv6"}
        to = f"{self.port}/{names[self.protocol]}"
        return f"{self.source} -> {self.destination} {to} over IPv{self.family}"


class Verdict(NamedTuple):
    """What one local end's policy says about a packet."""

    endpoint: int
    direction: int
    code: int
    """0 to let pass, the port of a proxy, or minus the code of the drop."""
    match: int
    cookie: int


class Disagreement(Exception):  # noqa: N818 - not an error of the program
    """Two judges differ, or the kernel did something else than it says."""


@dataclass(frozen=True)
class _End:
    subject: str
    direction: Direction
    peer: str


def draw(chance: Random, cast: Cast) -> Case:
    """A case of the cast, at random; one end at least is of this node."""
    while True:
        source, destination = chance.sample(sorted(cast.parties), 2)
        family = chance.choice((4, 6))
        protocol, port = chance.choice(ASKED)
        if protocol == ICMP:
            family = 4
        if protocol == ICMP6:
            family = 6
        local = [name for name in (source, destination) if name in LOCAL]
        if local and packed(source, family) and packed(destination, family):
            return Case(source, destination, family, protocol, port)


def ends(case: Case) -> list[_End]:
    """The ends whose policy the kernel of this node asks, in its order."""
    found = []
    if case.source in LOCAL:
        found.append(_End(case.source, Direction.EGRESS, case.destination))
    if case.destination in LOCAL:
        found.append(_End(case.destination, Direction.INGRESS, case.source))
    return found


def expected(cast: Cast, case: Case) -> list[Verdict]:
    """What the kernel should say, by the resolver; raises Disagreement where the oracle differs."""
    setting = cast.setting()
    objects = list(cast.objects.values())
    verdicts: list[Verdict] = []
    for end in ends(case):
        verdict = _resolved(cast, case, end)
        packet = oracle.Packet(
            end.direction.name.lower(), cast.parties[end.peer], case.protocol, case.port
        )
        opinion = oracle.passes(objects, cast.parties[end.subject], packet, setting)
        passes = verdict is None or verdict.code >= 0
        if opinion != passes:
            raise Disagreement(
                f"oracle: {end.subject} {end.direction.name.lower()} "
                f"{'passes' if opinion else 'drops'}; resolver: {verdict}"
            )
        if verdict is not None:
            verdicts.append(verdict)
            if verdict.code < 0:
                break
    return verdicts


def _resolved(cast: Cast, case: Case, end: _End) -> Verdict | None:
    """The resolver's verdict as an event would tell it, None where nothing is enforced."""
    if not cast.enforced[end.subject][end.direction is Direction.EGRESS]:
        return None
    peer = cast.identity(cast.parties[end.peer])
    entries = cast.maps[end.subject]
    found = look_up(entries, end.direction, peer, case.protocol, case.port)
    number, direction = LOCAL[end.subject], int(end.direction)
    if found is None:
        return Verdict(number, direction, -DENIED, abi.MATCH_NONE, 0)
    key, entry = found
    code = -DENIED_BY_RULE if entry.deny else 0
    return Verdict(number, direction, code, match_type(key), entry.cookie)


def match_type(key: Any) -> int:
    """How closely an entry names peer, protocol and port."""
    exact = key.identity != 0
    if key.prefixlen == 0:
        return int(abi.MATCH_L3_ONLY if exact else abi.MATCH_ALL)
    if key.prefixlen <= 8:
        return int(abi.MATCH_L3_PROTO if exact else abi.MATCH_PROTO_ONLY)
    return int(abi.MATCH_L3_L4 if exact else abi.MATCH_L4_ONLY)


def send(cast: Cast, case: Case, sport: int, *, tcp_flags: int = SYN, reply: bool = False) -> Run:
    """Have the kernel judge a packet of the case, or one of its answer."""
    source, destination, ports = case.source, case.destination, (sport, case.port)
    if reply:
        source, destination, ports = destination, source, ports[::-1]
    from_address, to_address = packed(source, case.family), packed(destination, case.family)
    assert from_address is not None
    assert to_address is not None
    data = frame(from_address, to_address, case.protocol, *ports, tcp_flags=tcp_flags)
    plane = cast.plane
    if source in LOCAL:
        return plane.run("cil_from_container", data, device=f"lxc{LOCAL[source]}")
    if source in ("host", *_OUTSIDE(source)):
        mark = MARK_HOST if source == "host" else 0
        device = f"lxc{LOCAL[destination]}"
        return plane.run("cil_to_container", data, device=device, mark=mark)
    identity = abi.ID_REMOTE_NODE if source == "node" else cast.identity(cast.parties[source])
    peer = int.from_bytes(OTHER_NODE.packed, "little")
    program = f"tail_from_overlay_ipv{case.family}"
    return plane.run(program, data, device="vxlan", cb=[identity, peer])


def _OUTSIDE(name: str) -> tuple[str, ...]:  # noqa: N802
    return (name,) if name[0].isdigit() or ":" in name else ()


def told(run: Run) -> list[Verdict]:
    """The verdicts that the kernel's events tell."""
    return [
        Verdict(
            event.endpoint,
            abi.DIR_EGRESS if event.flags & abi.EVENT_EGRESS else abi.DIR_INGRESS,
            event.verdict,
            event.match,
            event.cookie,
        )
        for event in run.events
        if event.type == abi.EVENT_POLICY_VERDICT
    ]


def check(cast: Cast, case: Case, sport: int) -> bool:
    """Judge a new connection three times; tells whether it passes, raises Disagreement."""
    wanted = expected(cast, case)
    run = send(cast, case, sport)
    compare(run, wanted, told(run))
    return run.verdict != TC_SHOT


def check_ongoing(cast: Cast, case: Case, sport: int, *, reply: bool) -> None:
    """Judge a packet of a connection that passed when it began, under the policy of now."""
    wanted = expected(cast, case)
    denied = [verdict for verdict in wanted if verdict.code < 0]
    run = send(cast, case, sport, tcp_flags=ACK, reply=reply)
    # established connections tell only what ends them, and answers not even that
    compare(run, denied, denied if reply else told(run))


def compare(run: Run, wanted: list[Verdict], seen: list[Verdict]) -> None:
    """Raise Disagreement unless the kernel did and told what was wanted."""
    refused = [-verdict.code for verdict in wanted if verdict.code < 0]
    drops = [event.subtype for event in run.events if event.type == abi.EVENT_DROP]
    if seen != wanted or drops != refused or (run.verdict == TC_SHOT) != bool(refused):
        raise Disagreement(
            f"resolver: {wanted}; kernel: {seen}, dropped for {drops}, returned {run.verdict}"
        )
