"""Explanations agree with the maps and the oracle, and name what decided and what is missing."""

from __future__ import annotations

import ipaddress
import random
import re

import pytest
from cilium_core.policy import ContainerPort, Direction, EnforcementMode, PolicyOptions, Protocol
from cilium_core.policy.entries import look_up
from cilium_core.policy.explaining import (
    Explanation,
    Miss,
    Party,
    PolicyState,
    Reason,
    RuleTrace,
    Traffic,
    explain,
)
from cilium_core.policy.rules import PolicyRef
from cilium_core.policy.suggesting import suggest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.policy import oracle
from tests.unit.policy.test_oracle import PORTS, SUBJECTS, parties, policies
from tests.unit.policy.worlds import (
    ICMP,
    TCP,
    UDP,
    World,
    ccnp,
    cidr_group,
    cnp,
    knp,
    label_set,
    pod,
    reserved,
)

WEB = {"endpointSelector": {"matchLabels": {"app": "web"}}}


def party(world: World, name: str) -> Party:
    found = world.parties[name]
    ports = frozenset(ContainerPort(n, Protocol(p), i) for n, p, i in found.ports)
    if found.address is None:
        return Party(world.identity(found), label_set(found), "", ports)
    identity = world.prefixes.identity_of(ipaddress.ip_address(found.address))
    return Party(identity.id, identity.labels, found.address)


def ask(world: World, source: str, destination: str, port: int, protocol: int = TCP) -> Explanation:
    engine = world.engine
    state = PolicyState(engine.repository, engine.options, engine.named_ports)
    return explain(state, party(world, source), party(world, destination), Traffic(protocol, port))


def shop() -> World:
    return World(
        {
            "web": pod("shop", {"app": "web"}, ports=[("http", TCP, 8080)]),
            "client": pod("shop", {"app": "client"}),
            "other": pod("other", {"app": "client"}),
            "host": reserved("host"),
            "198.51.100.7": oracle.Party({"world-ipv4": ("reserved", "")}, "198.51.100.7"),
        }
    )


def short(traces: tuple[RuleTrace, ...]) -> list[tuple[str, str, tuple[Miss, ...], bool]]:
    return [(trace.ref.name, trace.rule.path, trace.misses, trace.decides) for trace in traces]


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(policies(), min_size=1, max_size=5),
    st.sampled_from(list(EnforcementMode)),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_explanations_agree_with_the_maps_and_the_oracle(objects, mode, local_host, seed):
    world = World(parties(), PolicyOptions(enforcement=mode, allow_localhost=local_host))
    world.apply(*objects)
    chance = random.Random(seed)
    setting = world.setting()

    for _ in range(40):
        subject = chance.choice(SUBJECTS)
        peer = chance.choice([name for name in world.parties if name != subject])
        direction = chance.choice(["ingress", "egress"])
        protocol, port = chance.choice(PORTS)
        ends = (peer, subject) if direction == "ingress" else (subject, peer)
        explanation = ask(world, *ends, port, protocol)
        found = getattr(explanation, direction)

        packet = oracle.Packet(direction, world.parties[peer], protocol, port)
        assert found.allowed == world.passes_at(subject, direction, peer, protocol, port)
        assert found.allowed == oracle.passes(
            list(world.objects.values()), world.parties[subject], packet, setting
        )
        if found.reason is Reason.NO_POLICY_HERE:
            continue
        assert found.enforced == world.enforced[subject][direction == "egress"]
        held = look_up(
            world.maps[subject],
            Direction[direction.upper()],
            world.identity(world.parties[peer]),
            protocol,
            port,
        )
        assert (found.entry is None) == (held is None)
        if held is not None and found.entry is not None:
            assert (found.entry[0], found.entry[1][:2]) == (held[0], held[1][:2])
            origins = {
                (o.kind, o.namespace, o.name)
                for o in world.engine.cookies.origins(held[1].cookie)
                if o.kind
            }
            deciding = {trace.ref for trace in found.rules if trace.decides}
            if found.reason is Reason.DEFAULT_DENY:
                closing = {text for text in found.default_deny if "enable-policy" not in text}
                assert (deciding, {str(PolicyRef(*o)) for o in origins}) == (set(), closing)
            else:
                assert deciding == origins


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(policies(), min_size=1, max_size=5), st.integers(0, 2**32))
def test_a_suggested_policy_allows_what_was_missing(objects, seed):
    world = World(parties())
    world.apply(*objects)
    chance = random.Random(seed)

    for _ in range(15):
        source, destination = chance.sample([*SUBJECTS, "192.0.2.9", "fd00::1", "node"], 2)
        protocol, port = chance.choice(PORTS)
        explanation = ask(world, source, destination, port, protocol)
        for found, subject, peer in (
            (explanation.egress, source, destination),
            (explanation.ingress, destination, source),
        ):
            wanted = suggest(explanation, found)
            assert (wanted is not None) == (found.reason is Reason.DEFAULT_DENY)
            if wanted is not None:
                world.apply(wanted)
                assert world.passes_at(subject, found.direction.name.lower(), peer, protocol, port)
                world.delete(wanted)


def test_the_rule_that_allows_is_named_with_its_place():
    world = shop()
    item = {"fromEndpoints": [{"matchLabels": {"app": "client"}}]}
    world.apply(cnp({**WEB, "ingress": [{}, item]}, name="p", namespace="shop"))

    found = ask(world, "client", "web", 8080).ingress

    assert (found.allowed, found.reason) == (True, Reason.ALLOWED)
    assert short(found.rules)[0] == ("p", "spec.ingress[1]", (), True)
    assert found.entry is not None
    assert found.entry[0].identity == world.identity(world.parties["client"])


def test_each_rule_that_misses_says_by_what():
    world = shop()
    port = {"toPorts": [{"ports": [{"port": "8080", "protocol": "TCP"}]}]}
    everyone = {"fromEntities": ["all"]}
    world.apply(
        cnp({**WEB, "ingress": [{**everyone, **port}]}, name="port", namespace="shop"),
        cnp(
            {**WEB, "ingress": [{"fromEndpoints": [{"matchLabels": {"app": "no"}}]}]},
            name="peer",
            namespace="shop",
        ),
        cnp({**WEB, "egress": [everyone_to()]}, name="way", namespace="shop"),
    )

    tcp = ask(world, "client", "web", 80).ingress
    udp = ask(world, "client", "web", 8080, UDP).ingress

    assert tcp.reason is Reason.DEFAULT_DENY
    assert short(tcp.rules) == [
        ("peer", "spec.ingress[0]", (Miss.PEER,), False),
        ("port", "spec.ingress[0]", (Miss.PORT,), False),
        ("way", "spec.egress[0]", (Miss.DIRECTION,), False),
    ]
    assert tcp.rules[1].notes == ("its ports are 8080/TCP",)
    assert udp.rules[1].misses == (Miss.PROTOCOL,)
    assert tcp.default_deny == (
        "CiliumNetworkPolicy shop/peer",
        "CiliumNetworkPolicy shop/port",
    )


def everyone_to() -> dict:
    return {"toEntities": ["all"]}


def test_a_deny_rule_is_named_and_nothing_is_suggested():
    world = shop()
    world.apply(
        cnp({**WEB, "ingress": [{"fromEntities": ["all"]}]}, name="open", namespace="shop"),
        ccnp({"endpointSelector": {}, "ingressDeny": [{"fromEntities": ["all"]}]}, name="shut"),
    )

    explanation = ask(world, "client", "web", 80)

    assert not explanation.allowed
    assert explanation.ingress.reason is Reason.DENIED
    assert [trace.ref.name for trace in explanation.ingress.rules if trace.decides] == ["shut"]
    assert suggest(explanation, explanation.ingress) is None


@pytest.mark.parametrize(
    ("source", "destination", "reason"),
    [
        ("client", "other", Reason.NOT_ENFORCED),
        ("client", "198.51.100.7", Reason.NO_POLICY_HERE),
        ("host", "web", Reason.LOCAL_HOST),
    ],
)
def test_traffic_passes_for_other_reasons_than_a_rule(source, destination, reason):
    world = shop()
    world.apply(cnp({**WEB, "ingress": [{}]}, namespace="shop"))

    assert ask(world, source, destination, 80).ingress.reason is reason


def test_policies_without_default_deny_leave_the_rest_open():
    world = shop()
    deny = [{"fromEntities": ["world"]}]
    spec = {**WEB, "ingressDeny": deny, "enableDefaultDeny": {"ingress": False}}
    world.apply(cnp(spec, namespace="shop"))

    assert ask(world, "client", "web", 80).ingress.reason is Reason.NO_DEFAULT_DENY
    assert ask(world, "198.51.100.7", "web", 80).ingress.reason is Reason.DENIED


def test_enforcement_that_is_switched_off_is_told():
    world = World(shop().parties, PolicyOptions(enforcement=EnforcementMode.NEVER))
    world.apply(cnp({**WEB, "ingress": [{}]}, namespace="shop"))

    assert ask(world, "client", "web", 80).ingress.reason is Reason.DISABLED


def test_options_that_close_an_endpoint_are_told():
    world = World(shop().parties, PolicyOptions(enforcement=EnforcementMode.ALWAYS))

    assert ask(world, "client", "web", 80).ingress.default_deny == ("enable-policy=always",)


def test_a_peer_that_no_map_knows_is_judged_by_its_labels():
    world = shop()
    item = {"fromEndpoints": [{"matchLabels": {"app": "new"}}]}
    world.apply(cnp({**WEB, "ingress": [item]}, namespace="shop"))
    state = PolicyState(world.engine.repository, world.engine.options, world.engine.named_ports)
    new = Party(0, label_set(pod("shop", {"app": "new"})))

    found = explain(state, new, party(world, "web"), Traffic(TCP, 80)).ingress

    assert (found.allowed, found.entry) == (True, None)


def test_a_network_policy_that_only_closes_is_named():
    world = shop()
    world.apply(knp("closed", "shop", podSelector={}))

    found = ask(world, "client", "web", 80).ingress

    assert found.default_deny == ("NetworkPolicy shop/closed",)
    assert found.rules[0].rule.path == "spec.ingress"
    assert found.rules[0].notes == ("it names no peer at all",)


def test_older_forms_are_named_where_they_were_written():
    world = shop()
    world.apply(
        cnp(
            {
                **WEB,
                "ingress": [
                    {"fromEntities": ["all"]},
                    {"fromEntities": ["all"], "action": "Deny"},
                ],
            },
            namespace="shop",
        )
    )

    assert short(ask(world, "client", "web", 80).ingress.rules)[0][1] == "spec.ingress[1]"


def test_groups_and_named_ports_are_shown_as_written():
    world = shop()
    ports = {"toPorts": [{"ports": [{"port": "http", "protocol": "TCP"}]}]}
    item = {"fromCIDRSet": [{"cidrGroupRef": "office"}], **ports}
    world.apply(
        cidr_group("office", "10.0.0.0/8"), cnp({**WEB, "ingress": [item]}, namespace="shop")
    )

    (trace,) = ask(world, "198.51.100.7", "web", 80).ingress.rules

    assert trace.misses == (Miss.PEER, Miss.PORT)
    assert trace.notes == (
        "its peers are cidrgroup:office",
        "its ports are http/TCP",
    )


def test_a_suggestion_says_no_more_than_the_traffic_at_hand():
    world = shop()
    world.apply(cnp({**WEB, "ingress": [{}]}, namespace="shop"))

    explanation = ask(world, "other", "web", 8, ICMP)

    wanted = suggest(explanation, explanation.ingress)
    assert wanted is not None
    assert re.fullmatch("allow-web-from-client-[0-9a-f]{6}", wanted["metadata"].pop("name"))
    assert wanted == {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"namespace": "shop"},
        "spec": {
            "endpointSelector": {"matchLabels": {"k8s:app": "web"}},
            "ingress": [
                {
                    "fromEndpoints": [
                        {
                            "matchLabels": {
                                "k8s:app": "client",
                                "k8s:io.kubernetes.pod.namespace": "other",
                            }
                        }
                    ],
                    "icmps": [{"fields": [{"family": "IPv4", "type": 8}]}],
                }
            ],
        },
    }


def test_suggestions_for_different_traffic_never_replace_each_other():
    world = shop()
    world.apply(cnp({**WEB, "ingress": [{}]}, namespace="shop"))

    names = set()
    for source, port in (("client", 80), ("client", 81), ("other", 80), ("198.51.100.7", 80)):
        explanation = ask(world, source, "web", port)
        wanted = suggest(explanation, explanation.ingress)
        assert wanted is not None
        names.add(wanted["metadata"]["name"])

    assert len(names) == 4


HTTP = {"toPorts": [{"ports": [{"port": "http", "protocol": "TCP"}]}]}
TO_HTTP = [{"ports": [{"port": "http", "protocol": "TCP"}]}]


@pytest.mark.parametrize(
    ("objects", "direction"),
    [
        ([cnp({**WEB, "ingress": [HTTP]}, namespace="shop")], "ingress"),
        ([cnp({"endpointSelector": {}, "egress": [HTTP]}, namespace="shop")], "egress"),
        ([knp("p", "shop", podSelector={}, egress=TO_HTTP)], "egress"),
        ([knp("p", "shop", podSelector={}, ingress=TO_HTTP)], "ingress"),
    ],
    ids=["own ports", "cluster's ports", "each peer's ports", "own ports of a NetworkPolicy"],
)
def test_a_named_port_is_the_number_that_it_has_here(objects, direction):
    world = shop()
    world.apply(*objects)
    subject, peer = ("web", "client") if direction == "ingress" else ("client", "web")

    for port, passes in ((8080, True), (80, False)):
        found = getattr(ask(world, "client", "web", port), direction)

        assert found.allowed == passes == world.passes_at(subject, direction, peer, TCP, port)
        assert [trace.decides for trace in found.rules if not trace.misses] == [True] * passes
    assert found.rules[0].misses == (Miss.PORT,)


def test_of_two_rules_that_match_the_one_behind_the_entry_decides():
    world = shop()
    client = {"fromEndpoints": [{"matchLabels": {"app": "client"}}]}
    port = {"toPorts": [{"ports": [{"port": "8080", "protocol": "TCP"}]}]}
    world.apply(
        cnp({**WEB, "ingress": [client]}, name="wide", namespace="shop"),
        cnp({**WEB, "ingress": [{**client, **port}]}, name="narrow", namespace="shop"),
    )

    rules = ask(world, "client", "web", 8080).ingress.rules

    assert [(trace.ref.name, trace.decides) for trace in rules] == [
        ("narrow", True),
        ("wide", False),
    ]
