"""EndpointSlices follow Services and Pods."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from cilium_core.kvstore.memory import MemoryCluster, MemoryStore
from cilium_core.records import NodeRecord
from cilium_core.resources.etcd import EtcdSource
from cilium_core.resources.keys import kind_of
from cilium_operator.services.publishing import SlicePublisher

from ..waiting import eventually
from .service_objects import pod, service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SERVICE, SLICE, POD = kind_of("svc"), kind_of("eps"), kind_of("pod")


class Cluster:
    """A store with a publisher."""

    def __init__(self) -> None:
        self.memory = MemoryCluster()
        self.store = MemoryStore(self.memory)
        self.source = EtcdSource(self.store)
        self.task: asyncio.Task[None] | None = None

    def lead(self) -> None:
        self.task = asyncio.create_task(SlicePublisher(MemoryStore(self.memory)).run())

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task

    async def ready(self, *expected: str) -> list[dict[str, Any]]:
        """The slices, once just these addresses are ready."""

        async def found() -> list[dict[str, Any]] | None:
            items = await self.source.list(SLICE)
            addresses = [
                endpoint["addresses"][0]
                for item in items
                for endpoint in item["endpoints"]
                if endpoint["conditions"]["ready"]
            ]
            return [*items, {}] if sorted(addresses) == sorted(expected) else None

        return (await eventually(found))[:-1]  # type: ignore[no-any-return]


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    made = Cluster()
    made.lead()
    yield made
    await made.stop()


def web(**spec: Any) -> dict[str, Any]:
    return service(selector={"app": "web"}, **spec)


async def test_pods_come_become_unready_and_go(cluster: Cluster) -> None:
    await cluster.source.apply(web())
    await cluster.source.apply(pod("a", "10.0.0.1"))
    await cluster.source.apply(pod("b", "10.0.0.2", ready=False))
    await cluster.ready("10.0.0.1")

    await cluster.source.apply(pod("b", "10.0.0.2"))
    await cluster.ready("10.0.0.1", "10.0.0.2")
    await cluster.source.apply(pod("a", "10.0.0.1", deletionTimestamp="2026-01-01T00:00:00Z"))
    await cluster.ready("10.0.0.2")
    await cluster.source.delete(POD, "default", "a")
    await cluster.source.delete(POD, "default", "b")

    async def none() -> bool:
        return await cluster.source.list(SLICE) == []

    await eventually(none)


async def test_slices_go_with_their_service(cluster: Cluster) -> None:
    await cluster.source.apply(pod("a", "10.0.0.1"))
    await cluster.source.apply(web())
    await cluster.ready("10.0.0.1")

    await cluster.source.delete(SERVICE, "default", "web")

    await cluster.ready()


async def test_slices_of_a_service_that_went_unseen_go_too(cluster: Cluster) -> None:
    await cluster.source.apply(pod("a", "10.0.0.1"))
    await cluster.source.apply(web())
    await cluster.ready("10.0.0.1")
    await cluster.stop()
    await cluster.source.delete(SERVICE, "default", "web")

    cluster.lead()

    await cluster.ready()


async def test_slices_that_others_keep_are_left_alone(cluster: Cluster) -> None:
    own = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "web-own", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [],
        "endpoints": [{"addresses": ["192.0.2.1"], "conditions": {"ready": True}}],
    }
    await cluster.source.apply(own)
    await cluster.source.apply(web())
    await cluster.source.apply(pod("a", "10.0.0.1"))
    await cluster.ready("10.0.0.1", "192.0.2.1")

    await cluster.source.delete(SERVICE, "default", "web")

    await cluster.ready("192.0.2.1")


async def test_a_slice_that_somebody_spoils_becomes_right_again(cluster: Cluster) -> None:
    await cluster.source.apply(web())
    await cluster.source.apply(pod("a", "10.0.0.1"))
    [item] = await cluster.ready("10.0.0.1")

    await cluster.source.apply({**item, "endpoints": []})
    await cluster.ready("10.0.0.1")
    await cluster.source.delete(SLICE, "default", item["metadata"]["name"])
    await cluster.ready("10.0.0.1")


async def test_what_is_right_is_not_written_again(cluster: Cluster) -> None:
    await cluster.source.apply(web())
    await cluster.source.apply(pod("a", "10.0.0.1"))
    before = await cluster.ready("10.0.0.1")
    await cluster.stop()

    cluster.lead()
    await cluster.source.apply(service("other", selector={"app": "db"}))
    await cluster.source.apply(pod("b", "10.0.0.2", labels={"app": "db"}))
    after = await cluster.ready("10.0.0.1", "10.0.0.2")

    assert before[0] in after


async def test_a_crowd_is_spread_over_slices(cluster: Cluster) -> None:
    await cluster.source.apply(web())
    addresses = [f"10.0.{number // 200}.{number % 200}" for number in range(250)]
    for number, address in enumerate(addresses):
        await cluster.source.apply(pod(f"p{number}", address))

    items = await cluster.ready(*addresses)

    assert all(len(item["endpoints"]) <= 100 for item in items)


async def test_endpoints_know_the_zone_of_their_node(cluster: Cluster) -> None:
    await cluster.source.apply(web())
    await cluster.source.apply(pod("a", "10.0.0.1"))
    [item] = await cluster.ready("10.0.0.1")
    assert "zone" not in item["endpoints"][0]

    record = NodeRecord("node1", labels={"topology.kubernetes.io/zone": "east"})
    await cluster.store.put(record.key, record.to_json())

    async def zoned() -> bool:
        [item] = await cluster.source.list(SLICE)
        return bool(item["endpoints"][0].get("zone") == "east")

    await eventually(zoned)
