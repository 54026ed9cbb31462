"""Services as peers: pods by the service's selector, addresses by its backends, nobody by none."""

from __future__ import annotations

import ipaddress

import pytest
from cilium_core.labels import LabelSet
from cilium_core.policy import PolicyOptions, parse
from cilium_core.policy.services import Services, read_service, read_slice

from tests.unit.policy.worlds import ccnp, cnp

POD = LabelSet.parse(
    [
        "k8s:app=db",
        "k8s:io.kubernetes.pod.namespace=shop",
        "k8s:io.cilium.k8s.policy.cluster=default",
    ]
)


def service(name, namespace="shop", selector=None, **labels):
    return read_service(
        {
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {"selector": selector},
        }
    )


def endpoint_slice(name, of, *addresses, namespace="shop"):
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": of},
        },
        "endpoints": [{"addresses": list(addresses)}],
    }


def with_slices(services, *objects):
    for obj in objects:
        services = services.with_slice(*read_slice(obj))
    return services


def to(*services, make=cnp, **fields):
    return parse(make(endpointSelector={}, egress=[{"toServices": list(services), **fields}]))


def peer(policy):
    ((found,),) = [rule.peers for rule in policy.rules]
    return found


DB = {"k8sService": {"serviceName": "db", "namespace": "shop"}}


def test_a_service_that_does_not_exist_is_nobody():
    assert not peer(Services().bind(to(DB))).matches(POD)


@pytest.mark.parametrize("make", [cnp, ccnp])
def test_a_service_with_a_selector_is_its_pods(make):
    found = peer(
        Services().with_service(service("db", selector={"app": "db"})).bind(to(DB, make=make))
    )

    assert found.matches(POD)
    assert not found.matches(LabelSet.parse(["k8s:app=db", "k8s:io.kubernetes.pod.namespace=y"]))
    assert ("app", "db") in found.anchors()


def test_only_pods_of_the_own_cluster_are_meant_unless_an_option_says_otherwise():
    foreign = POD.merge(LabelSet.parse(["k8s:io.cilium.k8s.policy.cluster=other"]))
    services = Services().with_service(service("db", selector={"app": "db"}))
    obj = cnp(endpointSelector={}, egress=[{"toServices": [DB]}])

    assert not peer(services.bind(parse(obj))).matches(foreign)
    everywhere = parse(obj, PolicyOptions(default_local_cluster=False))
    assert peer(services.bind(everywhere)).matches(foreign)


def test_a_service_without_a_selector_is_its_backends_outside_the_cluster():
    services = with_slices(
        Services().with_service(service("db")),
        endpoint_slice("db-1", "db", "192.0.2.1", "no address"),
        endpoint_slice("db-2", "db", "2001:db8::1"),
        endpoint_slice("web-1", "web", "192.0.2.9"),
    )
    found = peer(services.bind(to(DB)))

    assert set(found.prefixes()) == {
        ipaddress.ip_network("192.0.2.1/32"),
        ipaddress.ip_network("2001:db8::1/128"),
    }
    assert found.matches(LabelSet.parse(["cidr:192.0.2.1/32", "reserved:world-ipv4"]))
    assert not found.matches(LabelSet.parse(["cidr:192.0.2.9/32", "reserved:world-ipv4"]))
    assert not found.matches(POD)


def test_a_name_without_a_namespace_is_that_of_every_namespace():
    services = (
        Services()
        .with_service(service("db", "shop", {"app": "db"}))
        .with_service(service("db", "lab", {"app": "db"}))
    )
    everywhere = to({"k8sService": {"serviceName": "db"}})

    assert len(peer(services.bind(everywhere)).peers) == 2
    assert len(peer(services.bind(to(DB))).peers) == 1


@pytest.mark.parametrize(
    "key", ["team.org/name", "k8s:team.org/name", "any:team.org/name", "x:team.org/name"]
)
def test_13_9_a_label_selector_reads_whole_keys_and_no_source(key):
    chosen = {"k8sServiceSelector": {"selector": {"matchLabels": {key: "red"}}}}
    services = Services().with_service(
        service("db", selector={"app": "db"}, **{"team.org/name": "red"})
    )

    assert peer(services.bind(to(chosen))).matches(POD)
    other = {"k8sServiceSelector": {**chosen["k8sServiceSelector"], "namespace": "lab"}}
    assert not peer(services.bind(to(other))).matches(POD)


def test_what_a_service_is_may_change_under_a_policy():
    policy = to(DB)
    services = Services().with_service(service("db", selector={"app": "db"}))
    bound = services.bind(policy)

    assert services.bind(bound) is bound
    gone = services.without_service("shop", "db").bind(bound)
    assert not peer(gone).matches(POD)

    outside = with_slices(Services().with_service(service("db")), endpoint_slice("a", "db", "::5"))
    assert peer(outside.bind(gone)).prefixes()
    assert not peer(outside.without_slice("shop", "a").bind(gone)).prefixes()


def test_13_4_a_service_in_a_deny_rule_is_resolved():
    policy = parse(cnp(endpointSelector={}, egressDeny=[{"toServices": [DB]}]))
    services = Services().with_service(service("db", selector={"app": "db"}))

    assert peer(services.bind(policy)).matches(POD)


@pytest.mark.parametrize(
    "obj", [{}, {"metadata": 1, "spec": []}, {"endpoints": [1, {"addresses": 2}]}]
)
def test_a_malformed_object_says_nothing(obj):
    assert read_service(obj).selector is None
    assert read_slice(obj)[3] == frozenset()
