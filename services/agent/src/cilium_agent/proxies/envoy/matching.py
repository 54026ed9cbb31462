"""Texts and RE2 expressions of rules → Envoy's string matchers.

An expression costs Envoy several times what a comparison does, and most expressions in policies are
literals, prefixes or suffixes. `simplify` finds those; what it returns accepts exactly the same
values. Whatever it does not understand stays an expression.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import re2
from envoy.config.route.v3 import route_components_pb2
from envoy.type.matcher.v3 import regex_pb2, string_pb2

if TYPE_CHECKING:
    from cilium_core.policy.l7 import HeaderMatch

if TYPE_CHECKING:
    from collections.abc import Iterable

_SPECIAL = frozenset(".^$*+?()[]{}|\\")


class Form(Enum):
    """How a value is compared."""

    EXACT = "exact"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    CONTAINS = "contains"
    ANY = "any"
    REGEX = "regex"


class Comparison(NamedTuple):
    """A way to compare, and with what."""

    form: Form
    text: str


@lru_cache(maxsize=4096)
def is_expression(pattern: str) -> bool:
    """Whether RE2 can compile a pattern."""
    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(pattern, options)
    except re2.error:
        return False
    return True


@lru_cache(maxsize=4096)
def simplify(pattern: str) -> Comparison:
    """The cheapest comparison that accepts just the values that `pattern` matches as a whole."""
    body = pattern.removeprefix("^")
    if body.endswith("$") and not body.endswith("\\$"):
        body = body[:-1]
    head = body.startswith(".*")
    if head:
        body = body[2:]
    tail = body.endswith(".*") and not body.endswith("\\.*")
    if tail:
        body = body[:-2]
    text = _literal(body)
    if text is None:
        return Comparison(Form.REGEX, pattern)
    if not text and (head or tail):
        return Comparison(Form.ANY, "")
    form = {
        (False, False): Form.EXACT,
        (False, True): Form.PREFIX,
        (True, False): Form.SUFFIX,
        (True, True): Form.CONTAINS,
    }[head, tail]
    return Comparison(form, text)


def _literal(pattern: str) -> str | None:
    """The one text that a pattern matches; None when it is more than a literal."""
    result: list[str] = []
    characters = iter(pattern)
    for character in characters:
        if character == "\\":
            escaped = next(characters, "")
            if not escaped or escaped.isalnum() or not escaped.isascii():
                return None
            result.append(escaped)
        elif character in _SPECIAL:
            return None
        else:
            result.append(character)
    return "".join(result)


def either(value: str, pattern: str) -> Comparison:
    """What accepts a text, and also whatever an expression matches as a whole."""
    simple = simplify(pattern)
    if simple.form is Form.ANY or simple == Comparison(Form.EXACT, value):
        return simple
    return Comparison(Form.REGEX, f"(?:{re2.escape(value)})|(?:{pattern})")


def of_value(match: HeaderMatch, value: str | None) -> Comparison:
    """How the value of a required header is compared.

    `value` is what the header must have, which may come from a Secret; None is any value.
    """
    if value is None:
        return Comparison(Form.ANY, "")
    if match.pattern and is_expression(value):
        return either(value, value)
    return Comparison(Form.EXACT, value)


def server_name(name: str) -> Comparison:
    """How a listed server name is compared: `*.` stands for one label, `**.` for one or more."""
    plain = name.lower().rstrip(".")
    label = "[^.]+[.]"
    if plain.startswith("**."):
        return Comparison(Form.REGEX, f"(?:{label})+{re2.escape(plain[3:])}")
    if plain.startswith("*."):
        return Comparison(Form.REGEX, f"{label}{re2.escape(plain[2:])}")
    return Comparison(Form.EXACT, plain)


def one_of(comparisons: Iterable[Comparison]) -> Comparison:
    """What accepts a value that one of some texts or expressions accepts."""
    several = list(comparisons)
    if len(several) == 1:
        return several[0]
    texts = (text if form is Form.REGEX else re2.escape(text) for form, text in several)
    return Comparison(Form.REGEX, "|".join(f"(?:{text})" for text in texts))


def header_matcher(name: str, comparison: Comparison) -> route_components_pb2.HeaderMatcher:
    """A matcher of a header, or of `:path` and the like; a missing one never matches."""
    form, _text = comparison
    if form is Form.ANY:
        return route_components_pb2.HeaderMatcher(name=name, present_match=True)
    return route_components_pb2.HeaderMatcher(name=name, string_match=string_matcher(comparison))


def string_matcher(comparison: Comparison) -> string_pb2.StringMatcher:
    """Envoy's form of a comparison that is not `ANY`."""
    form, text = comparison
    if form is Form.REGEX:
        return string_pb2.StringMatcher(safe_regex=regex_pb2.RegexMatcher(regex=text))
    return string_pb2.StringMatcher(**{form.value: text})


def is_header_name(name: str) -> bool:
    """Whether a request can have a header of this name."""
    punctuation = "!#$%&'*+-.^_`|~"
    return bool(name) and all(
        character.isascii() and (character.isalnum() or character in punctuation)
        for character in name
    )
