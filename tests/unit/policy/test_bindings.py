"""Policies follow the services, addresses and namespaces that they refer to."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from cilium_core.policy import PolicyEngine, PolicyOptions, Subject
from cilium_core.policy.networks import Networks, addresses_of
from cilium_core.policy.selectors import FqdnSelector

from tests.unit.policy.worlds import (
    TCP,
    World,
    ccnp,
    cnp,
    knp,
    label_set,
    outside,
    pod,
    with_services,
)

CLIENT = {"matchLabels": {"app": "client"}}


def world(*objects: dict[str, Any], options: PolicyOptions | None = None) -> World:
    made = World(
        {
            "client": pod("x", {"app": "client"}),
            "db": pod("y", {"app": "db"}),
            "other": pod("x", {"app": "db"}),
            "192.0.2.1": outside("192.0.2.1"),
            "198.51.100.1": outside("198.51.100.1", ["api.shop.io"]),
        },
        options,
    )
    made.apply(*objects)
    return made


def egress(*items: dict[str, Any], name: str = "p", **more: Any) -> dict[str, Any]:
    return cnp({"endpointSelector": CLIENT, "egress": list(items), **more}, name=name)


def to_service(name: str = "db", **more: Any) -> dict[str, Any]:
    return {"toServices": [{"k8sService": {"serviceName": name, "namespace": "y"}}], **more}


def service(selector: dict[str, str] | None = None, name: str = "db") -> dict[str, Any]:
    spec = {"selector": selector} if selector else {}
    return {"kind": "Service", "metadata": {"name": name, "namespace": "y"}, "spec": spec}


def endpoints(*addresses: str) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": "db"}
    return {
        "kind": "EndpointSlice",
        "metadata": {"name": "db-1", "namespace": "y", "labels": labels},
        "endpoints": [{"addresses": list(addresses)}],
    }


def reached(made: World) -> set[str]:
    peers = made.parties.keys() - {"client"}
    return {peer for peer in peers if made.passes_at("client", "egress", peer, TCP, 80)}


def test_a_policy_follows_the_service_that_it_names():
    made = world(egress(to_service()))
    seen = [reached(made)]

    for change in (
        service({"app": "db"}),
        service({"app": "none"}),
        service(),
        endpoints("192.0.2.1"),
        endpoints("198.51.100.1"),
    ):
        made.apply(change)
        seen.append(reached(made))
    services = made.engine.bindings.services.without_service("y", "db")
    made.engine.set_services(services)
    made.flush()

    assert seen == [set(), {"db"}, set(), set(), {"192.0.2.1"}, {"198.51.100.1"}]
    assert reached(made) == set()


def test_13_3_a_service_that_is_nobody_stays_nobody_with_ports():
    ports = {"toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}]}]}

    assert reached(world(egress(to_service(**ports)))) == set()


def test_13_4_a_denied_service_is_denied_and_nobody_else():
    spec = {"egressDeny": [to_service()], "enableDefaultDeny": {"egress": False}}
    made = world(service({"app": "db"}), cnp({"endpointSelector": CLIENT, **spec}))

    assert reached(made) == {"other", "192.0.2.1", "198.51.100.1"}


def test_the_addresses_of_a_service_are_known_before_it_is_set():
    made = world(egress(to_service()), service())
    services = with_services(made.engine.bindings.services, endpoints("192.0.2.1"))

    assert made.engine.service_prefixes(services) == {ipaddress.ip_network("192.0.2.1/32")}
    assert made.engine.required_prefixes() == frozenset()


def test_a_service_that_no_policy_names_changes_nothing():
    made = world(egress(to_service()))
    revision = made.engine.revision

    change = made.engine.set_services(
        with_services(made.engine.bindings.services, service({"app": "x"}, "else")), "y/else"
    )

    assert (change.name, change.revision, change.policies) == ("y/else", revision, frozenset())
    assert made.engine.flush() == []


def test_a_change_tells_the_policies_and_endpoints_concerned():
    made = world(egress(to_service()), egress({"toEntities": ["world"]}, name="q"))

    change = made.engine.set_services(
        with_services(made.engine.bindings.services, service({"app": "db"}))
    )

    assert [ref.name for ref in change.policies] == ["p"]
    assert change.affected == {"client"}
    assert change.revision == made.engine.revision


def test_a_policy_taken_in_later_is_bound_too():
    made = world(service({"app": "db"}))

    made.apply(egress(to_service()))

    assert reached(made) == {"db"}


def test_names_in_force_are_those_of_all_policies():
    made = world(
        egress({"toFQDNs": [{"matchName": "api.shop.io"}, {"matchPattern": "*.io"}]}, name="p"),
        egress({"toFQDNs": [{"matchName": "api.shop.io"}]}, name="q"),
    )
    both = made.engine.fqdn_selectors()

    made.engine.delete_policy("CiliumNetworkPolicy", "x", "p")

    assert both == {FqdnSelector(name="api.shop.io"), FqdnSelector(pattern="*.io")}
    assert made.engine.fqdn_selectors() == {FqdnSelector(name="api.shop.io")}


def test_an_address_is_reached_by_the_names_it_was_learned_under():
    made = world(egress({"toFQDNs": [{"matchPattern": "*.shop.io"}]}))

    assert reached(made) == {"198.51.100.1"}


@pytest.mark.parametrize("item", [{"toFQDNs": []}, {"toFQDNs": [], "toPorts": [{"ports": []}]}])
def test_13_5_an_empty_list_of_names_is_nobody(item):
    assert reached(world(egress(item))) == set()


NETWORKS = {
    "apiVersion": "policy.networking.k8s.io/v1alpha1",
    "kind": "AdminNetworkPolicy",
    "metadata": {"name": "networks"},
    "spec": {
        "priority": 1,
        "subject": {"namespaces": {}},
        "egress": [{"action": "Deny", "to": [{"networks": ["10.0.0.0/8"]}]}],
    },
}


def test_a_network_of_a_tiered_policy_covers_pods_once_their_addresses_are_known():
    made = world(NETWORKS)
    before = reached(made)

    db = label_set(made.parties["db"])
    known = [(ipaddress.ip_network("10.1.2.3/32"), db)]
    change = made.engine.set_addresses(Networks(addresses_of(known)))
    made.flush()

    assert {ref.name for ref in change.policies} == {"networks"}
    assert before - reached(made) == {"db"}


@pytest.mark.parametrize(
    ("pods_too", "addresses", "expected"),
    [
        (False, ["10.1.2.3/32"], {"192.0.2.1"}),
        (True, ["10.1.2.3/32"], {"192.0.2.1", "db"}),
        (True, ["10.1.2.3/32", "fd00::3/128"], {"192.0.2.1", "db"}),
        (True, ["10.1.2.3/32", "10.1.9.3/32"], {"192.0.2.1"}),
        (True, ["10.1.2.3/32", "fd01::3/128"], {"192.0.2.1"}),
        (True, [], {"192.0.2.1"}),
    ],
)
def test_an_ip_block_means_pods_wholly_inside_only_where_an_option_says_so(
    pods_too, addresses, expected
):
    made = world(options=PolicyOptions(ip_block_pods=pods_too))
    blocks = [
        {"ipBlock": {"cidr": "10.1.0.0/16", "except": ["10.1.9.0/24"]}},
        {"ipBlock": {"cidr": "fd00::/64"}},
        {"ipBlock": {"cidr": "192.0.2.0/24"}},
    ]
    made.apply(knp(podSelector=CLIENT, policyTypes=["Egress"], egress=[{"to": blocks}]))
    db = label_set(made.parties["db"])
    known = [(ipaddress.ip_network(address), db) for address in addresses]
    made.engine.set_addresses(Networks(addresses_of(known)))
    made.flush()
    assert reached(made) == expected


def test_an_audited_namespace_does_not_reach_into_another_nor_cluster_wide_policies():
    engine = PolicyEngine(PolicyOptions())
    for obj in (
        cnp(endpointSelector={}, ingress=[{}], namespace="x"),
        cnp(endpointSelector={}, ingress=[{}], namespace="y"),
        ccnp(endpointSelector={}, ingress=[{}]),
    ):
        engine.upsert_policy(obj)

    change = engine.set_audited_namespaces(["x", ""])

    assert {ref.namespace for ref in change.policies} == {"x"}
    subject = Subject(1000, label_set(pod("x", {"app": "a"})))
    audits = {rule.origin.kind: rule.audit for rule in engine.repository.rules_for(subject)}
    assert audits == {"CiliumNetworkPolicy": True, "CiliumClusterwideNetworkPolicy": False}


def test_a_policy_of_an_audited_namespace_that_comes_later_is_audited_until_the_end():
    engine = PolicyEngine(PolicyOptions())
    engine.set_audited_namespaces(["x"])
    engine.upsert_policy(engine.parse(cnp(endpointSelector={}, ingress=[{}])))
    (audited,) = (rule.audit for policy in engine.repository for rule in policy.rules)

    engine.set_audited_namespaces([])

    assert audited
    assert not any(rule.audit for policy in engine.repository for rule in policy.rules)
