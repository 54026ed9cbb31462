# SPDX-License-Identifier: Apache-2.0
"""Words for the entries of a policy map, shared by the commands that show them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cilium.agent.v1.agent_pb2 import PolicyEntry, Redirect

PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}


def protocol_text(number: int) -> str:
    """Return the protocol's name, or its number when it has no short one."""
    return PROTOCOLS.get(number, str(number))


def port_text(entry: PolicyEntry) -> str:
    """Return `8080/TCP`, `8080-8095/TCP`, `TCP` or `ANY`."""
    if not entry.protocol:
        return "ANY"
    protocol = protocol_text(entry.protocol)
    if not entry.port and not entry.end_port:
        return protocol
    if entry.end_port > entry.port:
        return f"{entry.port}-{entry.end_port}/{protocol}"
    return f"{entry.port}/{protocol}"


def identity_text(entry: PolicyEntry) -> str:
    """Return the peer's number and labels, a line each; `any` for every peer."""
    if not entry.identity:
        return "any"
    return "\n".join([str(entry.identity), *(f"  {label}" for label in entry.labels)])


def verdict_text(entry: PolicyEntry) -> str:
    """Return `Allow`, `Deny`, `Default deny`, or `Audit` for what is reported and let pass."""
    if entry.deny:
        if not entry.precedence & 0xFF and not entry.audit:
            return "Default deny"
        return "Audit" if entry.audit else "Deny"
    return "Allow"


def proxy_text(entry: PolicyEntry) -> str:
    """Return the proxy's port, `NONE` without a redirect, `waiting` while it has no port."""
    if not entry.redirect:
        return "NONE"
    return str(entry.proxy_port) if entry.proxy_port else "waiting"


def redirect_lines(redirect: Redirect) -> Iterator[str]:
    """Say what a proxy enforces, a line each."""
    if redirect.allow_all:
        yield "everything, only reported"
    yield from redirect.rules
    if redirect.server_names:
        yield f"server names {', '.join(redirect.server_names)}"
    if redirect.terminating:
        yield f"TLS of clients ends here, with secret {redirect.terminating}"
    if redirect.originating:
        yield f"TLS to servers, with secret {redirect.originating}"
    if redirect.audit:
        yield "audit: reports what it would refuse"
