"""What a Service, Pod or pool object says, read with care: nobody checked it before it was stored.

Pure. What has a wrong form reads as if it were not there.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cilium_core.records import Address
    from cilium_core.resources.model import Object

CLUSTER_IP: Final = "ClusterIP"
NODE_PORT: Final = "NodePort"
LOAD_BALANCER: Final = "LoadBalancer"
EXTERNAL_NAME: Final = "ExternalName"
HEADLESS: Final = "None"
FAMILIES: Final = {4: "IPv4", 6: "IPv6"}
VERSIONS: Final = {name: version for version, name in FAMILIES.items()}

Name = tuple[str, str]
"""Namespace and name of an object."""


def name_of(item: Object) -> Name:
    """Namespace and name."""
    metadata = item["metadata"]
    return str(metadata.get("namespace") or "default"), str(metadata["name"])


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def mappings(value: Any) -> list[dict[str, Any]]:
    """The mappings of a list."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def texts(value: Any) -> list[str]:
    """The texts of a list that are not empty."""
    return [one for one in value if isinstance(one, str) and one] if isinstance(value, list) else []


def spec_of(item: Object) -> dict[str, Any]:
    """The spec."""
    return mapping(item.get("spec"))


def type_of(spec: Mapping[str, Any]) -> str:
    """The type of a Service, ClusterIP where none is written."""
    return str(spec.get("type") or CLUSTER_IP)


def is_headless(spec: Mapping[str, Any]) -> bool:
    """Whether a Service wants no address."""
    return spec.get("clusterIP") == HEADLESS or texts(spec.get("clusterIPs"))[:1] == [HEADLESS]


def is_local(spec: Mapping[str, Any]) -> bool:
    """Whether only backends of the node that is asked serve clients from outside."""
    return spec.get("externalTrafficPolicy") == "Local"


def number(value: Any) -> int:
    """A port number from 1 to 65535, else 0."""
    good = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536
    return value if good else 0


def protocol_of(port: Mapping[str, Any]) -> str:
    """The protocol of a port, TCP where none is written."""
    return str(port.get("protocol") or "TCP")


def address(text: Any) -> Address | None:
    """An address, None when the text is none."""
    try:
        return ipaddress.ip_address(text) if isinstance(text, str) else None
    except ValueError:
        return None


def annotations_of(item: Object) -> dict[str, Any]:
    """The annotations."""
    return mapping(item["metadata"].get("annotations"))


def labels_of(item: Object) -> dict[str, Any]:
    """The labels."""
    return mapping(item["metadata"].get("labels"))


def age_key(item: Object) -> tuple[str, Name]:
    """A key that puts the older of two objects first."""
    return str(item["metadata"].get("creationTimestamp") or ""), name_of(item)


def selects(selector: Any, found: Mapping[str, Any]) -> bool:
    """Whether a Kubernetes label selector, with matchLabels and matchExpressions, selects labels.

    An empty one selects everything; one of an unknown operator nothing.
    """
    chosen = mapping(selector)
    if any(found.get(key) != value for key, value in mapping(chosen.get("matchLabels")).items()):
        return False
    return all(_holds(one, found) for one in mappings(chosen.get("matchExpressions")))


def _holds(requirement: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    key, values = str(requirement.get("key")), requirement.get("values") or ()
    match requirement.get("operator"):
        case "In":
            return key in found and found[key] in values
        case "NotIn":
            return key not in found or found[key] not in values
        case "Exists":
            return key in found
        case "DoesNotExist":
            return key not in found
    return False
