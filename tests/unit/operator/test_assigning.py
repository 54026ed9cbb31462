"""Pod CIDR assignment: single cases, then nodes that come and go under leaders that crash."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Any

import pytest
from cilium_core.kvstore import Compare, Lease, absent, unchanged
from cilium_core.kvstore.memory import MemoryCluster, MemoryStore
from cilium_core.records import POD_CIDRS, Network, NodeRecord, PodCIDRRecord
from cilium_operator.assigning import PodCIDRAssigner
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ..virtual_time import VirtualLoop
from ..waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

POOLS: list[tuple[Network, int]] = [
    (IPv4Network("10.244.0.0/22"), 24),
    (IPv6Network("fd00:244::/62"), 64),
]
GRACE_S = 60.0


class Cluster:
    """A store with nodes in it and an assigner at work."""

    def __init__(self, release_grace_s: float = GRACE_S) -> None:
        self.store = MemoryStore()
        self.now = 0.0
        self.leases: dict[str, Lease] = {}
        self.assigner = PodCIDRAssigner(
            self.store, POOLS, release_grace_s=release_grace_s, clock=lambda: self.now
        )

    async def __aenter__(self) -> Cluster:
        self.task = asyncio.create_task(self.assigner.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.store.close()

    async def join(self, node: str, *cidrs: str) -> None:
        self.leases[node] = await self.store.lease(60)
        record = NodeRecord(node, pod_cidrs=tuple(map(ip_network, cidrs)))
        await self.store.put(record.key, record.to_json(), self.leases[node])

    async def leave(self, node: str) -> None:
        await self.leases.pop(node).revoke()

    async def record(self, node: str) -> PodCIDRRecord | None:
        item = await self.store.get(POD_CIDRS + node)
        return PodCIDRRecord.from_json(item.key, item.value) if item else None

    async def assigned(self, node: str) -> list[str]:
        record = await eventually(lambda: self.record(node))
        return [str(cidr) for cidr in record.pod_cidrs]


async def test_a_node_gets_a_block_of_each_family() -> None:
    async with Cluster() as cluster:
        await cluster.join("n1")
        await cluster.join("n2")
        assert await cluster.assigned("n1") == ["10.244.0.0/24", "fd00:244::/64"]
        assert await cluster.assigned("n2") == ["10.244.1.0/24", "fd00:244:0:1::/64"]


async def test_what_is_assigned_is_claimed_before_anything_is_given() -> None:
    cluster = Cluster()
    old = PodCIDRRecord("old", (ip_network("10.244.0.0/24"), ip_network("fd00:244::/64")))
    await cluster.store.put(old.key, old.to_json())
    await cluster.join("new")
    async with cluster:
        assert await cluster.assigned("new") == ["10.244.1.0/24", "fd00:244:0:1::/64"]


async def test_a_node_back_within_the_grace_period_keeps_its_blocks() -> None:
    async with Cluster() as cluster:
        await cluster.join("n1")
        before = await cluster.assigned("n1")
        await cluster.leave("n1")
        await eventually(lambda: cluster.assigner._orphaned_at)
        cluster.now += GRACE_S - 1
        await cluster.join("n1")
        await eventually(lambda: not cluster.assigner._orphaned_at)
        cluster.now += GRACE_S
        cluster.assigner._wake.set()
        await asyncio.sleep(0.05)
        assert await cluster.assigned("n1") == before


async def test_blocks_return_when_a_node_stays_away_and_serve_who_waits() -> None:
    async with Cluster() as cluster:
        for number in range(5):
            await cluster.join(f"n{number}")
        waiting = await eventually(lambda: cluster.record("n4"))
        assert waiting.pod_cidrs == ()
        assert "no free IPv4 block in 10.244.0.0/22" in waiting.error
        await cluster.leave("n2")
        await eventually(lambda: cluster.assigner._orphaned_at)
        cluster.now += GRACE_S
        cluster.assigner._wake.set()

        async def served() -> bool:
            record = await cluster.record("n4")
            return record is not None and len(record.pod_cidrs) == 2

        await eventually(served)
        assert await cluster.assigned("n4") == ["10.244.2.0/24", "fd00:244:0:2::/64"]
        assert (await cluster.record("n4")).error == ""
        assert await cluster.record("n2") is None


async def test_a_returning_node_gets_the_blocks_it_uses_before_others_are_served() -> None:
    cluster = Cluster()
    await cluster.join("back", "10.244.0.0/24", "fd00:244::/64")
    await cluster.join("aaa-new")
    async with cluster:
        assert await cluster.assigned("back") == ["10.244.0.0/24", "fd00:244::/64"]
        assert await cluster.assigned("aaa-new") == ["10.244.1.0/24", "fd00:244:0:1::/64"]


@pytest.mark.parametrize("claim", ["0.0.0.0/0", "192.168.0.0/24"])
async def test_a_node_cannot_claim_what_no_pool_holds(claim: str) -> None:
    cluster = Cluster()
    await cluster.join("greedy", claim)
    async with cluster:
        assert await cluster.assigned("greedy") == ["10.244.0.0/24", "fd00:244::/64"]


async def test_of_two_overlapping_assignments_the_younger_is_told() -> None:
    cluster = Cluster()
    for node in ("older", "younger"):
        record = PodCIDRRecord(node, (ip_network("10.244.3.0/24"), ip_network("fd00:244::/64")))
        await cluster.store.put(record.key, record.to_json())
        await cluster.join(node)
    async with cluster:

        async def told() -> str:
            record = await cluster.record("younger")
            return record.error if record else ""

        error = await eventually(told)
        assert "10.244.3.0/24 overlaps with a pod CIDR of node older" in error
        assert (await cluster.record("older")).error == ""


async def test_unreadable_records_do_not_stop_the_others() -> None:
    cluster = Cluster()
    await cluster.store.put(POD_CIDRS + "bad", b"\xff")
    await cluster.store.put("cilium/state/nodes/v1/default/worse", b"{")
    await cluster.join("good")
    async with cluster:
        assert await cluster.assigned("good") == ["10.244.0.0/24", "fd00:244::/64"]


class CrashError(Exception):
    """The leader's process ends here."""


class Assignments(RuleBasedStateMachine):
    """Six nodes for four blocks; leaders that crash at any call, or act on without leading."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.cluster = self.loop.run_until_complete(self._cluster())
        self.client = MemoryStore(self.cluster)
        self.leader: tuple[PodCIDRAssigner, asyncio.Task[None], MemoryStore] | None = None
        self.stale: list[tuple[PodCIDRAssigner, asyncio.Task[None], MemoryStore]] = []
        self.hook: Callable[[str, str], Awaitable[None]] | None = None
        self.present: dict[str, Lease] = {}
        self.known: dict[str, tuple[Any, ...]] = {}
        self.remembered: dict[str, tuple[Any, ...]] = {}
        self.left_at: dict[str, float] = {}
        self.elect(crash_at=99)

    async def _cluster(self) -> MemoryCluster:
        return MemoryCluster()

    def run(self, work: Any) -> Any:
        async def and_settle() -> Any:
            result = await work
            await asyncio.sleep(7)
            return result

        return self.loop.run_until_complete(and_settle())

    def teardown(self) -> None:
        async def stop() -> None:
            for _assigner, task, store in [*self.stale, *([self.leader] if self.leader else [])]:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await store.abandon()
            await self.client.abandon()

        self.run(stop())
        self.loop.close()

    @rule(crash_at=st.integers(0, 25))
    def elect(self, crash_at: int) -> None:
        """A new leader takes over; the former one does not know yet and goes on."""
        if self.leader is not None:
            self.stale.append(self.leader)
        left = [crash_at]

        async def crash(_name: str, _when: str) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise CrashError

        async def start() -> None:
            await self.client.put("leader", str(crash_at).encode())
            fence = unchanged(await self.client.get("leader"))
            store = MemoryStore(self.cluster, on_call=crash)
            assigner = PodCIDRAssigner(
                store,
                POOLS,
                fence=lambda: [fence],
                release_grace_s=GRACE_S,
                clock=self.loop.time,
            )
            self.leader = (assigner, asyncio.create_task(self._lead(assigner)), store)

        self.run(start())

    async def _lead(self, assigner: PodCIDRAssigner) -> None:
        try:
            await assigner.run()
        except Exception:
            return  # crashed, or noticed that another leads

    @rule(node=st.integers(0, 5))
    def join(self, node: int) -> None:
        """A node announces itself, with the blocks it knows as its own."""
        name = f"n{node}"
        if name in self.present:
            return

        async def put() -> None:
            lease = self.present[name] = await self.client.lease(10_000)
            record = NodeRecord(name, pod_cidrs=self.remembered.get(name, ()))
            await self.client.put(record.key, record.to_json(), lease)

        self.left_at.pop(name, None)
        self.run(put())

    @rule(node=st.integers(0, 5))
    def leave(self, node: int) -> None:
        name = f"n{node}"
        if name in self.present:
            self.run(self.present.pop(name).revoke())
            self.left_at[name] = self.loop.time() - 7

    @rule()
    def time_passes(self) -> None:
        self.run(asyncio.sleep(GRACE_S + 10))

    @invariant()
    def no_two_nodes_hold_overlapping_blocks(self) -> None:
        held: list[tuple[str, Any]] = []
        for item in self.cluster.list(POD_CIDRS).items:
            record = PodCIDRRecord.from_json(item.key, item.value)
            for cidr in record.pod_cidrs:
                for other, block in held:
                    assert other == record.node or not block.overlaps(cidr)
                held.append((record.node, cidr))

    @invariant()
    def who_is_present_or_away_for_a_short_while_keeps_what_it_has(self) -> None:
        for item in self.cluster.list(POD_CIDRS).items:
            record = PodCIDRRecord.from_json(item.key, item.value)
            before = self.known.get(record.node, ())
            gone_since = self.left_at.get(record.node)
            if gone_since is None or self.loop.time() - gone_since < GRACE_S:
                assert set(before) <= set(record.pod_cidrs)
            self.known[record.node] = record.pod_cidrs
            if record.node in self.present:
                self.remembered[record.node] = record.pod_cidrs
        recorded = {item.key for item in self.cluster.list(POD_CIDRS).items}
        for node in list(self.known):
            if POD_CIDRS + node not in recorded:
                gone_since = self.left_at.get(node)
                assert gone_since is not None
                assert self.loop.time() - gone_since >= GRACE_S
                del self.known[node]

    @invariant()
    def a_living_leader_serves_everybody_that_can_be_served(self) -> None:
        if self.leader is None or self.leader[1].done():
            return
        records = [
            PodCIDRRecord.from_json(item.key, item.value)
            for item in self.cluster.list(POD_CIDRS).items
        ]
        full = sum(bool(record.pod_cidrs) for record in records) == 4
        served = {record.node for record in records if len(record.pod_cidrs) == 2}
        assert full or set(self.present) <= served


TestAssignments = Assignments.TestCase
TestAssignments.settings = settings(
    max_examples=150,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_a_fence_that_fails_refuses_writes() -> None:
    async def run() -> None:
        cluster = Cluster()
        fence: list[Compare] = [absent("leader")]
        await cluster.store.put("leader", b"another")
        assigner = PodCIDRAssigner(cluster.store, POOLS, fence=lambda: fence)
        await cluster.join("n1")
        with pytest.raises(Exception, match="could not be written"):
            await assigner.run()
        assert await cluster.record("n1") is None
        await cluster.store.close()

    asyncio.run(run())


async def test_a_node_that_returned_unnoticed_is_not_released() -> None:
    cluster = Cluster()
    held = PodCIDRRecord("n1", (ip_network("10.244.0.0/24"), ip_network("fd00:244::/64")))
    await cluster.store.put(held.key, held.to_json())
    await cluster.join("n1")  # the assigner below has not heard of it yet
    await cluster.assigner.claim_existing()
    await cluster.assigner.step()
    cluster.now += GRACE_S
    await cluster.assigner.step()
    assert await cluster.record("n1") == held
    await cluster.store.close()
