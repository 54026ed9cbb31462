"""A real etcd on loopback, and both stores behind one fixture."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from cilium_core.kvstore.etcd import EtcdStore
from cilium_core.kvstore.memory import MemoryCluster, MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class EtcdProcess:
    """One etcd member that can be killed and started again with its data."""

    def __init__(self, directory: Path) -> None:
        self.endpoint = f"127.0.0.1:{_free_port()}"
        self._peer = f"http://127.0.0.1:{_free_port()}"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        client = f"http://{self.endpoint}"
        self._directory.mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            [
                "etcd",
                f"--data-dir={self._directory / 'data'}",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={self._peer}",
                f"--initial-advertise-peer-urls={self._peer}",
                f"--initial-cluster=default={self._peer}",
                "--logger=zap",
                "--log-level=error",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def wipe(self) -> None:
        shutil.rmtree(self._directory / "data")


def _require_etcd() -> None:
    if shutil.which("etcd") is None:
        reason = "etcd is not installed (Debian package etcd-server)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    _require_etcd()
    process = EtcdProcess(tmp_path / "etcd")
    process.start()
    yield process
    process.kill()


@pytest.fixture(scope="module")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    _require_etcd()
    process = EtcdProcess(tmp_path_factory.mktemp("etcd"))
    process.start()
    yield process
    process.kill()


@pytest.fixture(params=["etcd", "memory"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Callable[[], Any]]:
    """Give a function that makes clients of one empty store."""
    made: list[Any] = []
    if request.param == "etcd":
        endpoint = request.getfixturevalue("shared_etcd").endpoint
        first = EtcdStore([endpoint])
        made.append(first)
        await first.delete_prefix("t/")

        def make() -> Any:
            made.append(EtcdStore([endpoint]))
            return made[-1]
    else:
        cluster = MemoryCluster()

        def make() -> Any:
            made.append(MemoryStore(cluster))
            return made[-1]

    yield make
    for store in made:
        await store.close()


@pytest.fixture
def store(connect: Callable[[], Any]) -> Any:
    return connect()


async def eventually(condition: Callable[[], Any], limit_s: float = 10.0) -> None:
    """Wait until `condition` (or what it awaits) is true."""
    async with asyncio.timeout(limit_s):
        while True:
            result = condition()
            if asyncio.iscoroutine(result):
                result = await result
            if result:
                return
            await asyncio.sleep(0.02)
