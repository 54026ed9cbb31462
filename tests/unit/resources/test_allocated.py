"""Applying a Service's file again takes nothing away that the Service was given."""

from __future__ import annotations

from typing import Any

import pytest
from cilium_core.resources.allocated import with_allocated

GIVEN = {
    "type": "LoadBalancer",
    "externalTrafficPolicy": "Local",
    "clusterIP": "10.96.0.1",
    "clusterIPs": ["10.96.0.1", "fd00:96::1"],
    "ipFamilies": ["IPv4", "IPv6"],
    "ipFamilyPolicy": "PreferDualStack",
    "healthCheckNodePort": 30009,
    "ports": [
        {"port": 80, "nodePort": 30080},
        {"port": 53, "protocol": "UDP", "nodePort": 30053},
    ],
}


def applied(**spec: Any) -> dict[str, Any]:
    """The spec that results from applying one over what is stored."""
    found = with_allocated("Service", {"spec": spec}, {"spec": GIVEN})["spec"]
    assert isinstance(found, dict)
    return found


def test_what_is_left_open_stays_as_it_was_given() -> None:
    ports = [{"port": 80}, {"port": 53, "protocol": "UDP"}]

    assert applied(type="LoadBalancer", externalTrafficPolicy="Local", ports=ports) == GIVEN


def test_what_is_chosen_is_chosen() -> None:
    spec = applied(type="NodePort", clusterIP="10.96.0.7", ports=[{"port": 80, "nodePort": 30001}])

    assert spec == {
        "type": "NodePort",
        "clusterIP": "10.96.0.7",
        "ports": [{"port": 80, "nodePort": 30001}],
    }


def test_node_ports_go_where_they_are_of_no_use() -> None:
    spec = applied(type="ClusterIP", ports=[{"port": 80}])

    assert spec["ports"] == [{"port": 80}]
    assert "healthCheckNodePort" not in spec
    assert spec["clusterIP"] == "10.96.0.1"


def test_a_node_port_that_is_chosen_elsewhere_is_not_given_twice() -> None:
    spec = applied(type="NodePort", ports=[{"port": 80}, {"port": 81, "nodePort": 30080}])

    assert spec["ports"] == [{"port": 80}, {"port": 81, "nodePort": 30080}]


def test_an_external_name_has_no_address() -> None:
    assert applied(type="ExternalName", externalName="db.example") == {
        "type": "ExternalName",
        "externalName": "db.example",
    }


@pytest.mark.parametrize(
    ("wish", "addresses"),
    [
        ({"ipFamilyPolicy": "SingleStack"}, ["10.96.0.1"]),
        ({"ipFamilies": ["IPv4"]}, ["10.96.0.1"]),
        ({"ipFamilies": ["IPv6"]}, ["fd00:96::1"]),
        ({"ipFamilies": ["IPv6", "IPv4"]}, ["fd00:96::1", "10.96.0.1"]),
    ],
)
def test_families_that_stay_keep_their_addresses(
    wish: dict[str, Any], addresses: list[str]
) -> None:
    spec = applied(**wish)

    assert spec["clusterIPs"] == addresses
    assert spec["clusterIP"] == addresses[0]


@pytest.mark.parametrize("spec", [None, 7, {"ports": "x"}, {"ports": [None, 5]}])
def test_what_has_no_form_is_left_as_it_is(spec: Any) -> None:
    old = {"spec": {"type": "NodePort", "ports": [3, {"nodePort": "x"}]}}

    assert with_allocated("Service", {"spec": spec}, old) == {"spec": spec}


def test_other_kinds_are_not_looked_at() -> None:
    desired = {"spec": {"type": "NodePort"}}

    assert with_allocated("Pod", desired, {"spec": GIVEN}) is desired
