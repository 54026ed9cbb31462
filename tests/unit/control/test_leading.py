from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from cilium_core.errors import UnavailableError
from cilium_core.kvstore import Put
from cilium_core.kvstore.memory import MemoryCluster, MemoryStore
from cilium_core.leading import Election

from ..waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEY = "cilium/state/leader/v1/test"


class Candidate:
    def __init__(self, name: str, cluster: MemoryCluster, ttl_s: float) -> None:
        self.store = MemoryStore(cluster)
        self.election = Election(self.store, KEY, name, ttl_s=ttl_s)
        self.working = False
        self.fail = asyncio.Event()
        self.terms = 0
        self.task = asyncio.create_task(self.election.run(self._work))

    async def _work(self) -> None:
        self.terms += 1
        self.working = True
        try:
            await self.fail.wait()
        finally:
            self.working = False

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.store.close()

    async def crash(self) -> None:
        await self.store.abandon()  # keep-alives end, the key stays until the lease ends
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@asynccontextmanager
async def candidates(count: int, ttl_s: float = 10) -> AsyncIterator[list[Candidate]]:
    cluster = MemoryCluster()
    made = [Candidate(f"c{n}", cluster, ttl_s) for n in range(count)]
    try:
        yield made
    finally:
        for candidate in made:
            await candidate.stop()


async def the_leader(of: list[Candidate], limit_s: float = 10) -> Candidate:
    def working() -> list[Candidate]:
        found = [c for c in of if c.working]
        assert len(found) <= 1
        return found

    found: list[Candidate] = await eventually(working, limit_s)
    return found[0]


async def test_one_of_many_leads_and_all_know_it() -> None:
    async with candidates(3) as three:
        leader = await the_leader(three)
        await asyncio.sleep(0.05)
        assert {c.election.leader for c in three} == {leader.election.leader}
        assert [c.election.leads for c in three].count(True) == 1


async def test_a_clean_stop_hands_over_at_once() -> None:
    async with candidates(2) as two:
        first = await the_leader(two)
        await first.stop()
        second = await the_leader([c for c in two if c is not first], limit_s=1)
        assert second.election.leads


async def test_a_dead_leader_is_replaced_after_its_lease() -> None:
    async with candidates(2, ttl_s=1) as two:
        first = await the_leader(two)
        await first.crash()
        second = await the_leader([c for c in two if c is not first], limit_s=5)
        assert second is not first


async def test_who_loses_the_key_stops_working_and_stands_again() -> None:
    async with candidates(1) as (only,):
        await the_leader([only])
        await MemoryStore(only.store.cluster).delete(KEY)
        await eventually(lambda: only.terms == 2)
        assert only.election.leads


async def test_a_leader_cut_off_from_the_store_stops_before_its_lease_can_end() -> None:
    async with candidates(1, ttl_s=1) as (only,):
        await the_leader([only])
        only.store.cluster.up.clear()
        await eventually(lambda: not only.working, limit_s=5)
        assert not only.election.leads
        only.store.cluster.up.set()
        await the_leader([only])


async def test_writes_of_a_former_leader_are_refused() -> None:
    async with candidates(2, ttl_s=1) as two:
        first = await the_leader(two)
        late = first.election.fence
        await first.crash()
        await the_leader([c for c in two if c is not first])
        other = MemoryStore(first.store.cluster)
        assert await other.transaction([late], [Put("t", b"")]) is False


async def test_who_does_not_lead_has_no_fence() -> None:
    election = Election(MemoryStore(), KEY, "c", ttl_s=1)
    with pytest.raises(UnavailableError, match="does not lead"):
        _ = election.fence


async def test_after_an_outage_a_former_leader_does_not_wait_for_its_own_lease() -> None:
    only = Candidate("c", MemoryCluster(), ttl_s=60)
    await the_leader([only])
    only.store.cluster.up.clear()
    only.fail.set()
    await eventually(lambda: not only.working)
    only.fail.clear()
    only.store.cluster.up.set()
    await the_leader([only], limit_s=3)
    await only.stop()
