"""Leases that are kept alive, and whose keys come back when a lease was lost.

A lease belongs to the store that made it. One task per lease refreshes it three times per TTL;
when the store answers that the lease is gone (an outage longer than the TTL, or a store that lost
its data), a new lease is granted and the keys are created again, each only if absent: whoever
took a key meanwhile keeps it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Protocol

from cilium_core.kvstore.model import Put, StoreError, StoreUnavailableError, absent
from cilium_core.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cilium_core.kvstore.model import Compare, Delete, KeyValue

log = get_logger()

_PARALLEL_RESTORES = 32


class LeaseBackend(Protocol):
    """What a lease needs of its store."""

    async def grant_lease(self, ttl_s: int) -> int:
        """Make a lease and return its id."""

    async def refresh_lease(self, lease_id: int) -> bool:
        """Restart the TTL; False when the lease is gone."""

    async def revoke_lease(self, lease_id: int) -> None:
        """Delete the lease and its keys."""

    async def apply(
        self, conditions: Sequence[Compare], operations: Sequence[Put | Delete]
    ) -> bool:
        """Do one transaction as it is, without waiting for leases."""

    async def get(self, key: str) -> KeyValue | None:
        """As Store.get."""


class Lease:
    """A lease; made by `Store.lease`."""

    def __init__(self, backend: LeaseBackend, ttl_s: float, *, restore: bool) -> None:
        self.ttl_s = max(1, round(ttl_s))
        self.id = 0
        """Id in the store; changes when the lease had to be made anew."""
        self.keys: dict[str, bytes] = {}
        """Keys held through this lease, as last written."""
        self.restores = 0
        """How often the lease was lost and made anew."""
        self._backend = backend
        self._restore = restore
        self._renewal = asyncio.Lock()
        self._confirmed_at = 0.0
        self._lost = False
        self._unrestored: set[str] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._on_renewed: list[Callable[[], None]] = []

    @property
    def kept(self) -> bool:
        """Whether it is being kept alive: neither revoked nor lost for good."""
        return self._keeper is not None and not self._keeper.done()

    @property
    def held(self) -> bool:
        """Whether the lease surely exists: refreshed less than its TTL ago by our clock.

        What must stop when the lease may be gone (leading) asks this; it needs no network.
        """
        return not self._lost and time.monotonic() < self._confirmed_at + self.ttl_s

    @property
    def held_until(self) -> float:
        """Time of the monotonic clock until which the lease is sure to exist."""
        return self._confirmed_at + self.ttl_s

    async def start(self) -> None:
        """Grant the lease and keep it alive. Called by the store."""
        await self._grant()
        self._keeper = asyncio.create_task(self._keep(), name=f"lease-{self.id:x}")

    async def revoke(self) -> None:
        """Delete the lease with its keys and stop keeping it. Raises StoreUnavailableError."""
        await self.forget()
        self.keys.clear()
        self._lost = True
        await self._backend.revoke_lease(self.id)

    async def forget(self) -> None:
        """Stop keeping it alive; its keys live on for up to the TTL."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None

    def on_renewed(self, callback: Callable[[], None]) -> None:
        """Call `callback` on the event loop each time the lost lease was made anew."""
        self._on_renewed.append(callback)

    async def settled(self) -> None:
        """Wait for a renewal in progress, so that changes of keys do not cross it."""
        async with self._renewal:
            pass

    async def renew(self, lost_id: int) -> bool:
        """Make the lease anew after the store said that `lost_id` is gone.

        False when this lease is not one that is restored. Concurrent calls renew once.
        """
        if not self._restore:
            self._lost = True
            return False
        async with self._renewal:
            if self.id == lost_id:
                await self._grant()
                self.restores += 1
                self._unrestored = set(self.keys)
                log.warning("lease was lost, creating its keys again", keys=len(self.keys))
                for callback in self._on_renewed:
                    callback()
            await self._restore_keys()
        return True

    async def _restore_keys(self) -> None:
        while self._unrestored:
            batch = list(self._unrestored)[:_PARALLEL_RESTORES]
            await asyncio.gather(*(self._restore_key(key) for key in batch))

    async def _grant(self) -> None:
        asked_at = time.monotonic()
        self.id = await self._backend.grant_lease(self.ttl_s)
        self._confirmed_at = asked_at

    async def _restore_key(self, key: str) -> None:
        value = self.keys.get(key)
        if value is not None and not await self._backend.apply(
            [absent(key)], [Put(key, value, self)]
        ):
            holder = await self._backend.get(key)
            if holder is not None and holder.lease_id != self.id:
                log.warning("key was taken while our lease was lost", key=key)
                self.keys.pop(key, None)
        self._unrestored.discard(key)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self.ttl_s / 3)
            await self.refresh()
            if self._lost:
                return

    async def refresh(self) -> None:
        """Refresh now, waiting until the store answers; makes the lease anew when it is gone."""
        delay_s = 0.1
        while True:
            asked_at, lease_id = time.monotonic(), self.id
            try:
                if await self._backend.refresh_lease(lease_id):
                    self._confirmed_at = max(self._confirmed_at, asked_at)
                    if self._unrestored:
                        async with self._renewal:
                            await self._restore_keys()
                else:
                    await self.renew(lease_id)
            except (StoreUnavailableError, StoreError) as error:
                log.debug("lease not refreshed yet", error=str(error))
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, self.ttl_s / 6)
                continue
            return
