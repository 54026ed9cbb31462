"""Colours, and keeping data from steering the terminal.

Names and URLs come from whoever talks on the network, so escape and carriage return in them are
shown instead of obeyed. While colour is on, the sequences that this module itself writes pass.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_RESET = "\x1b[0m"
_CODES = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "magenta": 35, "cyan": 36}
_OWN_OR_DANGEROUS = re.compile("(\x1b\\[(?:3[1-6]|0)m)|\x1b|\r")
_DANGEROUS = re.compile("[\x1b\r]")


def wants_colour(when: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether `--color WHEN` means colour for standard output; an unknown word means auto."""
    when = when.lower()
    if when in ("always", "never"):
        return when == "always"
    return "NO_COLOR" not in environ and environ.get("TERM") != "dumb" and sys.stdout.isatty()


class Painter:
    """Colours pieces of a line, or leaves them alone when colour is off."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.red = self._brush("red")
        self.green = self._brush("green")
        self.yellow = self._brush("yellow")
        self.magenta = self._brush("magenta")
        self.cyan = self._brush("cyan")

    def _brush(self, colour: str) -> Callable[[str], str]:
        if not self.enabled:
            return str
        start = f"\x1b[{_CODES[colour]}m"
        return lambda text: f"{start}{text}{_RESET}"

    def escape(self, text: str) -> str:
        """The text with escape shown as `^[` and carriage return as a backslash and r."""
        if "\x1b" not in text and "\r" not in text:
            return text
        if not self.enabled:
            return _DANGEROUS.sub(_show, text)
        return _OWN_OR_DANGEROUS.sub(lambda found: found[1] or _show(found), text)


def _show(found: re.Match[str]) -> str:
    return "^[" if found[0] == "\x1b" else "\\r"
