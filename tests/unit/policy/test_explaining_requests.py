"""Explanations of requests, tiers and audited rules, and the policies that they suggest."""

from __future__ import annotations

import random
from typing import Any

import pytest
from cilium_core.policy import PolicyOptions
from cilium_core.policy.explaining import Explanation, Miss, PolicyState, Reason, Traffic, explain
from cilium_core.policy.requests import DnsQuestion, HttpRequest
from cilium_core.policy.suggesting import suggest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.policy import oracle, random_policies
from tests.unit.policy.test_evaluation import admin, baseline, house, rule
from tests.unit.policy.test_explaining import party, shop
from tests.unit.policy.test_judgements import options
from tests.unit.policy.worlds import TCP, UDP, World, cnp, pod

WEB = {"endpointSelector": {"matchLabels": {"app": "web"}}}
CLIENT = {"fromEndpoints": [{"matchLabels": {"app": "client"}}]}


def ask(
    world: World, source: str, destination: str, port: int, request: Any = None, protocol: int = TCP
) -> Explanation:
    engine = world.engine
    state = PolicyState(engine.repository, engine.options, engine.named_ports)
    traffic = Traffic(protocol, port, request)
    return explain(state, party(world, source), party(world, destination), traffic)


def http(*rules: dict[str, Any], name: str = "p", peers: Any = CLIENT) -> dict[str, Any]:
    ports = {"ports": [{"port": "8080", "protocol": "TCP"}], "rules": {"http": list(rules)}}
    return cnp({**WEB, "ingress": [{**peers, "toPorts": [ports]}]}, name=name, namespace="shop")


def dns(*names: str) -> dict[str, Any]:
    rules = {"dns": [{"matchName": name} for name in names]}
    ports = {"ports": [{"port": "53", "protocol": "UDP"}], "rules": rules}
    spec = {"endpointSelector": {}, "egress": [{"toPorts": [ports]}]}
    return cnp(spec, name="dns", namespace="shop")


def test_the_rule_that_allows_a_request_is_told_from_those_that_miss_it():
    world = shop()
    world.apply(
        http({"method": "GET", "path": "/public.*"}, name="public"),
        http({"path": "/users", "headers": ["X-Token: 1"]}, name="users"),
    )

    found = ask(world, "client", "web", 8080, HttpRequest("GET", "/public/x")).ingress

    assert (found.allowed, found.reason) == (True, Reason.ALLOWED)
    traces = {trace.ref.name: trace for trace in found.rules}
    assert traces["public"].decides
    assert (traces["users"].decides, traces["users"].misses) == (False, (Miss.REQUEST,))
    assert traces["users"].notes == ("its path is /users; it wants header x-token: 1",)


def test_a_request_that_no_rule_allows_is_refused_though_the_connection_passes():
    world = shop()
    world.apply(http({"method": "GET"}))

    connection = ask(world, "client", "web", 8080).ingress
    request = ask(world, "client", "web", 8080, HttpRequest("POST", "/")).ingress

    assert (connection.allowed, connection.reason) == (True, Reason.ALLOWED)
    assert (request.allowed, request.reason) == (False, Reason.REQUEST_REFUSED)
    assert request.redirect is not None
    assert request.rules[0].notes == ("its method is GET",)


@pytest.mark.parametrize(
    ("request_", "passes"),
    [
        (HttpRequest("GET", "/a", "shop.io", (("X-Token", "1"),)), True),
        (HttpRequest("GET", "/a", "other", (("X-Token", "1"),)), False),
        (HttpRequest("GET", "/a", "shop.io", (("X-Token", "2"),)), False),
        (HttpRequest("GET", "/a", "shop.io"), False),
        (HttpRequest("GET", "/a?b", "shop.io", (("X-Token", "1"),)), False),
    ],
)
def test_all_that_a_rule_demands_must_hold(request_, passes):
    world = shop()
    world.apply(http({"path": "/a", "host": "shop[.]io", "headers": ["X-Token: 1"]}))

    assert ask(world, "client", "web", 8080, request_).ingress.allowed is passes


def test_a_rule_without_demands_frees_the_request():
    world = shop()
    world.apply(
        http({"method": "GET"}), cnp({**WEB, "ingress": [CLIENT]}, name="free", namespace="shop")
    )

    found = ask(world, "client", "web", 8080, HttpRequest("POST")).ingress

    assert found.allowed
    assert [trace.ref.name for trace in found.rules if trace.decides] == ["free"]


def test_a_name_is_held_against_dns_rules():
    world = shop()
    world.apply(dns("shop.io"))

    asked = [
        ask(world, "client", "198.51.100.7", 53, DnsQuestion(name), UDP).egress
        for name in ("Shop.io.", "other.io")
    ]

    assert [found.reason for found in asked] == [Reason.ALLOWED, Reason.REQUEST_REFUSED]
    assert asked[1].rules[0].notes == ("its names are shop.io",)


def test_a_request_that_a_proxy_does_not_read_is_not_held_against_it():
    world = shop()
    world.apply(dns("shop.io"))

    found = ask(world, "client", "198.51.100.7", 53, HttpRequest(), UDP).egress

    assert found.reason is Reason.REQUEST_REFUSED
    assert found.rules[0].notes == ("its requests are dns, not http",)


def test_an_audited_refusal_of_a_request_passes():
    world = shop()
    audited = http({"method": "GET"})
    audited["metadata"]["annotations"] = {oracle.AUDIT: "true"}
    world.apply(audited)

    post = ask(world, "client", "web", 8080, HttpRequest("POST")).ingress
    get = ask(world, "client", "web", 8080, HttpRequest("GET")).ingress
    other = ask(world, "other", "web", 8080).ingress

    assert [(one.allowed, one.reason) for one in (post, get, other)] == [
        (True, Reason.AUDITED),
        (True, Reason.ALLOWED),
        (True, Reason.AUDITED),
    ]


def test_conflicts_are_told_since_the_end_does_not_obey_what_is_explained():
    world = shop()
    kafka = {"ports": [{"port": "8080", "protocol": "TCP"}], "rules": {"kafka": [{"topic": "t"}]}}
    other = {**WEB, "ingress": [{**CLIENT, "toPorts": [kafka]}]}
    world.apply(http({"method": "GET"}), cnp(other, name="kafka", namespace="shop"))

    found = ask(world, "client", "web", 8080)

    assert len(found.ingress.conflicts) == 1
    assert found.egress.conflicts == ()


# ---- tiers ----


def houses(*objects: dict[str, Any]) -> World:
    world = World(
        {
            f"{name[0]}/a": pod(name[0], {"app": "a"}, namespace_labels={"house": name})
            for name in ("gryffindor", "slytherin", "hufflepuff")
        }
    )
    world.apply(*objects)
    return world


def test_a_pass_is_no_decision_and_the_baseline_is_named():
    world = houses(
        admin(rule("Pass", house("slytherin"))), baseline(rule("Deny", house("slytherin")))
    )

    found = ask(world, "s/a", "g/a", 80).ingress

    assert found.reason is Reason.DENIED
    assert [(trace.ref.name, trace.decides) for trace in found.rules] == [
        ("default", True),
        ("admin", False),
    ]


def test_what_the_baseline_denies_can_be_allowed_without_isolating_the_pod():
    world = houses(baseline(rule("Deny", house("slytherin"))))
    explanation = ask(world, "s/a", "g/a", 80)

    wanted = suggest(explanation, explanation.ingress)
    assert wanted is not None
    world.apply(wanted)

    assert wanted["spec"]["enableDefaultDeny"] == {"ingress": False}
    assert world.passes_at("g/a", "ingress", "s/a", TCP, 80)
    assert not world.passes_at("g/a", "ingress", "s/a", TCP, 81)
    assert world.passes_at("g/a", "ingress", "h/a", TCP, 80)


def test_what_an_admin_denies_cannot_be_allowed():
    world = houses(admin(rule("Deny", house("slytherin"))))
    explanation = ask(world, "s/a", "g/a", 80)

    assert explanation.ingress.reason is Reason.DENIED
    assert suggest(explanation, explanation.ingress) is None


# ---- suggestions ----


def test_a_refused_request_is_suggested_as_it_is():
    world = shop()
    world.apply(http({"method": "GET"}))
    explanation = ask(world, "client", "web", 8080, HttpRequest("POST", "/a.b?c=(1)", "shop.io"))

    wanted = suggest(explanation, explanation.ingress)

    assert wanted is not None
    (item,) = wanted["spec"]["ingress"]
    assert item["toPorts"] == [
        {
            "ports": [{"port": "8080", "protocol": "TCP"}],
            "rules": {"http": [{"method": "POST", "path": r"/a\.b\?c=\(1\)", "host": r"shop\.io"}]},
        }
    ]


def test_a_name_that_may_not_be_asked_for_is_suggested():
    world = shop()
    world.apply(dns("shop.io"))
    explanation = ask(world, "client", "198.51.100.7", 53, DnsQuestion("other.io"), UDP)

    wanted = suggest(explanation, explanation.egress)

    assert wanted is not None
    assert wanted["spec"]["egress"] == [
        {
            "toCIDR": ["198.51.100.7/32"],
            "toPorts": [
                {
                    "ports": [{"port": "53", "protocol": "UDP"}],
                    "rules": {"dns": [{"matchName": "other.io"}]},
                }
            ],
        }
    ]


def test_a_suggestion_for_the_host_selects_the_node():
    world = World(random_policies.cast(), PolicyOptions(host_firewall=True))
    closed = {"nodeSelector": {}, "ingress": [{}]}
    world.apply(
        {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumClusterwideNetworkPolicy",
            "metadata": {"name": "closed"},
            "spec": closed,
        }
    )
    explanation = ask(world, "x/a", "host", 22)

    wanted = suggest(explanation, explanation.ingress)
    assert wanted is not None
    world.apply(wanted)

    assert wanted["kind"] == "CiliumClusterwideNetworkPolicy"
    assert world.passes_at("host", "ingress", "x/a", TCP, 22)


# ---- all of it, at random ----


def asked(sample: dict[str, Any]) -> Any:
    if sample["kind"] == "dns":
        return DnsQuestion(sample["name"])
    headers = tuple(sample["headers"].items())
    return HttpRequest(sample["method"], sample["path"], sample["host"], headers)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**40), st.integers(1, 5))
def test_explanations_agree_with_a_brute_force_reading_and_suggestions_help(seed, count):
    chance = random.Random(seed)
    world = World(random_policies.cast(), options(chance))
    world.apply(*(random_policies.policy(chance) for _ in range(count)))

    for _ in range(25):
        subject = chance.choice(random_policies.SUBJECTS)
        peer = chance.choice([name for name in world.parties if name != subject])
        direction = chance.choice(["ingress", "egress"])
        protocol, port = chance.choice(random_policies.PACKETS)
        packet = oracle.Packet(direction, world.parties[peer], protocol, port)
        ends = (peer, subject) if direction == "ingress" else (subject, peer)

        opinion = judge(world, subject, packet)
        kind = opinion.enforced.proxy
        samples = random_policies.requests(kind) if kind in ("http", "dns") else []
        # Server names are not part of what is asked about.
        plain = [one for one in samples if one.get("sni") is None]
        for sample in [None, *chance.sample(plain, min(4, len(plain)))]:
            request = None if sample is None else asked(sample)
            explanation = ask(world, *ends, port, request, protocol)
            found = getattr(explanation, direction)
            if found.reason is Reason.NO_POLICY_HERE or names_servers(found):
                continue
            expected = opinion.passes if sample is None else opinion.request(sample)
            assert found.allowed == expected, (seed, subject, direction, peer, protocol, port)
            wanted = suggest(explanation, found)
            assert (wanted is not None) == (not expected and found.overrulable)
            if wanted is not None:
                world.apply(wanted)
                again = judge(world, subject, packet)
                assert again.passes if sample is None else again.request(sample)
                world.delete(wanted)


def names_servers(found: Any) -> bool:
    matches = [trace.rule.l7 for trace in found.rules if trace.rule.l7 is not None]
    return any(match.server_names for match in matches)


def judge(world: World, subject: str, packet: oracle.Packet) -> oracle.Opinion:
    objects = list(world.objects.values())
    return oracle.judge(objects, world.parties[subject], packet, world.setting())
