"""The engine agrees with a brute-force reading of the objects, however it got to its state."""

from __future__ import annotations

import random

import pytest
from cilium_core.policy import EnforcementMode, PolicyOptions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.policy import oracle
from tests.unit.policy.worlds import (
    ICMP,
    ICMP6,
    SCTP,
    TCP,
    UDP,
    World,
    ccnp,
    cidr_group,
    cnp,
    knp,
    outside,
    pod,
    reserved,
)

APPS = ("a", "b")
SPACES = ("x", "y")
WEB_80 = (("web", TCP, 80), ("dns", UDP, 53))
WEB_8080 = (("web", TCP, 8080), ("dns", UDP, 53))


def parties() -> dict[str, oracle.Party]:
    pods = {
        f"{space}/{app}": pod(
            space,
            {"app": app, **({"tier": "front"} if app == "a" else {})},
            namespace_labels={"team": "red" if space == "x" else "blue"},
            ports=WEB_80 if app == "a" else WEB_8080,
        )
        for space in SPACES
        for app in APPS
    }
    return {
        **pods,
        "elsewhere": pod("x", {"app": "a"}, cluster="other"),
        "host": reserved("host"),
        "node": reserved("remote-node"),
        "health": reserved("health"),
        "10.0.0.1": outside("10.0.0.1"),
        "10.1.2.3": outside("10.1.2.3"),
        "192.0.2.9": outside("192.0.2.9"),
        "fd00::1": outside("fd00::1"),
        "2001:db8::1": outside("2001:db8::1"),
    }


SUBJECTS = ("x/a", "x/b", "y/a", "health", "host")

keys = st.sampled_from(
    ["app", "k8s:app", "any:app", "tier", "k8s:tier", "reserved:app", "other:app", "absent"]
)
namespace_keys = st.sampled_from([f"k8s:{oracle.NS}", oracle.NS])
values = st.sampled_from(["a", "b", "front", "none"])


def expressions(key: st.SearchStrategy[str], value: st.SearchStrategy[str]):
    valued = st.fixed_dictionaries(
        {
            "key": key,
            "operator": st.sampled_from(["In", "NotIn"]),
            "values": st.lists(value, min_size=1, max_size=2),
        }
    )
    bare = st.fixed_dictionaries(
        {"key": key, "operator": st.sampled_from(["Exists", "DoesNotExist"])}
    )
    return st.one_of(valued, bare)


def selectors(key: st.SearchStrategy[str], *, with_namespace: bool = True):
    matches = st.dictionaries(key, values, max_size=2)
    if with_namespace:
        matches = st.one_of(
            matches,
            st.builds(
                lambda ours, key, space: {**ours, key: space},
                matches,
                namespace_keys,
                st.sampled_from(SPACES),
            ),
        )
    shapes = st.fixed_dictionaries(
        {},
        optional={
            "matchLabels": matches,
            "matchExpressions": st.lists(
                st.one_of(
                    expressions(key, values),
                    expressions(
                        st.sampled_from([f"k8s:{oracle.NS_LABEL}team", f"k8s:{oracle.NS}"]),
                        st.sampled_from(["red", "blue", *SPACES]),
                    )
                    if with_namespace
                    else expressions(key, values),
                ),
                max_size=1,
            ),
        },
    )
    return st.one_of(st.just({}), shapes)


entities = st.sampled_from(
    ["all", "world", "world-ipv4", "host", "remote-node", "health", "none", "cluster"]
)
cidrs = st.sampled_from(
    ["10.0.0.0/8", "10.0.0.1/32", "10.1.0.0/16", "0.0.0.0/0", "fd00::/8", "::/0", "192.0.2.0/24"]
)
EXCEPTS = {
    "10.0.0.0/8": ["10.1.0.0/16", "10.0.0.1/32"],
    "0.0.0.0/0": ["10.0.0.0/8", "192.0.2.9/32"],
    "::/0": ["fd00::/16"],
}


GROUPS = ("g", "h", "i")
env_keys = st.sampled_from(["env", "any:env", "cidrgroup:env", "k8s:env", "site"])
group_selectors = st.fixed_dictionaries(
    {},
    optional={
        "matchLabels": st.dictionaries(env_keys, st.sampled_from(["a", "b"]), max_size=2),
        "matchExpressions": st.lists(
            expressions(env_keys, st.sampled_from(["a", "b"])), min_size=1, max_size=1
        ),
    },
)
group_rules = st.fixed_dictionaries(
    {},
    optional={
        "except": st.lists(
            st.sampled_from(["10.1.0.0/16", "10.0.0.1/32", "192.0.2.9/32", "fd00::/16"]),
            max_size=2,
        )
    },
).flatmap(
    lambda excepts: st.one_of(
        st.builds(lambda name: {"cidrGroupRef": name, **excepts}, st.sampled_from(GROUPS)),
        st.builds(lambda chosen: {"cidrGroupSelector": chosen, **excepts}, group_selectors),
    )
)


@st.composite
def cidr_groups(draw):
    labels = draw(
        st.dictionaries(st.sampled_from(["env", "site"]), st.sampled_from(["a", "b"]), max_size=2)
    )
    return cidr_group(draw(st.sampled_from(GROUPS)), *draw(st.lists(cidrs, max_size=3)), **labels)


@st.composite
def cidr_rules(draw):
    cidr = draw(cidrs)
    rule = {"cidr": cidr}
    if cidr in EXCEPTS and draw(st.booleans()):
        rule["except"] = draw(st.lists(st.sampled_from(EXCEPTS[cidr]), min_size=1, max_size=2))
    return rule


@st.composite
def port_items(draw):
    protocol = draw(st.sampled_from(["TCP", "UDP", "SCTP", "ANY", None]))
    port = draw(st.sampled_from(["80", "53", "0", "8080", "79", "web", "dns", "1"]))
    item = {"port": port}
    if protocol:
        item["protocol"] = protocol
    if port.isdigit() and port != "0" and draw(st.booleans()):
        item["endPort"] = draw(st.sampled_from([0, 81, 90, 8080, 65535]))
    return item


icmps = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "fields": st.lists(
                st.one_of(
                    st.fixed_dictionaries({"type": st.sampled_from([0, 8, "EchoReply"])}),
                    st.fixed_dictionaries(
                        {"family": st.just("IPv6"), "type": st.sampled_from([128, "EchoRequest"])}
                    ),
                ),
                max_size=2,
            )
        },
    ),
    max_size=2,
)


@st.composite
def items(draw, word: str):
    peers = draw(
        st.one_of(
            st.just({}),
            st.fixed_dictionaries({f"{word}Endpoints": st.lists(selectors(keys), max_size=2)}),
            st.fixed_dictionaries({f"{word}Entities": st.lists(entities, max_size=2)}),
            st.fixed_dictionaries({f"{word}CIDR": st.lists(cidrs, max_size=2)}),
            st.fixed_dictionaries(
                {f"{word}CIDRSet": st.lists(st.one_of(cidr_rules(), group_rules), max_size=2)}
            ),
            st.just({f"{word}Nodes": []}),
        )
    )
    ports = draw(
        st.one_of(
            st.just({}),
            st.fixed_dictionaries(
                {
                    "toPorts": st.lists(
                        st.fixed_dictionaries(
                            {}, optional={"ports": st.lists(port_items(), max_size=2)}
                        ),
                        max_size=2,
                    )
                }
            ),
            st.fixed_dictionaries({"icmps": icmps}),
        )
    )
    return {**peers, **ports}


@st.composite
def rules(draw):
    lists = {
        name: draw(st.lists(items("from" if name[0] == "i" else "to"), max_size=2))
        for name in draw(
            st.lists(
                st.sampled_from(["ingress", "ingressDeny", "egress", "egressDeny"]),
                min_size=1,
                max_size=3,
                unique=True,
            )
        )
    }
    if not any(lists.values()):
        lists["ingress"] = [{}]
    rule = {"endpointSelector": draw(selectors(keys)), **lists}
    if draw(st.booleans()):
        rule["enableDefaultDeny"] = draw(
            st.fixed_dictionaries({}, optional={"ingress": st.booleans(), "egress": st.booleans()})
        )
    return rule


@st.composite
def kubernetes_items(draw, word: str):
    plain = selectors(st.sampled_from(["app", "tier"]), with_namespace=False)
    spaces = st.one_of(
        st.just({}),
        st.fixed_dictionaries(
            {
                "matchExpressions": st.lists(
                    expressions(st.just("team"), st.sampled_from(["red", "blue"])),
                    min_size=1,
                    max_size=1,
                )
            }
        ),
    )
    peer = st.one_of(
        st.fixed_dictionaries({"podSelector": plain}),
        st.fixed_dictionaries({"namespaceSelector": spaces}),
        st.fixed_dictionaries({"podSelector": plain, "namespaceSelector": spaces}),
        st.fixed_dictionaries({"ipBlock": cidr_rules()}),
    )
    port = st.fixed_dictionaries(
        {},
        optional={
            "protocol": st.sampled_from(["TCP", "UDP", "SCTP"]),
            "port": st.sampled_from([80, 53, 8080, "web", "dns"]),
        },
    )
    ranged = st.just({"port": 79, "endPort": 90})
    item = {}
    if draw(st.booleans()):
        item[word] = draw(st.lists(peer, max_size=2))
    if draw(st.booleans()):
        item["ports"] = draw(st.lists(st.one_of(port, ranged), max_size=2))
    return item


@st.composite
def kubernetes_specs(draw):
    return draw(
        st.fixed_dictionaries(
            {"podSelector": selectors(st.sampled_from(["app", "tier"]), with_namespace=False)},
            optional={
                "ingress": st.lists(kubernetes_items("from"), max_size=2),
                "egress": st.lists(kubernetes_items("to"), max_size=2),
                "policyTypes": st.lists(
                    st.sampled_from(["Ingress", "Egress"]), max_size=2, unique=True
                ),
            },
        )
    )


@st.composite
def policies(draw):
    name = draw(st.sampled_from(["p", "q", "r"]))
    kind = draw(st.sampled_from(["cnp", "cnp", "ccnp", "knp", "group"]))
    if kind == "group":
        return draw(cidr_groups())
    space = draw(st.sampled_from(SPACES))
    if kind == "ccnp":
        return ccnp(draw(rules()), name=name)
    if kind == "knp":
        return knp(name, space, **draw(kubernetes_specs()))
    return cnp(draw(rules()), name=name, namespace=space)


PORTS = [
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
    (ICMP, 0),
    (ICMP, 8),
    (ICMP6, 128),
    (47, 0),
]


def disagreements(world: World, seed: int, number: int) -> list[str]:
    """Packets on which the maps and the oracle differ."""
    chance = random.Random(seed)
    setting = world.setting()
    objects = list(world.objects.values())
    subjects = [name for name in SUBJECTS if name in world.parties]
    found = []
    for _ in range(number):
        subject = chance.choice(subjects)
        direction = chance.choice(["ingress", "egress"])
        peer = chance.choice([name for name in world.parties if name != subject])
        protocol, port = chance.choice(PORTS)
        packet = oracle.Packet(direction, world.parties[peer], protocol, port)
        expected = oracle.passes(objects, world.parties[subject], packet, setting)
        if world.passes_at(subject, direction, peer, protocol, port) != expected:
            found.append(f"{subject} {direction} {peer} {protocol}/{port}: expected {expected}")
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(policies(), min_size=1, max_size=5),
    st.sampled_from(list(EnforcementMode)[:2]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_the_maps_give_the_verdict_of_a_brute_force_reading(objects, mode, local_host, seed):
    options = PolicyOptions(enforcement=mode, allow_localhost=local_host)
    world = World(parties(), options)

    world.apply(*objects)

    assert disagreements(world, seed, 120) == []


steps = st.lists(
    st.one_of(
        policies(),
        st.sampled_from(["delete", "relabel", "leave", "return", "ports", "flushless"]),
    ),
    min_size=2,
    max_size=12,
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps, st.integers(0, 2**32))
def test_updates_lead_to_the_same_maps_as_starting_over(changes, seed):
    world = World(parties())
    chance = random.Random(seed)

    for change in changes:
        step(world, change, chance)

        for name in world.maps:
            assert world.maps[name] == world.fresh_policy(name).entries
    assert disagreements(world, seed, 40) == []


def step(world: World, change: object, chance: random.Random) -> None:
    """Make one change to the world."""
    moving = [name for name in world.parties if "/" in name]
    match change:
        case "delete":
            if world.objects:
                world.delete(chance.choice(list(world.objects.values())))
        case "relabel":
            name = chance.choice(moving)
            labels = {"app": chance.choice(APPS), "tier": chance.choice(["front", "back"])}
            world.put(name, pod(chance.choice(SPACES), labels, ports=world.parties[name].ports))
            world.flush()
        case "leave":
            if len(moving) > 2:
                world.take(chance.choice(moving))
                world.flush()
        case "return":
            world.put(*chance.choice(list(parties().items())))
            world.flush()
        case "ports":
            name = chance.choice(moving)
            party = world.parties[name]
            ports = chance.choice([WEB_80, WEB_8080, ()])
            world.put(name, oracle.Party(party.labels, None, ports))
            world.flush()
        case "flushless":
            # Two changes that reach the maps as one update.
            world.put("new", pod("x", {"app": "b"}))
            world.put("new", pod("y", {"app": "a"}))
            world.flush()
        case dict():
            world.apply(change)
        case _:
            pytest.fail(f"unknown step {change!r}")
