"""HTTP rules as conditions on a request: which headers must be how, and which may be mended.

Everything that rules say is a comparison of one header, `:path`, `:method` and `:authority`
included. A rule that can never match (a secret that is missing, an expression that does not
compile, a header name that cannot occur) becomes no condition at all, and a reason for people.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cilium_agent.proxies.envoy import matching

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cilium_core.policy.l7 import HeaderMatch, HttpRule, Mismatch

    from cilium_agent.proxies.envoy.matching import Comparison
    from cilium_agent.proxies.secrets import Secrets

SERVER_NAME = ":server-name"
"""Stands for the server name of the TLS connection among the headers' names."""


class Mending(NamedTuple):
    """What happens to a header whose value differs."""

    header: str
    value: str
    comparison: Comparison
    action: Mismatch


class Condition(NamedTuple):
    """One rule: it allows a request when all comparisons hold, and then mends headers."""

    comparisons: tuple[tuple[str, Comparison], ...]
    mendings: tuple[Mending, ...]


class Reading(NamedTuple):
    """Rules after reading; `problems` says what is wrong with those that were left out."""

    conditions: tuple[Condition, ...]
    problems: tuple[str, ...]


def read(rules: Iterable[HttpRule], secrets: Secrets) -> Reading:
    """Read rules, with the values that secrets have now."""
    conditions: dict[Condition, None] = {}
    problems: list[str] = []
    for rule in rules:
        try:
            conditions[_condition(rule, secrets)] = None
        except _NeverError as error:
            problems.append(f"a rule can never match: {error}")
    return Reading(tuple(conditions), tuple(dict.fromkeys(problems)))


class _NeverError(Exception):
    """A rule matches no request; the text says why."""


def _condition(rule: HttpRule, secrets: Secrets) -> Condition:
    comparisons: list[tuple[str, Comparison]] = []
    mendings: list[Mending] = []
    for name, pattern in (
        (":method", rule.method),
        (":path", rule.path),
        (":authority", rule.host),
    ):
        if not pattern:
            continue
        if not matching.is_expression(pattern):
            raise _NeverError(f"{pattern!r} is not an RE2 expression")
        comparisons.append((name, matching.simplify(pattern)))
    if rule.server_names:
        names = (matching.server_name(name) for name in rule.server_names)
        comparisons.append((SERVER_NAME, matching.one_of(names)))
    for header in rule.headers:
        if not matching.is_header_name(header.name):
            raise _NeverError(f"{header.name!r} is not a name that a header can have")
        value = _value(header, secrets)
        comparison = matching.of_value(header, value)
        if header.mismatch is None:
            comparisons.append((header.name, comparison))
        elif value is not None:
            mendings.append(Mending(header.name, value, comparison, header.mismatch))
    return Condition(tuple(comparisons), tuple(mendings))


def _value(header: HeaderMatch, secrets: Secrets) -> str | None:
    if header.secret is None:
        return header.value
    value = secrets.value(header.secret)
    if value is None:
        value = header.value
    if value is None:
        raise _NeverError(
            f"secret {header.secret.namespace}/{header.secret.name}, which has the value of header "
            f"{header.name}, does not exist or has not exactly one item of text"
        )
    return value
