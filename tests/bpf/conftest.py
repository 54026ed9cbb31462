"""One data plane for all cases, emptied before each of them."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.needing import need

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bpf.clusters import Cluster
    from tests.bpf.harness import Namespace, Plane
    from tests.bpf.scenes import Scene
    from tests.bpf.services_at_sockets import Bench, Group

CACHE = Path(__file__).parents[2] / "build" / "templates"


def why_not() -> str:
    """Tell why programs cannot be loaded here, empty when they can."""
    if os.geteuid():
        return "loading programs needs root"
    try:
        import bcc  # noqa: F401
    except ImportError as error:
        return f"bcc cannot be imported: {error}"
    headers = Path("/lib/modules") / os.uname().release / "build"
    return "" if headers.exists() else f"no kernel headers in {headers}; run make setup"


@pytest.fixture(scope="session")
def loaded_plane() -> Iterator[Plane]:
    need(why_not())
    from tests.bpf.harness import Plane

    plane = Plane(CACHE)
    yield plane
    plane.close()


@pytest.fixture
def plane(loaded_plane: Plane) -> Plane:
    """The data plane with every map empty and the default configuration."""
    loaded_plane.reset()
    return loaded_plane


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def scene(plane: Plane, request: pytest.FixtureRequest) -> Scene:
    """The cluster of scenes.py, in each address family."""
    from tests.bpf.scenes import Scene

    return Scene(plane, request.param).build()


@pytest.fixture
def scene4(plane: Plane) -> Scene:
    """The cluster, for what only IPv4 has."""
    from tests.bpf.scenes import Scene

    return Scene(plane, 4).build()


@pytest.fixture
def scene6(plane: Plane) -> Scene:
    """The cluster, for what only IPv6 has."""
    from tests.bpf.scenes import Scene

    return Scene(plane, 6).build()


@contextlib.contextmanager
def _cluster() -> Iterator[Cluster]:
    need(why_not())
    from cilium_agent.datapath import pinning

    from tests.bpf.clusters import Cluster

    root = Path("/sys/fs/bpf") / f"test-{os.getpid()}-{secrets.token_hex(4)}"
    pinning.ensure_bpffs(root)
    made = Cluster(root)
    yield made
    made.close()
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The cluster of clusters.py, for real traffic."""
    with _cluster() as made:
        yield made


@pytest.fixture(scope="session")
def watched_cluster() -> Iterator[Cluster]:
    """The same, shared by modules that look at its traffic and change nothing for others."""
    with _cluster() as made:
        yield made


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    """IP version of the traffic."""
    return int(request.param)


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    """A cgroup that makes sockets."""
    need(why_not())
    from tests.bpf.services_at_sockets import Group, unique

    made = Group(unique("cilium-sockets"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def asker() -> Iterator[Namespace]:
    """The namespace of who asks, with the addresses of all that may serve."""
    need(why_not())
    from tests.bpf.harness import Namespace
    from tests.bpf.services_at_sockets import BACKENDS, NODE, give_addresses

    made = Namespace()
    give_addresses(made, [*BACKENDS[4], *BACKENDS[6], NODE[4], NODE[6]])
    yield made
    made.close()


@pytest.fixture
def bench(plane: Plane, group: Group, asker: Namespace) -> Iterator[Bench]:
    """Programs at the cgroup's sockets, and services for them."""
    from cilium_agent.datapath import pinning

    from tests.bpf.services_at_sockets import Bench

    root = Path("/sys/fs/bpf") / f"sockets-{secrets.token_hex(4)}"
    pinning.ensure_bpffs(root)
    made = Bench(plane, group, root, asker)
    yield made
    made.close()
    shutil.rmtree(root)
