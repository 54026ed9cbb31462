"""What Services are given stands in their objects, once, whoever leads."""

from __future__ import annotations

import asyncio
import contextlib
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Any

import pytest
from cilium_core.kvstore import value_is
from cilium_core.kvstore.memory import MemoryCluster, MemoryStore
from cilium_core.resources.announcing import Announcer
from cilium_core.resources.etcd import EtcdSource
from cilium_core.resources.keys import kind_of
from cilium_operator.services.assigning import ALLOCATED, ServiceAssigner
from cilium_operator.services.balancing import SATISFIED, USED

from ..waiting import eventually
from .service_objects import pool, service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from cilium_core.kvstore import Compare

SERVICE, EVENT, POOL = kind_of("svc"), kind_of("event"), kind_of("ippool")


class Cluster:
    """A store, and an operator that gives what it can."""

    def __init__(self) -> None:
        self.memory = MemoryCluster()
        self.store = MemoryStore(self.memory)
        self.source = EtcdSource(self.store)
        self.tasks: list[asyncio.Task[None]] = []

    def lead(self, fence: Callable[[], list[Compare]] = list) -> asyncio.Task[None]:
        """Begin to give, from what is stored."""
        store = MemoryStore(self.memory)
        assigner = ServiceAssigner(
            store,
            [IPv4Network("10.96.0.0/24"), IPv6Network("fd00:96::/120")],
            range(30000, 30100),
            Announcer(store, "cilium-operator"),
            fence=fence,
        )
        self.tasks.append(asyncio.create_task(assigner.run()))
        return self.tasks[-1]

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self.tasks.clear()

    async def spec(self, name: str = "web") -> dict[str, Any]:
        item = await self.source.get(SERVICE, "default", name)
        spec: dict[str, Any] = item["spec"]
        return spec

    async def settled(self, name: str = "web") -> dict[str, Any]:
        """The Service, once it has an address."""

        async def found() -> dict[str, Any] | None:
            item = await self.source.get(SERVICE, "default", name)
            return item if item["spec"].get("clusterIP") else None

        result = await eventually(found)
        assert isinstance(result, dict)
        return result

    async def condition(self, kind: str, status: str, name: str = "web") -> dict[str, Any]:
        async def found() -> dict[str, Any] | None:
            item = await self.source.get(SERVICE, "default", name)
            conditions = item.get("status", {}).get("conditions", ())
            return next(
                (one for one in conditions if (one["type"], one["status"]) == (kind, status)), None
            )

        result = await eventually(found)
        assert isinstance(result, dict)
        return result


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    made = Cluster()
    yield made
    await made.stop()


async def test_a_service_gets_its_addresses_and_ports(cluster: Cluster) -> None:
    cluster.lead()
    await cluster.source.apply(service(type="NodePort", ipFamilyPolicy="PreferDualStack"))

    item = await cluster.settled()

    assert len(item["spec"]["clusterIPs"]) == 2
    assert item["spec"]["ports"][0]["nodePort"] in range(30000, 30100)
    assert item["metadata"]["generation"] == 2
    assert "status" not in item


async def test_applying_the_same_file_again_takes_nothing_away(cluster: Cluster) -> None:
    cluster.lead()
    await cluster.source.apply(pool("blue", "198.51.100.0/24"))
    await cluster.source.apply(service(type="LoadBalancer"))
    await cluster.condition(SATISFIED, "True")
    before = await cluster.source.get(SERVICE, "default", "web")

    await cluster.source.apply(service(type="LoadBalancer"))

    assert await cluster.source.get(SERVICE, "default", "web") == before


async def test_a_conflict_is_told_and_ends_when_the_holder_goes(cluster: Cluster) -> None:
    cluster.lead()
    await cluster.source.apply(service("first", clusterIP="10.96.0.9"))
    await eventually(lambda: has_families(cluster, "first"))
    await cluster.source.apply(service("second", clusterIP="10.96.0.9"))

    condition = await cluster.condition(ALLOCATED, "False", "second")
    events = await eventually(lambda: cluster.source.list(EVENT))

    assert condition["reason"] == "ClusterIPConflict"
    assert "default/first" in condition["message"]
    assert events[0]["involvedObject"]["name"] == "second"
    assert events[0]["reason"] == "ClusterIPConflict"
    await cluster.source.delete(SERVICE, "default", "first")
    await cluster.condition(ALLOCATED, "True", "second")


async def has_families(cluster: Cluster, name: str) -> bool:
    return "ipFamilies" in await cluster.spec(name)


async def test_a_conflict_is_judged_alike_after_a_fail_over(cluster: Cluster) -> None:
    cluster.lead()
    await cluster.source.apply(service("second", clusterIP="10.96.0.9", created="2026-03-01"))
    await eventually(lambda: has_families(cluster, "second"))
    await cluster.source.apply(service("first", clusterIP="10.96.0.9", created="2026-02-01"))
    await cluster.condition(ALLOCATED, "False", "first")

    await cluster.stop()
    cluster.lead()
    await cluster.source.apply(service("third"))
    await cluster.settled("third")

    await cluster.condition(ALLOCATED, "False", "first")
    second = await cluster.source.get(SERVICE, "default", "second")
    assert "status" not in second


async def test_load_balancers_get_addresses_as_soon_as_there_is_a_pool(cluster: Cluster) -> None:
    cluster.lead()
    await cluster.source.apply(service(type="LoadBalancer"))
    assert (await cluster.condition(SATISFIED, "False"))["reason"] == "no_pool"

    await cluster.source.apply(pool("blue", "198.51.100.7/32"))
    await cluster.condition(SATISFIED, "True")

    item = await cluster.source.get(SERVICE, "default", "web")
    assert item["status"]["loadBalancer"] == {"ingress": [{"ip": "198.51.100.7", "ipMode": "VIP"}]}

    async def used() -> bool:
        status = (await cluster.source.get(POOL, "", "blue")).get("status", {})
        return {one["type"]: one["message"] for one in status.get("conditions", ())}.get(
            USED
        ) == "1"

    await eventually(used)


async def test_an_address_is_given_back_with_its_service_or_its_type(cluster: Cluster) -> None:
    cluster.lead()
    await cluster.source.apply(pool("blue", "198.51.100.7/32"))
    await cluster.source.apply(service("a", type="LoadBalancer"))
    await cluster.condition(SATISFIED, "True", "a")
    await cluster.source.apply(service("b", type="LoadBalancer"))
    assert (await cluster.condition(SATISFIED, "False", "b"))["reason"] == "out_of_ips"

    await cluster.source.apply(service("a", type="ClusterIP"))

    await cluster.condition(SATISFIED, "True", "b")
    item = await cluster.source.get(SERVICE, "default", "a")
    assert "status" not in item or "loadBalancer" not in item["status"]
    assert "nodePort" not in item["spec"]["ports"][0]


async def test_a_new_leader_gives_nobody_what_another_has(cluster: Cluster) -> None:
    cluster.lead()
    for number in range(20):
        await cluster.source.apply(service(f"a{number}", type="NodePort"))
    before = [(await cluster.settled(f"a{number}"))["spec"] for number in range(20)]
    await cluster.stop()
    for number in range(20):
        await cluster.source.apply(service(f"b{number}", type="NodePort"))

    cluster.lead()
    after = [(await cluster.settled(f"b{number}"))["spec"] for number in range(20)]

    assert [await cluster.spec(f"a{number}") for number in range(20)] == before
    every = before + after
    assert len({spec["clusterIP"] for spec in every}) == 40
    assert len({spec["ports"][0]["nodePort"] for spec in every}) == 40


async def test_who_leads_no_more_writes_nothing(cluster: Cluster) -> None:
    await cluster.store.put("leader", b"another")
    attempts: list[str] = []

    def fence() -> list[Compare]:
        attempts.append("write")
        return [value_is("leader", b"me")]

    cluster.lead(fence)
    await cluster.source.apply(service("a"))
    await eventually(lambda: attempts)
    await cluster.store.put("leader", b"me")
    await cluster.source.apply(service("b"))

    await cluster.settled("b")

    assert "clusterIP" not in await cluster.spec("a")
