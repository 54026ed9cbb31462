"""Keys, events, conditions and the Store interface."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from cilium_core.errors import CiliumError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from cilium_core.kvstore.leases import Lease  # noqa: TC004 - it imports this module


class StoreError(CiliumError):
    """The store refused a request."""


class StoreUnavailableError(UnavailableError):
    """No member of the store answered in time.

    A read or a put was not seen to succeed; a transaction may or may not have been applied, so
    read before repeating it.
    """


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key with its value and history; revisions count the changes of the whole store."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """The keys below a prefix, in key order, and the revision at which this was so."""

    items: tuple[KeyValue, ...]
    revision: int


class EventKind(Enum):
    """What an event of a watch says."""

    PUT = "put"
    DELETE = "delete"
    SYNCED = "synced"
    """Everything that existed when the watch began has been reported. Sent once."""


@dataclass(frozen=True, slots=True)
class Event:
    """A change below the prefix of a watch; a DELETE has no value, SYNCED no key."""

    kind: EventKind
    key: str = ""
    value: bytes = b""
    revision: int = 0


class Target(Enum):
    """Which property of a key a condition looks at."""

    CREATE_REVISION = "create"
    MOD_REVISION = "mod"
    VALUE = "value"


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition of a transaction; made by the functions below.

    With `prefix` it must hold for every key below `key`, and holds for the number 0 when there
    is none.
    """

    key: str
    target: Target
    operand: int | bytes
    equal: bool = True
    prefix: bool = False


def absent(key: str) -> Compare:
    """Condition: `key` does not exist."""
    return Compare(key, Target.CREATE_REVISION, 0)


def absent_prefix(prefix: str) -> Compare:
    """Condition: nothing exists below `prefix`."""
    return Compare(prefix, Target.CREATE_REVISION, 0, prefix=True)


def exists(key: str) -> Compare:
    """Condition: `key` exists, whatever its value."""
    return Compare(key, Target.CREATE_REVISION, 0, equal=False)


def unchanged(item: KeyValue) -> Compare:
    """Condition: nobody changed or deleted the key since `item` was read."""
    return Compare(item.key, Target.MOD_REVISION, item.mod_revision)


def value_is(key: str, value: bytes) -> Compare:
    """Condition: `key` exists and has exactly this value."""
    return Compare(key, Target.VALUE, value)


@dataclass(frozen=True, slots=True)
class Put:
    """Operation: set `key`.

    With a lease it dies with the lease, and returns when the lease is restored, unless `restore`
    is false: then its owner decides in a callback of `Lease.on_renewed`.
    """

    key: str
    value: bytes
    lease: Lease | None = None
    restore: bool = True


@dataclass(frozen=True, slots=True)
class Delete:
    """Operation: delete `key`, or everything below it when `prefix`."""

    key: str
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """How the store fares, as last seen."""

    connected: bool
    endpoint: str
    """Member last talked to."""
    error: str = ""
    """Why it is not connected."""


class Store(Protocol):
    """A key-value store. Owned by one event loop; every method may be called concurrently.

    Keys are text, prefixes end with a slash by convention and are matched as they are. Calls
    wait out short outages and raise StoreUnavailableError when a limit of about ten seconds
    passes; watches and leases never give up.
    """

    async def get(self, key: str) -> KeyValue | None:
        """Read one key."""

    async def list_prefix(self, prefix: str) -> Listing:
        """Read everything below a prefix at one revision."""

    async def put(self, key: str, value: bytes, lease: Lease | None = None) -> None:
        """Set a key."""

    async def create(self, key: str, value: bytes, lease: Lease | None = None) -> bool:
        """Set a key unless it exists; False when it does."""

    async def delete(self, key: str) -> None:
        """Delete a key; no error when there is none."""

    async def delete_prefix(self, prefix: str) -> None:
        """Delete everything below a prefix."""

    async def transaction(
        self, conditions: Sequence[Compare], operations: Sequence[Put | Delete]
    ) -> bool:
        """Do all operations in one revision if all conditions hold; False when one does not."""

    async def lease(self, ttl_s: float, *, restore: bool = True) -> Lease:
        """Make a lease that is kept alive until it is revoked or the store is closed.

        With `restore`, keys lost with an expired lease are created again under a new one, unless
        somebody else created them meanwhile. TTLs are whole seconds, at least 1.
        """

    def watch(self, prefix: str) -> AsyncGenerator[Event, None]:
        """Report what exists below `prefix` as PUTs, then SYNCED, then every change in order.

        Goes on over broken connections, restarts and compaction without losing a change of
        state: what changed meanwhile comes as PUT, what went as DELETE. Ends when closed.
        """

    def status(self) -> StoreStatus:
        """Tell how the store fares, without asking it."""

    async def close(self) -> None:
        """Revoke the leases that can be revoked quickly, and disconnect."""
