"""Reads Service and EndpointSlice objects and pods: strict about each field, tolerant of the rest.

A malformed field is left out with a remark that names the object, the field and the value; what
restricts who may ask stays restrictive. Pure functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cilium_core.labels import KEY_NAMESPACE, SOURCE_K8S, Label, LabelSet
from cilium_core.services.fields import Fields, named, shown
from cilium_core.services.models import Algorithm, Forwarding, FrontendKind, ServiceName
from cilium_core.services.objects import (
    AFFINITY_TIMEOUT_MAX_S,
    AFFINITY_TIMEOUT_S,
    Endpoint,
    HostPort,
    LocalPod,
    PodName,
    ServiceObject,
    ServicePort,
    SliceObject,
    SlicePort,
    anywhere,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cilium_core.services.models import Address, Network
    from cilium_core.services.objects import Remark

_LABEL_SERVICE: Final = "kubernetes.io/service-name"
_LABEL_PROXY: Final = "service.kubernetes.io/service-proxy-name"
_LABEL_HEADLESS: Final = "service.kubernetes.io/headless"
LABEL_NODE: Final = "service.cilium.io/node"
"""Annotation of a service, and label of the nodes that then serve it, with the same value."""
_ALGORITHM: Final = "service.cilium.io/lb-algorithm"
_FORWARDING: Final = "service.cilium.io/forwarding-mode"
_RANGES_POLICY: Final = "service.cilium.io/src-ranges-policy"
_TYPE: Final = "service.cilium.io/type"
_NODE_SELECTOR: Final = "service.cilium.io/node-selector"
_RANGES: Final = "service.beta.kubernetes.io/load-balancer-source-ranges"
_TOPOLOGY: Final = (
    "service.kubernetes.io/topology-mode",
    "service.kubernetes.io/topology-aware-hints",
)
_WEIGHTS: Final = "service.cilium.io/backend-weights"
_WEIGHT_MAX: Final = 65535
_HOST_ADDRESSES: Final = {str(one): one for one in (anywhere(4), anywhere(6))}

_TYPES: Final[Mapping[str, frozenset[FrontendKind]]] = {
    "ClusterIP": frozenset({FrontendKind.CLUSTER_IP}),
    "NodePort": frozenset({FrontendKind.CLUSTER_IP, FrontendKind.NODE_PORT}),
    "LoadBalancer": frozenset(
        {FrontendKind.CLUSTER_IP, FrontendKind.NODE_PORT, FrontendKind.LOAD_BALANCER}
    ),
    "ExternalName": frozenset(),
}
_NEAR: Final = frozenset({"PreferClose", "PreferSameZone", "PreferSameNode"})


def read_service(obj: Mapping[str, Any]) -> tuple[ServiceObject, list[Remark]]:
    """A Service; one that nothing is translated for has no `kinds`."""
    namespace, name, fields = named(obj, "Service")
    metadata, spec = fields.part("metadata"), fields.part("spec")
    labels, annotations = metadata.part("labels"), metadata.part("annotations")
    kinds = _kinds(spec, annotations)
    cluster_ips = spec.addresses("clusterIPs", "None", "")
    if not cluster_ips:
        text = spec.text("clusterIP")
        address = spec.read_address("clusterIP", text) if text not in ("", "None") else None
        cluster_ips = (address,) if address is not None else ()
    if spec.raw("clusterIP") == "None" or labels.raw(_LABEL_HEADLESS) is not None:
        kinds = frozenset()
    external_ips = spec.addresses("externalIPs")
    if external_ips and kinds:
        kinds |= {FrontendKind.EXTERNAL_IPS}
    service = ServiceObject(
        name=ServiceName(namespace, name),
        kinds=kinds,
        ports=_ports(spec, nodes=FrontendKind.NODE_PORT in kinds) if kinds else (),
        cluster_ips=cluster_ips,
        load_balancer_ips=_ingress(fields.part("status").part("loadBalancer")),
        external_ips=external_ips,
        external_local=_policy(spec, "externalTrafficPolicy"),
        internal_local=_policy(spec, "internalTrafficPolicy"),
        affinity_timeout=_affinity(spec),
        source_ranges=_ranges(spec, annotations),
        source_ranges_deny=annotations.one_of(_RANGES_POLICY, ("allow", "deny"), "allow") == "deny",
        publish_not_ready=spec.flag("publishNotReadyAddresses", default=False),
        algorithm=_algorithm(annotations),
        forwarding=Forwarding(annotations.one_of(_FORWARDING, ("", "snat", "dsr"), "")),
        health_check_port=spec.number("healthCheckNodePort", 0, 65535, 0),
        topology=spec.text("trafficDistribution") in _NEAR,
        topology_annotation=_topology(annotations),
        proxy_name=labels.text(_LABEL_PROXY),
        node_label=annotations.text(LABEL_NODE) if annotations.raw(LABEL_NODE) else None,
        node_selector=annotations.text(_NODE_SELECTOR),
        created=metadata.text("creationTimestamp"),
    )
    return service, fields.remarks


def _kinds(spec: Fields, annotations: Fields) -> frozenset[FrontendKind]:
    """What the service's type allows, of which an annotation may pick some."""
    kinds = _TYPES[spec.one_of("type", tuple(_TYPES), "ClusterIP")]
    wanted = annotations.text(_TYPE)
    if not wanted:
        return kinds
    chosen = set()
    for word in wanted.split(","):
        try:
            chosen.add(FrontendKind(word.strip()))
        except ValueError:
            annotations.remark(
                _TYPE, f"{shown(word)} is not ClusterIP, NodePort or LoadBalancer; it is left out"
            )
    return kinds & chosen if chosen else kinds


def _ports(spec: Fields, *, nodes: bool) -> tuple[ServicePort, ...]:
    found: dict[tuple[object, int], ServicePort] = {}
    for item in spec.parts("ports"):
        port, protocol = item.port("port"), item.protocol()
        if port is None or protocol is None:
            continue
        if (protocol, port) in found:
            item.remark("port", f"{port}/{protocol.name} is there twice; the first one counts")
            continue
        node_port = item.number("nodePort", 0, 65535, 0) if nodes else 0
        found[protocol, port] = ServicePort(item.text("name"), protocol, port, node_port)
    return tuple(found.values())


def _ingress(status: Fields) -> tuple[Address, ...]:
    """Addresses on which this node is to take the place of the load balancer."""
    found: dict[Address, None] = {}
    for item in status.parts("ingress"):
        text = item.text("ip")
        if not text or item.one_of("ipMode", ("VIP", "Proxy"), "VIP") != "VIP":
            continue
        address = item.read_address("ip", text)
        if address is not None:
            found[address] = None
    return tuple(found)


def _policy(spec: Fields, name: str) -> bool:
    return spec.one_of(name, ("Cluster", "Local"), "Cluster") == "Local"


def _affinity(spec: Fields) -> int:
    if spec.one_of("sessionAffinity", ("None", "ClientIP"), "None") == "None":
        return 0
    config = spec.part("sessionAffinityConfig").part("clientIP")
    return config.number("timeoutSeconds", 1, AFFINITY_TIMEOUT_MAX_S, AFFINITY_TIMEOUT_S)


def _ranges(spec: Fields, annotations: Fields) -> tuple[Network, ...] | None:
    """Who may ask; once anything is written, what cannot be read lets nobody in."""
    texts = list(spec.texts("loadBalancerSourceRanges"))
    written: object = spec.raw("loadBalancerSourceRanges")
    where = spec
    if not written:
        text = annotations.text(_RANGES)
        texts = [(_RANGES, part) for part in text.split(",") if part.strip()]
        written, where = texts, annotations
    if not written:
        return None
    found = {where.read_network(path, text) for path, text in texts}
    return tuple(sorted((one for one in found if one is not None), key=str))


def _algorithm(annotations: Fields) -> Algorithm | None:
    text = annotations.one_of(_ALGORITHM, ("", "random", "maglev"), "")
    return Algorithm(text) if text else None


def _topology(annotations: Fields) -> bool | None:
    """Whether an annotation asks for topology hints, or forbids them; None without one."""
    for name in _TOPOLOGY:
        text = annotations.text(name)
        if text:
            return text.lower() == "auto"
    return None


def read_slice(obj: Mapping[str, Any]) -> tuple[SliceObject, list[Remark]]:
    """An EndpointSlice; one that counts for nothing has no endpoints."""
    namespace, name, fields = named(obj, "EndpointSlice")
    metadata = fields.part("metadata")
    labels = metadata.part("labels")
    service = ServiceName(namespace, labels.text(_LABEL_SERVICE))
    if labels.raw(_LABEL_HEADLESS) is not None or not service.name:
        return SliceObject(namespace, name, service), fields.remarks
    family = fields.text("addressType")
    if family not in ("IPv4", "IPv6"):
        fields.remark("addressType", f"{shown(family)} is not IPv4 or IPv6; the slice is left out")
        return SliceObject(namespace, name, service), fields.remarks
    version = 4 if family == "IPv4" else 6
    weights = _weights(metadata.part("annotations"))
    ports = tuple(_slice_ports(fields))
    endpoints = tuple(_endpoints(fields, version, weights))
    return SliceObject(namespace, name, service, ports, endpoints), fields.remarks


def _slice_ports(fields: Fields) -> Iterator[SlicePort]:
    for item in fields.parts("ports"):
        port, protocol = item.port("port"), item.protocol()
        if port is not None and protocol is not None:
            yield SlicePort(item.text("name"), protocol, port)


def _endpoints(fields: Fields, version: int, weights: Mapping[Address, int]) -> Iterator[Endpoint]:
    for item in fields.parts("endpoints"):
        addresses = item.addresses("addresses")
        strange = [str(one) for one in addresses if one.version != version]
        if strange:
            item.remark("addresses", f"{strange[0]} is not of the slice's family; it is left out")
        conditions, hints = item.part("conditions"), item.part("hints")
        ready = conditions.flag("ready", default=True)
        kept = tuple(one for one in addresses if one.version == version)
        if not kept:
            continue
        yield Endpoint(
            addresses=kept,
            ready=ready,
            serving=conditions.flag("serving", default=ready),
            terminating=conditions.flag("terminating", default=False),
            node=item.text("nodeName"),
            zone=item.text("zone"),
            hint_zones=_hints(hints, "forZones"),
            hint_nodes=_hints(hints, "forNodes"),
            weights=tuple(weights.get(one, 1) for one in kept) if weights else (),
        )


def _hints(hints: Fields, name: str) -> frozenset[str] | None:
    found = frozenset(item.text("name") for item in hints.parts(name)) - {""}
    return found or None


def _weights(annotations: Fields) -> dict[Address, int]:
    """Weights of backends for Maglev: `10.0.1.7=3,10.0.2.9=1`."""
    found: dict[Address, int] = {}
    for part in annotations.text(_WEIGHTS).split(","):
        if not part.strip():
            continue
        text, _, number = part.strip().rpartition("=")
        address = annotations.read_address(_WEIGHTS, text)
        if not number.isdecimal() or not 0 < int(number) <= _WEIGHT_MAX:
            annotations.remark(
                _WEIGHTS, f"{shown(number)} is no weight from 1 to {_WEIGHT_MAX}; 1 is taken"
            )
        elif address is not None:
            found[address] = int(number)
    return found


def read_pod(obj: Mapping[str, Any]) -> tuple[LocalPod | None, str, list[Remark]]:
    """A pod with addresses of its own, the name of its node, and remarks.

    None for pods that have ended, have no address yet, or share the node's.
    """
    namespace, name, fields = named(obj, "Pod")
    spec, status = fields.part("spec"), fields.part("status")
    node = spec.text("nodeName")
    ended = status.text("phase") in ("Succeeded", "Failed")
    if ended or spec.raw("hostNetwork") is True:
        return None, node, fields.remarks
    texts = [(f"podIPs[{i}].ip", part.text("ip")) for i, part in enumerate(status.parts("podIPs"))]
    texts = texts or [("podIP", status.text("podIP"))]
    addresses = [status.read_address(path, text) for path, text in texts if text]
    found = tuple(dict.fromkeys(one for one in addresses if one is not None))
    if not found:
        return None, node, fields.remarks
    pod = LocalPod(
        PodName(namespace, name),
        found,
        _pod_labels(namespace, fields.part("metadata").part("labels")),
        _is_ready(fields, status),
        tuple(_host_ports(spec)),
    )
    return pod, node, fields.remarks


def _pod_labels(namespace: str, labels: Fields) -> LabelSet:
    found = [Label(SOURCE_K8S, key, value) for key, value in labels.named_texts()]
    return LabelSet([*found, Label(SOURCE_K8S, KEY_NAMESPACE, namespace)])


def _is_ready(fields: Fields, status: Fields) -> bool:
    """Ready as its conditions say; without any, a pod that runs is."""
    if fields.part("metadata").raw("deletionTimestamp") is not None:
        return False
    for condition in status.parts("conditions"):
        if condition.raw("type") == "Ready":
            return condition.raw("status") == "True"
    return status.text("phase", "Running") == "Running"


def _host_ports(spec: Fields) -> Iterator[HostPort]:
    for group in ("containers", "initContainers"):
        for container in spec.parts(group):
            if group == "initContainers" and container.raw("restartPolicy") != "Always":
                continue
            for item in container.parts("ports"):
                if not item.raw("hostPort"):
                    continue
                number, port = item.port("hostPort"), item.port("containerPort")
                protocol = item.protocol()
                text = item.text("hostIP")
                address = _HOST_ADDRESSES.get(text)
                if address is None and text:
                    address = item.read_address("hostIP", text, near=True)
                    if address is None:
                        continue
                if number is not None and port is not None and protocol is not None:
                    yield HostPort(number, port, protocol, address)
