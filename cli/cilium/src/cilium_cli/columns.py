# SPDX-License-Identifier: Apache-2.0
"""What `cilium get` shows of an object of each kind, between its name and its labels.

Objects may have been stored by anyone: what has a wrong form shows as empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

Object = dict[str, Any]

_NONE = "<none>"
_PENDING = "<pending>"
_SHOWN_ADDRESSES = 3


def headers(kind: str) -> list[str]:
    """Return the headers of a kind's own columns."""
    return _of(kind)[0]


def cells(kind: str, item: Object) -> list[str]:
    """Return an object's cells below them."""
    return _of(kind)[1](item)


def _of(kind: str) -> tuple[list[str], Callable[[Object], list[str]]]:
    if kind.endswith("NetworkPolicy"):
        return ["VALID"], _policy
    return _COLUMNS.get(kind, ([], lambda _item: []))


def _mapping(value: Any) -> Object:
    return value if isinstance(value, dict) else {}


def _mappings(value: Any) -> list[Object]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _condition(item: Object, kind: str) -> Object:
    found = _mappings(_mapping(item.get("status")).get("conditions"))
    return next((one for one in found if one.get("type") == kind), {})


def _policy(item: Object) -> list[str]:
    """What the operator says about a policy; empty until it has."""
    return [str(_condition(item, "Valid").get("status", ""))]


def _pod(item: Object) -> list[str]:
    status = _mapping(item.get("status"))
    if _mapping(item.get("metadata")).get("deletionTimestamp"):
        phase = "Terminating"
    else:
        phase = str(status.get("phase", ""))
    addresses = [str(ip.get("ip", "")) for ip in _mappings(status.get("podIPs"))]
    node = str(_mapping(item.get("spec")).get("nodeName", ""))
    ready = _condition(item, "Ready").get("status", "") == "True"
    return [node, ", ".join(addresses), "yes" if ready else "no", phase]


def _service(item: Object) -> list[str]:
    spec = _mapping(item.get("spec"))
    kind = str(spec.get("type") or "ClusterIP")
    cluster = spec.get("clusterIPs") or [spec.get("clusterIP") or _NONE]
    if kind == "ExternalName":
        external = str(spec.get("externalName", ""))
        return [kind, _NONE, external, _service_ports(spec)]
    balancer = _mapping(_mapping(item.get("status")).get("loadBalancer"))
    ingress = _mappings(balancer.get("ingress"))
    outside = [str(one.get("ip") or one.get("hostname")) for one in ingress]
    outside += [str(one) for one in spec.get("externalIPs") or ()]
    if not outside:
        outside = [_PENDING if kind == "LoadBalancer" else _NONE]
    return [kind, ", ".join(map(str, cluster)), ", ".join(outside), _service_ports(spec)]


def _service_ports(spec: Object) -> str:
    texts = []
    for port in _mappings(spec.get("ports")):
        node = f":{port['nodePort']}" if port.get("nodePort") else ""
        texts.append(f"{port.get('port')}{node}/{port.get('protocol') or 'TCP'}")
    return ", ".join(texts) or _NONE


def _slice(item: Object) -> list[str]:
    ports = [str(port.get("port")) for port in _mappings(item.get("ports"))]
    addresses = [
        str(address)
        for endpoint in _mappings(item.get("endpoints"))
        for address in endpoint.get("addresses") or ()
    ]
    shown = ", ".join(addresses[:_SHOWN_ADDRESSES])
    if len(addresses) > _SHOWN_ADDRESSES:
        shown += f" and {len(addresses) - _SHOWN_ADDRESSES} more"
    return [str(item.get("addressType", "")), ", ".join(ports) or _NONE, shown or _NONE]


def _pool(item: Object) -> list[str]:
    spec = _mapping(item.get("spec"))
    disabled = "yes" if spec.get("disabled") is True else "no"
    conflict = _condition(item, "cilium.io/PoolConflict").get("status", "")
    conflicting = {"True": "yes", "False": "no"}.get(str(conflict), "")
    return [
        disabled,
        conflicting,
        str(_condition(item, "cilium.io/IPsAvailable").get("message", "")),
    ]


def _event(item: Object) -> list[str]:
    subject = _mapping(item.get("involvedObject"))
    return [
        f"{str(subject.get('kind', '')).lower()}/{subject.get('name', '')}",
        str(item.get("reason", "")),
        str(item.get("message", "")),
    ]


_COLUMNS: dict[str, tuple[list[str], Callable[[Object], list[str]]]] = {
    "Pod": (["NODE", "ADDRESSES", "READY", "PHASE"], _pod),
    "Service": (["TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORTS"], _service),
    "EndpointSlice": (["FAMILY", "PORTS", "ENDPOINTS"], _slice),
    "CiliumLoadBalancerIPPool": (["DISABLED", "CONFLICTING", "AVAILABLE"], _pool),
    "Event": (["OBJECT", "REASON", "MESSAGE"], _event),
}
