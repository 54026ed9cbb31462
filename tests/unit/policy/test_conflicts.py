"""Rules that contradict each other are named, and the endpoint keeps what it had."""

from __future__ import annotations

from typing import Any

import pytest
from cilium_core.policy import Direction, PolicyOptions
from cilium_core.policy.unions import unite

from tests.unit.policy.worlds import TCP, World, ccnp, cnp, pod, reserved

WEB, CLIENT = ({"matchLabels": {"app": name}} for name in ("web", "client"))
FROM_CLIENT = {"fromEndpoints": [CLIENT]}


def world(*objects: dict[str, Any]) -> World:
    parties = {name: pod("x", {"app": name}) for name in ("web", "client", "other")}
    made = World({**parties, "host": reserved("host")}, PolicyOptions())
    made.apply(*objects)
    return made


def policy(name: str, *to_ports: dict[str, Any], peers: Any = FROM_CLIENT) -> dict[str, Any]:
    items = [{**peers, "toPorts": list(to_ports)}]
    return cnp({"endpointSelector": WEB, "ingress": items}, name=name)


def on(number: str = "80", **more: Any) -> dict[str, Any]:
    return {"ports": [{"port": number, "protocol": "TCP"}], **more}


HTTP = on(rules={"http": [{"method": "GET"}]})
KAFKA = on(rules={"kafka": [{"topic": "t"}]})


def tls(secret: str, **more: Any) -> dict[str, Any]:
    return on(terminatingTLS={"secret": {"name": secret}}, **more)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (HTTP, KAFKA, "a port cannot be parsed as http and as kafka"),
        (tls("one"), tls("two"), "they name different terminatingTLS contexts"),
        (
            on(originatingTLS={"secret": {"name": "one"}}),
            on(originatingTLS={"secret": {"name": "two"}}),
            "they name different originatingTLS contexts",
        ),
        (HTTP, on(serverNames=["a.io"]), "need terminatingTLS"),
    ],
    ids=["kinds", "terminating", "originating", "server names"],
)
def test_what_cannot_be_united_is_a_conflict_that_names_both_rules(first, second, reason):
    made = world(policy("one", first), policy("two", second))

    (conflict,) = made.engine.conflicts()["web"]

    assert {ref.name for ref in conflict.policies} == {"one", "two"}
    assert reason in conflict.reason
    assert "CiliumNetworkPolicy x/one spec.ingress[0]" in str(conflict)
    assert "CiliumNetworkPolicy x/two spec.ingress[0]" in str(conflict)


def test_dns_and_server_names_on_one_port_are_a_conflict():
    dns = on("53", rules={"dns": [{"matchName": "a.io"}]})
    items = [{"toPorts": [dns, on("53", serverNames=["a.io"])]}]
    made = world(cnp({"endpointSelector": WEB, "egress": items}))

    (conflict,) = made.engine.conflicts()["web"]

    assert conflict.reason == "a port cannot be parsed as dns and as tls"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (HTTP, HTTP),
        (HTTP, on()),
        (HTTP, on("81", rules={"kafka": [{"topic": "t"}]})),
        (tls("one"), on(rules={"http": [{"method": "GET"}]})),
        (tls("one", serverNames=["a.io"]), tls("one", rules={"http": [{"method": "GET"}]})),
        (on(serverNames=["a.io"]), on(serverNames=["b.io"])),
    ],
    ids=["equal", "plain", "other port", "promoted", "names in opened TLS", "names"],
)
def test_what_can_be_united_is_none(first, second):
    assert world(policy("one", first), policy("two", second)).engine.conflicts() == {}


def test_rules_for_different_peers_do_not_conflict():
    two = policy("two", KAFKA, peers={"fromEntities": ["cluster"]})

    assert world(policy("one", HTTP), two).engine.conflicts() == {}


def test_rules_for_a_peer_that_is_nobody_do_not_conflict():
    nobody = {"fromEntities": ["none"]}
    made = world(policy("one", HTTP, peers=nobody), policy("two", KAFKA, peers=nobody))

    assert made.engine.conflicts() == {}


def test_equal_peers_of_policies_of_different_scope_conflict():
    whole = {
        "endpointSelector": WEB,
        "ingress": [{"fromEntities": ["cluster"], "toPorts": [KAFKA]}],
    }
    one = policy("one", HTTP, peers={"fromEntities": ["cluster"]})

    assert list(world(one, ccnp(whole, name="two")).engine.conflicts()) == ["web"]


def test_the_endpoint_keeps_the_policy_that_it_had_and_follows_identities():
    made = world(policy("one", HTTP))
    before = made.maps["web"].copy()

    made.apply(policy("two", KAFKA))
    kept = made.maps["web"].copy()
    made.put("client-2", pod("x", {"app": "client", "version": "2"}))
    made.flush()

    assert kept == before
    entry = made.maps["web"].keys() - before.keys()
    assert {key.identity for key in entry} == {made.identity(made.parties["client-2"])}


def test_updates_tell_when_a_conflict_comes_and_goes():
    made = world(policy("one", HTTP))
    told = []

    for change in (
        lambda: made.engine.upsert_policy(policy("two", KAFKA)),
        lambda: made.engine.upsert_policy(policy("three", on("90"))),
        lambda: made.engine.delete_policy("CiliumNetworkPolicy", "x", "one"),
    ):
        change()
        told += [
            (update.endpoint, len(update.conflicts), bool(update.delta))
            for update in made.engine.flush()
        ]

    assert told == [("web", 1, False), ("web", 0, True)]
    assert made.engine.conflicts() == {}


def test_a_new_endpoint_denies_what_the_rules_in_question_would_allow():
    made = world(policy("one", HTTP, on("81")), policy("two", KAFKA), policy("free", on("82")))
    party = pod("x", {"app": "web"})

    made.put("late", party)
    made.flush()

    assert [
        made.passes_at("late", "ingress", "client", TCP, port) for port in (80, 81, 82, 83)
    ] == [
        False,
        True,
        True,
        False,
    ]
    assert [conflict.reason for conflict in made.engine.conflicts()["late"]] == [
        "a port cannot be parsed as http and as kafka"
    ]


def test_a_conflict_of_one_direction_holds_the_other_back_too():
    made = world(policy("one", HTTP))
    spec = {"endpointSelector": WEB, "egress": [{"toEntities": ["world"]}]}
    kafka = {**spec, "ingress": [{**FROM_CLIENT, "toPorts": [KAFKA]}]}

    made.apply(cnp(kafka, name="two"))

    assert made.enforced["web"] == (True, False)
    assert made.engine.policy("web").allows(Direction.EGRESS, 1, 6, 80)


def test_an_audited_rule_contradicts_none():
    audited = policy("two", KAFKA)
    audited["metadata"]["annotations"] = {"policy.cilium.io/audit-mode": "true"}

    made = world(policy("one", HTTP), audited)

    assert made.engine.conflicts() == {}
    kinds = {redirect.kind.value for _, redirect in made.engine.redirects.items()}
    assert kinds == {"http"}


def test_endpoints_without_the_rules_are_not_concerned():
    made = world(policy("one", HTTP), policy("two", KAFKA))

    assert list(made.engine.conflicts()) == ["web"]


def test_an_endpoint_that_is_removed_has_no_conflicts():
    made = world(policy("one", HTTP), policy("two", KAFKA))

    made.take("web")

    assert made.engine.conflicts() == {}


def test_many_rules_that_contradict_others_are_each_named_once():
    many = [policy(f"p{n}", HTTP if n % 2 else KAFKA) for n in range(20)]
    conflicts = world(*many).engine.conflicts()["web"]
    named = {ref.name for conflict in conflicts for ref in conflict.policies}
    assert named == {f"p{n}" for n in range(20)}
    assert len(conflicts) < 20


EVERYONE = {"fromEndpoints": [{}]}


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (HTTP, KAFKA, "a port cannot be parsed as http and as kafka"),
        (tls("one"), tls("two"), "they name different terminatingTLS contexts"),
        (HTTP, on("0"), None),
        (HTTP, on("81", rules={"kafka": [{"topic": "t"}]}), None),
        (HTTP, {"ports": [{"port": "79", "endPort": 85, "protocol": "TCP"}]}, None),
    ],
)
def test_rules_that_meet_in_one_peer_and_cannot_be_united_are_told(first, second, reason):
    made = world(policy("one", first), policy("two", second, peers=EVERYONE))
    assert made.engine.conflicts() == {}
    meetings = made.engine.meetings()
    if reason is None:
        assert meetings == {}
        return
    (pair,) = meetings["web"]
    assert [rule.ref.name for rule in (pair.first, pair.second)] == ["one", "two"]
    assert reason in pair.reason
    made.take("client")
    assert made.engine.meetings() == {}


@pytest.mark.parametrize(
    ("weaker", "stronger"),
    [
        (KAFKA, HTTP),
        (on(serverNames=["a.io"]), HTTP),
        (tls("two", rules=HTTP["rules"]), tls("one")),
        (tls("two"), tls("one", rules=HTTP["rules"])),
    ],
    ids=["kinds", "server names", "certificates", "certificates of HTTP"],
)
def test_the_weaker_of_rules_that_meet_is_the_one_that_allows_nothing(weaker, stronger):
    made = world(policy("a", weaker), policy("b", stronger, peers=EVERYONE))
    (pair,) = made.engine.meetings()["web"]
    assert [rule.ref.name for rule in (pair.first, pair.second)] == ["b", "a"]
    union = unite((pair.first, pair.second), pair.first.prefixes[0], observe=False)
    assert union is not None
    assert union.rules == (pair.first,)


def test_rules_for_everyone_meet_those_for_somebody():
    made = world(policy("one", HTTP, peers={}), policy("two", KAFKA))
    (pair,) = made.engine.meetings()["web"]
    assert pair.second.ref.name == "two"
