"""Options of one endpoint, as text the way users write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cilium_agent.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cilium_agent.endpoints.records import Endpoint

AUDIT = "PolicyAuditMode"

_ON = frozenset({"enabled", "true", "on", "yes", "1"})
_OFF = frozenset({"disabled", "false", "off", "no", "0"})


def current(endpoint: Endpoint) -> dict[str, str]:
    """The options as they are."""
    return {AUDIT: "Enabled" if endpoint.audit else "Disabled"}


def change(endpoint: Endpoint, options: Mapping[str, str]) -> bool:
    """Set options; whether any changed, in which case the endpoint's row must be written.

    Raises `OptionError`, with nothing changed.
    """
    audit = endpoint.audit
    for name, text in options.items():
        if name.lower() != AUDIT.lower():
            raise OptionError(f"endpoints have no option {name!r}; known: {AUDIT}")
        audit = _parse(name, text)
    if audit == endpoint.audit:
        return False
    endpoint.audit = audit
    endpoint.row_stale = True
    return True


def _parse(name: str, text: str) -> bool:
    word = text.strip().lower()
    if word not in _ON | _OFF:
        raise OptionError(f"option {name}: expected Enabled or Disabled, got {text!r}")
    return word in _ON
