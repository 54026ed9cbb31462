"""The interface behind which objects come from etcd or from the Kubernetes API."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from cilium_core.resources.keys import Kind

Object = dict[str, Any]
"""An object as it stands in YAML and JSON."""


class Change(Enum):
    """What an event of a source says."""

    UPSERT = "upsert"
    DELETE = "delete"
    UNREADABLE = "unreadable"
    """It exists, but what is stored is no object. An earlier version stays the last known one."""
    SYNCED = "synced"
    """Everything that existed when the watch began has been reported. Sent once."""


@dataclass(frozen=True, slots=True)
class ObjectEvent:
    """A change of an object.

    A DELETE has the object as last seen, SYNCED an empty one, UNREADABLE one that has only what the
    key says (kind, namespace and name), and `error` says what is wrong.
    """

    change: Change
    object: Object = field(default_factory=dict)
    error: str = ""


class Applied(Enum):
    """What `apply` did."""

    CREATED = "created"
    CONFIGURED = "configured"
    UNCHANGED = "unchanged"


class Source(Protocol):
    """Where objects are kept. Calls raise UnavailableError while it cannot be reached."""

    def watch(self, kind: Kind) -> AsyncGenerator[ObjectEvent, None]:
        """Report all objects of a kind, then SYNCED, then changes, across outages."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """Read an object. Raises NotFoundError."""

    async def list(self, kind: Kind, namespace: str = "") -> list[Object]:
        """Read all objects of a kind, or those of one namespace."""

    async def apply(self, item: Object) -> Applied:
        """Create or replace an object. Raises InvalidError when it cannot be identified."""

    async def delete(self, kind: Kind, namespace: str, name: str) -> None:
        """Delete an object. Raises NotFoundError."""
