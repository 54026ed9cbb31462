"""Allocation of cluster-wide identities: one number per label set, agreed through the store.

Two keys make an identity. The master `…/id/<number>` holds the labels and has no lease; the slave
`…/value/<labels>/<node>` holds the number, has its node's lease, and proves that the node uses it.
Three rules hold at every moment, because each step is one transaction with these conditions:

- a master is only created if its number is free, so no number means two label sets;
- a slave is only written beside a master with its labels, and next to other slaves only with
  their number, so all nodes use one number per label set;
- a master is only deleted (by the operator) while its label set has no slave at all, so no number
  in use is lost.

Cilium guards these steps with a lock per label set instead; conditions over the whole prefix of
slaves make the lock needless, and with it the question of what a dead lock holder leaves behind.

`IdentityAllocator` belongs to an agent and its event loop. It watches all masters, so that every
node knows what every number means, and reports each change to one callback. After long outages it
claims again what it uses; where the cluster agreed on another number meanwhile, it follows and
reports the move.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import defaultdict
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilium_core.errors import CiliumError, ExhaustedError, InvalidError, UnavailableError
from cilium_core.kvstore import (
    Delete,
    EventKind,
    KeyValue,
    Lease,
    Put,
    Store,
    absent,
    absent_prefix,
    unchanged,
    value_is,
)
from cilium_core.telemetry import counter, get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

log = get_logger()

MASTERS = "cilium/state/identities/v1/id/"
SLAVES = "cilium/state/identities/v1/value/"
DEFAULT_RANGE = range(256, 65536)

ATTEMPTS = counter(
    "cilium_identity_allocation_attempts_total", "Transactions to claim an identity.", "outcome"
)

_ATTEMPTS = 16
_FIRST_DELAY_S = 0.02
_LAST_DELAY_S = 1.0
_SYNC_LIMIT_S = 180.0


class IdentitiesExhaustedError(ExhaustedError):
    """Every number of the cluster's range is taken."""


class IdentityContentionError(UnavailableError):
    """Other nodes kept interfering; the same request may succeed later."""


@dataclass(slots=True)
class _Use:
    identity: int
    references: int


class IdentityAllocator:
    """The identities that this node uses, and the meaning of all others.

    `on_change(identity, labels)` is called for each identity that becomes known and with None for
    each that ceases; `on_moved(labels, old, new)` when a label set in use here got another number.
    Both are called on the event loop, must not block, and must not call back into the allocator
    directly.
    """

    def __init__(
        self,
        store: Store,
        node: str,
        lease: Lease,
        *,
        numbers: range = DEFAULT_RANGE,
        on_change: Callable[[int, str | None], None] = lambda _identity, _labels: None,
        on_moved: Callable[[str, int, int], None] = lambda _labels, _old, _new: None,
        reassert_interval_s: float = 300.0,
        chooser: random.Random | None = None,
    ) -> None:
        """Make an allocator for `node` (its name or address: the last part of slave keys)."""
        if not node or "/" in node:
            raise InvalidError(f"the node {node!r} cannot be part of a key; it has a slash")
        self._store = store
        self._node = node
        self._lease = lease
        self._numbers = numbers
        self._on_change = on_change
        self._on_moved = on_moved
        self._reassert_interval_s = reassert_interval_s
        self._random = chooser or random.Random()  # noqa: S311 - spreads numbers, no secret
        self._labels: dict[int, str] = {}
        self._numbers_of: defaultdict[str, set[int]] = defaultdict(set)
        self._uses: dict[str, _Use] = {}
        self._doubtful: set[str] = set()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._synced = asyncio.Event()
        self._slaves_lost = asyncio.Event()
        lease.on_renewed(self._slaves_lost.set)
        self._claims: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def identities(self) -> Mapping[int, str]:
        """Give every known identity with its labels."""
        return self._labels

    @property
    def in_use(self) -> Mapping[str, int]:
        """Give the label sets that this node uses, with their numbers."""
        return {labels: use.identity for labels, use in self._uses.items()}

    async def start(self) -> None:
        """Watch and claim in the background."""
        self._tasks = [
            asyncio.create_task(self._watch(), name="identity-watch"),
            asyncio.create_task(self._reassert_always(), name="identity-reassert"),
        ]

    async def synced(self, limit_s: float = _SYNC_LIMIT_S) -> None:
        """Wait until all identities that exist are known. Raises UnavailableError."""
        try:
            async with asyncio.timeout(limit_s):
                await self._synced.wait()
        except TimeoutError:
            raise UnavailableError(
                f"the identities were not listed within {limit_s:g} s; check the key-value store"
            ) from None

    async def stop(self) -> None:
        """End the background tasks; the slaves stay until the lease ends."""
        tasks = [*self._tasks, *self._claims]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()

    async def allocate(self, labels: str) -> int:
        """Give the identity of a label set (`LabelSet.storage_key`), and hold a reference to it.

        Raises StoreUnavailableError, IdentitiesExhaustedError, IdentityContentionError; then no
        reference is held.
        """
        if not labels.endswith(";"):
            raise InvalidError(f"the label set {labels!r} is not in storage form")
        await self.synced()
        async with self._locks[labels]:
            use = self._uses.get(labels)
            if use is None:
                try:
                    identity = await self._claim(labels, preferred=None)
                except BaseException:
                    self._doubtful.add(labels)  # the store may have done it all the same
                    raise
                self._doubtful.discard(labels)
                use = self._uses[labels] = _Use(identity, 0)
            use.references += 1
            return use.identity

    async def release(self, labels: str) -> None:
        """Give a reference back; the last one deletes this node's slave, soon or later.

        No error when the store is away: what could not be deleted is deleted later.
        """
        async with self._locks[labels]:
            use = self._uses.get(labels)
            if use is None:
                return
            use.references -= 1
            if use.references > 0:
                return
            del self._uses[labels]
            try:
                await self._store.delete(self._slave(labels))
            except CiliumError as error:
                log.warning("identity not released yet", identity=use.identity, error=str(error))
                self._doubtful.add(labels)

    async def reassert(self) -> None:
        """Claim again all that is in use, and drop what a failed call may have left.

        Runs by itself every `reassert_interval_s`. Raises StoreUnavailableError.
        """
        for labels in list(self._uses):
            await self._reassert(labels)
        for labels in list(self._doubtful):
            async with self._locks[labels]:
                if labels not in self._uses:
                    await self._store.delete(self._slave(labels))
                self._doubtful.discard(labels)

    async def _reassert(self, labels: str) -> None:
        async with self._locks[labels]:
            use = self._uses.get(labels)
            if use is None:
                return
            identity = await self._claim(labels, preferred=use.identity)
            if identity != use.identity:
                log.warning("identity moved", labels=labels, old=use.identity, new=identity)
                old, use.identity = use.identity, identity
                self._on_moved(labels, old, identity)

    async def _claim(self, labels: str, preferred: int | None) -> int:
        """Make sure that this node's slave exists, and give its number."""
        delay_s = _FIRST_DELAY_S
        for _attempt in range(_ATTEMPTS):
            slaves = await self._slaves(labels)
            if slaves:
                identity = await self._join(labels, slaves)
            else:
                identity = await self._found(labels, preferred)
            ATTEMPTS.add(1, "fail" if identity is None else "success")
            if identity is not None:
                self._learn(identity, labels)
                return identity
            await asyncio.sleep(self._random.uniform(delay_s / 2, delay_s))
            delay_s = min(delay_s * 2, _LAST_DELAY_S)
        raise IdentityContentionError(
            f"no identity for {labels} after {_ATTEMPTS} attempts, because other nodes changed "
            "the same keys; it is tried again"
        )

    async def _slaves(self, labels: str) -> list[KeyValue]:
        """List the slaves of exactly these labels, oldest first."""
        listing = await self._store.list_prefix(f"{SLAVES}{labels}/")
        exact = [item for item in listing.items if item.key.rpartition("/")[0] == SLAVES + labels]
        return sorted(exact, key=lambda item: (item.create_revision, item.key))

    async def _join(self, labels: str, slaves: list[KeyValue]) -> int | None:
        """Use the number that nodes use already: that of the oldest slave."""
        oldest = slaves[0]
        master = None
        if oldest.value.isdigit():
            identity = int(oldest.value)
            master, slave = f"{MASTERS}{identity}", self._own_slave(labels, identity)
            if await self._store.transaction(
                [unchanged(oldest), value_is(master, labels.encode())], [slave]
            ):
                return identity
            if await self._store.transaction(
                [unchanged(oldest), absent(master)], [Put(master, labels.encode()), slave]
            ):
                return identity
        # Whatever wrote it: a slave whose master means other labels proves nothing.
        found = await self._store.get(master) if master else None
        if master is None or (found is not None and found.value != labels.encode()):
            log.warning("invalid identity slave removed", key=oldest.key)
            conditions = [unchanged(oldest), *([unchanged(found)] if found else [])]
            await self._store.transaction(conditions, [Delete(oldest.key)])
        return None

    async def _found(self, labels: str, preferred: int | None) -> int | None:
        """Be the first user: of the number preferred, of an idle master, or of a free number."""
        nobody = absent_prefix(f"{SLAVES}{labels}/")
        known = self._numbers_of.get(labels) or set()
        for identity in sorted(known, key=lambda number: (number != preferred, number)):
            master = f"{MASTERS}{identity}"
            if await self._store.transaction(
                [nobody, value_is(master, labels.encode())], [self._own_slave(labels, identity)]
            ):
                return identity
            await self._check_master(identity)
        identity = self._free_number() if preferred is None else preferred
        master = f"{MASTERS}{identity}"
        if await self._store.transaction(
            [nobody, absent(master)],
            [Put(master, labels.encode()), self._own_slave(labels, identity)],
        ):
            return identity
        await self._check_master(identity)
        if preferred is not None and self._labels.get(preferred, labels) != labels:
            return await self._found(labels, None)
        return None

    async def _check_master(self, identity: int) -> None:
        """Learn what a number means now, as the watch may lag behind."""
        found = await self._store.get(f"{MASTERS}{identity}")
        if found is None:
            self._forget(identity)
        else:
            self._learn(identity, found.value.decode("utf-8", "replace"))

    def _free_number(self) -> int:
        count = len(self._numbers)
        for _attempt in range(8):
            number = self._numbers[self._random.randrange(count)]
            if number not in self._labels:
                return number
        free = [number for number in self._numbers if number not in self._labels]
        if not free:
            raise IdentitiesExhaustedError(
                f"all {count} identities of the cluster are taken; exclude labels that differ "
                "from pod to pod from identities"
            )
        return self._random.choice(free)

    def _slave(self, labels: str) -> str:
        return f"{SLAVES}{labels}/{self._node}"

    def _own_slave(self, labels: str, identity: int) -> Put:
        return Put(self._slave(labels), str(identity).encode(), self._lease, restore=False)

    async def _watch(self) -> None:
        async with aclosing(self._store.watch(MASTERS)) as events:
            async for event in events:
                if event.kind is EventKind.SYNCED:
                    self._synced.set()
                    continue
                number = event.key.removeprefix(MASTERS)
                if not number.isdecimal():
                    log.warning("identity key ignored", key=event.key)
                elif event.kind is EventKind.PUT:
                    self._learn(int(number), event.value.decode("utf-8", "replace"))
                else:
                    self._master_deleted(int(number))

    def _master_deleted(self, identity: int) -> None:
        labels = self._labels.get(identity)
        use = self._uses.get(labels) if labels is not None else None
        if labels is not None and use is not None and use.identity == identity:
            log.warning("identity in use was deleted, claiming it again", identity=identity)
            task = asyncio.create_task(self._claim_again(labels))
            self._claims.add(task)
            task.add_done_callback(self._claims.discard)
        else:
            self._forget(identity)

    async def _claim_again(self, labels: str) -> None:
        with contextlib.suppress(CiliumError):  # the periodic claim follows
            await self._reassert(labels)

    async def _reassert_always(self) -> None:
        interval_s = self._reassert_interval_s
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s * self._random.uniform(0.9, 1.1)):
                    await self._slaves_lost.wait()
            self._slaves_lost.clear()
            try:
                await self.reassert()
                interval_s = self._reassert_interval_s
            except CiliumError as error:
                log.warning("identities not asserted", error=str(error))
                interval_s = min(_LAST_DELAY_S, self._reassert_interval_s)

    def _learn(self, identity: int, labels: str) -> None:
        before = self._labels.get(identity)
        if before == labels:
            return
        if before is not None:
            self._numbers_of[before].discard(identity)
        self._labels[identity] = labels
        self._numbers_of[labels].add(identity)
        self._on_change(identity, labels)

    def _forget(self, identity: int) -> None:
        labels = self._labels.pop(identity, None)
        if labels is not None:
            self._numbers_of[labels].discard(identity)
            if not self._numbers_of[labels]:
                del self._numbers_of[labels]
            self._on_change(identity, None)
