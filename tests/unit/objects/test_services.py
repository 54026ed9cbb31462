"""Services and EndpointSlices are refused where an API server would refuse them."""

from __future__ import annotations

from typing import Any

import pytest
from cilium_core.objects.checking import check
from cilium_core.policy.errors import PolicyError

PORTS = [{"port": 80}]


def service(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "creationTimestamp": None},
        "spec": {"ports": PORTS} | spec,
    }


def endpoint_slice(*addresses: str, **parts: Any) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "web-1"},
        "addressType": "IPv4",
        "endpoints": [{"addresses": list(addresses)}],
    } | parts


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"selector": None, "clusterIP": ""},
        {"clusterIP": "None", "ports": None},
        {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00:96::1"]},
        {"type": "ExternalName", "externalName": "db.example.com", "ports": None},
        {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080, "targetPort": "http"}]},
        {"type": "NodePort", "externalTrafficPolicy": "Local"},
        {"externalIPs": ["192.0.2.1"], "externalTrafficPolicy": "Local"},
        {
            "type": "LoadBalancer",
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 30001,
            "loadBalancerSourceRanges": ["192.0.2.0/24"],
            "loadBalancerIP": "198.51.100.1",
            "allocateLoadBalancerNodePorts": False,
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
        },
        {"ports": [{"name": "a", "port": 53}, {"name": "b", "port": 53, "protocol": "UDP"}]},
        {"trafficDistribution": "PreferClose", "internalTrafficPolicy": "Local"},
    ],
)
def test_a_right_service_is_stored_as_it_is(spec: dict[str, Any]) -> None:
    item = service(**spec)

    assert check(item).objects == (item,)


@pytest.mark.parametrize(
    ("spec", "path", "message"),
    [
        ({"ports": []}, "spec", "give at least one"),
        ({"ports": [{"port": 0}]}, "spec.ports[0].port", "greater than or equal to 1"),
        ({"ports": [{"port": 1, "targetPort": 70000}]}, "spec.ports[0].targetPort", "not a port"),
        ({"ports": [{"port": 1, "protocol": "ICMP"}]}, "spec.ports[0].protocol", "'SCTP'"),
        ({"ports": [{"port": 1}, {"port": 2}]}, "spec", "need a name each"),
        (
            {"ports": [{"port": 1, "name": "a"}, {"port": 1, "name": "b"}]},
            "spec",
            "the port 1/TCP stands here more than once",
        ),
        ({"ports": [{"port": 1, "nodePort": 30000}]}, "spec", "needs the type NodePort"),
        ({"type": "ExternalName"}, "spec", "must be a DNS name"),
        ({"type": "ExternalName", "externalName": "a", "clusterIP": "::1"}, "spec", "remove it"),
        ({"type": "NodePort", "clusterIP": "None"}, "spec", "cannot be of the type NodePort"),
        ({"clusterIP": "here"}, "spec.clusterIP", "is not an IP address"),
        ({"clusterIPs": ["10.0.0.1", "10.0.0.2"]}, "spec", "more than once"),
        ({"clusterIP": "10.0.0.1", "ipFamilies": ["IPv6"]}, "spec", "differ"),
        ({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.2"]}, "spec", "is not the clusterIP"),
        ({"externalIPs": ["127.0.0.1"]}, "spec.externalIPs[0]", "nobody outside can ask"),
        ({"externalTrafficPolicy": "Local"}, "spec", "needs the type NodePort or LoadBalancer"),
        ({"type": "NodePort", "healthCheckNodePort": 30000}, "spec", "needs the type LoadBalancer"),
        ({"loadBalancerSourceRanges": ["10.0.0.0/8"]}, "spec", "needs the type LoadBalancer"),
        ({"externalIps": []}, "spec.externalIps", "unknown field"),
    ],
)
def test_a_wrong_service_is_refused_at_its_field(
    spec: dict[str, Any], path: str, message: str
) -> None:
    with pytest.raises(PolicyError) as caught:
        check(service(**spec))

    [problem] = caught.value.problems
    assert (problem.path, message in str(problem)) == (path, True), str(problem)


def test_slices_have_addresses_of_their_type() -> None:
    check(endpoint_slice("10.0.0.1", "10.0.0.2"))
    check(endpoint_slice("web.example.com", addressType="FQDN"))
    for address in ("fd00::1", "web"):
        with pytest.raises(PolicyError, match=r"IPv4 address|IP address"):
            check(endpoint_slice(address))
