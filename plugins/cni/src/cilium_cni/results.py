# SPDX-License-Identifier: Apache-2.0
"""Writes the agent's result of ADD in the version of the specification a runtime asked for.

The agent answers in the newest form. What older versions do not know is left out; what they
require (the family of an address, before 1.0.0) is derived.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ROUTE_KEYS = ("dst", "gw")
_ROUTE_KEYS_1_1 = (*_ROUTE_KEYS, "mtu", "advmss", "priority", "table", "scope")
_INTERFACE_KEYS = ("name", "mac", "sandbox")
_INTERFACE_KEYS_1_1 = (*_INTERFACE_KEYS, "mtu", "socketPath", "pciID")


def convert(result: "dict[str, Any]", version: str) -> "dict[str, Any]":
    """Return the result in the given version, one of `requests.VERSIONS`."""
    newest = version == "1.1.0"
    old = version.startswith("0.")
    interfaces = _pick(
        result.get("interfaces", ()), _INTERFACE_KEYS_1_1 if newest else _INTERFACE_KEYS
    )
    routes = _pick(result.get("routes", ()), _ROUTE_KEYS_1_1 if newest else _ROUTE_KEYS)
    ips = _pick(result.get("ips", ()), ("interface", "address", "gateway"))
    if old:
        ips = [{"version": "6" if ":" in ip["address"] else "4", **ip} for ip in ips]
    return {
        "cniVersion": version,
        "interfaces": interfaces,
        "ips": ips,
        "routes": routes,
        "dns": result.get("dns") or {},
    }


def _pick(items: "Any", keys: tuple[str, ...]) -> "list[dict[str, Any]]":
    return [{key: item[key] for key in keys if key in item} for item in items]
