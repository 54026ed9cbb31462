"""Pod CIDRs for nodes: the leader's event-driven job.

A node announces itself by its leased record; the answer is a record of pod CIDRs without a lease,
which outlives agents, operators and leases. What is in the store decides: at the start of each
leadership all assignments are read and claimed before any is given, and every write carries the
leader's fence and the state it was based on as conditions. So no two nodes get one CIDR, whoever
crashes when.

A node that comes back with CIDRs in its own record (its assignment was released meanwhile) gets
the same again if nobody else has them. When a node's record is gone longer than the grace period
its assignment is deleted, unless the node returned, in the same transaction.

Any failure of the store ends `run`; the caller begins anew, from what the store then says.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

from cilium_core.errors import InvalidError
from cilium_core.kvstore import (
    Compare,
    Delete,
    Event,
    EventKind,
    KeyValue,
    Put,
    Store,
    absent,
    unchanged,
)
from cilium_core.records import NODES, POD_CIDRS, Network, NodeRecord, PodCIDRRecord
from cilium_core.telemetry import counter, gauge, get_logger

from cilium_operator.pools import PoolExhaustedError, Pools, PoolUsage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = get_logger()

NODES_GAUGE = gauge(
    "cilium_operator_ipam_nodes",
    "Nodes known, by whether they have all pod CIDRs they should.",
    "category",
)
OPERATIONS = counter(
    "cilium_operator_ipam_cidr_ops_total", "Pod CIDR records written and deleted.", "operation"
)

_ORPHANS_LOOK_S = 5.0


class LostLeadershipError(Exception):
    """A write was refused because this process no longer leads, or its view is old."""


async def read_assignments(store: Store) -> list[tuple[KeyValue, PodCIDRRecord]]:
    """Read the pod CIDRs of every node; a record that cannot be read holds nothing."""
    found = []
    for item in (await store.list_prefix(POD_CIDRS)).items:
        try:
            record = PodCIDRRecord.from_json(item.key, item.value)
        except InvalidError as error:
            log.warning("unreadable pod CIDR record", key=item.key, error=str(error))
            record = PodCIDRRecord(item.key.removeprefix(POD_CIDRS))
        found.append((item, record))
    return found


class PodCIDRAssigner:
    """Assigns, conflicts included, for the time of one leadership."""

    def __init__(
        self,
        store: Store,
        pools: Sequence[tuple[Network, int]],
        *,
        cluster: str = "default",
        fence: Callable[[], list[Compare]] = list,
        release_grace_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
        on_pass: Callable[[str], None] = lambda _error: None,
    ) -> None:
        """`fence` gives the conditions under which this process may write.

        `on_pass` is told after each pass over the nodes, with an error's text or empty.
        """
        self._store = store
        self._pools = Pools(pools)
        self._nodes_prefix = f"{NODES}{cluster}/"
        self._fence = fence
        self._release_grace_s = release_grace_s
        self._clock = clock
        self._on_pass = on_pass
        self._nodes: dict[str, NodeRecord] = {}
        self._assigned: dict[str, tuple[KeyValue, PodCIDRRecord]] = {}
        self._orphaned_at: dict[str, float] = {}
        self._dirty: set[str] = set()
        self._wake = asyncio.Event()

    @property
    def assignments(self) -> list[PodCIDRRecord]:
        """Give the records as last written or read, by node name."""
        return [self._assigned[node][1] for node in sorted(self._assigned)]

    def usage(self) -> list[PoolUsage]:
        """Tell how full each pool is."""
        return self._pools.usage()

    async def run(self) -> None:
        """Claim what is assigned, then follow the nodes for ever. Raises what the store does."""
        await self.claim_existing()
        following = asyncio.create_task(self._follow_nodes())
        try:
            while True:
                try:
                    async with asyncio.timeout(min(_ORPHANS_LOOK_S, self._release_grace_s or 0.5)):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                self._wake.clear()
                if following.done():
                    following.result()
                    return  # the store was closed
                await self.step()
                self._on_pass("")
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def claim_existing(self) -> None:
        """Read all assignments, oldest first, so that of two overlapping ones the older holds."""
        assigned = await read_assignments(self._store)
        for item, record in sorted(assigned, key=lambda pair: pair[0].create_revision):
            self._assigned[record.node] = (item, record)
            for cidr in record.pod_cidrs:
                if other := self._pools.claim(cidr, record.node):
                    log.error("pod CIDR conflict", node=record.node, cidr=str(cidr), other=other)
        self._dirty.update(self._assigned)

    async def step(self) -> None:
        """Bring the records of changed nodes up to date, and release what is due."""
        dirty, self._dirty = self._dirty, set()
        reclaimed = {node: self._reclaim(node) for node in sorted(dirty) if node in self._nodes}
        for node in sorted(dirty):
            if node in reclaimed:
                self._orphaned_at.pop(node, None)
                await self._assign(node, reclaimed[node])
            elif node in self._assigned:
                self._orphaned_at.setdefault(node, self._clock())
        await self._release_orphans()
        complete = sum(not self._lacking(name) for name in self._nodes)
        NODES_GAUGE.set(complete, "complete")
        NODES_GAUGE.set(len(self._nodes) - complete, "in-deficit")

    def observe(self, event: Event) -> None:
        """Take a change of a node's record into account in the next step."""
        node = event.key.removeprefix(self._nodes_prefix)
        if event.kind is EventKind.PUT:
            try:
                self._nodes[node] = NodeRecord.from_json(event.value)
            except InvalidError as error:
                log.warning("unreadable node record", key=event.key, error=str(error))
                return
        elif event.kind is EventKind.DELETE:
            self._nodes.pop(node, None)
        if event.kind is not EventKind.SYNCED:
            self._dirty.add(node)

    async def _follow_nodes(self) -> None:
        try:
            synced = False
            async with aclosing(self._store.watch(self._nodes_prefix)) as events:
                async for event in events:
                    self.observe(event)
                    synced = synced or event.kind is EventKind.SYNCED
                    if synced:
                        self._wake.set()
        finally:
            self._wake.set()

    def _lacking(self, node: str) -> list[int]:
        """Give the IP versions that a node should have a pod CIDR of, and has not."""
        held = {cidr.version for cidr in self._record(node).pod_cidrs}
        return [version for version in self._pools.families() if version not in held]

    def _record(self, node: str) -> PodCIDRRecord:
        return self._assigned[node][1] if node in self._assigned else PodCIDRRecord(node)

    async def _assign(self, node: str, reclaimed: list[Network]) -> None:
        before = self._record(node)
        errors = [
            f"{cidr} overlaps with a pod CIDR of node {other}"
            for cidr in before.pod_cidrs
            if (other := self._pools.claim(cidr, node))
        ]
        cidrs = [*before.pod_cidrs, *reclaimed]
        for version in self._lacking(node):
            if any(cidr.version == version for cidr in reclaimed):
                continue
            try:
                cidrs.append(self._pools.allocate(node, version))
            except PoolExhaustedError as error:
                errors.append(str(error))
        wanted = PodCIDRRecord(node, tuple(cidrs), "; ".join(errors))
        if wanted == before and node in self._assigned:
            return
        if wanted.error and wanted.error != before.error:
            log.warning("pod CIDRs incomplete", node=node, error=wanted.error)
        await self._write(wanted)
        log.info("pod CIDRs assigned", node=node, cidrs=[str(cidr) for cidr in cidrs])

    def _reclaim(self, node: str) -> list[Network]:
        """Claim for a returning node what it says it uses, as far as nobody else has it.

        Done for all changed nodes before any gets a new block.
        """
        lacking = self._lacking(node)
        return [
            cidr
            for cidr in self._nodes[node].pod_cidrs
            if cidr.version in lacking
            and self._pools.contains(cidr)
            and not self._pools.claim(cidr, node)
        ]

    async def _write(self, record: PodCIDRRecord) -> None:
        held = self._assigned.get(record.node)
        condition = unchanged(held[0]) if held else absent(record.key)
        value = record.to_json()
        if not await self._store.transaction([*self._fence(), condition], [Put(record.key, value)]):
            raise LostLeadershipError(f"the pod CIDRs of {record.node} could not be written")
        item = await self._store.get(record.key)
        if item is None or item.value != value:
            raise LostLeadershipError(f"the pod CIDRs of {record.node} changed under us")
        self._assigned[record.node] = (item, record)
        OPERATIONS.add(1, "assign")

    async def _release_orphans(self) -> None:
        now = self._clock()
        due = [n for n, at in self._orphaned_at.items() if now - at >= self._release_grace_s]
        for node in due:
            del self._orphaned_at[node]
            item, record = self._assigned[node]
            gone = absent(self._nodes_prefix + node)
            if not await self._store.transaction(
                [*self._fence(), unchanged(item), gone], [Delete(item.key)]
            ):
                self._dirty.add(node)  # it came back, or we do not lead: the next write tells
                continue
            del self._assigned[node]
            self._pools.release(node)
            OPERATIONS.add(1, "release")
            log.info("pod CIDRs released", node=node, cidrs=[str(c) for c in record.pod_cidrs])
            self._dirty.update(name for name in self._nodes if self._lacking(name))
            self._wake.set()
