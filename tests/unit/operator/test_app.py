"""Replicas as they run: over a shared store in memory, and as processes over a real etcd."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
import pytest
from cilium.operator.v1 import operator_pb2 as pb
from cilium.operator.v1 import operator_pb2_grpc
from cilium_core.kvstore.etcd import EtcdStore
from cilium_core.kvstore.memory import MemoryCluster, MemoryStore
from cilium_core.records import HEARTBEAT, POD_CIDRS, NodeRecord
from cilium_core.settings import SettingsError, load
from cilium_operator.app import App
from cilium_operator.settings import OperatorSettings

from ..etcd_process import EtcdProcess, free_port, require_etcd
from ..waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator


async def test_one_replica_acts_and_another_takes_over() -> None:
    cluster = MemoryCluster()
    settings = OperatorSettings(operator_socket="")
    apps = [App(settings, store=MemoryStore(cluster)) for _ in range(2)]
    tasks = [asyncio.create_task(app.act()) for app in apps]
    client = MemoryStore(cluster)
    try:
        await eventually(lambda: any(app.leads for app in apps))
        leader, follower = sorted(apps, key=lambda app: not app.leads)
        await client.put(NodeRecord("n1").key, NodeRecord("n1").to_json())
        await eventually(lambda: client.get(POD_CIDRS + "n1"))
        await eventually(lambda: client.get(HEARTBEAT))
        assert not follower.leads
        assert follower.leader == leader.candidate
        assert [usage.used for usage in leader.pool_usage()] == [1, 1]

        await leader.store.abandon()  # type: ignore[attr-defined]
        await eventually(lambda: follower.leads)
        await client.put(NodeRecord("n2").key, NodeRecord("n2").to_json())
        await eventually(lambda: client.get(POD_CIDRS + "n2"))
        assert [usage.used for usage in follower.pool_usage()] == [2, 2]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for app in apps:
            await app.store.close()


async def test_without_election_a_replica_acts_at_once() -> None:
    settings = OperatorSettings(enable_leader_election=False)
    app = App(settings, store=MemoryStore())
    task = asyncio.create_task(app.act())
    await app.store.put(NodeRecord("n1").key, NodeRecord("n1").to_json())
    await eventually(lambda: app.store.get(POD_CIDRS + "n1"))
    assert app.leads
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await app.store.close()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--cluster-pool-ipv4-cidr=10.0.0.0/8,10.1.0.0/16"], "overlap; keep one of them"),
        (["--cluster-pool-ipv4-cidr=10.0.0.0/28"], "is smaller than one block"),
        (["--cluster-pool-ipv6-cidr=fd00::/8"], "use a smaller pool"),
        (["--cluster-pool-ipv4-cidr="], "set enable-ipv4 to false"),
        (["--cluster-pool-ipv4-mask-size=31"], "expected 30 or less"),
        (["--leader-election-lease-duration=1s"], "expected 2s or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(flags: list[str], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        load(OperatorSettings, flags, {})


class Replica:
    """An operator process."""

    def __init__(self, name: str, directory: Path, etcd: EtcdProcess) -> None:
        self.api = f"127.0.0.1:{free_port()}"
        self.socket = directory / f"{name}.sock"
        self.log = directory / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    Path(sys.executable).with_name("cilium-operator"),
                    f"--etcd-endpoints={etcd.endpoint}",
                    f"--node-name={name}",
                    f"--operator-api-serve-addr={self.api}",
                    f"--operator-socket={self.socket}",
                    "--log-format=json",
                ],
                stderr=log,
                env={**os.environ},
            )

    async def status(self) -> pb.GetStatusResponse | None:
        async with grpc.aio.insecure_channel(f"unix:{self.socket}") as channel:
            stub = operator_pb2_grpc.OperatorServiceStub(channel)  # type: ignore[no-untyped-call]
            try:
                answer: pb.GetStatusResponse = await stub.GetStatus(pb.GetStatusRequest())
            except grpc.aio.AioRpcError:
                return None
            return answer

    async def leads(self) -> bool:
        status = await self.status()
        return status is not None and status.leader

    async def http(self, path: str) -> tuple[int, str]:
        host, _, port = self.api.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {path} HTTP/1.1\r\n\r\n".encode())
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
        writer.close()
        return int(head.split()[1]), body

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    require_etcd()
    process = EtcdProcess(tmp_path / "etcd")
    process.start()
    yield process
    process.kill()


async def test_processes_elect_serve_survive_etcd_and_take_over(
    etcd: EtcdProcess, tmp_path: Path
) -> None:
    replicas = [Replica(f"op{n}", tmp_path, etcd) for n in range(2)]
    store = EtcdStore([etcd.endpoint])
    try:

        async def elected() -> Replica | None:
            leading = [replica for replica in replicas if await replica.leads()]
            return leading[0] if leading else None

        leader: Replica = await eventually(elected, 20)
        follower = next(replica for replica in replicas if replica is not leader)
        await store.put(NodeRecord("n1").key, NodeRecord("n1").to_json())
        await eventually(lambda: store.get(POD_CIDRS + "n1"))
        assert (await leader.http("/healthz"))[0] == 200
        assert "cilium_operator_ipam_nodes" in (await leader.http("/metrics"))[1]

        etcd.kill()

        async def failing() -> bool:
            return (await follower.http("/healthz"))[0] == 503

        await eventually(failing)
        etcd.start()

        async def again() -> bool:
            return await elected() is not None and (await follower.http("/healthz"))[0] == 200

        await eventually(again, 15)
        await store.put(NodeRecord("n2").key, NodeRecord("n2").to_json())
        await eventually(lambda: store.get(POD_CIDRS + "n2"))

        leader = await eventually(elected, 20)
        follower = next(replica for replica in replicas if replica is not leader)
        leader.kill()
        await eventually(follower.leads, 8)
        await store.put(NodeRecord("n3").key, NodeRecord("n3").to_json())
        await eventually(lambda: store.get(POD_CIDRS + "n3"))
        blocks = {item.value for item in (await store.list_prefix(POD_CIDRS)).items}
        assert len(blocks) == 3

        follower.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(follower.process.wait, 10) == 0
        assert not await asyncio.to_thread(follower.socket.exists)
        assert await store.get("cilium/state/leader/v1/operator") is None
    finally:
        for replica in replicas:
            replica.kill()
        await store.close()
