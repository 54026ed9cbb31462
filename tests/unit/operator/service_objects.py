"""Services, Pods and pools as files have them."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]


def service(name: str = "web", *, namespace: str = "default", **spec: Any) -> Object:
    """A Service with one port, unless `spec` says otherwise."""
    metadata = {
        "name": name,
        "namespace": namespace,
        "uid": f"uid-{name}",
        "creationTimestamp": spec.pop("created", "2026-01-01T00:00:00Z"),
        "annotations": spec.pop("annotations", {}),
        "labels": spec.pop("labels", {}),
    }
    status = spec.pop("status", None)
    item: Object = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"ports": [{"port": 80}]} | spec,
    }
    return item | ({"status": status} if status else {})


def pool(name: str = "blue", *cidrs: str, **spec: Any) -> Object:
    """A pool of prefixes."""
    created = spec.pop("created", "2026-01-01T00:00:00Z")
    blocks = [{"cidr": cidr} for cidr in cidrs]
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumLoadBalancerIPPool",
        "metadata": {"name": name, "creationTimestamp": created},
        "spec": {"blocks": blocks} | spec,
    }


def pod(
    name: str,
    *ips: str,
    ready: bool = True,
    node: str = "node1",
    ports: tuple[Object, ...] = (),
    labels: dict[str, str] | None = None,
    **metadata: Any,
) -> Object:
    """A running Pod of `app: web` unless labelled otherwise."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": f"uid-{name}",
            "labels": {"app": "web"} if labels is None else labels,
            **metadata,
        },
        "spec": {"nodeName": node, "containers": [{"name": "main", "ports": list(ports)}]},
        "status": {
            "phase": "Running",
            "podIP": ips[0] if ips else "",
            "podIPs": [{"ip": ip} for ip in ips],
            "conditions": [{"type": "Ready", "status": str(ready)}],
        },
    }
