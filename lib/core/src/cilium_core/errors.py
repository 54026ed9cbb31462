"""The errors that cross the seams between modules and services.

    CiliumError
    ├── InvalidError         what was asked makes no sense          INVALID_ARGUMENT
    ├── NotFoundError        the named thing does not exist         NOT_FOUND
    ├── ConflictError        it exists already, or changed          ALREADY_EXISTS
    ├── NotReadyError        not now; the state does not allow it   FAILED_PRECONDITION
    ├── ExhaustedError       a pool or a limit is used up           RESOURCE_EXHAUSTED
    ├── ForbiddenError       the caller may not have it             PERMISSION_DENIED
    └── UnavailableError     a peer does not answer; try again      UNAVAILABLE

A module derives its own errors from the one whose meaning fits; `cilium_core.serving` turns them
into the gRPC status on the right. The text is written for users: it names the object, the field,
the value and the remedy.
"""

from __future__ import annotations


class CiliumError(Exception):
    """Base of every error that this project raises on purpose."""


class InvalidError(CiliumError):
    """What was asked makes no sense, whatever the state."""


class NotFoundError(CiliumError):
    """The named thing does not exist."""


class ConflictError(CiliumError):
    """The thing exists already, or somebody changed it meanwhile."""


class NotReadyError(CiliumError):
    """The present state does not allow it."""


class ExhaustedError(CiliumError):
    """A pool or a limit is used up."""


class ForbiddenError(CiliumError):
    """Who asks may not have it."""


class UnavailableError(CiliumError):
    """A peer does not answer; the same request may succeed later."""
