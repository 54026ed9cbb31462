"""Cluster-wide identities as the agent uses them: allocated through the store, known to policy.

The allocator watches the store and reports here, on the event loop, what every number means; policy
and hubble-server hear it from here. An identity handed out by `acquire` is in the policy maps of
this node before anybody can send with it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cilium_core.allocating import IdentityAllocator
from cilium_core.identities import Identity, NumericIdentity, cluster_range
from cilium_core.labels import LabelError, LabelSet
from cilium_core.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from cilium_core.kvstore import Lease, Store

    from cilium_agent.feeds import Feed
    from cilium_agent.policies import Policies

log = get_logger()

ACQUIRE_LIMIT_S = 15.0


class Identities:
    """The identities of the cluster and those that this node uses."""

    def __init__(
        self,
        store: Store,
        lease: Lease,
        *,
        node: str,
        cluster_id: int,
        policies: Policies,
        feed: Feed,
        moved: Callable[[], None],
    ) -> None:
        """Take the parts; `moved` is called when a label set in use got another number."""
        self._policies = policies
        self._feed = feed
        self._moved = moved
        self._allocator = IdentityAllocator(
            store,
            node,
            lease,
            numbers=cluster_range(cluster_id),
            on_change=self._changed,
            on_moved=self._on_moved,
        )
        self._releases: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Watch, and return when all identities that exist are known."""
        await self._allocator.start()
        await self._allocator.synced()

    async def stop(self) -> None:
        """End the watch; what this node uses stays marked as used."""
        if self._releases:
            await asyncio.wait(self._releases, timeout=1.0)
        await self._allocator.stop()

    async def acquire(self, labels: LabelSet) -> int:
        """The number of a label set, with one more use; policy maps know it on return.

        Raises `TimeoutError` or `UnavailableError` while the store does not answer.
        """
        async with asyncio.timeout(ACQUIRE_LIMIT_S):
            identity = await self._allocator.allocate(labels.storage_key)
        try:
            await self._policies.settle_identities()
        except BaseException:
            self.release(labels)
            raise
        return identity

    def release(self, labels: LabelSet) -> None:
        """One use less; the store hears of it soon."""
        task = asyncio.create_task(self._allocator.release(labels.storage_key))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)

    def number_in_use(self, labels: LabelSet) -> int | None:
        """The number of a label set that this node uses, as of now."""
        return self._allocator.in_use.get(labels.storage_key)

    def _changed(self, identity: int, text: str | None) -> None:
        if text is None:
            self._policies.delete_identity(identity)
            self._feed.identities((), [identity])
            return
        try:
            labels = LabelSet.from_storage_key(text)
        except LabelError as error:
            log.warning("identity with unreadable labels", identity=identity, error=str(error))
            return
        self._policies.upsert_identity(identity, labels)
        self._feed.identities([Identity(NumericIdentity(identity), labels)])

    def _on_moved(self, labels: str, old: int, new: int) -> None:
        log.warning("identity of local pods moved", labels=labels, old=old, new=new)
        self._moved()
