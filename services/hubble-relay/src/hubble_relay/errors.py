"""What can go wrong in the relay.

    CiliumError (cilium_core.errors)
    ├── BusyNodeError           a node has as many streams of this relay as it may
    ├── MissingNodesError       events of some nodes could not be had    UNAVAILABLE
    ├── NoSuchFlowError         no node has a flow that passes           NOT_FOUND
    └── TlsMismatchError        a peer with TLS and a relay without it, or the other way around

Errors of peers are not raised through: they become NODE_ERROR messages of a stream, or a node's
state in an answer. Streams of agent and debug events have no room for that, so these end with an
error that names the nodes, after everything the others had to tell.
"""

from __future__ import annotations

from cilium_core.errors import CiliumError, ExhaustedError, NotFoundError, UnavailableError


class BusyNodeError(ExhaustedError):
    """A node has as many streams of this relay as it may."""


class MissingNodesError(UnavailableError):
    """Some nodes did not tell their events, or not all of them."""


class NoSuchFlowError(NotFoundError):
    """No node has a flow that passes the filters that it was asked by."""


class TlsMismatchError(CiliumError):
    """One side wants TLS and the other does not."""
