"""Words for verdicts of policies, shared by the command lines that show them. Pure.

`paint` gives a text a colour by name, `green` or `red`; without one, texts are plain.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cilium.agent.v1.agent_pb2 import (
        ExplainedDirection,
        KernelVerdict,
        PolicyEntry,
        Redirect,
    )

    Paint = Callable[[str, str], str]

PROTOCOLS: Final = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}
"""Names of the protocols that policies speak of, by number."""

_KERNEL: Final = {
    "not-asked": "enforces nothing here",
    "allowed": "allows it",
    "denied": "drops it",
    "redirected": "redirects it",
    "audited": "lets it pass and reports it",
}


def plainly(text: str, _colour: str) -> str:
    """A `paint` that leaves texts as they are."""
    return text


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


def verdict_word(paint: Paint, *, allowed: bool) -> str:
    """Return `ALLOWED` or `DENIED`."""
    return paint("ALLOWED", "green") if allowed else paint("DENIED", "red")


def direction_lines(
    found: ExplainedDirection, end: str, paint: Paint = plainly, *, suggest: bool = True
) -> Iterator[str]:
    """Say how the traffic fared at one end, a line each; `suggest` adds the missing policy."""
    verdict = verdict_word(paint, allowed=found.allowed)
    yield f"{found.direction.capitalize()} at {end}: {verdict}, {found.message}"
    if found.HasField("entry"):
        peer = identity_text(found.entry).partition("\n")[0]
        action = "deny" if found.entry.deny else "allow"
        yield f"  deciding entry: {action} {port_text(found.entry)}, peer {peer}"
    if found.HasField("redirect"):
        yield f"  redirected to a proxy for {found.redirect.kind}, which allows:"
        yield from (f"    {line}" for line in redirect_lines(found.redirect))
    if found.reason == "default-deny":
        yield f"  default deny because of: {', '.join(found.default_deny)}"
    for rule in found.rules:
        place = f"{rule.namespace}/{rule.name}" if rule.namespace else rule.name
        outcome = "decides" if rule.decides else "; ".join(rule.misses) or "matches as well"
        yield f"  {rule.verdict:<5}  {rule.kind} {place} {rule.path}: {outcome}"
    if found.HasField("kernel"):
        yield f"  the kernel {_kernel(found.kernel, paint)}"
    if suggest and found.suggestion:
        import yaml

        yield "  this policy would allow it:"
        text = yaml.safe_dump(json.loads(found.suggestion), sort_keys=False, width=100)
        yield from (f"    {line}" for line in text.splitlines())


def _kernel(found: KernelVerdict, paint: Paint) -> str:
    text = _KERNEL.get(found.outcome, found.outcome)
    if found.drop_reason:
        text += f" ({found.drop_reason})"
    if found.proxy_port:
        text += f" to port {found.proxy_port}"
    if found.derived_from:
        text += f" because of {', '.join(found.derived_from)}"
    if found.agrees:
        return f"{paint('agrees', 'green')}: it {text}"
    return f"{paint('DISAGREES', 'red')}: it {text}"
