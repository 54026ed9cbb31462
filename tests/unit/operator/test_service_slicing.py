"""EndpointSlices say where a Service's Pods are and which of them serve."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from cilium_operator.services.slicing import (
    MANAGER_LABEL,
    MOST_ENDPOINTS,
    SERVICE_LABEL,
    is_same,
    service_of,
    slices,
)
from hypothesis import given

from .service_objects import pod, service

HTTP = {"name": "http", "containerPort": 8080, "protocol": "TCP"}


def web(**spec: Any) -> dict[str, Any]:
    return service(**({"selector": {"app": "web"}, "ipFamilies": ["IPv4"]} | spec))


def endpoints(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [endpoint for item in found for endpoint in item["endpoints"]]


def test_a_slice_names_its_service_its_ports_and_the_pods() -> None:
    [item] = slices(web(ports=[{"name": "a", "port": 80}]), [pod("p", "10.0.0.1")], [])

    assert item["kind"] == "EndpointSlice"
    assert item["metadata"]["labels"][SERVICE_LABEL] == "web"
    assert item["metadata"]["labels"][MANAGER_LABEL]
    assert service_of(item) == ("default", "web")
    assert item["addressType"] == "IPv4"
    assert item["ports"] == [{"name": "a", "protocol": "TCP", "port": 80}]
    assert item["endpoints"] == [
        {
            "addresses": ["10.0.0.1"],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "targetRef": {"kind": "Pod", "namespace": "default", "name": "p", "uid": "uid-p"},
            "nodeName": "node1",
        }
    ]


def test_families_have_slices_of_their_own() -> None:
    pods = [pod("p", "10.0.0.1", "fd00::1")]

    both = slices(web(ipFamilies=["IPv6", "IPv4"]), pods, [])
    one = slices(web(ipFamilies=["IPv6"]), pods, [])

    assert sorted(item["addressType"] for item in both) == ["IPv4", "IPv6"]
    assert [item["addressType"] for item in one] == ["IPv6"]


def test_named_ports_are_what_each_pod_calls_so() -> None:
    other = {"name": "http", "containerPort": 9090}
    pods = [
        pod("a", "10.0.0.1", ports=(HTTP,)),
        pod("b", "10.0.0.2", ports=(other,)),
        pod("c", "10.0.0.3"),
    ]

    found = slices(web(ports=[{"port": 80, "targetPort": "http"}]), pods, [])

    assert {item["ports"][0]["port"]: len(item["endpoints"]) for item in found} == {
        8080: 1,
        9090: 1,
    }
    assert len({item["metadata"]["name"] for item in found}) == 2


@pytest.mark.parametrize(
    ("ready", "deleted", "publish", "expected"),
    [
        (True, False, False, (True, True, False)),
        (False, False, False, (False, False, False)),
        (True, True, False, (False, True, True)),
        (False, True, False, (False, False, True)),
        (False, False, True, (True, True, False)),
    ],
)
def test_conditions_follow_readiness_and_termination(
    *, ready: bool, deleted: bool, publish: bool, expected: tuple[bool, bool, bool]
) -> None:
    marks = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if deleted else {}
    item = pod("p", "10.0.0.1", ready=ready, **marks)

    [endpoint] = endpoints(slices(web(publishNotReadyAddresses=publish), [item], []))

    assert tuple(endpoint["conditions"].values()) == expected


def test_finished_pods_and_pods_without_address_are_left_out() -> None:
    done = pod("p", "10.0.0.1")
    done["status"]["phase"] = "Succeeded"

    assert slices(web(), [done, pod("q")], []) == []


@pytest.mark.parametrize("spec", [{"selector": None}, {"type": "ExternalName"}])
def test_services_that_select_nothing_have_none(spec: dict[str, Any]) -> None:
    assert slices(web(**spec), [pod("p", "10.0.0.1")], []) == []


def test_headless_services_are_marked() -> None:
    [item] = slices(web(clusterIP="None", ports=None), [pod("p", "10.0.0.1")], [])

    assert item["metadata"]["labels"]["service.kubernetes.io/headless"] == ""
    assert item["ports"] == []


def test_zones_and_hints_come_from_nodes() -> None:
    pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2", node="node2")]
    near = web(trafficDistribution="PreferClose")

    found = endpoints(slices(near, pods, [], {"node1": "east", "node2": "west"}))

    assert [(one["zone"], one["hints"]) for one in found] == [
        ("east", {"forZones": [{"name": "east"}]}),
        ("west", {"forZones": [{"name": "west"}]}),
    ]
    assert "hints" not in endpoints(slices(near, pods, [], {"node1": "east"}))[0]


def crowd(numbers: range) -> list[dict[str, Any]]:
    return [pod(f"p{at:04}", f"10.0.{at // 250}.{at % 250 + 1}") for at in numbers]


def test_a_pod_that_goes_changes_one_slice() -> None:
    before = slices(web(), crowd(range(250)), [])
    after = slices(web(), crowd(range(250))[1:], before)

    assert sorted(len(item["endpoints"]) for item in before) == [50, 100, 100]
    assert sum(is_same(item, old) for item in after for old in before) == 2


sizes = st.lists(st.sets(st.integers(0, 320), max_size=320), min_size=1, max_size=4)


@given(sizes)
def test_every_pod_stands_in_one_slice_whatever_was_before(steps: list[set[int]]) -> None:
    found: list[dict[str, Any]] = []
    for numbers in steps:
        pods = [one for one in crowd(range(321)) if int(one["metadata"]["name"][1:]) in numbers]
        found = slices(web(), pods, found)

        named = [endpoint["targetRef"]["name"] for endpoint in endpoints(found)]
        assert sorted(named) == sorted(one["metadata"]["name"] for one in pods)
        assert all(0 < len(item["endpoints"]) <= MOST_ENDPOINTS for item in found)
        names = [item["metadata"]["name"] for item in found]
        assert len(names) == len(set(names))
        assert all(is_same(*pair) for pair in zip(slices(web(), pods, found), found, strict=True))
