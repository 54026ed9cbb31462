from __future__ import annotations

from typing import TYPE_CHECKING

from cilium_core.allocating import MASTERS, SLAVES
from cilium_core.kvstore.memory import MemoryStore
from cilium_operator.collecting import IdentityCollector

if TYPE_CHECKING:
    from cilium_core.kvstore import Store

A = "k8s:app=a;"


async def numbers(store: Store) -> list[int]:
    return [int(i.key.removeprefix(MASTERS)) for i in (await store.list_prefix(MASTERS)).items]


async def test_an_identity_goes_when_unused_in_two_looks_in_a_row() -> None:
    store = MemoryStore()
    collector = IdentityCollector(store, range(256, 65536))
    await store.put(f"{MASTERS}300", A.encode())
    await store.put(f"{MASTERS}301", b"k8s:app=used;")
    await store.put(f"{SLAVES}k8s:app=used;/10.0.0.1", b"301")
    assert await collector.run() == 0
    assert await collector.run() == 1
    assert await numbers(store) == [301]


async def test_use_between_two_looks_starts_the_count_anew() -> None:
    store = MemoryStore()
    collector = IdentityCollector(store, range(256, 65536))
    await store.put(f"{MASTERS}300", A.encode())
    await collector.run()
    await store.put(f"{SLAVES}{A}/10.0.0.1", b"300")
    await collector.run()
    await store.delete(f"{SLAVES}{A}/10.0.0.1")
    assert await collector.run() == 0
    assert await collector.run() == 1


async def test_a_master_written_again_between_two_looks_is_kept() -> None:
    store = MemoryStore()
    collector = IdentityCollector(store, range(256, 65536))
    await store.put(f"{MASTERS}300", A.encode())
    await collector.run()
    await store.put(f"{MASTERS}300", A.encode())
    assert await collector.run() == 0
    assert await numbers(store) == [300]


async def test_identities_of_other_clusters_are_left_alone() -> None:
    store = MemoryStore()
    collector = IdentityCollector(store, range(256, 65536))
    await store.put(f"{MASTERS}70000", A.encode())
    await store.put(f"{MASTERS}notes", b"x")
    for _ in range(3):
        assert await collector.run() == 0
    assert len((await store.list_prefix(MASTERS)).items) == 2


async def test_labels_may_hold_slashes_and_begin_like_others() -> None:
    store = MemoryStore()
    collector = IdentityCollector(store, range(256, 65536))
    await store.put(f"{MASTERS}300", b"k8s:path=a/b;")
    await store.put(f"{MASTERS}301", b"k8s:path=a;")
    await store.put(f"{SLAVES}k8s:path=a/b;/10.0.0.1", b"300")
    await collector.run()
    await collector.run()
    assert await numbers(store) == [300]
