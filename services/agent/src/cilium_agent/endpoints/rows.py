"""An endpoint as the data plane's row."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from cilium_agent.datapath.models import EndpointFlag, EndpointInfo

if TYPE_CHECKING:
    from cilium_agent.endpoints.records import Endpoint

NOT_READY = int(EndpointFlag.ENDPOINT_NOT_READY)


def flags_of(*, ingress: bool, egress: bool, audit: bool) -> int:
    """The flags of a ready endpoint."""
    flags = 0
    if ingress:
        flags |= int(EndpointFlag.ENDPOINT_ENFORCE_INGRESS)
    if egress:
        flags |= int(EndpointFlag.ENDPOINT_ENFORCE_EGRESS)
    if audit:
        flags |= int(EndpointFlag.ENDPOINT_AUDIT)
    return flags


def row(endpoint: Endpoint, flags: int) -> EndpointInfo:
    """The row of an endpoint that has its interface."""
    link = endpoint.link
    if link is None:
        raise ValueError(f"endpoint {endpoint.id} has no interface yet")
    if endpoint.is_host:
        flags |= int(EndpointFlag.ENDPOINT_HOST)
    if endpoint.no_redirect:
        flags |= int(EndpointFlag.ENDPOINT_NO_REDIRECT)
    return EndpointInfo(
        id=endpoint.id,
        identity=endpoint.identity,
        ifindex=link.ifindex,
        ipv4=ipaddress.IPv4Address(endpoint.ipv4) if endpoint.ipv4 else None,
        ipv6=ipaddress.IPv6Address(endpoint.ipv6) if endpoint.ipv6 else None,
        mac=link.mac,
        node_mac=link.node_mac,
        flags=flags,
    )
