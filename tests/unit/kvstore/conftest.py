"""A real etcd on loopback, and both stores behind one fixture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from cilium_core.kvstore.etcd import EtcdStore
from cilium_core.kvstore.memory import MemoryCluster, MemoryStore

from ..etcd_process import EtcdProcess, require_etcd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    require_etcd()
    process = EtcdProcess(tmp_path / "etcd")
    process.start()
    yield process
    process.kill()


@pytest.fixture(scope="module")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    require_etcd()
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
