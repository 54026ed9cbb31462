"""Unknown fields that may be left out when the user asks for that.

A field that nobody knows is refused, since what it restricts would be lost. In the lenient way some
are left out with a warning instead: those at the top of an object or of a rule, where lists of
peers and ports cannot stand, unless the name looks like one that restricts, or like a known field
misspelt.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic_core import ErrorDetails

_RESTRICTIVE: Final = re.compile(
    r"action|den[iy]|allow|auth|requir|except|rule|exclu|from|to[A-Z]|port|peer|cidr|ingress|egress"
    r"|select|match|entit|endpoint|node|polic|not|only|l7|http|tls|audit|default",
    re.IGNORECASE,
)
_KNOWN: Final = (
    *("apiVersion", "kind", "metadata", "spec", "specs", "status", "endpointSelector"),
    *("nodeSelector", "ingress", "egress", "ingressDeny", "egressDeny", "enableDefaultDeny"),
    *("labels", "description", "log", "podSelector", "policyTypes", "subject", "priority", "tier"),
)
_MAX_LIKENESS: Final = 0.7


def droppable(details: Iterable[ErrorDetails]) -> list[tuple[str | int, ...]] | None:
    """The places of the fields to leave out; None if something else is wrong as well."""
    places = []
    for detail in details:
        if detail["type"] != "extra_forbidden" or not _is_harmless(detail["loc"]):
            return None
        places.append(detail["loc"])
    return places


def without(obj: dict[str, Any], places: Iterable[Sequence[str | int]]) -> dict[str, Any]:
    """The object without some fields; the object itself is not changed."""
    result = dict(obj)
    for *path, last in places:
        inside: Any = result
        for key in path:
            part = inside[key]
            inside[key] = list(part) if isinstance(part, list) else dict(part)
            inside = inside[key]
        inside.pop(last, None)
    return result


def _is_harmless(place: Sequence[str | int]) -> bool:
    match place:
        case (str(name),) | ("spec", str(name)) | ("specs", int(), str(name)):
            pass
        case _:
            return False
    if _RESTRICTIVE.search(name):
        return False
    return not difflib.get_close_matches(name.lower(), map(str.lower, _KNOWN), 1, _MAX_LIKENESS)
