"""Where the programs at sockets are, what they outlive, and which sockets they end."""

from __future__ import annotations

import contextlib
import ipaddress
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cilium_agent.datapath import pinning, sockets, syscalls
from cilium_agent.datapath.errors import CgroupError
from cilium_agent.datapath.terminating import Terminator
from cilium_core.policy.ports import Protocol
from cilium_core.services import L4Address

from tests.bpf.nodes import path_of
from tests.bpf.services_at_sockets import (
    BACKENDS,
    DGRAM,
    MAPPED,
    SERVICE,
    STREAM,
    UDP,
    Group,
    refused,
    unique,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from tests.bpf.services_at_sockets import Bench


@contextlib.contextmanager
def another(bench: Bench, name: str, parent: Path | None = None) -> Iterator[Group]:
    """A second group; the bench's clients are of it meanwhile."""
    made, first = Group(unique(name), parent), bench.group
    bench.group = made
    try:
        yield made
    finally:
        bench.group = first
        made.close()


def served(bench: Bench) -> bool:
    """Is a socket of the bench's group translated? Somebody listens at the backend."""
    with bench.client(4) as client:
        return refused(client, (SERVICE[4], 80)) is None


def with_service(bench: Bench) -> None:
    bench.servers(4)
    bench.cluster_ip(4)


# ---- programs ----


def test_every_program_at_sockets_is_attached(bench: Bench) -> None:
    found = sockets.attached(bench.root)
    assert {name: link.attach_type for name, link in found.items()} == syscalls.ATTACH_TYPES
    assert {link.cgroup for link in found.values()} == {bench.group.path.stat().st_ino}


def test_groups_below_are_served_and_others_are_not(bench: Bench) -> None:
    with_service(bench)
    with another(bench, "below", bench.group.path):
        assert served(bench)
    with another(bench, "beside"):
        assert not served(bench)


def test_the_next_agent_takes_the_links_over(bench: Bench) -> None:
    with_service(bench)
    before = sockets.attached(bench.root)
    sockets.attach(bench.root, bench.group.path, bench.plane.generation.programs)
    assert sockets.attached(bench.root) == before
    assert served(bench)


def test_another_group_is_served_instead(bench: Bench) -> None:
    with_service(bench)
    first = bench.group
    with another(bench, "next") as group:
        sockets.attach(bench.root, group.path, bench.plane.generation.programs)
        assert served(bench)
        bench.group = first
        assert not served(bench)
    # also when the group before has gone
    sockets.attach(bench.root, first.path, bench.plane.generation.programs)
    assert served(bench)


def test_what_is_detached_serves_nobody(bench: Bench) -> None:
    with_service(bench)
    sockets.detach(bench.root)
    assert not served(bench)
    assert sockets.attached(bench.root) == {}
    sockets.detach(bench.root)


def test_two_nodes_of_a_machine_do_not_serve_each_other(bench: Bench) -> None:
    with_service(bench)
    root = bench.root.with_name(f"{bench.root.name}-other")
    pinning.ensure_bpffs(root)
    with another(bench, "other") as group:
        sockets.attach(root, group.path, bench.plane.generation.programs)
        sockets.detach(bench.root)
        assert served(bench)
    shutil.rmtree(root)
    assert not served(bench)


@pytest.mark.parametrize("folder", ["/nonexistent", "/tmp"])
def test_a_folder_that_is_no_cgroup_is_named(bench: Bench, folder: str) -> None:
    with pytest.raises(CgroupError, match=f"cgroup-root {folder}"):
        sockets.attach(bench.root, Path(folder), bench.plane.generation.programs)


def test_namespaces_are_known_by_their_cookies(bench: Bench) -> None:
    namespaces = sockets.Namespaces(bench.plane.maps)
    cookie = sockets.cookie_of(path_of(bench.pod))
    pod = sockets.PodNamespace(endpoint=7, identity=70000, no_redirect=True)
    namespaces.upsert(cookie, pod)
    namespaces.upsert(cookie + 1, sockets.PodNamespace(8, 80000))
    assert namespaces.prune({cookie}) == 1
    assert namespaces.dump() == {cookie: pod}
    assert (namespaces.delete(cookie), namespaces.delete(cookie)) == (True, False)


# ---- sockets of backends that are gone ----


def backend(version: int, at: int, protocol: Protocol = Protocol.UDP) -> L4Address:
    return L4Address(ipaddress.ip_address(BACKENDS[version][at]), 8080, protocol)


def ended(client: socket.socket) -> bool:
    """Has the socket been ended?"""
    client.setblocking(False)
    try:
        client.recv(1)
    except ConnectionAbortedError:
        return True
    except BlockingIOError:
        return False
    return False


def connected(bench: Bench, at: tuple[str, int], kind: int = DGRAM) -> socket.socket:
    client = bench.client(6 if ":" in at[0] else 4, kind)
    client.connect(at)
    return client


def terminate(bench: Bench, *backends: L4Address) -> int:
    gone: Any = path_of(bench.pod)
    missing = Path("/proc/self/ns/no-such")
    return Terminator(bench.plane.maps).terminate(backends, [missing, gone])


def test_sockets_of_a_backend_that_is_gone_are_ended(bench: Bench, family: int) -> None:
    bench.servers(family, DGRAM)
    for number, address in enumerate(BACKENDS[family]):
        bench.services.add((SERVICE[family], 80 + number), [(address, 8080)], UDP)
    first, second = (connected(bench, (SERVICE[family], port)) for port in (80, 81))
    direct = connected(bench, (BACKENDS[family][0], 8080))
    assert terminate(bench, backend(family, 0)) == 1
    assert [ended(client) for client in (first, second, direct)] == [True, False, False]


def test_ipv4_peers_of_ipv6_sockets_are_found(bench: Bench) -> None:
    bench.servers(4, DGRAM)
    bench.services.add((SERVICE[4], 80), [(BACKENDS[4][0], 8080)], UDP)
    client = connected(bench, (MAPPED + SERVICE[4], 80))
    assert terminate(bench, backend(4, 0)) == 1
    assert ended(client)


def test_connections_are_ended_when_asked_for(bench: Bench, family: int) -> None:
    bench.servers(family)
    bench.services.add((SERVICE[family], 80), [(BACKENDS[family][0], 8080)])
    client = connected(bench, (SERVICE[family], 80), STREAM)
    assert terminate(bench, backend(family, 0, Protocol.UDP)) == 0
    assert not ended(client)
    assert terminate(bench, backend(family, 0, Protocol.TCP)) == 1
    assert ended(client)


def test_an_ended_socket_can_ask_anew(bench: Bench, family: int) -> None:
    servers = bench.servers(family, DGRAM)
    at = (SERVICE[family], 80)
    bench.services.add(at, [(BACKENDS[family][0], 8080)], UDP)
    client = connected(bench, at)
    bench.services.add(at, [(BACKENDS[family][1], 8080)], UDP)
    terminate(bench, backend(family, 0))
    assert ended(client)
    client.connect(at)
    client.send(b"x")
    assert servers[1].recv(1) == b"x"
