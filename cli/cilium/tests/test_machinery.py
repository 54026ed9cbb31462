"""Namespaces, cgroups and processes of a lab, on the real kernel (needs root)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cilium_cli.errors import CommandError
from cilium_cli.lab import cgroups, clusters, fabrics, namespaces, processes
from cilium_cli.lab.layouts import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("CI"), reason="needs root: makes network namespaces"
)


@pytest.fixture
def lab() -> Iterator[Layout]:
    layout = Layout(f"t{os.getpid()}")
    for folder in (layout.logs, layout.pids, layout.pods):
        folder.mkdir(parents=True)
    yield layout
    clusters.down(layout)


def own_namespace() -> str:
    return str(Path("/proc/self/ns/net").readlink())


def eventually(condition: Callable[[], bool], limit_s: float = 5.0) -> bool:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_a_namespace_is_seen_by_ip_netns_and_gone_after_deletion(lab: Layout) -> None:
    name = f"{lab.prefix}x"

    namespaces.create(name)
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    namespaces.delete(name)

    assert name in listed.stdout
    assert namespaces.names(lab.prefix) == []
    assert name not in Path("/proc/self/mounts").read_text()


def test_creating_a_namespace_twice_is_refused_and_leaves_the_first(lab: Layout) -> None:
    name = f"{lab.prefix}x"
    namespaces.create(name)

    with pytest.raises(CommandError, match="exists already"):
        namespaces.create(name)

    assert namespaces.names(lab.prefix) == [name]


def test_deleting_an_absent_namespace_is_fine(lab: Layout) -> None:
    namespaces.delete(f"{lab.prefix}none")


def test_this_process_stays_where_it_was(lab: Layout) -> None:
    before = own_namespace()

    namespaces.create(f"{lab.prefix}x")
    with namespaces.entered(f"{lab.prefix}x"):
        inside = own_namespace()

    assert inside != before
    assert own_namespace() == before


def test_nodes_and_the_outside_reach_each_other_over_both_families(lab: Layout) -> None:
    node = lab.node(1)
    fabrics.create_fabric(lab)
    fabrics.create_node(lab, node)

    for address in (*fabrics.outside_addresses(), "172.30.0.1", "fd00:30::1"):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        outside = address in fabrics.outside_addresses()
        with namespaces.entered(lab.world_netns if outside else lab.fabric_netns):
            server = socket.create_server((address, 8080), family=family)
        with namespaces.entered(node.netns):
            client = socket.create_connection((address, 8080), timeout=2)
        client.close()
        server.close()


def test_devices_of_the_machine_are_left_alone(lab: Layout) -> None:
    before = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True)

    fabrics.create_fabric(lab)
    fabrics.create_node(lab, lab.node(1))

    after = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True)
    assert names(before.stdout) == names(after.stdout)


def names(links: str) -> list[str]:
    return [line.split(":")[1].strip() for line in links.splitlines()]


def start(lab: Layout, *command: str) -> int:
    namespaces.create(f"{lab.prefix}x")
    return processes.start(
        command,
        netns=f"{lab.prefix}x",
        cgroup=cgroups.group(lab.name, "part"),
        log=lab.logs / "part.log",
        cwd=lab.folder,
    )


def test_a_process_runs_in_its_namespace_and_cgroup_and_logs(lab: Layout) -> None:
    pid = start(lab, "sh", "-c", "readlink /proc/self/ns/net; pwd; cat /proc/self/cgroup; sleep 60")

    log = lab.logs / "part.log"
    assert eventually(lambda: log.exists() and "/part\n" in log.read_text())
    link, folder, *groups = log.read_text().splitlines()
    assert link != own_namespace()
    assert folder == str(lab.folder)
    assert any(line.endswith(f"/cilium-lab/{lab.name}/part") for line in groups)
    assert processes.start_time(pid) is not None


def test_a_pidfile_names_one_process_for_ever(lab: Layout) -> None:
    pidfile = lab.pids / "part"
    pid = start(lab, "sleep", "60")
    processes.write_pidfile(pidfile, pid)
    alive = processes.read_pidfile(pidfile)

    pidfile.write_text(f"{pid} 1\n")
    reused = processes.read_pidfile(pidfile)

    assert alive == pid
    assert reused is None


def test_killing_a_group_reaches_what_it_forked(lab: Layout) -> None:
    pid = start(lab, "sh", "-c", "setsid sleep 61 & setsid setsid sleep 62 & wait")
    group = cgroups.group(lab.name, "part")
    assert eventually(lambda: len(cgroups.processes(group)) >= 3)

    cgroups.kill(group)

    assert cgroups.processes(group) == []
    assert processes.start_time(pid) is None


def test_stopping_asks_first(lab: Layout) -> None:
    script = "trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.05; done"
    pid = start(lab, "sh", "-c", script)
    assert eventually(lambda: "up" in (lab.logs / "part.log").read_text())

    processes.stop(pid)

    assert "asked" in (lab.logs / "part.log").read_text()
    assert processes.start_time(pid) is None


def test_down_finds_what_left_its_cgroup_and_leaves_nothing(lab: Layout) -> None:
    fabrics.create_fabric(lab)
    pid = start(lab, "sleep", "60")
    assert eventually(lambda: processes.start_time(pid) is not None)
    (cgroups.mount_point() / "cgroup.procs").write_text(str(pid))  # it escapes
    assert eventually(lambda: pid in namespaces.members(lab.prefix))

    found = clusters.down(lab)

    assert found
    assert processes.start_time(pid) is None
    assert namespaces.names(lab.prefix) == []
    assert not lab.folder.exists()
    assert not cgroups.group(lab.name).exists()
    assert not clusters.down(lab)


def test_down_spares_another_lab(lab: Layout) -> None:
    other = Layout(f"{lab.name}b")
    for folder in (other.logs, other.pids, other.pods):
        folder.mkdir(parents=True)
    try:
        pid = start(other, "sleep", "60")
        fabrics.create_fabric(lab)

        clusters.down(lab)

        assert processes.start_time(pid) is not None
        assert namespaces.names(other.prefix) == [f"{other.prefix}x"]
    finally:
        clusters.down(other)


def test_two_commands_never_change_one_lab_at_once(
    lab: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "_LOCK_LIMIT_S", 0.1)

    with (
        clusters.locked(lab),
        pytest.raises(CommandError, match="another command"),
        clusters.locked(lab),
    ):
        raise AssertionError("two hold the lock")


def test_signals_end_a_process_that_does_not_listen(lab: Layout) -> None:
    pid = start(lab, "sleep", "60")
    os.kill(pid, signal.SIGSTOP)

    cgroups.kill(cgroups.group(lab.name, "part"))

    assert processes.start_time(pid) is None
