"""One case: a packet between two parties, and what each judge makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from cilium_core import abi
from cilium_core.policy import Direction, look_up

from tests.bpf.harness import TC_SHOT
from tests.fuzz.casts import LOCAL, NODES, OTHER_NODE, Cast, packed
from tests.fuzz.packets import ACK, ICMP, ICMP6, SCTP, SYN, TCP, UDP, frame
from tests.unit.policy import oracle
from tests.unit.policy.random_policies import PACKETS
from tests.unit.policy.test_judgements import differ

if TYPE_CHECKING:
    from collections import Counter
    from random import Random

    from cilium_core.policy import PolicyEntry, PolicyKey

    from tests.bpf.harness import Run

DENIED, DENIED_BY_RULE = 133, 181
NO_LISTENER = (178, 179)
"""What becomes of packets for proxies where none runs: that they went nowhere else is the point."""
_LOW_BYTE = 0xFF
_L4_BITS, _PORT_BITS = 24, 16
ASKED = [
    (protocol, port)
    for protocol, port in (*PACKETS, (ICMP6, 129))
    if protocol in (TCP, UDP, SCTP, ICMP, ICMP6)
]


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
    """What one local end's policy says about a packet, in the words of an event."""

    endpoint: int
    direction: int
    code: int
    """0 to let pass, the port of a proxy, or minus the code of the drop."""
    match: int
    cookie: int
    audited: bool = False


@dataclass(frozen=True)
class Connection:
    """A connection that passed when it began, and the proxy it went to, if any."""

    case: Case
    port: int
    proxy: int


class Disagreement(Exception):  # noqa: N818 - not an error of the program
    """Two judges differ, or the kernel did something else than it says."""


@dataclass(frozen=True)
class _End:
    subject: str
    direction: Direction
    peer: str


def draw(chance: Random, cast: Cast) -> Case | None:
    """A case of the cast; one end at least is of this node. None when there is none.

    Half of them are aimed at an entry of a policy map, as most of the others meet none.
    """
    conflicts = cast.engine.conflicts()
    for _ in range(1000):
        source, destination = chance.sample(sorted(cast.parties), 2)
        protocol, port = chance.choice(ASKED)
        if chance.random() < 0.5 and (aimed := _aim(chance, cast)) is not None:
            source, destination, protocol, port = aimed
        family = {ICMP: 4, ICMP6: 6}.get(protocol) or chance.choice((4, 6))
        ends = [name for name in (source, destination) if name in cast.endpoints]
        if not ends or any(name in conflicts for name in ends):
            continue
        if packed(source, family) and packed(destination, family):
            return Case(source, destination, family, protocol, port)
    return None


def _aim(chance: Random, cast: Cast) -> tuple[str, str, int, int] | None:
    """Source, destination, protocol and port of a packet that an entry of some map is about."""
    subject = chance.choice([name for name in cast.endpoints if name in cast.maps])
    entries = list(cast.maps[subject].items())
    redirects = [held for held in entries if held[1].redirect]
    if not entries:
        return None
    key, _ = chance.choice(redirects if redirects and chance.random() < 0.5 else entries)
    peers = [
        name
        for name, party in cast.parties.items()
        if name != subject and key.identity in (0, cast.identity(party))
    ]
    if not peers:
        return None
    peer = chance.choice(peers)
    protocol, port = chance.choice(ASKED)
    if key.prefixlen:
        protocol = key.proto
        port = key.port + chance.randrange(1 << min(_L4_BITS - key.prefixlen, _PORT_BITS))
    if protocol in (ICMP, ICMP6) and (protocol, port) not in ASKED:
        return None
    ends = (peer, subject) if key.direction == Direction.INGRESS else (subject, peer)
    return (*ends, protocol, port)


def ends(cast: Cast, case: Case) -> list[_End]:
    """The ends whose policy the kernel of this node asks, in its order."""
    found = []
    if case.source in cast.endpoints:
        found.append(_End(case.source, Direction.EGRESS, case.destination))
    if case.destination in cast.endpoints:
        found.append(_End(case.destination, Direction.INGRESS, case.source))
    return found


def expected(cast: Cast, case: Case) -> list[Verdict]:
    """What the kernel should say, by the resolver; raises Disagreement where the oracle differs.

    The end that a proxy stands before is asked when the proxy speaks to it; but the node's own at
    once, as a proxy speaks to its node where no program sees it.
    """
    setting = cast.setting()
    objects = list(cast.objects.values())
    verdicts: list[Verdict] = []
    for end in ends(cast, case):
        held = _entry(cast, case, end)
        verdict = _verdict(cast, end, held)
        packet = oracle.Packet(
            end.direction.name.lower(), cast.parties[end.peer], case.protocol, case.port
        )
        opinion = oracle.judge(objects, cast.parties[end.subject], packet, setting)
        wanted = (opinion.passes, opinion.audited)
        if wanted != (
            verdict is None or verdict.code >= 0,
            verdict is not None and verdict.audited,
        ):
            raise Disagreement(
                f"oracle: {end.subject} {end.direction.name.lower()}: {opinion}; resolver: {held}"
            )
        if verdict is None:
            continue
        if opinion.passes and held is not None:
            redirect = cast.engine.redirects.get(held[1].redirect)
            if wrong := differ(redirect, opinion, audited=_audits(cast)):
                raise Disagreement(f"oracle: {wrong[0]}")
        verdicts.append(verdict)
        if verdict.code < 0 or (verdict.code and case.destination != "host"):
            break
    return verdicts


def _audits(cast: Cast) -> bool:
    return bool(cast.audited) or any(
        (obj["metadata"].get("annotations") or {}).get(oracle.AUDIT) == "true"
        for obj in cast.objects.values()
    )


def _entry(cast: Cast, case: Case, end: _End) -> tuple[PolicyKey, PolicyEntry] | None:
    """The entry that decides by the resolver."""
    peer = cast.identity(cast.parties[end.peer])
    return look_up(cast.maps[end.subject], end.direction, peer, case.protocol, case.port)


def _verdict(cast: Cast, end: _End, held: tuple[PolicyKey, PolicyEntry] | None) -> Verdict | None:
    """An entry's verdict as an event would tell it, None where nothing is enforced."""
    if not cast.enforced[end.subject][end.direction is Direction.EGRESS]:
        return None
    number, direction = cast.endpoints[end.subject], int(end.direction)
    if held is None:
        return Verdict(number, direction, -DENIED, abi.MATCH_NONE, 0)
    key, entry = held
    match, code = match_type(key), cast.port_of(entry.redirect)
    if entry.deny and not entry.precedence & _LOW_BYTE:
        match = int(abi.MATCH_NONE)
    if entry.deny and not entry.audit:
        code = -DENIED if match == abi.MATCH_NONE else -DENIED_BY_RULE
    return Verdict(number, direction, code, match, entry.cookie, entry.deny and entry.audit)


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
    outside = (*NODES, *(name for name, party in cast.parties.items() if party.address))
    if source == "host":
        if destination in LOCAL:
            device = f"lxc{LOCAL[destination]}"
            return plane.run("cil_to_container", data, device=device, mark=abi.MARK_HOST)
        if destination in outside:
            return plane.run("cil_to_netdev", data, device="eth0")
        return plane.run("cil_from_host", data, device="hostside")
    if cast.parties[source].address or (source in NODES and destination == "host"):
        return plane.run("cil_from_netdev", data, device="eth0")
    identity = abi.ID_REMOTE_NODE
    if source not in NODES:
        identity = cast.identity(cast.parties[source])
    peer = int.from_bytes(OTHER_NODE.packed, "little")
    program = f"tail_from_overlay_ipv{case.family}"
    return plane.run(program, data, device="vxlan", cb=[identity, peer])


def told(run: Run) -> list[Verdict]:
    """The verdicts that the kernel's events tell."""
    return [
        Verdict(
            event.endpoint,
            abi.DIR_EGRESS if event.flags & abi.EVENT_EGRESS else abi.DIR_INGRESS,
            event.verdict,
            event.match,
            event.cookie,
            bool(event.flags & abi.EVENT_AUDITED),
        )
        for event in run.events
        if event.type == abi.EVENT_POLICY_VERDICT
    ]


def check(cast: Cast, case: Case, port: int, tally: Counter[str]) -> Connection | None:
    """Judge a new connection three times; None when it is refused, raises Disagreement.

    What became of it is counted in `tally`.
    """
    wanted = expected(cast, case)
    tally[_kind(wanted)] += 1
    run = send(cast, case, port)
    if told(run) != wanted:
        raise Disagreement(f"resolver: {wanted}; kernel: {told(run)}")
    last = _outcome(wanted)
    _compare(run, last)
    return None if last < 0 else Connection(case, port, last)


def _outcome(verdicts: list[Verdict]) -> int:
    """What becomes of a packet: 0 to pass, the port of its proxy, or minus the code of the drop."""
    if verdicts and verdicts[-1].code < 0:
        return verdicts[-1].code
    return next((verdict.code for verdict in verdicts if verdict.code), 0)


def _kind(verdicts: list[Verdict]) -> str:
    """What a case is about, in a word."""
    if not verdicts:
        return "not enforced"
    if (outcome := _outcome(verdicts)) < 0:
        return "denied" if outcome == -DENIED_BY_RULE else "not allowed"
    if outcome > 0:
        return "redirected"
    return "audited" if any(verdict.audited for verdict in verdicts) else "allowed"


def check_later(cast: Cast, connection: Connection, *, reply: bool) -> None:
    """Judge a packet of a connection that passed when it began, under the policy of now."""
    last = _outcome(expected(cast, connection.case))
    run = send(cast, connection.case, connection.port, tcp_flags=ACK, reply=reply)
    if reply and connection.proxy:
        if connection.case.destination == "host":
            return  # the proxy's own words come out of the same stack
        last = -DENIED  # a server speaks to its client by way of the proxy, or not at all
    elif last >= 0 and last != connection.proxy:
        # it may not go on as if nothing had happened
        last = -DENIED if reply else last or connection.proxy
        _ended(run, last)
        return
    elif last > 0:
        last = 0  # its segments find the proxy's socket
    _compare(run, last)


def _ended(run: Run, code: int) -> None:
    """The packet was refused, or went to a listener, which knows no such connection."""
    drops = _drops(run)
    allowed = (-code,) if code < 0 else NO_LISTENER
    if run.verdict == TC_SHOT and len(drops) == 1 and drops[0] in allowed:
        return
    if code > 0 and run.mark & abi.MARK_MASK == abi.MARK_TO_PROXY and run.mark >> 16:
        return
    raise Disagreement(f"a changed proxy must end it: dropped for {drops}, returned {run.verdict}")


def _compare(run: Run, code: int) -> None:
    """Raise Disagreement unless the packet passed, was refused or was redirected as `code` says."""
    drops = _drops(run)
    if code > 0:
        _ended(run, code)
    elif drops != ([-code] if code else []) or (run.verdict == TC_SHOT) != bool(code):
        raise Disagreement(
            f"expected {code or 'to pass'}; dropped for {drops}, returned {run.verdict}"
        )


def _drops(run: Run) -> list[int]:
    return [event.subtype for event in run.events if event.type == abi.EVENT_DROP]
