from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from cilium_core.errors import InvalidError, NotFoundError
from cilium_core.kvstore.memory import MemoryStore
from cilium_core.resources.etcd import EtcdSource
from cilium_core.resources.keys import kind_of
from cilium_core.resources.model import Applied, Change

POD = kind_of("pod")


def pod(name: str, *, namespace: str = "shop", image: str = "a", **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"image": image},
    }


async def test_what_is_applied_is_read_with_what_the_server_owns() -> None:
    source = EtcdSource(MemoryStore())
    assert await source.apply(pod("api", app="api")) is Applied.CREATED
    item = await source.get(POD, "shop", "api")
    metadata = item.pop("metadata")
    assert item == {"apiVersion": "v1", "kind": "Pod", "spec": {"image": "a"}}
    assert metadata["labels"] == {"app": "api"}
    assert metadata["generation"] == 1
    assert metadata["creationTimestamp"].endswith("Z")
    assert metadata["resourceVersion"].isdigit()


async def test_only_a_change_of_the_spec_raises_the_generation() -> None:
    source = EtcdSource(MemoryStore())
    await source.apply(pod("api"))
    first = await source.get(POD, "shop", "api")
    assert await source.apply(pod("api")) is Applied.UNCHANGED
    assert await source.apply(pod("api", app="x")) is Applied.CONFIGURED
    assert await source.apply(pod("api", image="b")) is Applied.CONFIGURED
    last = await source.get(POD, "shop", "api")
    assert last["metadata"]["generation"] == 2
    assert last["metadata"]["uid"] == first["metadata"]["uid"]


async def test_an_object_read_back_can_be_applied() -> None:
    source = EtcdSource(MemoryStore())
    await source.apply(pod("api"))
    assert await source.apply(await source.get(POD, "shop", "api")) is Applied.UNCHANGED


async def test_lists_are_of_a_kind_or_of_one_namespace() -> None:
    source = EtcdSource(MemoryStore())
    await source.apply(pod("a"))
    await source.apply(pod("b", namespace="shop-2"))
    names = [item["metadata"]["name"] for item in await source.list(POD)]
    assert names == ["a", "b"]
    assert [i["metadata"]["name"] for i in await source.list(POD, "shop")] == ["a"]


async def test_what_is_not_there_is_named() -> None:
    source = EtcdSource(MemoryStore())
    with pytest.raises(NotFoundError, match="no Pod api in namespace shop"):
        await source.get(POD, "shop", "api")
    with pytest.raises(NotFoundError, match=r"no Namespace shop$"):
        await source.delete(kind_of("ns"), "", "shop")


async def test_an_object_that_cannot_be_stored_is_refused() -> None:
    source = EtcdSource(MemoryStore())
    with pytest.raises(InvalidError, match="bytes as JSON"):
        await source.apply(pod("api", image="x" * 2_000_000))


async def test_a_watch_tells_what_is_then_synced_then_changes() -> None:
    store = MemoryStore()
    source = EtcdSource(store)
    await source.apply(pod("a"))
    await store.put(POD.key("shop", "broken"), b"{")
    async with aclosing(source.watch(POD)) as events, asyncio.timeout(5):
        first = await anext(events)
        assert (first.change, first.object["metadata"]["name"]) == (Change.UPSERT, "a")
        unreadable = await anext(events)
        assert (unreadable.change, unreadable.object["metadata"]["name"]) == (
            Change.UNREADABLE,
            "broken",
        )
        assert "not JSON" in unreadable.error
        assert (await anext(events)).change is Change.SYNCED
        await store.delete(POD.key("shop", "broken"))
        assert (await anext(events)).change is Change.DELETE
        await source.apply(pod("b", app="x"))
        await source.delete(POD, "shop", "b")
        assert (await anext(events)).object["metadata"]["labels"] == {"app": "x"}
        gone = await anext(events)
        assert (gone.change, gone.object["metadata"]["labels"]) == (Change.DELETE, {"app": "x"})


async def test_objects_written_by_others_without_metadata_are_completed_from_the_key() -> None:
    store = MemoryStore()
    await store.put(POD.key("shop", "bare"), b"{}")
    item = await EtcdSource(store).get(POD, "shop", "bare")
    assert item["kind"] == "Pod"
    assert item["metadata"]["namespace"] == "shop"
