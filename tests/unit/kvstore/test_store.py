"""What every store promises, asked of etcd and of memory alike."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest
from cilium_core.kvstore import (
    Delete,
    Event,
    EventKind,
    Put,
    absent,
    absent_prefix,
    exists,
    unchanged,
    value_is,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable


async def take(
    watch: AsyncGenerator[Event, None], count: int
) -> list[tuple[EventKind, str, bytes]]:
    async with asyncio.timeout(10):
        events = [await anext(watch) for _ in range(count)]
    return [(event.kind, event.key, event.value) for event in events]


PUT, DELETE, SYNCED = EventKind.PUT, EventKind.DELETE, (EventKind.SYNCED, "", b"")


async def test_a_key_is_read_as_written(store: Any) -> None:
    assert await store.get("t/a") is None
    await store.put("t/a", b"1")
    await store.put("t/a", b"\x00\xff")
    item = await store.get("t/a")
    assert (item.key, item.value, item.lease_id) == ("t/a", b"\x00\xff", 0)
    assert item.mod_revision > item.create_revision


async def test_create_refuses_what_exists(store: Any) -> None:
    assert await store.create("t/a", b"1") is True
    assert await store.create("t/a", b"2") is False
    assert (await store.get("t/a")).value == b"1"


async def test_a_listing_has_the_prefix_in_key_order_at_one_revision(store: Any) -> None:
    for key in ("t/b/2", "t/b/10", "t/bb", "t/a"):
        await store.put(key, key.encode())
    listing = await store.list_prefix("t/b/")
    assert [item.key for item in listing.items] == ["t/b/10", "t/b/2"]
    assert listing.revision >= max(item.mod_revision for item in listing.items)


async def test_a_long_listing_is_complete(store: Any) -> None:
    for start in range(0, 2400, 100):
        await store.transaction([], [Put(f"t/{n:05}", b"x") for n in range(start, start + 100)])
    listing = await store.list_prefix("t/")
    assert [item.key for item in listing.items] == [f"t/{n:05}" for n in range(2400)]


async def test_delete_is_for_one_key_or_a_prefix_and_forgives_absence(store: Any) -> None:
    for key in ("t/a", "t/b/1", "t/b/2"):
        await store.put(key, b"")
    await store.delete("t/a")
    await store.delete("t/a")
    await store.delete_prefix("t/b/")
    assert (await store.list_prefix("t/")).items == ()


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (absent("t/a"), False),
        (absent("t/none"), True),
        (exists("t/a"), True),
        (exists("t/none"), False),
        (absent_prefix("t/dir/"), False),
        (absent_prefix("t/none/"), True),
        (value_is("t/a", b"1"), True),
        (value_is("t/a", b"2"), False),
        (value_is("t/none", b""), False),
    ],
)
async def test_a_transaction_happens_only_if_its_conditions_hold(
    store: Any, condition: Any, holds: bool
) -> None:
    await store.put("t/a", b"1")
    await store.put("t/dir/x", b"1")
    done = await store.transaction([condition], [Put("t/new", b"n"), Delete("t/a")])
    assert done is holds
    assert [i.key for i in (await store.list_prefix("t/")).items] == (
        ["t/dir/x", "t/new"] if holds else ["t/a", "t/dir/x"]
    )


async def test_a_transaction_notices_a_change_since_the_read(store: Any) -> None:
    await store.put("t/a", b"1")
    item = await store.get("t/a")
    assert await store.transaction([unchanged(item)], [Put("t/a", b"2")]) is True
    assert await store.transaction([unchanged(item)], [Put("t/a", b"3")]) is False
    assert (await store.get("t/a")).value == b"2"


async def test_the_operations_of_a_transaction_share_a_revision(store: Any) -> None:
    await store.transaction([], [Put("t/a", b""), Put("t/b", b"")])
    first, second = (await store.list_prefix("t/")).items
    assert first.mod_revision == second.mod_revision


async def test_a_watch_tells_what_is_then_synced_then_changes_in_order(
    connect: Callable[[], Any],
) -> None:
    store, other = connect(), connect()
    await store.put("t/w/a", b"1")
    await store.put("t/x", b"not below the prefix")
    async with aclosing(store.watch("t/w/")) as watch:
        assert await take(watch, 2) == [(PUT, "t/w/a", b"1"), SYNCED]
        await other.put("t/w/b", b"2")
        await other.put("t/x", b"3")
        await other.transaction([], [Put("t/w/a", b"4"), Delete("t/w/b")])
        assert await take(watch, 3) == [
            (PUT, "t/w/b", b"2"),
            (PUT, "t/w/a", b"4"),
            (DELETE, "t/w/b", b""),
        ]


async def test_many_watches_share_a_store(store: Any) -> None:
    async with aclosing(store.watch("t/1/")) as one, aclosing(store.watch("t/2/")) as two:
        assert await take(one, 1) == [SYNCED]
        assert await take(two, 1) == [SYNCED]
        await store.put("t/2/a", b"")
        await store.put("t/1/a", b"")
        assert await take(two, 1) == [(PUT, "t/2/a", b"")]
        assert await take(one, 1) == [(PUT, "t/1/a", b"")]


async def test_a_watch_ends_when_its_store_is_closed(connect: Callable[[], Any]) -> None:
    store = connect()
    watch = store.watch("t/")
    assert await take(watch, 1) == [SYNCED]
    await store.close()
    with pytest.raises(StopAsyncIteration):
        async with asyncio.timeout(10):
            await anext(watch)


async def test_keys_of_a_lease_go_when_it_is_revoked(store: Any) -> None:
    lease = await store.lease(60)
    await store.put("t/leased", b"", lease)
    await store.put("t/other", b"")
    await lease.revoke()
    assert [item.key for item in (await store.list_prefix("t/")).items] == ["t/other"]
    assert not lease.held


async def test_closing_a_store_frees_its_leased_keys(connect: Callable[[], Any]) -> None:
    store, other = connect(), connect()
    await store.put("t/leased", b"", await store.lease(60))
    await store.close()
    assert await other.get("t/leased") is None


async def test_a_lease_is_kept_alive_beyond_its_ttl_and_ends_with_a_crash(
    connect: Callable[[], Any],
) -> None:
    alive, crashed, observer = connect(), connect(), connect()
    await alive.put("t/alive", b"", await alive.lease(1))
    await crashed.put("t/crashed", b"", await crashed.lease(1))
    async with aclosing(observer.watch("t/crashed")) as watch:
        assert await take(watch, 2) == [(PUT, "t/crashed", b""), SYNCED]
        await crashed.abandon()
        assert await take(watch, 1) == [(DELETE, "t/crashed", b"")]
    assert await observer.get("t/alive") is not None


async def test_keys_of_a_lost_lease_come_back_unless_taken(connect: Callable[[], Any]) -> None:
    store, other = connect(), connect()
    lease = await store.lease(60)
    for name in ("a", "b", "dropped"):
        await store.put(f"t/{name}", b"mine", lease)
    await store.delete("t/dropped")
    await other.revoke_lease(lease.id)
    assert (await other.list_prefix("t/")).items == ()
    assert await other.create("t/b", b"theirs")
    await lease.refresh()
    values = {item.key: item.value for item in (await other.list_prefix("t/")).items}
    assert values == {"t/a": b"mine", "t/b": b"theirs"}
    assert lease.keys == {"t/a": b"mine"}
    assert lease.restores == 1


async def test_a_put_through_a_lost_lease_makes_it_anew(connect: Callable[[], Any]) -> None:
    store, other = connect(), connect()
    lease = await store.lease(60)
    await store.put("t/a", b"1", lease)
    await other.revoke_lease(lease.id)
    await store.put("t/b", b"2", lease)
    values = {item.key: item.value for item in (await other.list_prefix("t/")).items}
    assert values == {"t/a": b"1", "t/b": b"2"}


async def test_a_lease_without_restore_tells_that_it_is_lost(connect: Callable[[], Any]) -> None:
    store, other = connect(), connect()
    lease = await store.lease(60, restore=False)
    await store.put("t/a", b"1", lease)
    assert lease.held
    await other.revoke_lease(lease.id)
    await lease.refresh()
    assert not lease.held
    assert await other.get("t/a") is None


async def test_status_names_the_member(store: Any) -> None:
    await store.get("t/a")
    status = store.status()
    assert status.connected
    assert status.endpoint
    assert status.error == ""
