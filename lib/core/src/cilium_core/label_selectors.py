"""Label selectors in text, as flow filters and command lines write them: `k8s:app in (a,b),!x`.

The grammar is that of Kubernetes selectors, with a source before a key (`k8s:app`,
`reserved:host`); a bare key means any source. `a!=b` and `a notin (b)` also match when there is no
such label. Values are compared with the first label that has the key.

Pure; bad input raises SelectorError.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from cilium_core.errors import InvalidError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_TOKEN = re.compile(r"\s*(?:(!=|==|=|!|,|\(|\)|<|>)|([^\s=!,()<>]+))")
_NAME = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?")
_PREFIX = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")
_ANY = "any"


class SelectorError(InvalidError):
    """A selector that cannot be understood."""


@dataclass(frozen=True)
class _Requirement:
    source: str
    key: str
    operator: str
    values: frozenset[str]

    def holds(self, labels: Iterable[tuple[str, str, str]]) -> bool:
        found = next(
            (
                value
                for source, key, value in labels
                if key == self.key and self.source in (_ANY, source)
            ),
            None,
        )
        if self.operator == "exists":
            return found is not None
        if self.operator == "absent":
            return found is None
        if self.operator == "in":
            return found is not None and found in self.values
        if self.operator == "notin":
            return found is None or found not in self.values
        if found is None or not re.fullmatch(r"[-+]?\d+", found):
            return False
        limit = int(next(iter(self.values)))
        return int(found) > limit if self.operator == "gt" else int(found) < limit


@dataclass(frozen=True)
class TextSelector:
    """Requirements that must all hold; none at all matches everything."""

    requirements: tuple[_Requirement, ...]

    def matches(self, labels: Sequence[str]) -> bool:
        """Whether labels in text form (`source:key=value`) satisfy it."""
        split = [_split(label) for label in labels]
        return all(one.holds(split) for one in self.requirements)


@lru_cache(maxsize=4096)
def _split(label: str) -> tuple[str, str, str]:
    head, _, value = label.partition("=")
    source, colon, key = head.partition(":")
    return (source, key, value) if colon else ("unspec", head, value)


def parse_selector(text: str) -> TextSelector:
    """Understand a selector. Raises SelectorError."""
    tokens = _tokens(text)
    requirements = []
    position = 0
    while position < len(tokens):
        try:
            requirement, position = _requirement(tokens, position)
        except SelectorError as error:
            raise SelectorError(f"unable to parse requirement: {error}") from error
        requirements.append(requirement)
        if position == len(tokens):
            break
        if tokens[position] != ",":
            raise SelectorError(f"found '{tokens[position]}', expected: ',' or 'end of string'")
        position += 1
        if position == len(tokens):
            raise SelectorError("found '', expected: identifier after ','")
    return TextSelector(tuple(requirements))


def _tokens(text: str) -> list[str]:
    tokens = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise SelectorError(f"cannot read '{text[position:]}'")
        tokens.append(found[1] or found[2])
        position = found.end()
    return tokens


def _requirement(tokens: list[str], position: int) -> tuple[_Requirement, int]:
    negated = tokens[position] == "!"
    if negated:
        position += 1
    source, key = _key(tokens[position] if position < len(tokens) else "")
    position += 1
    following = tokens[position] if position < len(tokens) else ","
    if negated or following == ",":
        operator = "absent" if negated else "exists"
        return _Requirement(source, key, operator, frozenset()), position
    position += 1
    if following in ("in", "notin"):
        values, position = _values(tokens, position)
        return _Requirement(source, key, following, values), position
    operators = {"=": "in", "==": "in", "!=": "notin", ">": "gt", "<": "lt"}
    if following not in operators:
        raise SelectorError(f"found '{following}', expected: in, notin, =, ==, !=, gt, lt")
    value = ""
    if position < len(tokens) and tokens[position] != ",":
        value = tokens[position]
        position += 1
    _check_value(key, value)
    operator = operators[following]
    if operator in ("gt", "lt") and not re.fullmatch(r"[-+]?\d+", value):
        raise SelectorError(f"{key}: for '{following}' the value must be an integer, not '{value}'")
    return _Requirement(source, key, operator, frozenset({value})), position


def _values(tokens: list[str], position: int) -> tuple[frozenset[str], int]:
    if position >= len(tokens) or tokens[position] != "(":
        found = tokens[position] if position < len(tokens) else ""
        raise SelectorError(f"found '{found}' expected: '('")
    values = set()
    value = ""
    for end in range(position + 1, len(tokens)):
        word = tokens[end]
        if word in (",", ")"):
            _check_value("", value)
            values.add(value)
            value = ""
            if word == ")":
                return frozenset(values), end + 1
        elif value or not re.match(r"[^=!(<>]", word):
            raise SelectorError(f"found '{word}', expected: ',' or ')'")
        else:
            value = word
    raise SelectorError("found '', expected: ',' or ')'")


def _key(token: str) -> tuple[str, str]:
    if not token or re.match(r"[=!,()<>]", token):
        raise SelectorError(f"found '{token}', expected: !, identifier, or 'end of string'")
    source, colon, key = token.partition(":")
    if not colon:
        source, key = _ANY, token
    prefix, slash, name = f"{source}.{key}".rpartition("/")
    bad_prefix = slash and (not _PREFIX.fullmatch(prefix) or len(prefix) > 253)
    if bad_prefix or not _NAME.fullmatch(name) or len(name) > 63:
        raise SelectorError(
            f"key '{token}': a name of letters, digits, '-', '_' and '.' is needed,"
            " with an optional DNS name and '/' before it"
        )
    return source, key


def _check_value(key: str, value: str) -> None:
    if value and (not _NAME.fullmatch(value) or len(value) > 63):
        raise SelectorError(
            f"values of '{key}': '{value}' is not a label value: at most 63 letters, digits,"
            " '-', '_' and '.', beginning and ending with a letter or digit"
        )
