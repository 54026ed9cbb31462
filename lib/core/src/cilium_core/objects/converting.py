"""Older spellings of Cilium's objects, rewritten into the real schema before they are checked.

The forms are recognised by their shape and never overlap with what the real schema allows, so a
valid object is never touched. Each conversion leaves a warning. One object may become several.
Whatever is malformed stays as it is, for the models to refuse.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from cilium_core.policy.errors import PolicyError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

NODE_ANNOTATION: Final = "cilium.io/node"
"""Holds the name of an endpoint's node where an older form named it instead of its address."""


@dataclass(slots=True)
class Converted:
    """What an object became, with a warning for each conversion."""

    objects: list[dict[str, Any]]
    warnings: list[str] = field(default_factory=list)


def convert(obj: Mapping[str, Any]) -> Converted:
    """Rewrite the older forms of an object; the object itself is not changed.

    Raises `PolicyError` where the older form and the real one stand side by side and differ.
    """
    result = Converted([dict(obj)])
    converter = _CONVERTERS.get(str(obj.get("kind")))
    if converter is not None:
        converter(result)
    return result


def _refuse(obj: Mapping[str, Any], path: str, message: str) -> PolicyError:
    metadata = _mapping(obj.get("metadata"))
    return PolicyError((Problem(path, message),), f"{obj.get('kind')} {metadata.get('name')}")


def _endpoint(result: Converted) -> None:
    (obj,) = result.objects
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        return
    del obj["spec"]
    if "status" in obj:
        result.warnings.append("spec: ignored, since a CiliumEndpoint has its state in status")
        return
    result.warnings.append("spec: read as status, which is where a CiliumEndpoint has its state")
    status: dict[str, Any] = {
        name: spec[name] for name in ("id", "identity", "policy", "state") if name in spec
    }
    networking: dict[str, Any] = {}
    addresses = spec.get("addressing")
    if isinstance(addresses, list):
        networking["addressing"] = [_addresses(addresses)]
    node = spec.get("node")
    if _is_address(node):
        networking.setdefault("addressing", [])
        networking["node"] = node
    elif isinstance(node, str):
        metadata = dict(_mapping(obj.get("metadata")))
        metadata["annotations"] = {
            **_mapping(metadata.get("annotations")),
            NODE_ANNOTATION: node,
        }
        obj["metadata"] = metadata
    if networking:
        status["networking"] = networking
    if "container-id" in spec:
        status["external-identifiers"] = {"container-id": spec["container-id"]}
    obj["status"] = status


def _addresses(written: list[Any]) -> dict[str, str]:
    """The first address of each family, a primary one before others."""
    items = [item for item in written if isinstance(item, dict) and _is_address(item.get("ip"))]
    items.sort(key=lambda item: item.get("primary") is not True)
    found: dict[str, str] = {}
    for item in items:
        found.setdefault(f"ipv{ipaddress.ip_address(item['ip']).version}", item["ip"])
    return found


def _identity(result: Converted) -> None:
    (obj,) = result.objects
    spec = obj.get("spec")
    if not isinstance(spec, dict) or "security-labels" not in spec:
        return
    inner = spec["security-labels"]
    if "security-labels" in obj and obj["security-labels"] != inner:
        raise _refuse(obj, "spec.security-labels", "differs from security-labels; keep that one")
    rest = {key: value for key, value in spec.items() if key != "security-labels"}
    del obj["spec"]
    if rest:
        obj["spec"] = rest
    obj["security-labels"] = inner
    result.warnings.append("spec.security-labels: read as security-labels, without spec")


def _node(result: Converted) -> None:
    (obj,) = result.objects
    spec = _mapping(obj.get("spec"))
    ipam = _mapping(spec.get("ipam"))
    pools = ipam.get("pools")
    if not isinstance(pools, list) or not all(isinstance(item, dict) for item in pools):
        return
    allocated: dict[str, list[Any]] = {}
    for item in pools:
        allocated.setdefault(str(item.get("poolID", "default")), []).append(item.get("pool"))
    new = dict(ipam)
    new["pools"] = {
        "allocated": [{"pool": name, "cidrs": cidrs} for name, cidrs in allocated.items()]
    }
    new.setdefault("podCIDRs", [cidr for cidrs in allocated.values() for cidr in cidrs])
    obj["spec"] = {**spec, "ipam": new}
    result.warnings.append("spec.ipam.pools: a list was read as pools.allocated and podCIDRs")


def _workload(result: Converted) -> None:
    (obj,) = result.objects
    spec = dict(_mapping(obj.get("spec")))
    address = spec.get("ipAddress")
    if isinstance(address, str) and _is_address(address):
        del spec["ipAddress"]
        version = ipaddress.ip_address(address).version
        spec.setdefault(f"ipv{version}-alloc-cidr", f"{address}/{32 if version == 4 else 128}")
        obj["status"] = {"ip": address, **_mapping(obj.get("status"))}
        result.warnings.append("spec.ipAddress: read as status.ip and the prefix to allocate from")
    labels = spec.get("labels")
    if isinstance(labels, list) and all(isinstance(item, dict) for item in labels):
        del spec["labels"]
        metadata = dict(_mapping(obj.get("metadata")))
        written = {str(item.get("key")): str(item.get("value", "")) for item in labels}
        metadata["labels"] = {**written, **_mapping(metadata.get("labels"))}
        obj["metadata"] = metadata
        result.warnings.append("spec.labels: read as metadata.labels")
    if result.warnings:
        obj["spec"] = spec


def _local_redirect(result: Converted) -> None:
    (obj,) = result.objects
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        return
    spec = dict(spec)
    frontend = spec.get("redirectFrontend")
    fronts = frontend if isinstance(frontend, list) else [frontend]
    if isinstance(frontend, list) and frontend:
        fronts = list(map(_frontend, frontend))
        result.warnings.append("spec.redirectFrontend: a list was read as one policy for each item")
    target = spec.pop("redirectTarget", None)
    if target is not None:
        if "redirectBackend" in spec:
            raise _refuse(obj, "spec.redirectTarget", "stands beside redirectBackend; keep that")
        result.warnings.append("spec.redirectTarget: read as redirectBackend")
    result.objects = list(_each_frontend(obj, spec, fronts, target))


def _each_frontend(
    obj: dict[str, Any], spec: dict[str, Any], fronts: list[Any], target: object
) -> Iterator[dict[str, Any]]:
    for index, front in enumerate(fronts):
        new = dict(obj)
        one = {key: value for key, value in spec.items() if key != "redirectFrontend"}
        if front is not None:
            one["redirectFrontend"] = front
        if target is not None:
            one["redirectBackend"] = _backend(target, front)
        new["spec"] = one
        if len(fronts) > 1:
            metadata = dict(_mapping(obj.get("metadata")))
            metadata["name"] = f"{metadata.get('name')}-{index}"
            new["metadata"] = metadata
        yield new


def _frontend(item: object) -> object:
    """An item of a list of frontends; ports beside the matcher belong into it."""
    if not isinstance(item, dict) or not isinstance(item.get("toPorts"), list):
        return item
    rest = {key: value for key, value in item.items() if key != "toPorts"}
    for name in ("addressMatcher", "serviceMatcher"):
        matcher = rest.get(name)
        if isinstance(matcher, dict) and "toPorts" not in matcher:
            return {**rest, name: {**matcher, "toPorts": item["toPorts"]}}
    return item


def _backend(target: object, front: object) -> object:
    """The real form of a target; its single port takes the protocol of the frontend's."""
    if not isinstance(target, dict) or "port" not in target:
        return target
    matcher = next(
        (part for part in _mapping(front).values() if isinstance(part, dict)), dict[str, Any]()
    )
    ports = matcher.get("toPorts")
    first = ports[0] if isinstance(ports, list) and ports else {}
    protocol = _mapping(first).get("protocol", "TCP")
    rest = {key: value for key, value in target.items() if key not in {"port", "protocol"}}
    port = {"port": str(target["port"]), "protocol": target.get("protocol", protocol)}
    return {**rest, "toPorts": [port]}


def _is_address(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


_CONVERTERS: Final[dict[str, Callable[[Converted], None]]] = {
    "CiliumEndpoint": _endpoint,
    "CiliumIdentity": _identity,
    "CiliumNode": _node,
    "CiliumExternalWorkload": _workload,
    "CiliumLocalRedirectPolicy": _local_redirect,
}
