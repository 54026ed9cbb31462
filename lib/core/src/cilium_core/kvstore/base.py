"""What both stores share: the calls of `Store` in terms of a few primitives.

Leases are handled here once, so that they mean the same over etcd and in memory: a put through a
lease is remembered by the lease, a deletion is forgotten, and a lease that turns out to be gone is
made anew before the operation is repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from cilium_core.kvstore.leases import Lease
from cilium_core.kvstore.model import (
    Compare,
    Delete,
    Event,
    KeyValue,
    Listing,
    Put,
    StoreError,
    StoreStatus,
    absent,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

_CLOSE_LIMIT_S = 1.0


class LeaseGoneError(StoreError):
    """An operation named a lease that the store does not have."""


class BaseStore(ABC):
    """Implements `Store` over primitives; see there for what each call promises."""

    def __init__(self) -> None:
        self._leases: list[Lease] = []
        self._closed = False
        self._holders: dict[str, Lease] = {}

    @abstractmethod
    async def apply(
        self,
        conditions: Sequence[Compare],
        operations: Sequence[Put | Delete],
        *,
        repeatable: bool = False,
    ) -> bool:
        """Do one transaction. Raises LeaseGoneError when a lease in it does not exist.

        `repeatable` allows sending it again when it is unknown whether it was applied.
        """

    @abstractmethod
    async def list_prefix(self, prefix: str) -> Listing:
        """See Store."""

    @abstractmethod
    async def get(self, key: str) -> KeyValue | None:
        """See Store."""

    @abstractmethod
    async def grant_lease(self, ttl_s: int) -> int:
        """Make a lease and return its id."""

    @abstractmethod
    async def refresh_lease(self, lease_id: int) -> bool:
        """Restart the TTL; False when the lease is gone."""

    @abstractmethod
    async def revoke_lease(self, lease_id: int) -> None:
        """Delete the lease and its keys; no error when it is gone."""

    @abstractmethod
    def watch(self, prefix: str) -> AsyncGenerator[Event, None]:
        """See Store."""

    @abstractmethod
    def status(self) -> StoreStatus:
        """See Store."""

    async def put(self, key: str, value: bytes, lease: Lease | None = None) -> None:
        """See Store."""
        await self._transact([], [Put(key, value, lease)], repeatable=True)

    async def create(self, key: str, value: bytes, lease: Lease | None = None) -> bool:
        """See Store."""
        return await self._transact([absent(key)], [Put(key, value, lease)])

    async def delete(self, key: str) -> None:
        """See Store."""
        await self._transact([], [Delete(key)], repeatable=True)

    async def delete_prefix(self, prefix: str) -> None:
        """See Store."""
        await self._transact([], [Delete(prefix, prefix=True)], repeatable=True)

    async def transaction(
        self, conditions: Sequence[Compare], operations: Sequence[Put | Delete]
    ) -> bool:
        """See Store."""
        return await self._transact(conditions, operations)

    async def lease(self, ttl_s: float, *, restore: bool = True) -> Lease:
        """See Store."""
        lease = Lease(self, ttl_s, restore=restore)
        await lease.start()
        self._leases = [*(each for each in self._leases if each.kept), lease]
        return lease

    async def close(self) -> None:
        """See Store."""
        with contextlib.suppress(TimeoutError, OSError, StoreError):
            async with asyncio.timeout(_CLOSE_LIMIT_S):
                await asyncio.gather(
                    *(lease.revoke() for lease in self._leases), return_exceptions=True
                )
        await self.abandon()

    async def abandon(self) -> None:
        """Disconnect as a crash would: leases are not revoked and run out by themselves."""
        self._closed = True
        for lease in self._leases:
            await lease.forget()
        self._leases.clear()

    async def _transact(
        self,
        conditions: Sequence[Compare],
        operations: Sequence[Put | Delete],
        *,
        repeatable: bool = False,
    ) -> bool:
        while True:
            leases = {op.lease for op in operations if isinstance(op, Put) and op.lease}
            for lease in leases | set(map(self._holders.get, self._touched(operations))):
                if lease is not None:
                    await lease.settled()
            used = {lease: lease.id for lease in leases}
            try:
                done = await self.apply(conditions, operations, repeatable=repeatable)
            except LeaseGoneError:
                renewed = [await lease.renew(lost_id) for lease, lost_id in used.items()]
                if not all(renewed):
                    raise
                continue
            if done:
                self._remember(operations)
            return done

    def _touched(self, operations: Sequence[Put | Delete]) -> list[str]:
        keys: list[str] = []
        for operation in operations:
            if isinstance(operation, Delete) and operation.prefix:
                keys += [key for key in self._holders if key.startswith(operation.key)]
            else:
                keys.append(operation.key)
        return keys

    def _remember(self, operations: Sequence[Put | Delete]) -> None:
        for key in self._touched(operations):
            if (holder := self._holders.pop(key, None)) is not None:
                holder.keys.pop(key, None)
        for operation in operations:
            if isinstance(operation, Put) and operation.lease is not None and operation.restore:
                operation.lease.keys[operation.key] = operation.value
                self._holders[operation.key] = operation.lease
