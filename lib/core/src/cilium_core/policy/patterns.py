"""Regular expressions in policies, in the dialect of RE2: the one that the proxies speak.

It has no look-around and no back references, and matches in linear time.
"""

from __future__ import annotations

import re
from typing import Any, Final

_MAX_BYTES: Final = 1 << 20
"""How large an expression may become; keeps compiling one within a few milliseconds."""

_NO_LITERAL: Final = re.compile(r"[\]).][+*]|\]\{|\\[dwsDWS]")


def compile_expression(text: str) -> Any:
    """Compile an expression; the result has `fullmatch(text)`. Raises `ValueError`."""
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
