"""Leader election among replicas: whoever holds a leased key leads.

The leader writes one key through a lease of a few seconds. When it dies the lease runs out, the
key goes, the others see it in their watch and try to create it; one succeeds. A leader that
cannot refresh its lease stops leading by its own clock before the store gives the key away, and
what it writes as leader carries `fence` as a condition, so that a late write of a former leader
is refused by the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

from cilium_core.errors import UnavailableError
from cilium_core.kvstore import Compare, EventKind, Lease, Store, StoreError, unchanged
from cilium_core.telemetry import gauge, get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = get_logger()

MASTER = gauge(
    "cilium_leader_election_master_status", "1 while this process leads, else 0.", "name"
)

_RETRY_S = 1.0


class Election:
    """One candidate. Owned by one event loop; `run` is its life."""

    def __init__(self, store: Store, key: str, candidate: str, *, ttl_s: float) -> None:
        """Stand for the leadership that `key` means, under the unique name `candidate`.

        `ttl_s`: seconds after its death at which a leader is replaced; at least 2 with etcd.
        """
        self._store = store
        self._key = key
        self._candidate = candidate
        self._ttl_s = ttl_s
        self._lease: Lease | None = None
        self._unrevoked: Lease | None = None
        self._fence: Compare | None = None
        self.leader = ""
        """Name of the present leader as last seen, empty while there is none."""

    @property
    def leads(self) -> bool:
        """Whether this candidate surely leads now."""
        return self._fence is not None and self._lease is not None and self._lease.held

    @property
    def fence(self) -> Compare:
        """Give the condition that holds only while this leadership lasts.

        Raises UnavailableError when this candidate does not lead.
        """
        if self._fence is None:
            raise UnavailableError("this process does not lead")
        return self._fence

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Stand for election for ever; while leading, run `work`, which is cancelled at the end.

        `work` should itself run for ever; when it returns or raises, the leadership is given up
        and stood for again.
        """
        while True:
            try:
                if await self._win():
                    await self._lead(work)
            except (UnavailableError, StoreError) as error:
                log.debug("election postponed", error=str(error))
                await asyncio.sleep(_RETRY_S)
            finally:
                await self._resign()

    async def _win(self) -> bool:
        """Wait until there is no leader and try to become it."""
        if self._unrevoked is not None:
            await self._unrevoked.revoke()
            self._unrevoked = None
        holder = ""
        async with aclosing(self._store.watch(self._key)) as events:
            async for event in events:
                if event.key == self._key:
                    put = event.kind is EventKind.PUT
                    holder = event.value.decode("utf-8", "replace") if put else ""
                elif event.kind is not EventKind.SYNCED:
                    continue  # another key that begins like ours
                self.leader = holder
                if not holder:
                    break
        self._lease = await self._store.lease(self._ttl_s, restore=False)
        if not await self._store.create(self._key, self._candidate.encode(), self._lease):
            return False
        item = await self._store.get(self._key)
        if item is None or item.lease_id != self._lease.id:
            return False
        self._fence = unchanged(item)
        self.leader = self._candidate
        return True

    async def _lead(self, work: Callable[[], Awaitable[None]]) -> None:
        log.info("leading", candidate=self._candidate)
        MASTER.set(1, self._key)
        tasks = [
            asyncio.ensure_future(work()),
            asyncio.create_task(self._lease_lost()),
            asyncio.create_task(self._key_lost()),
        ]
        try:
            done, _pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task is tasks[0] and task.exception() is not None:
                    log.error("leader's work failed", exc_info=task.exception())
        finally:
            self._fence = None
            MASTER.set(0, self._key)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            log.info("no longer leading", candidate=self._candidate)

    async def _lease_lost(self) -> None:
        while self._lease is not None and self._lease.held:  # noqa: ASYNC110 - a time, no event
            await asyncio.sleep(max(0.01, self._lease.held_until - time.monotonic()))

    async def _key_lost(self) -> None:
        async with aclosing(self._store.watch(self._key)) as events:
            async for event in events:
                if event.key != self._key:
                    continue
                if event.kind is EventKind.DELETE or event.value != self._candidate.encode():
                    return

    async def _resign(self) -> None:
        """Free the key at once, so that nobody need wait for the TTL.

        What fails now, with the store away, is done before standing for election again.
        """
        self._fence = None
        if self._lease is None:
            return
        self._unrevoked, self._lease = self._lease, None
        with contextlib.suppress(UnavailableError, StoreError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self._unrevoked.revoke()
            self._unrevoked = None
