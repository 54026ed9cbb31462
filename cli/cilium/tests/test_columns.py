"""What `cilium get` shows of services and what belongs to them."""

from __future__ import annotations

from typing import Any

import pytest
from cilium_cli import columns


def shown(kind: str, item: dict[str, Any]) -> dict[str, str]:
    return dict(zip(columns.headers(kind), columns.cells(kind, item), strict=True))


def test_a_service_shows_its_addresses_and_ports() -> None:
    item = {
        "spec": {
            "type": "LoadBalancer",
            "clusterIPs": ["10.96.0.9", "fd00:96::9"],
            "externalIPs": ["192.0.2.1"],
            "ports": [{"port": 80, "nodePort": 30080}, {"port": 53, "protocol": "UDP"}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}},
    }

    assert shown("Service", item) == {
        "TYPE": "LoadBalancer",
        "CLUSTER-IP": "10.96.0.9, fd00:96::9",
        "EXTERNAL-IP": "198.51.100.1, 192.0.2.1",
        "PORTS": "80:30080/TCP, 53/UDP",
    }


@pytest.mark.parametrize(
    ("spec", "external"),
    [
        ({}, "<none>"),
        ({"type": "LoadBalancer"}, "<pending>"),
        ({"type": "ExternalName", "externalName": "db.example"}, "db.example"),
    ],
)
def test_an_address_that_is_not_there_is_said_to_be_so(spec: dict[str, Any], external: str) -> None:
    assert shown("Service", {"spec": spec})["EXTERNAL-IP"] == external


def test_a_slice_shows_some_of_its_endpoints() -> None:
    endpoints = [{"addresses": [f"10.0.0.{number}"]} for number in range(5)]
    item = {"addressType": "IPv4", "ports": [{"port": 80}], "endpoints": endpoints}

    assert shown("EndpointSlice", item) == {
        "FAMILY": "IPv4",
        "PORTS": "80",
        "ENDPOINTS": "10.0.0.0, 10.0.0.1, 10.0.0.2 and 2 more",
    }


def test_a_pod_that_ends_is_terminating() -> None:
    item = {
        "metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": "node1"},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }

    assert columns.cells("Pod", item) == ["node1", "", "yes", "Terminating"]


@pytest.mark.parametrize("kind", ["Pod", "Service", "EndpointSlice", "Event"])
def test_objects_without_form_show_empty(kind: str) -> None:
    wrong: dict[str, Any] = {"spec": 7, "status": [], "ports": 1, "endpoints": "x"}

    assert len(columns.cells(kind, wrong)) == len(columns.headers(kind))
