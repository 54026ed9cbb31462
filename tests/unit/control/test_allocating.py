"""Identity allocation: single cases, then several agents that crash, lapse and race."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from cilium_core.allocating import MASTERS, SLAVES, IdentitiesExhaustedError, IdentityAllocator
from cilium_core.errors import InvalidError
from cilium_core.kvstore import StoreUnavailableError
from cilium_core.kvstore.memory import MemoryCluster, MemoryStore
from cilium_operator.collecting import IdentityCollector
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ..virtual_time import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

A, B = "k8s:app=a;", "k8s:app=b;"


class Agent:
    """An agent's share of the allocation: store, lease, allocator, and what it was told."""

    def __init__(self, name: str, cluster: MemoryCluster, numbers: range) -> None:
        self.name = name
        self.store = MemoryStore(cluster, on_call=self._on_call)
        self.numbers = numbers
        self.hook: Callable[[str, str], Awaitable[None]] | None = None
        self.known: dict[int, str] = {}
        self.moves: list[tuple[str, int, int]] = []

    async def _on_call(self, name: str, when: str) -> None:
        if self.hook is not None:
            await self.hook(name, when)

    async def start(self) -> Agent:
        self.lease = await self.store.lease(900)
        self.allocator = IdentityAllocator(
            self.store,
            self.name,
            self.lease,
            numbers=self.numbers,
            on_change=self._changed,
            on_moved=lambda *move: self.moves.append(move),
            reassert_interval_s=3600,
            chooser=random.Random(self.name),
        )
        await self.allocator.start()
        await self.allocator.synced()
        return self

    def _changed(self, identity: int, labels: str | None) -> None:
        if labels is None:
            del self.known[identity]
        else:
            self.known[identity] = labels

    async def crash(self) -> None:
        await self.allocator.stop()
        await self.store.abandon()


@asynccontextmanager
async def agents(count: int, numbers: range = range(256, 300)) -> AsyncIterator[list[Agent]]:
    cluster = MemoryCluster()
    made = [await Agent(f"10.0.0.{n}", cluster, numbers).start() for n in range(count)]
    try:
        yield made
    finally:
        for agent in made:
            await agent.crash()


async def quiet() -> None:
    """Let everything that can run without time passing do so."""
    for _ in range(60):
        await asyncio.sleep(0)


async def test_nodes_agree_on_one_number_per_label_set() -> None:
    async with agents(2) as (one, two):
        assert await one.allocator.allocate(A) == await two.allocator.allocate(A)
        assert await one.allocator.allocate(B) != await one.allocator.allocate(A)
        await quiet()
        assert one.known == two.known == {v: k for k, v in one.allocator.in_use.items()}


async def test_racing_nodes_agree() -> None:
    async with agents(5) as five:
        numbers = await asyncio.gather(*(a.allocator.allocate(A) for a in five))
        assert len(set(numbers)) == 1


async def test_the_keys_are_those_of_the_protocol() -> None:
    async with agents(1) as (one,):
        number = await one.allocator.allocate(A)
        master = await one.store.get(f"{MASTERS}{number}")
        slave = await one.store.get(f"{SLAVES}{A}/10.0.0.0")
        assert (master.value, master.lease_id) == (A.encode(), 0)
        assert (slave.value, slave.lease_id) == (str(number).encode(), one.lease.id)


async def test_the_last_reference_frees_the_slave_and_keeps_the_master() -> None:
    async with agents(1) as (one,):
        number = await one.allocator.allocate(A)
        await one.allocator.allocate(A)
        await one.allocator.release(A)
        assert await one.store.get(f"{SLAVES}{A}/10.0.0.0")
        await one.allocator.release(A)
        assert not await one.store.get(f"{SLAVES}{A}/10.0.0.0")
        assert await one.store.get(f"{MASTERS}{number}")
        assert await one.allocator.allocate(A) == number


async def test_a_deleted_master_in_use_is_claimed_again_at_once() -> None:
    async with agents(2) as (one, two):
        number = await one.allocator.allocate(A)
        await two.store.delete(f"{MASTERS}{number}")
        await quiet()
        assert (await two.store.get(f"{MASTERS}{number}")).value == A.encode()
        assert two.known == {number: A}


async def test_a_node_whose_lease_lapsed_follows_what_the_cluster_agreed_meanwhile() -> None:
    async with agents(2) as (one, two):
        old = await one.allocator.allocate(A)
        one.store.cluster.expire(one.lease.id)
        await two.store.delete(f"{MASTERS}{old}")
        await two.store.put(f"{MASTERS}{old}", B.encode())  # the number got another meaning
        await quiet()
        new = await two.allocator.allocate(A)
        await one.lease.refresh()
        await quiet()
        assert new != old
        assert one.allocator.in_use == {A: new}
        assert one.moves == [(A, old, new)]


async def test_an_invalid_slave_does_not_block_its_label_set() -> None:
    async with agents(1) as (one,):
        await one.store.put(f"{SLAVES}{A}/10.9.9.9", b"nonsense")
        await one.store.put(f"{MASTERS}290", B.encode())
        await one.store.put(f"{SLAVES}{A}/10.9.9.8", b"290")
        number = await one.allocator.allocate(A)
        assert number != 290
        assert (await one.store.get(f"{MASTERS}{number}")).value == A.encode()


async def test_a_slave_left_by_a_failed_call_is_removed_later() -> None:
    async with agents(1) as (one,):

        async def lose_the_answer(name: str, when: str) -> None:
            if (name, when) == ("apply", "after"):
                raise StoreUnavailableError("the answer was lost")

        one.hook = lose_the_answer
        with pytest.raises(StoreUnavailableError):
            await one.allocator.allocate(A)
        one.hook = None
        assert await one.store.get(f"{SLAVES}{A}/10.0.0.0")
        await one.allocator.reassert()
        assert not await one.store.get(f"{SLAVES}{A}/10.0.0.0")


@pytest.mark.parametrize("used_by_two_before", [False, True])
async def test_what_another_node_does_between_look_and_claim_is_noticed(
    used_by_two_before: bool,
) -> None:
    async with agents(2) as (one, two):
        await one.allocator.allocate(A)  # from now on one knows a master for the labels
        if used_by_two_before:
            await two.allocator.allocate(A)
        await one.allocator.release(A)
        await quiet()

        async def another_number(name: str, when: str) -> None:
            if (name, when) == ("apply", "before"):
                one.hook = None
                await two.store.put(f"{MASTERS}299", A.encode())
                await two.store.put(f"{SLAVES}{A}/{two.name}", b"299")

        one.hook = another_number
        assert await one.allocator.allocate(A) == 299


async def test_an_exhausted_range_is_told_with_a_remedy() -> None:
    async with agents(1, range(256, 258)) as (one,):
        await one.allocator.allocate(A)
        await one.allocator.allocate(B)
        with pytest.raises(IdentitiesExhaustedError, match="all 2 identities"):
            await one.allocator.allocate("k8s:app=c;")


async def test_labels_in_another_form_are_refused() -> None:
    async with agents(1) as (one,):
        with pytest.raises(InvalidError, match="storage form"):
            await one.allocator.allocate("app=a")


class CheckedCluster(MemoryCluster):
    """Looks after every write whether the keys keep the rules of the protocol."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: list[str] = []

    def apply(self, *arguments: Any) -> bool:
        done = super().apply(*arguments)
        numbers: dict[str, bytes] = {}
        for slave in self.list(SLAVES).items:
            labels = slave.key.removeprefix(SLAVES).rpartition("/")[0]
            master = self.get(f"{MASTERS}{slave.value.decode()}")
            if master is None or master.value != labels.encode():
                self.broken.append(f"{slave} stands beside {master}")
            if numbers.setdefault(labels, slave.value) != slave.value:
                self.broken.append(f"{labels} has two numbers")
        return done


class CrashError(Exception):
    """The agent's process ends here."""


LABELS = st.sampled_from([f"k8s:app={name};" for name in "abcd"])
WHO = st.integers(0, 2)
CALLS = st.sampled_from(["allocate", "allocate", "release", "collect"])
DELAYS = st.lists(st.integers(0, 5), max_size=5)


class Identities(RuleBasedStateMachine):
    """Three agents and the operator's collector on one store, with numbers for six label sets."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.cluster = self.loop.run_until_complete(self._cluster())
        self.agents: list[Agent | None] = [self._new_agent(n) for n in range(3)]
        self.references: list[dict[str, int]] = [{}, {}, {}]
        self.lapsed: set[int] = set()
        self.collector_hook: Callable[[str, str], Awaitable[None]] | None = None
        store = MemoryStore(self.cluster, on_call=self._collector_calls)
        self.collector = IdentityCollector(store, range(65536))

    async def _collector_calls(self, name: str, when: str) -> None:
        if self.collector_hook is not None:
            await self.collector_hook(name, when)

    async def _cluster(self) -> CheckedCluster:
        return CheckedCluster()

    def _new_agent(self, who: int) -> Agent:
        return self.run(Agent(f"10.0.0.{who}", self.cluster, range(256, 262)).start())

    def run(self, work: Any) -> Any:
        async def and_settle() -> Any:
            result = await work
            await asyncio.sleep(60)  # of the loop's own time: back-offs end, leases do not
            return result

        return self.loop.run_until_complete(and_settle())

    def teardown(self) -> None:
        for agent in self.agents:
            if agent is not None:
                self.run(agent.crash())
        self.loop.close()

    @rule(calls=st.lists(st.tuples(CALLS, WHO, LABELS, st.integers(0, 9)), min_size=1, max_size=6))
    def at_once(self, calls: list[tuple[str, int, str, int]]) -> None:
        """Calls that begin at most some seconds apart, on agents as slow as `slow` made them."""

        async def all_calls() -> None:
            await asyncio.gather(*(self._call(*call) for call in calls))

        self.run(all_calls())

    async def _call(self, call: str, who: int, labels: str, delay_s: int) -> None:
        await asyncio.sleep(delay_s)
        agent, references = self.agents[who], self.references[who]
        if call == "collect":
            await self.collector.run()
        elif agent is None:
            return
        elif call == "allocate":
            await agent.allocator.allocate(labels)
            references[labels] = references.get(labels, 0) + 1
        elif call == "release" and references.get(labels):
            references[labels] -= 1
            if not references[labels]:
                del references[labels]
            await agent.allocator.release(labels)

    @rule(who=WHO, delays=DELAYS)
    def slow(self, who: int, delays: list[int]) -> None:
        if (agent := self.agents[who]) is not None:
            agent.hook = _delaying(delays) if delays else None

    @rule(delays=DELAYS)
    def slow_collector(self, delays: list[int]) -> None:
        self.collector_hook = _delaying(delays) if delays else None

    @rule(who=WHO, labels=LABELS, point=st.integers(0, 12))
    def crash_while_allocating(self, who: int, labels: str, point: int) -> None:
        agent = self.agents[who]
        if agent is None:
            return
        agent.hook = _crashing(point)

        async def until_crash() -> None:
            with contextlib.suppress(CrashError):
                await agent.allocator.allocate(labels)
            await agent.crash()

        self.run(until_crash())
        self.agents[who] = None
        self.references[who] = {}
        self.lapsed.discard(who)

    @rule(who=WHO)
    def restart(self, who: int) -> None:
        if self.agents[who] is None:
            self.agents[who] = self._new_agent(who)

    @rule(who=WHO)
    def lapse(self, who: int) -> None:
        """A live agent is cut off for longer than its lease."""
        agent = self.agents[who]
        if agent is not None:
            self.cluster.expire(agent.lease.id)
            self.lapsed.add(who)
            self.run(quiet())

    @precondition(lambda self: self.lapsed)
    @rule()
    def return_all(self) -> None:
        for who in sorted(self.lapsed):
            agent = self.agents[who]
            assert agent is not None
            self.run(agent.lease.refresh())
        self.lapsed.clear()

    @rule()
    def leases_of_the_dead_end(self) -> None:
        alive = {agent.lease.id for agent in self.agents if agent is not None}
        for item in self.cluster.list(SLAVES).items:
            if item.lease_id not in alive:
                self.cluster.expire(item.lease_id)
        self.run(quiet())

    @rule(times=st.integers(1, 3))
    def collect(self, times: int) -> None:
        for _ in range(times):
            self.run(self.collector.run())

    def _connected(self) -> list[Agent]:
        return [a for n, a in enumerate(self.agents) if a is not None and n not in self.lapsed]

    @invariant()
    def the_keys_kept_the_rules_at_every_moment(self) -> None:
        assert self.cluster.broken == []

    @invariant()
    def no_number_means_two_label_sets_and_none_in_use_is_lost(self) -> None:
        masters = {
            int(item.key.removeprefix(MASTERS)): item.value.decode()
            for item in self.cluster.list(MASTERS).items
        }
        for agent in self._connected():
            for labels, number in agent.allocator.in_use.items():
                assert masters[number] == labels
            assert agent.known == masters

    @invariant()
    def no_label_set_in_use_has_two_numbers(self) -> None:
        numbers: dict[str, int] = {}
        for agent in self._connected():
            for labels, number in agent.allocator.in_use.items():
                assert numbers.setdefault(labels, number) == number

    @invariant()
    def every_reference_is_served_and_proved_by_a_slave(self) -> None:
        for who, agent in enumerate(self.agents):
            if agent is None:
                continue
            assert agent.allocator.in_use.keys() == self.references[who].keys()
            if who in self.lapsed:
                continue
            for labels, number in agent.allocator.in_use.items():
                slave = self.cluster.get(f"{SLAVES}{labels}/{agent.name}")
                assert slave is not None
                assert slave.value == str(number).encode()


def _delaying(delays: list[int]) -> Callable[[str, str], Awaitable[None]]:
    turns = itertools.cycle(delays)

    async def hook(_name: str, _when: str) -> None:
        await asyncio.sleep(next(turns))

    return hook


def _crashing(point: int) -> Callable[[str, str], Awaitable[None]]:
    left = [point]

    async def hook(_name: str, _when: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise CrashError

    return hook


TestIdentities = Identities.TestCase
TestIdentities.settings = settings(
    max_examples=300,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
