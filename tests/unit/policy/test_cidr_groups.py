"""CIDR groups: what they select, and that every change of one takes effect by itself."""

from __future__ import annotations

import pytest
from cilium_core.policy import PolicyError, parse_cidr_group

from tests.unit.policy.worlds import (
    World,
    ccnp,
    cidr_group,
    cnp,
    conformance_parties,
    surroundings,
)

OFFICE = cnp(endpointSelector={}, ingress=[{"fromCIDRSet": [{"cidrGroupRef": "office"}]}])


def world() -> World:
    return World({**conformance_parties(), **surroundings()})


def by_labels(**labels: str) -> dict:
    return ccnp(
        endpointSelector={},
        egress=[{"toCIDRSet": [{"cidrGroupSelector": {"matchLabels": labels}}]}],
    )


def test_a_missing_group_selects_nobody_and_still_closes():
    here = world()

    here.apply(OFFICE)

    assert not here.reaches("10.0.0.1", "x/a", 80)
    assert not here.reaches("y/a", "x/a", 80)


def test_a_group_takes_effect_when_it_comes_changes_and_goes():
    here = world()
    here.apply(OFFICE)

    here.apply(cidr_group("office", "10.0.0.0/16"))
    assert here.reaches("10.0.0.1", "x/a", 80)
    assert not here.reaches("10.96.0.1", "x/a", 80)

    here.apply(cidr_group("office", "10.96.0.0/16", "fd00::/64"))
    assert not here.reaches("10.0.0.1", "x/a", 80)
    assert here.reaches("10.96.0.1", "x/a", 80)
    assert here.reaches("fd00::1", "x/a", 80)

    here.delete(cidr_group("office"))
    assert not here.reaches("10.96.0.1", "x/a", 80)
    assert not here.engine.required_prefixes()


def test_a_group_that_was_there_first_counts_too():
    here = world()

    here.apply(cidr_group("office", "10.0.0.0/16"), OFFICE)

    assert here.reaches("10.0.0.1", "x/a", 80)


def test_excepts_are_taken_out_of_a_group():
    here = world()
    item = {"fromCIDRSet": [{"cidrGroupRef": "office", "except": ["10.0.0.1/32", "172.16.0.0/12"]}]}

    here.apply(cidr_group("office", "10.0.0.0/8"), cnp(endpointSelector={}, ingress=[item]))

    assert not here.reaches("10.0.0.1", "x/a", 80)
    assert here.reaches("10.96.0.1", "x/a", 80)


def test_a_deny_rule_can_name_a_group():
    here = world()
    deny = [{"toCIDRSet": [{"cidrGroupRef": "bad"}]}]

    here.apply(
        cidr_group("bad", "10.96.0.0/12"),
        ccnp(endpointSelector={}, egress=[{"toEntities": ["world"]}], egressDeny=deny),
    )

    assert here.reaches("x/a", "10.0.0.1", 80)
    assert not here.reaches("x/a", "10.96.0.1", 80)


def test_the_whole_address_space_can_be_a_member():
    here = world()

    here.apply(OFFICE, cidr_group("office", "0.0.0.0/0"))

    assert here.reaches("198.51.100.7", "x/a", 80)
    assert not here.reaches("2001:db8::1", "x/a", 80)
    assert not here.reaches("y/a", "x/a", 80)


def test_labels_of_groups_are_followed():
    here = world()
    here.apply(by_labels(env="prod"), cidr_group("one", "10.0.0.0/16", env="dev"))
    assert not here.reaches("x/a", "10.0.0.1", 80)

    here.apply(cidr_group("one", "10.0.0.0/16", env="prod"))
    assert here.reaches("x/a", "10.0.0.1", 80)

    here.apply(cidr_group("two", "198.51.100.0/24", env="prod"))
    assert here.reaches("x/a", "198.51.100.7", 80)


def test_an_address_has_the_labels_of_all_groups_around_it():
    here = world()

    here.apply(
        by_labels(env="prod", site="berlin"),
        cidr_group("one", "10.0.0.0/8", env="prod"),
        cidr_group("two", "10.0.0.0/16", site="berlin"),
    )

    assert here.reaches("x/a", "10.0.0.1", 80)
    assert not here.reaches("x/a", "10.96.0.1", 80)


def test_of_two_values_the_one_of_the_narrower_group_counts():
    here = world()

    here.apply(
        by_labels(env="prod"),
        cidr_group("a", "10.0.0.0/16", env="dev"),
        cidr_group("b", "10.0.0.0/8", env="prod"),
    )

    assert not here.reaches("x/a", "10.0.0.1", 80)
    assert here.reaches("x/a", "10.96.0.1", 80)


def test_keys_that_only_the_agent_gives_are_dropped():
    obj = cidr_group("g", "10.0.0.0/8")
    obj["metadata"]["labels"] = {"io.cilium.k8s.policy.cluster": "x", "env": "prod"}

    assert parse_cidr_group(obj).labels.texts() == [
        "cidrgroup:env=prod",
        "cidrgroup:io.cilium.policy.cidrgroupname/g",
    ]


def test_a_change_touches_only_endpoints_whose_rules_refer_to_the_group():
    here = world()
    here.apply(OFFICE, cnp(endpointSelector={}, namespace="y", ingress=[{}]))
    revision = here.engine.revision

    change = here.engine.upsert_cidr_group(cidr_group("office", "10.0.0.0/8"))

    assert change.affected == {"x/a", "x/b", "x/c"}
    assert {ref.name for ref in change.policies} == {"policy"}
    assert change.revision == revision + 1


def test_a_group_that_nobody_refers_to_changes_nothing():
    here = world()
    here.apply(OFFICE, by_labels(env="prod"))
    revision = here.engine.revision
    other = parse_cidr_group(cidr_group("other", "10.0.0.0/8", team="red"))

    assert not here.engine.group_prefixes(other)
    assert not here.engine.upsert_cidr_group(other).affected
    assert here.engine.revision == revision
    assert not here.engine.required_prefixes()


def test_the_prefixes_to_prepare_for_a_group_include_its_excepts():
    here = world()
    item = {"fromCIDRSet": [{"cidrGroupRef": "office", "except": ["10.0.0.1/32"]}]}
    here.apply(cnp(endpointSelector={}, ingress=[item]))
    assert not here.engine.required_prefixes()

    group = parse_cidr_group(cidr_group("office", "10.0.0.0/8"))

    assert {str(prefix) for prefix in here.engine.group_prefixes(group)} == {
        "10.0.0.0/8",
        "10.0.0.1/32",
    }


def test_bad_members_are_left_out_with_a_warning():
    group = parse_cidr_group(cidr_group("g", "10.0.0.0/8", "10.0.0.1", "nonsense"))

    assert [str(prefix) for prefix in group.prefixes] == ["10.0.0.0/8"]
    assert [text.partition(":")[0] for text in group.warnings] == [
        "spec.externalCIDRs[1]",
        "spec.externalCIDRs[2]",
    ]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"spec": {}}, "spec.externalCIDRs"),
        ({"spec": {"externalCIDRs": [1]}}, "spec.externalCIDRs[0]"),
        ({"spec": {"externalCIDRs": [], "cidrs": []}}, "spec.cidrs"),
        ({"metadata": {"name": "A b"}}, "metadata"),
        ({"apiVersion": "v1"}, "apiVersion"),
    ],
)
def test_a_wrong_group_is_refused_by_field_and_changes_nothing(change, path):
    here = world()
    here.apply(OFFICE, cidr_group("office", "10.0.0.0/8"))

    with pytest.raises(PolicyError) as caught:
        here.engine.upsert_cidr_group({**cidr_group("office"), **change})

    assert [problem.path for problem in caught.value.problems] == [path]
    assert not here.flush()
    assert here.reaches("10.0.0.1", "x/a", 80)


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"except": ["10.0.0.0/8"]},
        {"cidr": "10.0.0.0/8", "cidrGroupRef": "g"},
        {"cidrGroupRef": "g", "cidrGroupSelector": {}},
        {"cidrGroupRef": "Not A Name"},
        {"cidrGroupSelector": {"matchLabels": {"-": "x"}}},
    ],
)
def test_exactly_one_of_prefix_name_and_selector_is_asked_for(rule):
    with pytest.raises(PolicyError, match="fromCIDRSet"):
        world().apply(cnp(endpointSelector={}, ingress=[{"fromCIDRSet": [rule]}]))
