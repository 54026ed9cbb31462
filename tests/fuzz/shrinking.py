"""Smaller and smaller policies that still show a disagreement."""

from __future__ import annotations

import copy
from typing import Any

_KEPT = {"apiVersion", "kind", "metadata", "spec", "endpointSelector", "podSelector", "subject"}


def smaller(obj: dict[str, Any]) -> list[dict[str, Any]]:
    """Every object that lacks one list item, list or optional field of this one."""
    found: list[dict[str, Any]] = []
    for path in _places(obj, ()):
        candidate = copy.deepcopy(obj)
        where: Any = candidate
        for step in path[:-1]:
            where = where[step]
        del where[path[-1]]
        found.append(candidate)
    return found


def _places(value: Any, path: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Paths of what may be left out, the largest parts first."""
    steps: list[Any]
    if isinstance(value, dict):
        steps = [key for key in value if key != "metadata"]
    elif isinstance(value, list):
        steps = list(range(len(value)))
    else:
        return []
    own = [(*path, step) for step in steps if step not in _KEPT]
    return own + [place for step in steps for place in _places(value[step], (*path, step))]
