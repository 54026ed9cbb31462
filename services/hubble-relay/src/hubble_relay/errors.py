"""What can go wrong in the relay.

    CiliumError (cilium_core.errors)
    ├── NotImplementedByRelay   a call that makes sense on a node only   UNIMPLEMENTED
    └── TlsMismatchError        a peer with TLS and a relay without it, or the other way around

Errors of peers are never raised through: they become NODE_ERROR messages of a stream, or a node's
state in an answer.
"""

from __future__ import annotations

from cilium_core.errors import CiliumError


class NotImplementedByRelay(CiliumError):  # noqa: N818  names the status that it becomes
    """A call that makes sense on a node only."""


class TlsMismatchError(CiliumError):
    """One side wants TLS and the other does not."""
