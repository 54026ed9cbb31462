"""A store in this process with the semantics of etcd, for tests and simulations.

A `MemoryCluster` is the state that several `MemoryStore` clients share, as several processes share
one etcd. It can be told to expire a lease and to be down; `on_call` lets a test delay, interleave
or crash a client around each call.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from cilium_core.kvstore.base import BaseStore, LeaseGoneError
from cilium_core.kvstore.model import (
    Compare,
    Delete,
    Event,
    EventKind,
    KeyValue,
    Listing,
    Put,
    StoreStatus,
    StoreUnavailableError,
    Target,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence


class MemoryCluster:
    """Keys, leases and watchers. Not thread-safe: one event loop uses it."""

    def __init__(self) -> None:
        self.revision = 1
        self.up = asyncio.Event()
        """While cleared, every call raises StoreUnavailableError at once."""
        self.up.set()
        self._keys: dict[str, KeyValue] = {}
        self._ttls: dict[int, int] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._watchers: dict[asyncio.Queue[Event | None], str] = {}
        self._next_lease = 1

    def get(self, key: str) -> KeyValue | None:
        """Read one key."""
        return self._keys.get(key)

    def list(self, prefix: str) -> Listing:
        """Read everything below a prefix."""
        found = (self._keys[key] for key in sorted(self._keys) if key.startswith(prefix))
        return Listing(tuple(found), self.revision)

    def apply(self, conditions: Sequence[Compare], operations: Sequence[Put | Delete]) -> bool:
        """Do a transaction."""
        for operation in operations:
            if isinstance(operation, Put) and operation.lease is not None:
                self._check_lease(operation.lease.id)
        if not all(map(self._holds, conditions)):
            return False
        self.revision += 1
        for operation in operations:
            if isinstance(operation, Put):
                self._put(operation)
            else:
                self._delete([k for k in self._keys if _matches(k, operation)])
        return True

    def grant(self, ttl_s: int) -> int:
        """Make a lease."""
        lease_id, self._next_lease = self._next_lease, self._next_lease + 1
        self._ttls[lease_id] = ttl_s
        self.refresh(lease_id)
        return lease_id

    def refresh(self, lease_id: int) -> bool:
        """Restart the TTL of a lease; False when it is gone."""
        if lease_id not in self._ttls:
            return False
        if (timer := self._timers.pop(lease_id, None)) is not None:
            timer.cancel()
        loop = asyncio.get_running_loop()
        self._timers[lease_id] = loop.call_later(self._ttls[lease_id], self.expire, lease_id)
        return True

    def expire(self, lease_id: int) -> None:
        """End a lease, deleting its keys, as if its TTL had passed."""
        self._ttls.pop(lease_id, None)
        if (timer := self._timers.pop(lease_id, None)) is not None:
            timer.cancel()
        keys = [key for key, item in self._keys.items() if item.lease_id == lease_id]
        if keys:
            self.revision += 1
            self._delete(keys)

    def subscribe(self, prefix: str) -> asyncio.Queue[Event | None]:
        """Receive every later change below a prefix."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._watchers[queue] = prefix
        return queue

    def unsubscribe(self, queue: asyncio.Queue[Event | None]) -> None:
        """End a subscription."""
        self._watchers.pop(queue, None)

    def _check_lease(self, lease_id: int) -> None:
        if lease_id not in self._ttls:
            raise LeaseGoneError(f"there is no lease {lease_id}")

    def _holds(self, condition: Compare) -> bool:
        if condition.prefix:
            items = list(self.list(condition.key).items)
        else:
            found = self._keys.get(condition.key)
            items = [found] if found is not None else []
        if not items:
            if condition.target is Target.VALUE:
                return False  # as etcd: what does not exist has no value, not even another one
            return (condition.operand == 0) is condition.equal
        values: dict[Target, Callable[[KeyValue], int | bytes]] = {
            Target.CREATE_REVISION: lambda item: item.create_revision,
            Target.MOD_REVISION: lambda item: item.mod_revision,
            Target.VALUE: lambda item: item.value,
        }
        value_of = values[condition.target]
        return all((value_of(item) == condition.operand) is condition.equal for item in items)

    def _put(self, operation: Put) -> None:
        before = self._keys.get(operation.key)
        self._keys[operation.key] = KeyValue(
            operation.key,
            operation.value,
            before.create_revision if before else self.revision,
            self.revision,
            operation.lease.id if operation.lease else 0,
        )
        self._tell(Event(EventKind.PUT, operation.key, operation.value, self.revision))

    def _delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            del self._keys[key]
            self._tell(Event(EventKind.DELETE, key, revision=self.revision))

    def _tell(self, event: Event) -> None:
        for queue, prefix in self._watchers.items():
            if event.key.startswith(prefix):
                queue.put_nowait(event)


def _matches(key: str, operation: Delete) -> bool:
    return key.startswith(operation.key) if operation.prefix else key == operation.key


class MemoryStore(BaseStore):
    """One client of a MemoryCluster."""

    def __init__(
        self,
        cluster: MemoryCluster | None = None,
        *,
        on_call: Callable[[str, str], Awaitable[None]] | None = None,
    ) -> None:
        """Make a client; `on_call` is awaited around each call with its name and when.

        Names are "apply" (every write), "get", "list" and "watch" (each event), when is "before"
        or "after". It may wait, to let others come between; an exception it raises stands for a
        crash or a lost connection at that point.
        """
        super().__init__()
        self.cluster = cluster or MemoryCluster()
        self._on_call = on_call
        self._queues: list[asyncio.Queue[Event | None]] = []

    async def apply(
        self,
        conditions: Sequence[Compare],
        operations: Sequence[Put | Delete],
        *,
        repeatable: bool = False,
    ) -> bool:
        """See BaseStore; nothing is ever unknown here, so `repeatable` changes nothing."""
        async with self._call("apply"):
            return self.cluster.apply(conditions, operations)

    async def get(self, key: str) -> KeyValue | None:
        """See Store."""
        async with self._call("get"):
            return self.cluster.get(key)

    async def list_prefix(self, prefix: str) -> Listing:
        """See Store."""
        async with self._call("list"):
            return self.cluster.list(prefix)

    async def grant_lease(self, ttl_s: int) -> int:
        """See BaseStore."""
        await self._turn()
        return self.cluster.grant(ttl_s)

    async def refresh_lease(self, lease_id: int) -> bool:
        """See BaseStore."""
        await self._turn()
        return self.cluster.refresh(lease_id)

    async def revoke_lease(self, lease_id: int) -> None:
        """See BaseStore."""
        await self._turn()
        self.cluster.expire(lease_id)

    async def watch(self, prefix: str) -> AsyncGenerator[Event, None]:
        """See Store."""
        await self.cluster.up.wait()
        queue = self.cluster.subscribe(prefix)
        self._queues.append(queue)
        try:
            for item in self.cluster.list(prefix).items:
                yield Event(EventKind.PUT, item.key, item.value, item.mod_revision)
            yield Event(EventKind.SYNCED)
            while (event := await queue.get()) is not None:
                if self._on_call is not None:
                    await self._on_call("watch", "before")
                yield event
        finally:
            self.cluster.unsubscribe(queue)
            self._queues.remove(queue)

    async def abandon(self) -> None:
        """See BaseStore."""
        await super().abandon()
        for queue in self._queues:
            queue.put_nowait(None)

    def status(self) -> StoreStatus:
        """See Store."""
        up = self.cluster.up.is_set()
        return StoreStatus(up, "memory", "" if up else "the simulated cluster is down")

    @asynccontextmanager
    async def _call(self, name: str) -> AsyncIterator[None]:
        await self._turn()
        if self._on_call is not None:
            await self._on_call(name, "before")
        yield
        if self._on_call is not None:
            await self._on_call(name, "after")

    async def _turn(self) -> None:
        await asyncio.sleep(0)
        if self._closed or not self.cluster.up.is_set():
            raise StoreUnavailableError("the simulated cluster is down")
