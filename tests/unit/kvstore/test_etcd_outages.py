"""etcd killed, restarted, compacted and emptied under watches and leases."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cilium_core.errors import InvalidError
from cilium_core.kvstore import Event, EventKind, Listing, StoreUnavailableError
from cilium_core.kvstore.etcd import EtcdStore
from cilium_core.settings import KvstoreSettings
from etcd import rpc_pb2

from tests.certificates import Authority

from ..etcd_process import EtcdProcess, require_etcd
from ..waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class Follower:
    """Keeps a copy of a prefix by nothing but a watch."""

    def __init__(self, watch: AsyncGenerator[Event, None]) -> None:
        self.copy: dict[str, bytes] = {}
        self.synced = 0
        self.events = 0
        self._watch = watch
        self._task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        async with aclosing(self._watch) as watch:
            async for event in watch:
                self.events += 1
                if event.kind is EventKind.SYNCED:
                    self.synced += 1
                elif event.kind is EventKind.PUT:
                    self.copy[event.key] = event.value
                else:
                    del self.copy[event.key]  # a delete of the unknown would be a mistake

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def contents(store: EtcdStore) -> dict[str, bytes]:
    return {item.key: item.value for item in (await store.list_prefix("t/")).items}


async def test_a_kill_under_watch_and_lease_loses_nothing(etcd: EtcdProcess) -> None:
    store, writer = EtcdStore([etcd.endpoint]), EtcdStore([etcd.endpoint])
    lease = await store.lease(2)
    await store.put("t/leased", b"1", lease)
    follower = Follower(store.watch("t/"))
    await eventually(lambda: follower.synced)

    writing = asyncio.create_task(_write(writer, 200))
    await eventually(lambda: "t/050" in follower.copy)
    for _ in range(2):
        etcd.kill()
        await eventually(lambda: not store.status().connected)
        etcd.start()
        await eventually(lambda: store.status().connected)
    await writing
    await store.put("t/last", b"", lease)

    await eventually(lambda: "t/last" in follower.copy)
    assert follower.copy == await contents(writer)
    assert follower.copy["t/leased"] == b"1"
    assert follower.synced == 1
    assert lease.held
    await follower.stop()
    await store.close()
    await writer.close()


async def _write(store: EtcdStore, count: int) -> None:
    for number in range(count):
        await store.put(f"t/{number:03}", b"x")
        if number % 3 == 2:
            await store.delete(f"t/{number - 1:03}")


async def test_compaction_while_away_is_made_up_for_by_a_new_list(
    etcd: EtcdProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, writer = EtcdStore([etcd.endpoint]), EtcdStore([etcd.endpoint])
    for key in ("t/kept", "t/changed", "t/gone"):
        await writer.put(key, b"1")
    follower = Follower(store.watch("t/"))
    await eventually(lambda: follower.synced)
    await writer.put("t/changed", b"2")
    await eventually(lambda: follower.copy["t/changed"] == b"2")
    listed: list[str] = []
    list_prefix = store.list_prefix

    async def counting(prefix: str) -> Listing:
        listed.append(prefix)
        return await list_prefix(prefix)

    monkeypatch.setattr(store, "list_prefix", counting)
    compacted = asyncio.Event()

    async def wait_for_compaction(_attempt: int) -> None:
        await compacted.wait()

    monkeypatch.setattr("cilium_core.kvstore.etcd.pause", wait_for_compaction)
    await store._stream.close()
    await writer.delete("t/gone")
    await writer.put("t/new", b"2")
    await writer.put("t/changed", b"3")
    revision = (await writer.list_prefix("t/")).revision
    request = rpc_pb2.CompactionRequest(revision=revision)
    await writer._client.call("kvstub", "Compact", request, repeatable=True)
    events_before = follower.events
    compacted.set()
    await eventually(lambda: "t/new" in follower.copy)
    await writer.put("t/last", b"3")
    await eventually(lambda: "t/last" in follower.copy)

    assert listed == ["t/"]
    assert follower.copy == await contents(writer)
    assert follower.synced == 1
    assert follower.events - events_before == 4
    await follower.stop()
    await store.close()
    await writer.close()


async def test_an_emptied_etcd_yields_deletes_and_leased_keys_return(etcd: EtcdProcess) -> None:
    store = EtcdStore([etcd.endpoint])
    lease = await store.lease(3)
    for number in range(5):
        await store.put(f"t/lost/{number}", b"")
    await store.put("t/leased", b"1", lease)
    follower = Follower(store.watch("t/"))
    await eventually(lambda: follower.synced)

    etcd.kill()
    etcd.wipe()
    etcd.start()

    await eventually(lambda: follower.copy == {"t/leased": b"1"})
    await eventually(lambda: lease.restores)
    assert await contents(store) == {"t/leased": b"1"}
    await follower.stop()
    await store.close()


async def test_etcd_may_come_up_later_than_its_clients(etcd: EtcdProcess) -> None:
    etcd.kill()
    store = EtcdStore([etcd.endpoint])
    follower = Follower(store.watch("t/"))
    writing = asyncio.create_task(store.put("t/a", b"1"))
    await eventually(lambda: "127.0.0.1" in store.status().error)
    etcd.start()
    await writing
    await eventually(lambda: follower.copy == {"t/a": b"1"})
    await follower.stop()
    await store.close()


async def test_a_dead_member_is_left_for_one_that_answers(etcd: EtcdProcess) -> None:
    store = EtcdStore(["127.0.0.1:1", etcd.endpoint])
    assert await store.create("t/a", b"1")
    follower = Follower(store.watch("t/"))
    await eventually(lambda: follower.copy == {"t/a": b"1"})
    assert store.status().endpoint == etcd.endpoint
    await follower.stop()
    await store.close()


async def test_without_any_member_a_call_ends_with_what_to_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cilium_core.kvstore.etcd_client._CALL_LIMIT_S", 0.3)
    store = EtcdStore(["127.0.0.1:1"])
    with pytest.raises(StoreUnavailableError, match=r"check that it runs at 127\.0\.0\.1:1"):
        await store.get("t/a")
    await store.close()


@pytest.mark.parametrize("endpoint", ["nohost", "a:b", "http://x"])
def test_a_malformed_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(InvalidError, match="host:port"):
        EtcdStore([endpoint])


async def test_tls_with_a_client_certificate(tmp_path: Path) -> None:
    require_etcd()
    authority = Authority(tmp_path)
    server, server_key = authority.issue("etcd")
    certificate, key = authority.issue("agent")
    flags = [
        f"--cert-file={server}",
        f"--key-file={server_key}",
        f"--trusted-ca-file={authority.certificate}",
        "--client-cert-auth",
    ]
    etcd = EtcdProcess(tmp_path / "etcd", flags)
    etcd.start()
    settings = KvstoreSettings(
        etcd_endpoints=(f"https://{etcd.endpoint}",),
        etcd_ca_file=authority.certificate,
        etcd_cert_file=certificate,
        etcd_key_file=key,
    )
    store = EtcdStore.from_settings(settings)
    try:
        await store.put("t/a", b"1")
        follower = Follower(store.watch("t/"))
        await eventually(lambda: follower.copy == {"t/a": b"1"})
        await follower.stop()
    finally:
        await store.close()
        etcd.kill()


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"etcd_ca_file": "/none"}, "etcd-ca-file: /none is not a file"),
        ({"etcd_ca_file": "/etc/hosts", "etcd_key_file": "/etc/hosts"}, "go together"),
        ({"etcd_cert_file": "/etc/hosts", "etcd_key_file": "/etc/hosts"}, "needs etcd-ca-file"),
    ],
)
def test_tls_files_that_cannot_work_are_named(files: dict[str, str], problem: str) -> None:
    settings = KvstoreSettings(**{key: Path(path) for key, path in files.items()})
    with pytest.raises(InvalidError, match=problem):
        EtcdStore.from_settings(settings)
