"""The states of an endpoint and the ways between them.

The names and edges are Cilium's, so that tools which read them keep their meaning. `READY` and
`REGENERATING` hand over only through the builder, which is why those edges ask for it.
"""

from __future__ import annotations

from enum import StrEnum

from cilium_agent.errors import IllegalTransitionError


class State(StrEnum):
    """Where an endpoint is in its life."""

    WAITING_FOR_IDENTITY = "waiting-for-identity"
    READY = "ready"
    WAITING_TO_REGENERATE = "waiting-to-regenerate"
    REGENERATING = "regenerating"
    RESTORING = "restoring"
    DISCONNECTING = "disconnecting"
    DISCONNECTED = "disconnected"
    INVALID = "invalid"


FIRST = frozenset({State.WAITING_FOR_IDENTITY, State.RESTORING})

_EDGES: dict[State, frozenset[State]] = {
    State.WAITING_FOR_IDENTITY: frozenset({State.READY, State.DISCONNECTING, State.INVALID}),
    State.READY: frozenset(
        {
            State.WAITING_FOR_IDENTITY,
            State.WAITING_TO_REGENERATE,
            State.DISCONNECTING,
            State.RESTORING,
        }
    ),
    State.WAITING_TO_REGENERATE: frozenset({State.DISCONNECTING, State.RESTORING}),
    State.REGENERATING: frozenset(
        {
            State.WAITING_FOR_IDENTITY,
            State.WAITING_TO_REGENERATE,
            State.DISCONNECTING,
            State.RESTORING,
        }
    ),
    State.RESTORING: frozenset({State.DISCONNECTING, State.RESTORING}),
    State.DISCONNECTING: frozenset({State.DISCONNECTED}),
    State.DISCONNECTED: frozenset(),
    State.INVALID: frozenset(),
}

# What only the builder may do: begin a build, and end one.
_BUILDER_EDGES: dict[State, frozenset[State]] = {
    State.WAITING_TO_REGENERATE: frozenset({State.REGENERATING}),
    State.RESTORING: frozenset({State.REGENERATING}),
    State.REGENERATING: frozenset({State.READY}),
}


def allowed(current: State, wanted: State, *, builder: bool = False) -> bool:
    """Whether `current` leads to `wanted`, for the builder or for everyone else."""
    if wanted in _EDGES[current]:
        return True
    return builder and wanted in _BUILDER_EDGES.get(current, frozenset())


def require(current: State, wanted: State, *, builder: bool = False) -> None:
    """Raise `IllegalTransitionError` unless `current` leads to `wanted`."""
    if not allowed(current, wanted, builder=builder):
        raise IllegalTransitionError(f"an endpoint that is {current} cannot become {wanted}")
