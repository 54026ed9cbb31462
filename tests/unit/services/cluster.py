"""Objects of services as the API server gives them, and a node that serves them."""

from __future__ import annotations

import ipaddress

from cilium_core.labels import LabelSet
from cilium_core.policy.ports import Protocol
from cilium_core.services import (
    L4Address,
    LocalPod,
    NodeFacts,
    PodName,
    Scope,
    ServiceName,
    ServiceTable,
)

WEB = ServiceName("shop", "web")
METADATA = "169.254.169.254"
ip = ipaddress.ip_address


def at(text, protocol="TCP"):
    """`10.0.0.1:80` or `[fd00::1]:80`."""
    host, _, port = text.rpartition(":")
    return L4Address(ip(host.strip("[]")), int(port), Protocol[protocol])


def node(**fields):
    return NodeFacts(
        **{
            "name": "one",
            "addresses": frozenset({ip("192.168.0.1"), ip("fc00::1")}),
            "node_port_addresses": (ip("192.168.0.1"), ip("fc00::1")),
            "zone": "east",
            "labels": LabelSet.parse(["k8s:disk=fast", "k8s:service.cilium.io/node=edge"]),
            "remote_addresses": frozenset({ip("192.168.0.2")}),
            **fields,
        }
    )


def port(number=80, name="http", **fields):
    return {"port": number, "name": name, "protocol": "TCP", **fields}


def service(
    *ports, name="web", namespace="shop", annotations=None, labels=None, ingress=(), **spec
):
    metadata = {"name": name, "namespace": namespace}
    if annotations:
        metadata["annotations"] = annotations
    if labels:
        metadata["labels"] = labels
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"clusterIPs": ["10.96.0.1"], "ports": list(ports) or [port()], **spec},
        "status": {"loadBalancer": {"ingress": list(ingress)}},
    }


def endpoint(*addresses, node="two", **fields):
    conditions = {
        key: fields.pop(key) for key in ("ready", "serving", "terminating") if key in fields
    }
    found = {"addresses": list(addresses), "conditions": conditions, **fields}
    return {**found, "nodeName": node} if node else found


def endpoint_slice(
    *endpoints, name="web-1", of="web", namespace="shop", family="IPv4", ports=None, **metadata
):
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": of},
            **metadata,
        },
        "addressType": family,
        "ports": ports if ports is not None else [port(8080)],
        "endpoints": list(endpoints),
    }


def redirect_port(number, name=None, protocol="TCP"):
    found = {"port": str(number), "protocol": protocol}
    return {**found, "name": name} if name else found


def to_address(*ports, address=METADATA):
    return {"addressMatcher": {"ip": address, "toPorts": list(ports)}}


def to_service(*ports):
    found = {"serviceName": "web", "namespace": "shop"}
    return {"serviceMatcher": {**found, "toPorts": list(ports)} if ports else found}


def policy(frontend, *ports, **fields):
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumLocalRedirectPolicy",
        "metadata": {"name": "cache", "namespace": "shop"},
        "spec": {
            "redirectFrontend": frontend,
            "redirectBackend": {
                "localEndpointSelector": {"matchLabels": {"app": "proxy"}},
                "toPorts": list(ports),
            },
            **fields,
        },
    }


def pod(name="proxy-0", *addresses, app="proxy", ready=True, namespace="shop"):
    labels = [f"k8s:app={app}", f"k8s:io.kubernetes.pod.namespace={namespace}"]
    return LocalPod(
        PodName(namespace, name),
        tuple(map(ip, addresses or ("10.1.0.9",))),
        LabelSet.parse(labels),
        ready,
    )


def table_of(*objects, options=None, **fields):
    """A table that has been given some objects of any kind."""
    table = ServiceTable(node(**fields), options)
    for obj in objects:
        upsert(table, obj)
    return table


def upsert(table, obj):
    {
        "Service": table.upsert_service,
        "EndpointSlice": table.upsert_slice,
        "Pod": table.upsert_pod,
        "CiliumLocalRedirectPolicy": table.upsert_redirect_policy,
    }[obj["kind"]](obj)


def backends(table, where, scope=Scope.EXTERNAL, protocol="TCP"):
    """Who gets new connections at an address, as texts without protocol."""
    found = table.frontend(at(where, protocol), scope)
    return None if found is None else [str(one.at).rpartition("/")[0] for one in found.eligible]


def places(table, name=WEB):
    """Every address and port at which a service is, but for addresses as a whole."""
    return sorted({str(one.at) for one in table.frontends(name) if one.at.port})


def wholes(table, name=WEB):
    return sorted(str(one.at.address) for one in table.frontends(name) if not one.at.port)


def states(table, where):
    found = table.frontend(at(where))
    return {str(one.at.address): one.state.value for one in found.backends}
