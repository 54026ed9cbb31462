"""The engine agrees with a brute-force reading of everything that policies can say.

Policies of all tiers, audited or not, with rules about requests, over nodes, services and names:
whether a packet passes, whether it is reported, what a proxy must read, and which requests pass.
"""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any

import pytest
from cilium_core.policy import EnforcementMode, PolicyOptions, look_up
from cilium_core.policy.rules import Direction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.policy import oracle, oracle_requests, random_policies
from tests.unit.policy.random_policies import PACKETS, SUBJECTS
from tests.unit.policy.worlds import World, pod

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cilium_core.policy.l7 import HttpRule, Redirect

KINDS = ("http", "kafka", "tls", "dns")


def options(chance: random.Random) -> PolicyOptions:
    modes = (EnforcementMode.DEFAULT, EnforcementMode.DEFAULT, EnforcementMode.ALWAYS)
    return PolicyOptions(
        enforcement=chance.choice(modes),
        allow_localhost=chance.random() < 0.7,
        node_selector_labels=True,
        host_firewall=chance.random() < 0.7,
    )


def allows(redirect: Redirect, request: dict[str, Any]) -> bool:
    """Whether the rules of a redirect let a request pass; `audit` is not looked at."""
    names = redirect.server_names
    named = [oracle_requests.name_matches(name, request.get("sni") or "") for name in names]
    if names and not any(named):
        return False
    if redirect.allow_all or redirect.kind.value == "tls":
        return True
    match request["kind"]:
        case "http":
            return any(http_allows(rule, request) for rule in redirect.http)
        case "dns":
            asked = request["name"]
            wanted = (rule.name or rule.pattern for rule in redirect.dns)
            return any(oracle_requests.name_matches(one, asked) for one in wanted)
    return any(
        (not rule.api_keys or request["key"] in rule.api_keys)
        and rule.api_version in (None, request["version"])
        and rule.client_id in ("", request["client"])
        and (
            rule.topic in ("", request["topic"]) or request["key"] not in oracle_requests.TOPIC_KEYS
        )
        for rule in redirect.kafka
    )


def http_allows(rule: HttpRule, request: dict[str, Any]) -> bool:
    parts = (
        (rule.method, request["method"]),
        (rule.path, request["path"]),
        (rule.host, request["host"]),
    )
    if not all(not wanted or re.fullmatch(wanted, given) for wanted, given in parts):
        return False
    sni = request.get("sni") or ""
    names = rule.server_names
    if names and not any(oracle_requests.name_matches(name, sni) for name in names):
        return False
    return all(
        header.mismatch is not None
        or (
            header.name in request["headers"]
            and header.value in (None, request["headers"][header.name])
        )
        for header in rule.headers
    )


def packets(
    world: World, subjects: list[str], chance: random.Random, number: int
) -> Iterator[tuple[str, str, str, int, int]]:
    """Packets to judge: anything at random, and as much again at what a proxy has to read."""
    for _ in range(number):
        subject = chance.choice(subjects)
        direction = chance.choice(["ingress", "egress"])
        peer = chance.choice([name for name in world.parties if name != subject])
        yield subject, direction, peer, *chance.choice(PACKETS)
    places = [
        (subject, key)
        for subject in subjects
        for key, entry in world.maps[subject].items()
        if entry.redirect
    ]
    for subject, key in chance.sample(places, min(number, len(places))):
        peers = [name for name in world.parties if name != subject]
        alike = [n for n in peers if world.identity(world.parties[n]) == key.identity]
        last = key.port | ((1 << (24 - key.prefixlen)) - 1)
        known = [port for protocol, port in PACKETS if protocol == key.proto]
        inside = [port for port in known if key.port <= port <= last] or [key.port]
        direction = Direction(key.direction).name.lower()
        yield subject, direction, chance.choice(alike or peers), key.proto, chance.choice(inside)


def disagreements(world: World, chance: random.Random, number: int) -> list[str]:
    """Packets and requests on which the engine and the oracle differ."""
    objects = list(world.objects.values())
    setting = world.setting()
    conflicts = world.engine.conflicts()
    subjects = [name for name in SUBJECTS if name in world.parties and name not in conflicts]
    audited = bool(world.audited) or any(
        (obj["metadata"].get("annotations") or {}).get(oracle.AUDIT) == "true" for obj in objects
    )
    found = []
    for subject, direction, peer, protocol, port in packets(world, subjects, chance, number):
        packet = oracle.Packet(direction, world.parties[peer], protocol, port)
        opinion = oracle.judge(objects, world.parties[subject], packet, setting)
        where = f"{subject} {direction} {peer} {protocol}/{port}"
        held = look_up(
            world.maps[subject],
            Direction[direction.upper()],
            world.identity(world.parties[peer]),
            protocol,
            port,
        )
        entry = held[1] if held is not None else None
        passes = entry is not None and (not entry.deny or entry.audit)
        audit = entry is not None and entry.deny and entry.audit
        if (passes, audit) != (opinion.passes, opinion.audited):
            found.append(f"{where}: {held}, expected {opinion}")
        elif entry is not None and passes:
            redirect = world.engine.redirects.get(entry.redirect)
            found += [f"{where}: {text}" for text in differ(redirect, opinion, audited=audited)]
    return found


def differ(redirect: Redirect | None, opinion: oracle.Opinion, *, audited: bool) -> list[str]:
    """What differs between a redirect and what the oracle has to say about requests."""
    kind = redirect.kind.value if redirect is not None else None
    if not audited and kind != opinion.enforced.proxy:
        return [f"{kind} is read, not {opinion.enforced.proxy}"]
    found = []
    for request in [one for name in KINDS for one in random_policies.requests(name)]:
        if kind is not None and request["kind"] != kind:
            continue
        inside = redirect is None or allows(redirect, request)
        passes = inside or (redirect is not None and redirect.audit)
        told = redirect is not None and redirect.audit and not inside
        relevant = kind is not None or request["kind"] == opinion.enforced.proxy
        if relevant and (passes, told) != (opinion.request(request), opinion.reports(request)):
            found.append(f"{request}: passes {passes}, told {told} by {redirect}; {opinion}")
    return found[:2]


seeds = st.integers(0, 2**40)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(seeds, st.integers(1, 5), st.booleans(), st.booleans())
def test_verdicts_and_requests_are_those_of_a_brute_force_reading(seed, count, tiers, audit):
    chance = random.Random(seed)
    world = World(random_policies.cast(), options(chance))
    world.apply(*(random_policies.service(chance) for _ in range(chance.randint(0, 3))))

    world.apply(*(random_policies.policy(chance, tiers=tiers, audit=audit) for _ in range(count)))
    if audit and chance.random() < 0.3:
        world.audit_namespaces(chance.choice(random_policies.SPACES))

    assert disagreements(world, chance, 60) == []


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(seeds, st.integers(2, 12))
def test_however_policies_came_about_the_maps_are_those_of_starting_over(seed, count):
    chance = random.Random(seed)
    world = World(random_policies.cast(), options(chance))

    for _ in range(count):
        step(world, chance)

        for name in world.maps:
            fresh, held = world.fresh_policy(name), world.maps[name]
            assert held == fresh.entries
    assert disagreements(world, chance, 30) == []


def step(world: World, chance: random.Random) -> None:
    """Make one change to the world."""
    moving = [name for name in world.parties if "/" in name]
    match chance.randrange(12):
        case 0 | 1 if world.objects:
            world.delete(chance.choice(list(world.objects.values())))
        case 2:
            world.apply(random_policies.service(chance))
        case 3:
            world.audit_namespaces(*chance.sample(random_policies.SPACES, chance.randint(0, 2)))
        case 4:
            name = chance.choice(moving)
            labels = {"app": chance.choice("ab"), "tier": chance.choice(["front", "back"])}
            ports = chance.choice([world.parties[name].ports, random_policies.WEB_80, ()])
            world.put(name, pod(chance.choice(random_policies.SPACES), labels, ports=ports))
            world.flush()
        case 5 if len(moving) > 2:
            world.take(chance.choice(moving))
            world.flush()
        case 6:
            world.put(*chance.choice(list(random_policies.cast().items())))
            world.flush()
        case _:
            world.apply(random_policies.policy(chance))


@pytest.mark.parametrize("kind", KINDS)
def test_random_policies_make_use_of_every_kind_of_proxy(kind):
    chance = random.Random(7)
    kinds = set()
    for _ in range(60):
        world = World(random_policies.cast(), PolicyOptions(node_selector_labels=True))
        world.apply(*(random_policies.policy(chance) for _ in range(4)))
        kinds |= {redirect.kind.value for _, redirect in world.engine.redirects.items()}

    assert kind in kinds
