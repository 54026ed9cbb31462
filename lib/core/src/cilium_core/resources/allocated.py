"""What a new version of an object keeps of the stored one, because it was given and not written.

A Service's addresses and ports are given by the cluster unless its author chose them; the author's
file does not know them. Applying the file again must not take them away, as it does not where
there is an API server. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cilium_core.resources.model import Object

_ADDRESSED = ("ClusterIP", "NodePort", "LoadBalancer")
_OF_ADDRESSES = ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy")


def with_allocated(kind: str, desired: Object, before: Object) -> Object:
    """Give `desired` with what was given to `before` and `desired` does not choose anew."""
    new, old = desired.get("spec"), before.get("spec")
    if kind != "Service" or not isinstance(new, dict) or not isinstance(old, dict):
        return desired
    spec = dict(new)
    if _type(spec) in _ADDRESSED and _type(old) in _ADDRESSED:
        _keep_addresses(spec, old)
    if _has_node_ports(spec) and _has_node_ports(old):
        _keep_node_ports(spec, old)
    checked = old.get("healthCheckNodePort")
    if checked and _is_local(spec) and _is_local(old):
        spec.setdefault("healthCheckNodePort", checked)
    return {**desired, "spec": spec}


def _type(spec: Object) -> str:
    return str(spec.get("type") or "ClusterIP")


def _is_local(spec: Object) -> bool:
    return _type(spec) == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"


def _has_node_ports(spec: Object) -> bool:
    return _type(spec) in ("NodePort", "LoadBalancer")


def _keep_addresses(spec: Object, old: Object) -> None:
    """Keep the addresses of the families that the new version is still of.

    One that chooses an address itself has chosen all.
    """
    if spec.get("clusterIP") or spec.get("clusterIPs") or not old.get("clusterIPs"):
        return
    families = spec.get("ipFamilies") or old.get("ipFamilies") or []
    given = dict(zip(old.get("ipFamilies") or (), old["clusterIPs"], strict=False))
    if old.get("clusterIP") == "None":
        spec.update({field: old[field] for field in _OF_ADDRESSES if old.get(field)} | spec)
        return
    if spec.get("ipFamilyPolicy") == "SingleStack":
        families = families[:1]
    if not families or families[0] not in given:
        return  # another first family is another address
    kept = [given[family] for family in families if family in given]
    spec.update({"clusterIP": kept[0], "clusterIPs": kept, "ipFamilies": list(families)})
    if "ipFamilyPolicy" not in spec and old.get("ipFamilyPolicy"):
        spec["ipFamilyPolicy"] = old["ipFamilyPolicy"]


def _keep_node_ports(spec: Object, old: Object) -> None:
    """Keep the node port of each port that the new version leaves open."""
    ports, given = spec.get("ports"), old.get("ports")
    if not isinstance(ports, list) or not isinstance(given, list):
        return
    known = {_port_key(port): port["nodePort"] for port in given if _number(port)}
    taken = {port["nodePort"] for port in ports if _number(port)}
    spec["ports"] = [
        {**port, "nodePort": known[_port_key(port)]}
        if isinstance(port, dict)
        and not port.get("nodePort")
        and known.get(_port_key(port), 0) not in (0, *taken)
        else port
        for port in ports
    ]


def _number(port: Any) -> bool:
    return isinstance(port, dict) and isinstance(port.get("nodePort"), int) and port["nodePort"] > 0


def _port_key(port: Object) -> tuple[str, object]:
    return str(port.get("protocol") or "TCP"), port.get("port")
