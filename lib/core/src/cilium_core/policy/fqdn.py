"""DNS names and the patterns that policies write for them.

Names are compared in lower case and with a final dot, on the whole name. In a pattern a star stands
for any letters, digits, dashes and underscores, never for a dot; two or more stars before a first
dot stand for one or more whole labels; stars alone are every name. Only ASCII letters have a case
here: a name with other characters is equal to nothing but `*`.

Matching takes time linear in the name, whatever the pattern. Pure functions; compiled patterns are
kept and may be shared between threads.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from cilium_core.identities import ReservedIdentity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cilium_core.policy.rules import Policy
    from cilium_core.policy.selectors import FqdnSelector

MAX_NAME_LENGTH: Final = 255

_RESERVED: Final = frozenset(identity.label_name for identity in ReservedIdentity)

_NAME_CHARACTERS: Final = re.compile(r"[-a-zA-Z0-9_.]*", re.ASCII)
_PATTERN_CHARACTERS: Final = re.compile(r"[-a-zA-Z0-9_.*]*", re.ASCII)
_STAR: Final = "[-a-zA-Z0-9_]*"
_EVERY: Final = re.compile(r"\*+\.?")
_LABELS_IN_FRONT: Final = re.compile(r"\*\*+\.")
_LOWER: Final = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def normal_name(name: str) -> str:
    """A name as it is compared: without blanks around it, in lower case, with a final dot."""
    name = name.strip().translate(_LOWER)
    return name if name.endswith(".") else f"{name}."


def check_name(text: str) -> str:
    """A `matchName` without blanks around it. Raises `ValueError` for what is no DNS name."""
    return _check(text, _NAME_CHARACTERS, "a DNS name: letters, digits and -_ between single dots")


def check_pattern(text: str) -> str:
    """A `matchPattern` without blanks around it. Raises `ValueError` for what is no pattern."""
    expected = "a DNS pattern: letters, digits, stars and -_ between single dots"
    return _check(text, _PATTERN_CHARACTERS, expected)


def check_selectable(text: str) -> str:
    """A name or pattern that addresses can carry as a label. Raises `ValueError`.

    A label set has one label for each key, whatever its source: a name that is also the name of a
    reserved label would take that label away from an address, and with it from other policies.
    """
    if text in _RESERVED:
        raise ValueError(f"{text!r} is the name of a reserved label; write {text}. instead")
    return text


def _check(text: str, characters: re.Pattern[str], expected: str) -> str:
    text = text.strip()
    empty_label = not text or text.startswith(".") or ".." in text
    if empty_label or len(text) > MAX_NAME_LENGTH or not characters.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is not {expected}, at most {MAX_NAME_LENGTH} characters")
    return text


@dataclass(frozen=True, slots=True)
class NamePattern:
    """A name or pattern ready to be compared.

    `exact` is the one name that it matches, in normal form; None for a pattern with stars.
    """

    exact: str | None
    every: bool = False
    _expression: Any = field(default=None, repr=False, compare=False)

    def matches(self, name: str) -> bool:
        """Whether a name, written in any way, is meant."""
        return self.matches_normal(normal_name(name))

    def matches_normal(self, name: str) -> bool:
        """Whether a name in normal form is meant."""
        if self.every:
            return True
        if self.exact is not None:
            return name == self.exact
        return self._expression.fullmatch(name) is not None


@lru_cache(maxsize=65536)
def compile_name(*, name: str = "", pattern: str = "") -> NamePattern:
    """Make what was written as `matchName` or as `matchPattern` ready; exactly one is given."""
    if name:
        return NamePattern(normal_name(name))
    if _EVERY.fullmatch(pattern.strip()):
        return NamePattern(None, every=True)
    whole = normal_name(pattern)
    if "*" not in whole:
        return NamePattern(whole)
    front = _LABELS_IN_FRONT.match(whole)
    rest = whole[front.end() :] if front else whole
    text = _STAR.join(re.escape(part) for part in re.split(r"\*+", rest))
    # One expression engine serves names and HTTP; it does not backtrack.
    import re2

    return NamePattern(
        None, _expression=re2.compile(rf"(?:[-a-zA-Z0-9_]+\.)+{text}" if front else text)
    )


def names_match(pattern: str, name: str) -> bool:
    """Whether a `matchPattern` (or a `matchName`, which is one without stars) means a name."""
    return compile_name(pattern=pattern).matches(name)


def selectors_of(policies: Iterable[Policy]) -> Iterator[FqdnSelector]:
    """Every selector of names that policies have as peers, each as often as it is written."""
    from cilium_core.policy.selectors import FqdnSelector

    for policy in policies:
        for rule in policy.rules:
            for peer in rule.peers or ():
                if isinstance(peer, FqdnSelector):
                    yield peer
