"""Service and EndpointSlice objects for tests, and when the nodes of a lab have them.

Slices are written here and services select nothing, so that a test says itself, as Kubernetes'
controllers would, which backend is ready, serves, or terminates. Addresses and node ports are
given, and LoadBalancers are of a class that no operator cares for.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tests.e2e.running import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.e2e.driving import Cluster
    from tests.e2e.running import Pod

LIMIT_S: Final = 10.0
NAMESPACE: Final = "default"
CLASS: Final = "example.com/tests"


class Port(NamedTuple):
    """A port of a service; equal port and target are what SCTP needs."""

    name: str
    protocol: str
    port: int
    target: int
    node_port: int = 0


class Endpoint(NamedTuple):
    """A backend, and its conditions as Kubernetes has them."""

    pod: Pod
    ready: bool = True
    serving: bool = True
    terminating: bool = False


def cluster_ips(number: int) -> tuple[str, str]:
    """Addresses of a service, IPv4 and IPv6."""
    return f"10.96.200.{number}", f"fd00:96::200:{number}"


def balancer_ips(number: int) -> tuple[str, str]:
    """Addresses from outside, which the world routes to the first node."""
    return f"198.51.100.{number}", f"2001:db8:51::{number}"


def external_ips(number: int) -> tuple[str, str]:
    """Addresses of the same networks."""
    return f"198.51.100.{100 + number}", f"2001:db8:51::{100 + number}"


def service(
    name: str, number: int, ports: Sequence[Port], kind: str = "ClusterIP", **spec: Any
) -> dict[str, Any]:
    """A dual-stack Service of a type; `number` gives its addresses, `spec` what else it says."""
    ips = list(cluster_ips(number))
    document: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "type": kind,
            "clusterIP": ips[0],
            "clusterIPs": ips,
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
            "ports": [
                {
                    "name": port.name,
                    "protocol": port.protocol,
                    "port": port.port,
                    "targetPort": port.target,
                    **({"nodePort": port.node_port} if port.node_port else {}),
                }
                for port in ports
            ],
            **spec,
        },
    }
    if kind == "LoadBalancer":
        document["spec"]["loadBalancerClass"] = CLASS
        ingress = [{"ip": address} for address in balancer_ips(number)]
        document["status"] = {"loadBalancer": {"ingress": ingress}}
    return document


def slices(name: str, ports: Sequence[Port], endpoints: Iterable[Endpoint]) -> list[dict[str, Any]]:
    """The EndpointSlices of a service, one for each family."""
    endpoints = list(endpoints)
    return [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{name}-{family.lower()}",
                "namespace": NAMESPACE,
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": family,
            "endpoints": [
                {
                    "addresses": [end.pod.ipv4 if family == "IPv4" else end.pod.ipv6],
                    "conditions": {
                        "ready": end.ready,
                        "serving": end.serving,
                        "terminating": end.terminating,
                    },
                    "nodeName": end.pod.node,
                    "targetRef": {
                        "kind": "Pod",
                        "namespace": end.pod.full_name.split("/")[0],
                        "name": end.pod.full_name.split("/")[1],
                    },
                }
                for end in endpoints
            ],
            "ports": [
                {"name": port.name, "protocol": port.protocol, "port": port.target}
                for port in ports
            ],
        }
        for family in ("IPv4", "IPv6")
    ]


def states(cluster: Cluster, node: str, name: str) -> dict[str, str]:
    """Addresses of a service's backends, as a node's data plane has them, and their states."""
    return {
        backend.address.ip: backend.state
        for frontend in cluster.frontends(node)
        if frontend.name == name and frontend.id
        for backend in frontend.backends
        if backend.id
    }


def wait_for(cluster: Cluster, name: str, wanted: dict[str, str]) -> None:
    """Return once every node has exactly these backends of a service, in these states."""

    def there(node: str) -> bool:
        return states(cluster, node, name) == wanted

    for node in cluster.nodes:
        eventually(partial(there, node), LIMIT_S, f"{node} has {name} with {wanted}")


def active(*pods: Pod) -> dict[str, str]:
    """What `wait_for` wants of backends that are all ready."""
    return {address: "active" for pod in pods for address in (pod.ipv4, pod.ipv6)}
