"""Older spellings mean what their authors meant, and are reported."""

from __future__ import annotations

import copy

import pytest
from cilium_core.policy import PolicyError, Verdict, parse

from tests.unit.policy.worlds import (
    ICMP,
    TCP,
    UDP,
    World,
    ccnp,
    cnp,
    conformance_parties,
    surroundings,
)

BLOCK = {
    "fromCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["10.96.0.0/12"]}],
    "toPorts": [{"ports": [{"port": "0", "protocol": "ANY"}]}],
    "action": "Deny",
}


def world() -> World:
    return World({**conformance_parties(), **surroundings()})


def test_a_block_list_blocks_its_prefix_and_nothing_else():
    here = world()

    here.apply(ccnp(endpointSelector={}, ingress=[BLOCK]))

    assert not here.reaches("10.0.0.1", "x/a", 80)
    assert not here.reaches("10.0.0.1", "x/a", 8, ICMP)
    assert here.reaches("10.96.0.1", "x/a", 80)
    assert here.reaches("198.51.100.7", "x/a", 80)
    assert here.reaches("y/a", "x/a", 80)


def test_every_conversion_leaves_a_warning_with_its_place():
    warnings = parse(ccnp(endpointSelector={}, ingress=[BLOCK])).warnings

    assert [text.partition(":")[0] for text in warnings] == [
        "spec.ingress[0]",
        "spec.ingress[0].toPorts",
        "spec.ingress",
    ]


def test_the_object_as_given_is_not_changed():
    obj = ccnp(endpointSelector={}, ingress=[BLOCK])
    before = copy.deepcopy(obj)

    policy = parse(obj)

    assert obj == before
    assert policy.source is obj


def test_a_block_beside_allow_items_leaves_the_default_deny_of_those():
    here = world()

    here.apply(cnp(endpointSelector={}, ingress=[BLOCK, {"fromEntities": ["world"]}]))

    assert not here.reaches("10.0.0.1", "x/a", 80)
    assert here.reaches("198.51.100.7", "x/a", 80)
    assert not here.reaches("y/a", "x/a", 80)


def test_a_chosen_default_deny_is_left_as_chosen():
    here = world()

    here.apply(cnp(endpointSelector={}, ingress=[BLOCK], enableDefaultDeny={"ingress": True}))

    assert not here.reaches("198.51.100.7", "x/a", 80)


def test_a_real_deny_list_beside_a_block_keeps_its_default_deny():
    rules = parse(
        cnp(endpointSelector={}, ingress=[BLOCK], ingressDeny=[{"fromEntities": ["host"]}])
    ).rules

    assert [(rule.verdict, rule.default_deny) for rule in rules] == [(Verdict.DENY, True)] * 2


def test_the_default_of_the_other_direction_is_not_touched():
    policy = parse(cnp(endpointSelector={}, ingress=[BLOCK], egress=[{"toEntities": ["world"]}]))

    assert {rule.direction.name: rule.default_deny for rule in policy.rules} == {
        "INGRESS": False,
        "EGRESS": True,
    }


@pytest.mark.parametrize("action", ["Allow", "allow", "ALLOW"])
def test_an_allow_action_says_nothing_new(action):
    item = {"fromEntities": ["world"]}

    written = parse(cnp(endpointSelector={}, ingress=[{**item, "action": action}])).rules
    plain = parse(cnp(endpointSelector={}, ingress=[item])).rules

    assert [(r.verdict, r.peers, r.default_deny) for r in written] == [
        (r.verdict, r.peers, r.default_deny) for r in plain
    ]


def test_deny_is_read_in_any_case_and_in_specs_and_egress():
    obj = cnp()
    del obj["spec"]
    obj["specs"] = [
        {"endpointSelector": {}, "egress": [{"toCIDR": ["10.0.0.0/8"], "action": "DENY"}]}
    ]

    rules = parse(obj).rules

    assert [(rule.verdict, rule.default_deny) for rule in rules] == [(Verdict.DENY, False)]


@pytest.mark.parametrize("action", ["Drop", "", None, 1, ["Deny"], {"Deny": 1}])
def test_an_unknown_action_is_refused(action):
    with pytest.raises(PolicyError, match=r"spec.ingress\[0\].action: must be Allow or Deny"):
        parse(cnp(endpointSelector={}, ingress=[{"action": action}]))


@pytest.mark.parametrize(
    ("extra", "path"),
    [
        ({"toPorts": [{"ports": [{"port": "80"}], "rules": {"http": [{}]}}]}, "toPorts[0].rules"),
        ({"toFQDNs": [{"matchName": "a.io"}]}, "toFQDNs"),
        ({"authentication": {"mode": "required"}}, "authentication"),
    ],
)
def test_a_deny_action_with_what_only_an_allow_can_have_is_refused(extra, path):
    with pytest.raises(PolicyError) as caught:
        parse(cnp(endpointSelector={}, egress=[{}, {"action": "Deny", **extra}]))

    assert [problem.path for problem in caught.value.problems] == [f"spec.egress[1].{path}"]


def test_an_action_in_a_real_deny_list_is_an_unknown_field():
    with pytest.raises(PolicyError, match=r"spec.ingressDeny\[0\].action: unknown field"):
        parse(cnp(endpointSelector={}, ingressDeny=[{"action": "Deny"}]))


def test_a_problem_in_a_moved_item_is_reported_where_the_user_wrote_it():
    obj = cnp(
        endpointSelector={},
        ingress=[BLOCK, {"fromEntities": ["moon"]}, {"action": "Deny", "fromEntities": ["sun"]}],
    )

    with pytest.raises(PolicyError) as caught:
        parse(obj)

    assert {problem.path for problem in caught.value.problems} == {
        "spec.ingress[1].fromEntities[0]",
        "spec.ingress[2].fromEntities[0]",
    }


@pytest.mark.parametrize(
    "ports",
    [
        [{"ports": [{"port": "0", "protocol": "TCP"}]}],
        [{"ports": [{"port": "0"}, {"port": "80"}]}],
        [{"ports": [{"port": "0"}]}, {"ports": [{"port": "80"}]}],
        [{"ports": [{"port": "80", "protocol": "ANY"}]}],
    ],
)
def test_other_port_lists_of_a_deny_action_are_taken_as_written(ports):
    here = world()

    here.apply(cnp(endpointSelector={}, ingress=[{**BLOCK, "toPorts": ports}]))

    assert not here.reaches("10.0.0.1", "x/a", 80, TCP)
    assert here.reaches("10.0.0.1", "x/a", 8, ICMP)


def test_port_zero_of_a_real_rule_never_covers_icmp():
    here = world()
    ports = [{"ports": [{"port": "0", "protocol": "ANY"}]}]

    here.apply(
        cnp(
            endpointSelector={},
            ingressDeny=[{"toPorts": ports}],
            enableDefaultDeny={"ingress": False},
        )
    )

    assert not here.reaches("y/a", "x/a", 80, TCP)
    assert not here.reaches("y/a", "x/a", 80, UDP)
    assert here.reaches("y/a", "x/a", 8, ICMP)
