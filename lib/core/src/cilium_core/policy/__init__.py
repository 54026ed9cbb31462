"""The policy engine: from policy objects and identities to the entries of policy maps.

    parse(obj) ──▶ Policy (rules in normal form) ──▶ Repository ─┐
    groups, services, addresses ─▶ (bound into rules about them) ┤
    identities ──▶ SelectorCache ────────────────────────────────┼─▶ resolved ──▶ map changes
    pods' ports ─▶ NamedPorts ───────────────────────────────────┘

`PolicyEngine` ties these together and is what an agent uses; the parts stand on their own for tools
that only validate or explain. All of it is pure computation: no I/O, no clock, no threads. Input
that is wrong in any way raises `PolicyError`, which lists every problem with the path of its field,
and never changes what is enforced.

Importing the package alone costs nothing: its names come from `exports`, with all of the engine
and the models of the objects, when the first of them is asked for. A proxy, which needs no more
than `l7` and `fqdn`, is back sooner after it died.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cilium_core.policy.exports import *  # noqa: F403 - one list of names, `exports.__all__`
else:

    def __getattr__(name: str) -> Any:
        # the import system asks before it imports one of our modules by name
        if find_spec(f"{__name__}.{name}") is None:
            found = vars(import_module("cilium_core.policy.exports"))
            if name in found["__all__"]:
                return found[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
