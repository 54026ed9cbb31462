"""Objects that are malformed: what is wrong is named, and the rest goes on."""

from __future__ import annotations

import copy

import pytest
from cilium_core.services import ServiceName
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.services.cluster import (
    WEB,
    at,
    backends,
    endpoint,
    endpoint_slice,
    node,
    places,
    port,
    service,
    table_of,
    upsert,
)

RIGHT = service(
    port(80, nodePort=30080),
    port(443, "https", nodePort=30443),
    type="LoadBalancer",
    externalIPs=["198.51.100.1"],
    sessionAffinity="ClientIP",
    sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}},
    loadBalancerSourceRanges=["10.0.0.0/8"],
    annotations={"service.cilium.io/lb-algorithm": "maglev"},
    labels={"app": "web"},
    ingress=[{"ip": "203.0.113.1"}],
)
SLICE = endpoint_slice(
    endpoint("10.1.0.1", node="one", ready=True, hints={"forZones": [{"name": "east"}]}),
    endpoint("10.2.0.1", ready=False, serving=True, terminating=True),
    annotations={"service.cilium.io/backend-weights": "10.1.0.1=2"},
)
POD = {
    "kind": "Pod",
    "metadata": {"namespace": "shop", "name": "web-0", "labels": {"app": "web"}},
    "spec": {
        "nodeName": "one",
        "containers": [
            {"ports": [{"containerPort": 8080, "hostPort": 8081, "hostIP": "192.168.0.1"}]}
        ],
    },
    "status": {
        "phase": "Running",
        "podIPs": [{"ip": "10.1.0.1"}],
        "conditions": [{"type": "Ready", "status": "True"}],
    },
}


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"type": "Balancer"}, "spec.type: 'Balancer' is none of ClusterIP, NodePort, "),
        ({"ports": [port(), port(0, "b")]}, "spec.ports[1].port: 0 is no port from 1 to 65535"),
        ({"ports": [port(), {"port": "80"}]}, "spec.ports[1].port: '80' is no port from 1"),
        (
            {"ports": [port(), port(1, "b", protocol="ICMP")]},
            "spec.ports[1].protocol: 'ICMP' is not",
        ),
        ({"ports": [port(), port(80, "b")]}, "spec.ports[1].port: 80/TCP is there twice"),
        ({"ports": [port(), 7]}, "spec.ports[1]: 7 is no object"),
        ({"externalIPs": ["1.2.3"]}, "spec.externalIPs[0]: '1.2.3' is no address"),
        ({"externalIPs": ["0.0.0.0"]}, "'0.0.0.0' is no address of one host"),
        ({"externalIPs": ["127.0.0.1"]}, "'127.0.0.1' means something else on every node"),
        ({"externalIPs": "1.2.3.4"}, "spec.externalIPs: '1.2.3.4' is no list"),
        ({"clusterIPs": ["10.96.0.1", "x"]}, "spec.clusterIPs[1]: 'x' is no address"),
        ({"sessionAffinity": True}, "spec.sessionAffinity: True is no text"),
        ({"externalTrafficPolicy": "local"}, "spec.externalTrafficPolicy: 'local' is none of"),
        ({"publishNotReadyAddresses": "yes"}, "'yes' is neither true nor false; False is taken"),
        ({"annotations": {"service.cilium.io/lb-algorithm": "best"}}, "'best' is none of"),
        ({"annotations": {"service.cilium.io/type": "Port"}}, "'Port' is not ClusterIP, NodePort"),
        ({"labels": 7}, "metadata.labels: 7 is no object"),
    ],
)
def test_what_is_wrong_in_a_service_is_named_and_the_rest_is_served(fields, warning):
    table = table_of(service(**fields))

    assert places(table) == ["10.96.0.1:80/TCP"]
    assert table.warnings[0].startswith("Service shop/web: ")
    assert warning in table.warnings[0]


@pytest.mark.parametrize("seconds", [0, -1, 1 << 24, "60", True, 1.5])
def test_an_affinity_timeout_that_makes_no_sense_is_the_usual_one(seconds):
    config = {"clientIP": {"timeoutSeconds": seconds}}
    table = table_of(service(sessionAffinity="ClientIP", sessionAffinityConfig=config))

    assert table.frontend(at("10.96.0.1:80")).affinity_timeout == 10800
    assert "timeoutSeconds" in table.warnings[0]


@pytest.mark.parametrize(
    ("bad", "warning"),
    [
        (endpoint("10.1.0"), "endpoints[1].addresses[0]: '10.1.0' is no address"),
        (endpoint("fd00::1"), "endpoints[1].addresses: fd00::1 is not of the slice's family"),
        (endpoint("127.0.0.1"), "'127.0.0.1' means something else on every node"),
        (endpoint("169.254.169.254"), "'169.254.169.254' means something else on every node"),
        (endpoint("10.1.0.1", ready="no"), "endpoints[1].conditions.ready: 'no' is neither"),
        ("pod", "endpoints[1]: 'pod' is no object"),
    ],
)
def test_what_is_wrong_in_a_slice_is_named_and_the_rest_serves(bad, warning):
    table = table_of(service(), endpoint_slice(endpoint("10.1.0.1"), bad))

    assert backends(table, "10.96.0.1:80") == ["10.1.0.1:8080"]
    assert table.warnings[0].startswith("EndpointSlice shop/web-1: endpoints[1]")
    assert warning in table.warnings[0]


def test_slices_of_names_are_left_out():
    table = table_of(service(), endpoint_slice(endpoint("a.example"), family="FQDN"))

    assert backends(table, "10.96.0.1:80") == []
    assert "addressType: 'FQDN' is not IPv4 or IPv6" in table.warnings[0]


def test_warnings_end_with_what_they_are_about():
    bad = service(externalIPs=["x"])
    table = table_of(bad)

    upsert(table, service())
    assert table.warnings == ()
    upsert(table, bad)
    table.delete_service(bad)
    assert table.warnings == ()


def test_an_object_that_says_the_same_again_changes_nothing():
    table = table_of(RIGHT, SLICE, POD)
    table.take_changes()
    table.take_dirty()

    for obj in (RIGHT, SLICE, POD):
        upsert(table, copy.deepcopy(obj))

    assert table.take_changes() == ((), ())
    assert table.take_dirty() == frozenset()


def test_a_change_marks_the_services_it_touches_alone():
    table = table_of(
        RIGHT,
        SLICE,
        service(name="api", clusterIPs=["10.96.0.2"]),
        service(name="b", clusterIPs=[]),
    )
    table.take_dirty()

    upsert(table, endpoint_slice(endpoint("10.1.0.9"), name="api-1", of="api"))

    assert table.take_dirty() == {ServiceName("shop", "api")}


def paths(value, prefix=()):
    yield prefix
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in items if isinstance(value, dict | list) else ():
        if isinstance(part, dict | list):
            yield from paths(part, (*prefix, key))
        else:
            yield (*prefix, key)


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=3)), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@given(st.data(), st.sampled_from([RIGHT, SLICE, POD]))
def test_nothing_that_anybody_writes_breaks_the_table(data, obj):
    obj = copy.deepcopy(obj)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(sorted((one for one in paths(obj) if one), key=str)))
        inside = obj
        for key in path[:-1]:
            inside = inside[key]
        if path != ("kind",):
            inside[path[-1]] = data.draw(JUNK)
    table = table_of(service(name="other", clusterIPs=["10.96.9.9"]))

    upsert(table, obj)
    table.set_node(node(zone="west"))

    assert places(table, ServiceName("shop", "other")) == ["10.96.9.9:80/TCP"]
    assert all(isinstance(one, str) for one in table.warnings)


@given(JUNK, st.sampled_from(["Service", "EndpointSlice", "Pod", "CiliumLocalRedirectPolicy"]))
def test_objects_of_junk_are_survived(junk, kind):
    table = table_of()

    for obj in ({"kind": kind, "metadata": junk}, {"kind": kind, "spec": junk, "status": junk}):
        upsert(table, obj)

    assert table.all_frontends() == ()
    assert table.frontends(WEB) == ()
