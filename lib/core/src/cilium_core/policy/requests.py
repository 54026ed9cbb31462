"""Requests held against rules about requests, for explanations: what a proxy would say, and why.

The proxies decide about real requests; this follows the same rules for one request that somebody
asks about.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from cilium_core.policy import fqdn, patterns
from cilium_core.policy.l7 import HttpRule, L7Kind, L7Match, SecretRef

if TYPE_CHECKING:
    from cilium_core.policy.l7 import DnsRule, HeaderMatch

SecretValue = Callable[[SecretRef], str | None]
"""The value of a secret, None when there is no such thing."""


class HttpRequest(NamedTuple):
    """A request as a client sends it; `path` has the query, header names are in any case."""

    method: str = "GET"
    path: str = "/"
    host: str = ""
    headers: tuple[tuple[str, str], ...] = ()


class DnsQuestion(NamedTuple):
    """A name that is asked for, with or without a final dot."""

    name: str


Request = HttpRequest | DnsQuestion


def refusals(
    match: L7Match, request: Request, secret: SecretValue | None = None
) -> tuple[str, ...]:
    """Why a rule's demands do not allow a request, a text for each; empty when they allow it.

    Without `secret`, any value of a header that should have a secret's will do.
    """
    unnamed = _tls_refusals(match, request)
    if unnamed or match.kind is L7Kind.TLS:
        return unnamed
    if isinstance(request, DnsQuestion):
        if match.kind is not L7Kind.DNS:
            return (f"its requests are {match.kind.value}, not dns",)
        names = [_dns_text(rule) for rule in match.dns]
        if not match.dns or any(_asks_for(rule, request) for rule in match.dns):
            return ()
        return (f"its names are {', '.join(names)}",)
    if match.kind is not L7Kind.HTTP:
        return (f"its requests are {match.kind.value}, not http",)
    tried = [http_refusals(rule, request, secret) for rule in match.http or (HttpRule(),)]
    return () if () in tried else tuple("; ".join(texts) for texts in tried)


def http_refusals(
    rule: HttpRule, request: HttpRequest, secret: SecretValue | None = None
) -> tuple[str, ...]:
    """What of an HTTP rule a request does not meet."""
    found = [
        f"its {name} is {wanted}"
        for name, wanted, given in (
            ("method", rule.method, request.method),
            ("path", rule.path, request.path),
            ("host", rule.host, request.host),
        )
        if wanted and patterns.compile_expression(wanted).fullmatch(given) is None
    ]
    found += [
        f"it wants header {_header_text(header)}"
        for header in rule.headers
        if not _has_header(header, request, secret)
    ]
    return tuple(found)


def _has_header(wanted: HeaderMatch, request: HttpRequest, secret: SecretValue | None) -> bool:
    """Whether a request has a header; one that is only looked after never refuses anything."""
    if wanted.mismatch is not None:
        return True
    values = [value for name, value in request.headers if name.lower() == wanted.name]
    if wanted.secret is not None:
        if secret is None:
            return bool(values)
        value = secret(wanted.secret)
        value = wanted.value if value is None else value
        return value is not None and value in values
    if wanted.value is None:
        return bool(values)
    if wanted.value in values:
        return True
    if not wanted.pattern:
        return False
    expression = patterns.compile_expression(wanted.value)
    return any(expression.fullmatch(value) is not None for value in values)


def _header_text(header: HeaderMatch) -> str:
    if header.secret is not None:
        return f"{header.name} as in secret {header.secret.namespace}/{header.secret.name}"
    return header.name if header.value is None else f"{header.name}: {header.value}"


def _asks_for(rule: DnsRule, question: DnsQuestion) -> bool:
    return fqdn.compile_name(name=rule.name, pattern=rule.pattern).matches(question.name)


def _dns_text(rule: DnsRule) -> str:
    return rule.name or rule.pattern


def _tls_refusals(match: L7Match, request: Request) -> tuple[str, ...]:
    """TLS names its server before any request; clients take the name from the host."""
    if not match.server_names:
        return ()
    host = request.host.partition(":")[0] if isinstance(request, HttpRequest) else ""
    if host and any(fqdn.names_match(name, host) for name in match.server_names):
        return ()
    return (f"its server names are {', '.join(sorted(match.server_names))}",)
