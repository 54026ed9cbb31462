"""Who serves, and who may be asked."""

from __future__ import annotations

import pytest
from cilium_core.services import BackendState, HealthCheck, Scope, ServiceOptions

from tests.unit.services.cluster import (
    WEB,
    at,
    backends,
    endpoint,
    endpoint_slice,
    node,
    pod,
    port,
    service,
    states,
    table_of,
    upsert,
)

FRONT = "10.96.0.1:80"


def of(*endpoints, **fields):
    return table_of(service(**fields), endpoint_slice(*endpoints))


@pytest.mark.parametrize(
    ("conditions", "state", "serves_alone"),
    [
        ({}, "active", True),
        ({"ready": True}, "active", True),
        ({"ready": True, "terminating": True}, "active", True),
        ({"ready": False, "serving": True, "terminating": True}, "terminating", True),
        ({"ready": False, "serving": False, "terminating": True}, "terminating", False),
        ({"ready": False, "terminating": True}, "terminating", False),
        ({"ready": False}, "maintenance", False),
        ({"ready": False, "serving": True}, "maintenance", False),
        ({"ready": None, "serving": None, "terminating": None}, "active", True),
    ],
)
def test_conditions_decide_about_a_backend(conditions, state, serves_alone):
    table = of(endpoint("10.1.0.1", **conditions))

    assert states(table, FRONT) == {"10.1.0.1": state}
    assert backends(table, FRONT) == (["10.1.0.1:8080"] if serves_alone else [])


def test_those_that_terminate_get_nothing_while_somebody_is_active():
    leaving = endpoint("10.1.0.1", ready=False, serving=True, terminating=True)

    table = of(leaving, endpoint("10.1.0.2"))

    assert backends(table, FRONT) == ["10.1.0.2:8080"]
    assert states(table, FRONT) == {"10.1.0.1": "terminating", "10.1.0.2": "active"}


def test_local_backends_that_terminate_step_in_before_remote_ones_that_do_not():
    leaving = endpoint("10.1.0.1", node="one", ready=False, serving=True, terminating=True)
    table = table_of(
        service(port(nodePort=30080), type="NodePort", externalTrafficPolicy="Local"),
        endpoint_slice(leaving, endpoint("10.2.0.1")),
    )

    assert backends(table, "192.168.0.1:30080") == ["10.1.0.1:8080"]


def test_publishing_what_is_not_ready_makes_it_active():
    table = of(endpoint("10.1.0.1", ready=False), publishNotReadyAddresses=True)

    assert backends(table, FRONT) == ["10.1.0.1:8080"]


def test_a_backend_in_two_slices_counts_once_and_as_its_better_self():
    bad = endpoint("10.1.0.1", ready=False)
    table = table_of(
        service(), endpoint_slice(bad, name="a"), endpoint_slice(endpoint("10.1.0.1"), name="b")
    )

    assert states(table, FRONT) == {"10.1.0.1": "active"}
    table.delete_slice(endpoint_slice(name="b"))
    assert states(table, FRONT) == {"10.1.0.1": "maintenance"}


def test_backends_do_not_depend_on_the_order_of_slices():
    slices = [endpoint_slice(endpoint(f"10.1.0.{i}"), name=f"s{i}") for i in (3, 1, 2)]

    one, other = table_of(service(), *slices), table_of(*reversed(slices), service())

    assert one.frontends(WEB) == other.frontends(WEB)


def test_a_slice_may_move_to_another_service():
    table = of(endpoint("10.1.0.1"))
    upsert(table, service(name="api", clusterIPs=["10.96.0.2"]))

    upsert(table, endpoint_slice(endpoint("10.1.0.1"), of="api"))

    assert backends(table, FRONT) == []
    assert backends(table, "10.96.0.2:80") == ["10.1.0.1:8080"]


def test_a_quarantined_backend_gets_nothing_until_it_is_well():
    table = of(endpoint("10.1.0.1"), endpoint("10.1.0.2"))

    table.override_state(at("10.1.0.1:8080"), BackendState.QUARANTINED)
    assert backends(table, FRONT) == ["10.1.0.2:8080"]
    assert states(table, FRONT)["10.1.0.1"] == "quarantined"

    table.override_state(at("10.1.0.1:8080"), None)
    assert backends(table, FRONT) == ["10.1.0.1:8080", "10.1.0.2:8080"]


def test_backends_without_a_node_are_local_by_address():
    table = of(endpoint("192.168.0.1", node=None), endpoint("192.168.0.2", node=None))

    assert [one.local for one in table.frontend(at(FRONT)).backends] == [True, False]


def test_a_pod_that_comes_makes_a_backend_without_a_node_local():
    table = of(endpoint("10.1.0.1", node=None))
    assert not table.frontend(at(FRONT)).backends[0].local

    table.set_pod(pod("web-0", "10.1.0.1"))
    assert table.frontend(at(FRONT)).backends[0].local

    table.remove_pod(pod("web-0").name)
    assert not table.frontend(at(FRONT)).backends[0].local


def hinted(*pairs):
    return [
        endpoint(address, hints={"forZones": [{"name": zone}]} if zone else {})
        for address, zone in pairs
    ]


@pytest.mark.parametrize(
    ("pairs", "served"),
    [
        ((("10.1.0.1", "east"), ("10.1.0.2", "west")), ["10.1.0.1:8080"]),
        ((("10.1.0.1", "east"), ("10.1.0.2", "")), ["10.1.0.1:8080", "10.1.0.2:8080"]),
        ((("10.1.0.1", "west"), ("10.1.0.2", "north")), ["10.1.0.1:8080", "10.1.0.2:8080"]),
    ],
)
def test_hints_keep_traffic_in_the_zone_if_all_backends_have_them(pairs, served):
    table = of(*hinted(*pairs), trafficDistribution="PreferClose")

    assert backends(table, FRONT) == served
    assert len(table.frontend(at(FRONT)).backends) == 2


def test_hints_count_only_where_somebody_asks_for_them():
    pair = hinted(("10.1.0.1", "east"), ("10.1.0.2", "west"))
    objects = service(), endpoint_slice(*pair)

    assert len(backends(table_of(*objects), FRONT)) == 2
    assert (
        len(backends(table_of(*objects, options=ServiceOptions(service_topology=True)), FRONT)) == 1
    )


def test_a_node_that_moves_to_another_zone_goes_by_other_hints():
    table = of(
        *hinted(("10.1.0.1", "east"), ("10.1.0.2", "west")), trafficDistribution="PreferSameZone"
    )

    table.set_node(node(zone="west"))

    assert backends(table, FRONT) == ["10.1.0.2:8080"]


def test_the_same_node_is_preferred_by_hints_for_nodes():
    near = endpoint("10.1.0.1", hints={"forNodes": [{"name": "one"}]})
    far = endpoint("10.1.0.2", hints={"forNodes": [{"name": "two"}]})

    assert backends(of(near, far, trafficDistribution="PreferSameNode"), FRONT) == ["10.1.0.1:8080"]


def test_health_checks_count_local_backends_that_are_active():
    local = endpoint_slice(
        endpoint("10.1.0.1", node="one"),
        endpoint("10.1.0.2", node="one", ready=False),
        endpoint("10.2.0.1"),
        ports=[port(8080), port(9090, "metrics")],
    )
    fields = {"externalTrafficPolicy": "Local", "healthCheckNodePort": 31000}
    ports = [port(), port(90, "metrics")]
    table = table_of(service(*ports, type="LoadBalancer", **fields), local)

    assert table.health_checks() == (HealthCheck(WEB, 31000, 1),)
    upsert(table, service(*ports, type="LoadBalancer", healthCheckNodePort=31000))
    assert table.health_checks() == ()


def test_weights_come_from_the_annotation_of_a_slice():
    weights = {"service.cilium.io/backend-weights": "10.1.0.1=3, 10.1.0.2=x"}
    table = table_of(
        service(), endpoint_slice(endpoint("10.1.0.1"), endpoint("10.1.0.2"), annotations=weights)
    )

    assert [one.weight for one in table.frontend(at(FRONT)).backends] == [3, 1]
    assert "'x' is no weight from 1 to 65535; 1 is taken" in table.warnings[0]


def test_frontends_that_are_served_alike_share_their_backends():
    table = table_of(
        service(port(nodePort=30080), type="NodePort"), endpoint_slice(endpoint("10.1.0.1"))
    )

    one, other = (table.frontend(at(text)) for text in (FRONT, "192.168.0.1:30080"))
    assert one.backends is other.backends
    assert one.eligible is other.eligible
    assert one.scope is Scope.EXTERNAL
