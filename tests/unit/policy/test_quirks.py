"""Where other implementations surprise, this one does what the text says (or the same,
knowingly)."""

from __future__ import annotations

import pytest
from cilium_core.labels import LabelSet
from cilium_core.policy import PolicyError, parse

from tests.unit.policy.worlds import (
    ICMP,
    TCP,
    World,
    ccnp,
    cidr_group,
    cnp,
    conformance_parties,
    knp,
    reserved,
    surroundings,
)

WEB = {"toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}]}]}


def world() -> World:
    return World({**conformance_parties(), **surroundings()})


def test_13_1_an_ingress_block_adds_no_peer_of_its_own():
    rules = parse(
        knp(podSelector={}, ingress=[{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}])
    ).rules

    assert [str(peer) for rule in rules for peer in rule.peers] == ["cidr:10.0.0.0/8"]


def test_13_2_a_section_that_policy_types_omit_is_not_imported():
    rules = parse(knp(podSelector={}, policyTypes=["Ingress"], egress=[{}])).rules

    assert {rule.direction.name for rule in rules} == {"INGRESS"}


@pytest.mark.parametrize("field", ["toServices", "toFQDNs"])
def test_13_3_and_13_5_an_empty_peer_list_with_ports_is_nobody(field):
    rules = parse(cnp(endpointSelector={}, egress=[{field: [], **WEB}])).rules

    assert [rule.peers for rule in rules] == [()]


def test_13_4_services_in_a_deny_rule_are_not_silently_dropped():
    with pytest.raises(PolicyError, match=r"egressDeny\[0\].toServices"):
        parse(cnp(endpointSelector={}, egressDeny=[{"toServices": [{}], **WEB}]))


@pytest.mark.parametrize(
    "selector",
    [{}, {"matchExpressions": [{"key": "env", "operator": "DoesNotExist"}]}],
    ids=["empty", "negative"],
)
def test_13_6_a_group_selector_never_selects_pods(selector):
    here = world()

    here.apply(
        cidr_group("g", "10.0.0.0/8"),
        cnp(endpointSelector={}, egress=[{"toCIDRSet": [{"cidrGroupSelector": selector}]}]),
    )

    assert here.reaches("x/a", "10.0.0.1", 80)
    assert not here.reaches("x/a", "y/a", 80)
    assert not here.reaches("x/a", "198.51.100.7", 80)


def test_13_7_icmp_type_0_is_one_type():
    here = world()

    here.apply(cnp(endpointSelector={}, ingress=[{"icmps": [{"fields": [{"type": 0}]}]}]))

    assert [here.passes_at("x/a", "ingress", "y/a", ICMP, number) for number in (0, 3, 8)] == [
        True,
        False,
        False,
    ]


def test_13_8_an_except_wider_than_its_prefix_is_refused():
    with pytest.raises(PolicyError, match="does not lie inside"):
        parse(
            cnp(
                endpointSelector={},
                egress=[{"toCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["0.0.0.0/0"]}]}],
            )
        )


def test_13_12_default_deny_without_rules_warns():
    policy = parse(cnp(endpointSelector={}, egress=[{}], enableDefaultDeny={"ingress": True}))

    assert len(policy.warnings) == 1
    assert {rule.direction.name for rule in policy.rules} == {"EGRESS"}


def test_13_13_the_range_of_a_named_port_is_ignored():
    ports = {"toPorts": [{"ports": [{"port": "serve-80-tcp", "endPort": 90, "protocol": "TCP"}]}]}
    here = world()

    here.apply(cnp(endpointSelector={}, ingress=[ports]))

    assert here.passes_at("x/a", "ingress", "y/a", TCP, 80)
    assert not here.passes_at("x/a", "ingress", "y/a", TCP, 81)


@pytest.mark.parametrize(
    "extra", [{"rules": {"http": [{}]}}, {"listener": {}}, {"serverNames": ["a"]}]
)
def test_13_14_a_deny_item_with_more_than_ports_is_refused(extra):
    with pytest.raises(PolicyError, match="unknown field"):
        parse(
            cnp(
                endpointSelector={},
                ingressDeny=[{"toPorts": [{"ports": [{"port": "80"}], **extra}]}],
            )
        )


def test_13_15_nodes_in_a_namespaced_policy_are_refused():
    with pytest.raises(PolicyError, match="only a cluster-wide policy can select nodes"):
        parse(cnp({"nodeSelector": {}, "ingress": [{}]}))


def test_13_16_namespace_labels_lift_the_own_namespace():
    here = world()
    peer = {
        "matchExpressions": [{"key": "k8s:io.cilium.k8s.namespace.labels.ns", "operator": "Exists"}]
    }

    here.apply(cnp(endpointSelector={}, ingress=[{"fromEndpoints": [peer]}]))

    assert here.reaches("y/b", "x/a", 80)


def test_13_17_an_init_endpoint_is_closed_without_rules():
    here = World({"starting": reserved("init"), "node": reserved("remote-node")})

    assert not here.reaches("node", "starting", 80)
    assert not here.reaches("starting", "node", 80)


def test_13_18_the_world_includes_an_outside_api_server():
    here = world()
    labels = LabelSet.parse(
        ["reserved:kube-apiserver", "reserved:world-ipv4", "cidr:198.51.100.7/32"]
    )
    here.engine.upsert_identity(0x01000099, labels)
    here.flush()

    here.apply(
        ccnp(
            endpointSelector={},
            ingressDeny=[{"fromEntities": ["world"]}],
            ingress=[{"fromEntities": ["all"]}],
        )
    )

    denied = [
        key for key, entry in here.maps["x/a"].items() if entry.deny and key.identity == 0x01000099
    ]
    assert len(denied) == 1
