"""Health of a process: what `/healthz` and the health service answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Health:
    """Named checks; each returns an empty text while all is well, else what is wrong.

    Checks must be quick and must not block: they look at what the process already knows.
    """

    def __init__(self) -> None:
        self._checks: dict[str, Callable[[], str]] = {}

    def add(self, name: str, check: Callable[[], str]) -> None:
        """Add a check; a later one of the same name replaces it."""
        self._checks[name] = check

    def failures(self) -> dict[str, str]:
        """What is wrong now, by check."""
        results = {name: check() for name, check in self._checks.items()}
        return {name: text for name, text in results.items() if text}
