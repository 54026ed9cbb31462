"""Regular expressions in policies, in the dialect of RE2: the one that the proxies speak.

It has no look-around and no back references, and matches in linear time.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_BYTES: Final = 1 << 20
"""How large an expression may become; keeps compiling one within a few milliseconds."""

MOST_INSTRUCTIONS: Final = 1_000_000
"""How large all expressions of one object may become together: a second or two of compiling."""

_COST_OF_FAILURE: Final = 40_000
"""What an expression counts that does not compile; telling so takes as long as a large one."""

_spent: ContextVar[list[int] | None] = ContextVar("spent", default=None)
"""The one number in it is what expressions cost so far, in instructions."""

_NO_LITERAL: Final = re.compile(r"[\]).][+*]|\]\{|\\[dwsDWS]")


class ExpressionsTooLargeError(Exception):
    """The expressions compiled within `limited` are too large together."""


@contextmanager
def limited() -> Iterator[None]:
    """Within, expressions may take no more than `MOST_INSTRUCTIONS` to compile.

    What is compiled beyond that raises `ExpressionsTooLargeError`.
    """
    token = _spent.set([0])
    try:
        yield
    finally:
        _spent.reset(token)


def compile_expression(text: str) -> Any:
    """Compile an expression; the result has `fullmatch(text)`. Raises `ValueError`."""
    spent = _spent.get()
    if spent is None:
        return _compile(text)
    if spent[0] > MOST_INSTRUCTIONS:
        raise ExpressionsTooLargeError
    try:
        compiled = _compile(text)
    except ValueError:
        spent[0] += _COST_OF_FAILURE
        raise
    spent[0] += compiled.programsize
    return compiled


def _compile(text: str) -> Any:
    # Loaded at first use: most policies have no expressions.
    import re2

    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MAX_BYTES
    try:
        return re2.compile(text, options=options)
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        shown = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise ValueError(f"{text[:80]!r} is not an RE2 expression: {shown}") from error


def check_expression(text: str) -> str:
    """The text itself, if it compiles. Raises `ValueError`."""
    if text:
        compile_expression(text)
    return text


def is_expression(text: str) -> bool:
    r"""Whether a text is unmistakably meant as an expression, not as a plain value.

    Such are texts with a repeated class, group or dot, with `\d`, `\w` or `\s`, or between `^`
    and `$`. It must also compile.
    """
    anchored = text.startswith("^") and text.endswith("$")
    if not anchored and not _NO_LITERAL.search(text):
        return False
    return compiles(text)


def compiles(text: str) -> bool:
    """Whether a text is an expression at all."""
    try:
        compile_expression(text)
    except ValueError:
        return False
    return True
