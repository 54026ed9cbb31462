"""EndpointSlices of a Service: which Pods serve it, at which ports, and in which slice each stands.

A slice has endpoints of one family with the same port numbers, 100 at most. An endpoint stays in
the slice where it is; new ones fill those that have room. Pure.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from cilium_operator.services.reading import (
    EXTERNAL_NAME,
    FAMILIES,
    Name,
    address,
    is_headless,
    labels_of,
    mapping,
    mappings,
    name_of,
    number,
    protocol_of,
    spec_of,
    texts,
    type_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cilium_core.resources.model import Object

SERVICE_LABEL: Final = "kubernetes.io/service-name"
MANAGER_LABEL: Final = "endpointslice.kubernetes.io/managed-by"
MANAGER: Final = "endpointslice-controller.cilium.io"
_HEADLESS_LABEL: Final = "service.kubernetes.io/headless"
MOST_ENDPOINTS: Final = 100
_FINISHED: Final = ("Succeeded", "Failed")
_NEAR: Final = ("PreferClose", "PreferSameZone")

_Ports = tuple[tuple[str, str, int, str], ...]
"""Name, protocol, number and application protocol of each port."""


def wants_slices(service: Object) -> bool:
    """Whether a Service's endpoints are the Pods it selects."""
    spec = spec_of(service)
    return type_of(spec) != EXTERNAL_NAME and bool(mapping(spec.get("selector")))


def is_selected(service: Object, pod: Object) -> bool:
    """Whether a Service selects a Pod of its namespace."""
    found = labels_of(pod)
    return all(found.get(k) == v for k, v in mapping(spec_of(service).get("selector")).items())


def slices(
    service: Object,
    pods: Iterable[Object],
    existing: Sequence[Object],
    zones: Mapping[str, str] | None = None,
) -> list[Object]:
    """Make the slices that a Service should have out of those it has.

    `pods` are those it selects, `existing` its slices that are kept by this process, `zones` those
    of nodes. The result has every slice that should be, changed or not.
    """
    if not wants_slices(service):
        return []
    placed = _endpoints(service, list(pods), zones or {})
    result: list[Object] = []
    used = {name_of(one)[1] for one in existing}
    for (family, ports), endpoints in sorted(placed.items()):
        known = [
            one
            for one in existing
            if one.get("addressType") == family and _ports_of(one) == sorted(ports)
        ]
        groups = _pack(endpoints, known)
        for before, group in groups:
            name = name_of(before)[1] if before else _new_name(service, family, used)
            used.add(name)
            result.append(_slice(service, name, family, ports, group))
    return result


def _endpoints(
    service: Object, pods: list[Object], zones: Mapping[str, str]
) -> dict[tuple[str, _Ports], dict[str, Object]]:
    """Endpoints by family and ports, and by the Pod and address that each is."""
    found: dict[tuple[str, _Ports], dict[str, Object]] = {}
    spec = spec_of(service)
    families = texts(spec.get("ipFamilies")) or list(FAMILIES.values())
    for pod in pods:
        status = mapping(pod.get("status"))
        if status.get("phase") in _FINISHED:
            continue
        ports = _ports(spec, pod)
        if not ports and mappings(spec.get("ports")):
            continue  # it has none of the ports that the Service names
        for text in _addresses(status):
            ip = address(text)
            if ip is None or FAMILIES[ip.version] not in families:
                continue
            key = FAMILIES[ip.version], ports
            found.setdefault(key, {})[f"{name_of(pod)[1]} {ip}"] = _endpoint(
                spec, pod, str(ip), zones
            )
    if spec.get("trafficDistribution") in _NEAR:
        for endpoints in found.values():
            _add_hints(endpoints.values())
    return found


def _addresses(status: Mapping[str, Any]) -> list[str]:
    several = [str(one.get("ip")) for one in mappings(status.get("podIPs"))]
    return list(dict.fromkeys(several)) or texts([status.get("podIP")])


def _ports(spec: Mapping[str, Any], pod: Object) -> _Ports:
    """The Service's ports as numbers at a Pod; those it has not are left out."""
    found = []
    for port in mappings(spec.get("ports")):
        target = port.get("targetPort") or port.get("port")
        protocol = protocol_of(port)
        chosen = _named(pod, target, protocol) if isinstance(target, str) else number(target)
        if chosen:
            name, application = str(port.get("name") or ""), str(port.get("appProtocol") or "")
            found.append((name, protocol, chosen, application))
    return tuple(found)


def _named(pod: Object, name: str, protocol: str) -> int:
    """The number of a container's port of this name; 0 when there is none."""
    if name.isdecimal():
        return number(int(name))
    spec = spec_of(pod)
    sidecars = [
        one for one in mappings(spec.get("initContainers")) if one.get("restartPolicy") == "Always"
    ]
    for container in (*mappings(spec.get("containers")), *sidecars):
        for port in mappings(container.get("ports")):
            if port.get("name") == name and protocol_of(port) == protocol:
                return number(port.get("containerPort"))
    return 0


def _endpoint(
    spec: Mapping[str, Any], pod: Object, ip: str, zones: Mapping[str, str]
) -> dict[str, Any]:
    namespace, name = name_of(pod)
    terminating = bool(pod["metadata"].get("deletionTimestamp"))
    serving = _is_ready(pod)
    ready = serving and not terminating
    if spec.get("publishNotReadyAddresses") is True:
        ready = serving = True
    node = spec_of(pod).get("nodeName")
    endpoint: dict[str, Any] = {
        "addresses": [ip],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "targetRef": {
            "kind": "Pod",
            "namespace": namespace,
            "name": name,
            "uid": str(pod["metadata"].get("uid") or ""),
        },
    }
    if isinstance(node, str) and node:
        endpoint["nodeName"] = node
        if zones.get(node):
            endpoint["zone"] = zones[node]
    hostname = spec_of(pod).get("hostname")
    if hostname and spec_of(pod).get("subdomain"):
        endpoint["hostname"] = hostname
    return endpoint


def _is_ready(pod: Object) -> bool:
    return any(
        one.get("type") == "Ready" and one.get("status") == "True"
        for one in mappings(mapping(pod.get("status")).get("conditions"))
    )


def _add_hints(endpoints: Iterable[dict[str, Any]]) -> None:
    """Hint each endpoint at its own zone, if all have one."""
    found = list(endpoints)
    if all(one.get("zone") for one in found):
        for one in found:
            one["hints"] = {"forZones": [{"name": one["zone"]}]}


def _key_of(endpoint: Mapping[str, Any]) -> str:
    return f"{mapping(endpoint.get('targetRef')).get('name')} {(endpoint['addresses'] or [''])[0]}"


def _ports_of(item: Object) -> list[tuple[str, str, int, str]]:
    return sorted(
        (
            str(port.get("name") or ""),
            protocol_of(port),
            number(port.get("port")),
            str(port.get("appProtocol") or ""),
        )
        for port in mappings(item.get("ports"))
    )


def _pack(
    endpoints: dict[str, Object], known: Sequence[Object]
) -> list[tuple[Object | None, list[Object]]]:
    """Put endpoints where they are already, then where there is room; empty slices vanish."""
    left = dict(sorted(endpoints.items()))
    groups: list[tuple[Object | None, list[Object]]] = []
    for item in sorted(known, key=name_of):
        stay = [_key_of(one) for one in mappings(item.get("endpoints"))[:MOST_ENDPOINTS]]
        groups.append((item, [left.pop(key) for key in stay if key in left]))
    # The fullest first, so that few slices change and the emptiest may vanish.
    for _item, group in sorted(groups, key=lambda pair: -len(pair[1])):
        for key in list(left)[: MOST_ENDPOINTS - len(group)]:
            group.append(left.pop(key))
    while left:
        keys = list(left)[:MOST_ENDPOINTS]
        groups.append((None, [left.pop(key) for key in keys]))
    return [(item, group) for item, group in groups if group]


def _new_name(service: Object, family: str, used: set[str]) -> str:
    """A name for a slice: the Service's, and five letters as Kubernetes does."""
    name, turn = name_of(service)[1], 0
    while True:
        text = f"{service['metadata'].get('uid')} {family} {turn}"
        candidate = f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:5]}"
        if candidate not in used:
            return candidate
        turn += 1


def _slice(
    service: Object, name: str, family: str, ports: _Ports, endpoints: list[Object]
) -> dict[str, Any]:
    namespace, of = name_of(service)
    headless = {_HEADLESS_LABEL: ""} if is_headless(spec_of(service)) else {}
    owner = {
        "apiVersion": "v1",
        "kind": "Service",
        "name": of,
        "uid": str(service["metadata"].get("uid") or ""),
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": labels_of(service) | headless | {SERVICE_LABEL: of, MANAGER_LABEL: MANAGER},
            "ownerReferences": [owner],
        },
        "addressType": family,
        "ports": [
            {"name": title, "protocol": protocol, "port": port}
            | ({"appProtocol": application} if application else {})
            for title, protocol, port, application in ports
        ],
        "endpoints": endpoints,
    }


def service_of(item: Object) -> Name | None:
    """The Service that a slice kept by this process belongs to; None for a slice of others."""
    found = labels_of(item)
    if found.get(MANAGER_LABEL) != MANAGER or not found.get(SERVICE_LABEL):
        return None
    return name_of(item)[0], str(found[SERVICE_LABEL])


def is_same(wanted: Object, stored: Object) -> bool:
    """Whether a stored slice says already what it should."""
    return all(
        wanted[part] == stored.get(part) for part in ("addressType", "ports", "endpoints")
    ) and all(
        wanted["metadata"][part] == stored["metadata"].get(part)
        for part in ("labels", "ownerReferences")
    )
