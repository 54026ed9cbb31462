# SPDX-License-Identifier: Apache-2.0
"""Brings a lab up and takes it down.

`up` starts everything at once and then waits: the services find each other by retrying, as they do
anywhere. `down` removes what it finds in the kernel and on disk, whatever is recorded, so it also
clears what a crashed `up` left. Both hold the lab's lock; a lock lives as long as its process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cilium_cli.errors import CommandError, InputError
from cilium_cli.lab import cgroups, components, fabrics, namespaces, processes, readiness
from cilium_cli.lab.etcd import Gateway
from cilium_cli.lab.layouts import BPF_ROOT, MAX_NODES, RUN_ROOT, Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cilium_cli.lab.components import Component
    from cilium_cli.lab.layouts import NodeLayout

_BPFFS = Path("/sys/fs/bpf")
READY_LIMIT_S = 120.0
_LOCK_LIMIT_S = 30.0
_KILL_LIMIT_S = 10.0


@contextlib.contextmanager
def locked(lab: Layout) -> Iterator[None]:
    """Keep other commands from changing the same lab; raises CommandError after a while."""
    path = RUN_ROOT / f".{lab.name}.lock"
    deadline = time.monotonic() + _LOCK_LIMIT_S
    while (descriptor := _try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise CommandError(f"another command is changing lab {lab.name}")
        time.sleep(0.05)
    try:
        yield
    finally:
        if not lab.folder.exists():
            path.unlink()
            with contextlib.suppress(OSError):
                RUN_ROOT.rmdir()
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    """Lock the file; None when someone else has it, or removed it under our hands."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM clean up as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def nodes(lab: Layout) -> list[NodeLayout]:
    """Nodes of a lab that is up."""
    count = json.loads(lab.record.read_text())["nodes"]
    return [lab.node(number) for number in range(1, count + 1)]


def parts(lab: Layout) -> list[Component]:
    """Components of a lab that is up."""
    return components.all_components(lab, nodes(lab))


def up(
    lab: Layout,
    count: int,
    progress: Callable[[str], None],
    settings: Mapping[str, Mapping[str, str]] | None = None,
    limit_s: float = READY_LIMIT_S,
) -> None:
    """Create a lab of `count` nodes and return when all of it is ready.

    Raises DeadlineError, and leaves nothing, when that takes longer than `limit_s` seconds.
    `settings` are those of the agents that differ from a lab's own, by node; "" is every node.
    """
    if not 1 <= count <= MAX_NODES:
        raise InputError(f"nodes: {count} is out of range", f"1 to {MAX_NODES}")
    if os.geteuid() != 0:
        raise CommandError("a lab needs root", "run as root: it makes namespaces and loads eBPF")
    with locked(lab), _interruptible():
        if lab.exists():
            raise CommandError(
                f"lab {lab.name} exists already",
                f"cilium lab down --lab {lab.name}, or choose another --name",
            )
        _sweep(lab)  # what a crash may have left under this name
        try:
            _create(lab, count, progress, settings or {}, limit_s)
        except BaseException:
            keep = _save_logs(lab)
            _sweep(lab)
            if keep is not None:
                progress(f"logs of the failed start are kept in {keep}")
            raise


def _create(
    lab: Layout,
    count: int,
    progress: Callable[[str], None],
    settings: Mapping[str, Mapping[str, str]],
    limit_s: float,
) -> None:
    began = time.monotonic()

    def report(what: str) -> None:
        progress(f"{time.monotonic() - began:5.1f} s  {what}")

    _mount_bpffs()
    layouts = [lab.node(number) for number in range(1, count + 1)]
    for folder in (lab.folder, lab.logs, lab.pids, lab.pods):
        folder.mkdir(parents=True, exist_ok=True)
    for node in layouts:
        for folder in (node.run, node.cni_config, node.bpf):
            folder.mkdir(parents=True, exist_ok=True)
    components.write_configs(lab, layouts, settings)
    _install_plugin(lab)
    lab.record.write_text(json.dumps({"name": lab.name, "nodes": count}))
    all_parts = components.all_components(lab, layouts)
    fabrics.create_fabric(lab)
    components.etcd(lab).start()
    for node in layouts:
        fabrics.create_node(lab, node)
        components.agent(lab, node).start()
    report(f"fabric, world and {count} nodes")
    for part in all_parts:
        if part.pid() is None:
            part.start()
    report(f"{len(all_parts)} services started")
    store = Gateway(lab)
    try:
        readiness.wait(
            _checks(lab, layouts, store),
            all_parts,
            limit_s,
            lambda name: report(f"{name} is ready"),
        )
    finally:
        store.close()


def _install_plugin(lab: Layout) -> None:
    command = [components.executable("cilium-cni"), "install", str(lab.bin)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandError(f"cilium-cni cannot be installed: {done.stdout or done.stderr}")


def _checks(lab: Layout, layouts: list[NodeLayout], store: Gateway) -> dict[str, Callable[[], str]]:
    """What ready means, by component."""
    checks: dict[str, Callable[[], str]] = {"etcd": partial(readiness.etcd_ready, store)}
    for number in range(1, components.OPERATORS + 1):
        checks[f"operator{number}"] = partial(
            readiness.operator_ready, lab.operator_socket(number), store, f"operator{number}"
        )
    for node in layouts:
        checks[f"{node.name}/agent"] = partial(readiness.agent_ready, node)
        checks[f"{node.name}/hubble-server"] = partial(
            readiness.grpc_serving, node.hubble_socket, f"hubble-server of {node.name}"
        )
    checks["relay"] = partial(readiness.relay_ready, lab, len(layouts))
    return checks


def examine(lab: Layout) -> list[tuple[Component, str]]:
    """Return each component with what it lacks, "" when it is ready."""
    store = Gateway(lab)
    try:
        checks = _checks(lab, nodes(lab), store)
        return [(part, checks[part.name]()) for part in parts(lab)]
    finally:
        store.close()


def wait(lab: Layout, limit_s: float) -> None:
    """Return once every component of a lab is ready; raises DeadlineError."""
    store = Gateway(lab)
    try:
        readiness.wait(_checks(lab, nodes(lab), store), parts(lab), limit_s, lambda _: None)
    finally:
        store.close()


def down(lab: Layout) -> bool:
    """Remove the lab and every trace of it; returns whether there was any."""
    if os.geteuid() != 0:
        raise CommandError("removing a lab needs root")
    with locked(lab):
        return _sweep(lab)


def _sweep(lab: Layout) -> bool:
    group = cgroups.group(lab.name)
    found = group.exists() or lab.folder.exists() or lab.bpf.exists()
    cgroups.kill(group)
    _kill_strays(lab)
    processes.reap()
    for name in namespaces.names(lab.prefix):
        namespaces.delete(name)
        found = True
    for root in (lab.bpf, lab.folder):
        shutil.rmtree(root, ignore_errors=True)
        if root.exists():
            raise CommandError(f"cannot remove {root}")
    cgroups.remove(group)
    cgroups.remove_if_empty(group.parent)
    with contextlib.suppress(OSError):
        BPF_ROOT.rmdir()
    return found


def _kill_strays(lab: Layout) -> None:
    """Kill what left the lab's cgroups: recorded processes, and any inside its namespaces."""
    recorded = [processes.read_pidfile(path) for path in lab.pids.glob("*")]
    strays = {pid for pid in recorded if pid is not None} | set(namespaces.members(lab.prefix))
    for pid in strays:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _KILL_LIMIT_S
    while strays and time.monotonic() < deadline:
        processes.reap()
        strays = {pid for pid in strays if processes.start_time(pid) is not None}
        time.sleep(0.005)


def _mount_bpffs() -> None:
    with Path("/proc/self/mounts").open() as lines:
        if any(line.split()[1:3] == [str(_BPFFS), "bpf"] for line in lines):
            return
    done = subprocess.run(
        ["mount", "-t", "bpf", "bpf", str(_BPFFS)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CommandError(f"cannot mount the BPF file system: {done.stderr.strip()}")


def _save_logs(lab: Layout) -> Path | None:
    """Keep the logs of a start that failed where they can be read."""
    if not lab.logs.exists():
        return None
    kept = Path("/tmp") / f"cilium-lab-{lab.name}-logs"  # noqa: S108 - root's own, replaced
    shutil.rmtree(kept, ignore_errors=True)
    with contextlib.suppress(OSError):
        shutil.copytree(lab.logs, kept)
        return kept
    return None
