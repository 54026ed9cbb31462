"""Answers to the CNI plugin, in the shape of specification 1.0.0."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cilium_agent.endpoints.records import Endpoint

CNI_VERSION = "1.0.0"

# Codes of the specification, then our own (from 100).
TRY_AGAIN = 11
INVALID_REQUEST = 4
BAD_CONFIG = 7
INTERNAL = 999
NOT_AVAILABLE = 50
UNHEALTHY = 100
MISMATCH = 101


def added(endpoint: Endpoint, gateway4: str, gateway6: str) -> dict[str, object]:
    """The result of an ADD: host side first, then the pod's interface with its addresses."""
    link = endpoint.link
    assert link is not None  # noqa: S101 - only an endpoint with an interface is answered for
    addresses: list[dict[str, object]] = []
    routes: list[dict[str, object]] = []
    if endpoint.ipv4:
        addresses.append({"address": f"{endpoint.ipv4}/32", "gateway": gateway4, "interface": 1})
        routes.append({"dst": "0.0.0.0/0", "gw": gateway4})
    if endpoint.ipv6:
        addresses.append({"address": f"{endpoint.ipv6}/128", "gateway": gateway6, "interface": 1})
        routes.append({"dst": "::/0", "gw": gateway6})
    return {
        "cniVersion": CNI_VERSION,
        "interfaces": [
            {"name": link.interface, "mac": link.node_mac, "sandbox": ""},
            {
                "name": endpoint.attachment.ifname,
                "mac": link.mac,
                "sandbox": endpoint.attachment.netns,
            },
        ],
        "ips": addresses,
        "routes": routes,
        "dns": {},
    }


def failed(code: int, message: str, details: str = "") -> dict[str, object]:
    """An error as the plugin prints it."""
    return {"cniVersion": CNI_VERSION, "code": code, "msg": message, "details": details}
