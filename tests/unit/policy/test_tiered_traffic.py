"""Tiered policies at work: who reaches whom, as the conformance tests of their API probe it."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from cilium_core.policy import PolicyOptions
from cilium_core.policy.networks import Networks, addresses_of

from tests.unit.policy.test_tiers import admin, baseline, cluster
from tests.unit.policy.worlds import (
    SCTP,
    TCP,
    UDP,
    World,
    cnp,
    conformance_parties,
    knp,
    label_set,
    surroundings,
)

X = {"namespaces": {"matchLabels": {"ns": "x"}}}
Y = {"namespaces": {"matchLabels": {"ns": "y"}}}
Z = {"namespaces": {"matchLabels": {"ns": "z"}}}


def here(*objects: dict[str, Any], **options: Any) -> World:
    world = World({**conformance_parties(), **surroundings()}, PolicyOptions(**options))
    world.apply(*objects)
    return world


def guard(
    action: str, *, name: str = "guard", priority: int = 10, word: str = "ingress", **fields: Any
):
    """A policy about all of x that does one thing with y."""
    peers = {"from" if word == "ingress" else "to": [fields.pop("peer", Y)]}
    rule = {"action": action, **peers, **fields}
    return admin(priority=priority, name=name, subject=X, **{word: [rule]})


def test_a_denies_both_ways_and_nobody_else():
    world = here(guard("Deny"), guard("Deny", name="out", word="egress"))

    assert not world.reaches("y/a", "x/a", 80)
    assert not world.reaches("x/a", "y/a", 80)
    assert world.reaches("z/a", "x/a", 80)
    assert world.reaches("y/a", "z/a", 80)


@pytest.mark.parametrize(("action", "passes"), [("Deny", False), ("Allow", True)])
def test_the_admin_has_the_word_over_everyone_else(action, passes):
    opposite = [{}] if action == "Deny" else []
    world = here(guard(action), knp(podSelector={}, ingress=opposite, policyTypes=["Ingress"]))

    assert world.reaches("y/a", "x/a", 80) is passes
    assert world.reaches("z/a", "x/a", 80) is not passes


def test_an_admins_allow_wins_over_a_deny_of_others_and_deny_over_an_allow():
    deny = cnp(endpointSelector={}, ingressDeny=[{"fromEntities": ["all"]}], name="deny")

    assert here(guard("Allow"), deny).reaches("y/a", "x/a", 80)


def test_b_what_is_passed_is_judged_by_other_policies():
    allow_y = knp(
        podSelector={}, ingress=[{"from": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}]}]
    )
    world = here(guard("Pass"), guard("Deny", name="late", priority=20), allow_y)

    assert world.reaches("y/a", "x/a", 80)
    assert not world.reaches("z/a", "x/a", 80)


def test_c_what_is_passed_and_nobody_elses_business_is_for_the_baseline():
    lowest = baseline(
        subject=X, ingress=[{"action": "Deny", "from": [Y]}, {"action": "Allow", "from": [Z]}]
    )

    assert not here(guard("Pass"), lowest).reaches("y/a", "x/a", 80)
    assert here(guard("Pass"), lowest).reaches("z/a", "x/a", 80)
    assert here(guard("Pass")).reaches("y/a", "x/a", 80)


def test_the_baseline_says_nothing_where_another_policy_selects_the_pod():
    lowest = baseline(subject=X, ingress=[{"action": "Allow", "from": [Y]}])
    closed = knp(podSelector={}, policyTypes=["Ingress"])

    assert not here(lowest, closed).reaches("y/a", "x/a", 80)


def test_d_the_lower_priority_number_wins_and_may_change():
    world = here(guard("Deny", priority=50), guard("Pass", name="pass", priority=60))
    assert not world.reaches("y/a", "x/a", 80)

    world.apply(guard("Pass", name="pass", priority=40))
    assert world.reaches("y/a", "x/a", 80)


def test_e_the_first_rule_that_matches_decides():
    rules = [{"action": "Allow", "from": [Y]}, {"action": "Deny", "from": [Y]}]
    world = here(admin(subject=X, ingress=rules))
    assert world.reaches("y/a", "x/a", 80)

    world.apply(admin(subject=X, ingress=rules[::-1]))
    assert not world.reaches("y/a", "x/a", 80)


@pytest.mark.parametrize(("name", "protocol"), [("tcp", TCP), ("udp", UDP), ("sctp", SCTP)])
def test_f_protocols_with_and_without_a_port(name, protocol):
    def denying(ports: dict[str, Any]) -> World:
        rule = {"action": "Deny", "from": [Y], "protocols": [{name: ports}]}
        return here(cluster(subject=X, ingress=[rule]))

    one = denying({"destinationPort": {"number": 80}})
    assert not one.reaches("y/a", "x/a", 80, protocol)
    assert one.reaches("y/a", "x/a", 81, protocol)
    every = denying({})
    assert not every.reaches("y/a", "x/a", 81, protocol)
    other = TCP if protocol != TCP else UDP
    assert every.reaches("y/a", "x/a", 80, other)


def address(world: World, **addresses: list[str]) -> None:
    """Tell the engine the addresses of pods, each named `namespace_pod`."""
    known = (
        (ipaddress.ip_network(one), label_set(world.parties[name.replace("_", "/")]))
        for name, list_ in addresses.items()
        for one in list_
    )
    world.engine.set_addresses(Networks(addresses_of(known)))
    world.flush()


def test_g_networks_mean_pods_as_well_as_the_outside():
    deny = {"action": "Deny", "to": [{"networks": ["10.0.0.0/15"]}]}
    world = here(admin(subject=X, egress=[deny]))
    address(world, y_a=["10.0.0.9"], y_b=["10.9.0.9"])

    assert not world.reaches("x/a", "y/a", 80)
    assert world.reaches("x/a", "y/b", 80)
    assert not world.reaches("x/a", "10.0.0.1", 80)
    assert world.reaches("x/a", "198.51.100.7", 80)

    world.apply(admin(subject=X, egress=[{**deny, "action": "Allow"}, deny]))
    assert world.reaches("x/a", "y/a", 80)

    address(world, y_a=["10.9.0.1"], y_b=["10.0.0.2"])
    world.apply(admin(subject=X, egress=[deny]))
    assert world.reaches("x/a", "y/a", 80)
    assert not world.reaches("x/a", "y/b", 80)


def test_h_a_named_port_is_the_peers_own():
    named = [{"namedPort": "serve-80-udp"}]
    world = here(guard("Deny", ports=named), guard("Deny", name="out", word="egress", ports=named))

    for source, destination in (("y/a", "x/a"), ("x/a", "y/a")):
        assert not world.reaches(source, destination, 80, UDP)
        assert world.reaches(source, destination, 80, TCP)
        assert world.reaches(source, destination, 81, UDP)


def test_i_nodes_are_peers():
    world = here(guard("Deny", word="egress", peer={"nodes": {}}))

    assert not world.reaches("x/a", "host", 80)
    assert not world.reaches("x/a", "node", 80)
    assert world.reaches("x/a", "y/a", 80)


def test_other_policies_alone_decide_as_before_beside_a_policy_of_a_tier():
    world = here(
        guard("Deny", peer=Z),
        cnp(endpointSelector={}, ingress=[{"fromEndpoints": [{"matchLabels": {"pod": "b"}}]}]),
    )

    assert world.reaches("x/b", "x/a", 80)
    assert not world.reaches("x/c", "x/a", 80)
    assert not world.reaches("z/b", "x/a", 80)


def test_an_audited_policy_of_a_tier_refuses_nothing():
    policy = guard("Deny")
    policy["metadata"]["annotations"] = {"policy.cilium.io/audit-mode": "true"}
    world = here(policy)

    found = [
        entry
        for key, entry in world.maps["x/a"].items()
        if key.identity == world.identity(world.parties["y/a"])
    ]
    assert found
    assert all(entry.audit for entry in found if entry.deny)
