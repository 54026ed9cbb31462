# SPDX-License-Identifier: Apache-2.0
"""The lab's part of the cgroup v2 tree: one group per process and pod.

A group is what makes a process the lab's own: `kill` reaches every descendant, whatever it forked
and whichever pidfile was lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from functools import cache
from pathlib import Path

from cilium_cli.errors import CommandError, DeadlineError
from cilium_cli.lab.layouts import CGROUP_NAME

_KILL_LIMIT_S = 10.0


@cache
def mount_point() -> Path:
    """Where cgroup v2 is mounted; raises CommandError when it is not."""
    with Path("/proc/self/mounts").open() as lines:
        for line in lines:
            _, target, kind, *_ = line.split()
            if kind == "cgroup2":
                return Path(target)
    raise CommandError(
        "cgroup v2 is not mounted",
        "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified",
    )


def group(*parts: str) -> Path:
    """Path of a lab's group: lab name, then node or component, then process."""
    return mount_point().joinpath(CGROUP_NAME, *parts)


def create(path: Path) -> Path:
    """Create the group and its parents if they are missing."""
    path.mkdir(parents=True, exist_ok=True)
    return path


def join(path: Path) -> None:
    """Move the calling process into the group."""
    (path / "cgroup.procs").write_text("0")


def processes(path: Path) -> list[int]:
    """Processes of the group and all below it."""
    found = []
    for folder, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            found += [int(pid) for pid in Path(folder, "cgroup.procs").read_text().split()]
    return found


def kill_session(path: Path, session: int) -> None:
    """SIGKILL the processes of the group that belong to a session, and wait until they are gone.

    What a service started in a session of its own is meant to outlive it, and is left alone.
    """
    deadline = time.monotonic() + _KILL_LIMIT_S
    while left := [pid for pid in processes(path) if _session(pid) == session]:
        if time.monotonic() > deadline:
            raise DeadlineError(f"processes {left} of {path} do not die")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def _session(pid: int) -> int:
    """The session of a process, 0 when it is gone."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def kill(path: Path) -> None:
    """SIGKILL everything in the group and below, and wait until it is gone."""
    if not path.exists():
        return
    deadline = time.monotonic() + _KILL_LIMIT_S
    while True:
        with contextlib.suppress(FileNotFoundError):
            (path / "cgroup.kill").write_text("1")
        left = processes(path)
        if not left:
            return
        if time.monotonic() > deadline:
            raise DeadlineError(f"processes {left} of {path} do not die")
        time.sleep(0.005)


def remove(path: Path) -> None:
    """Remove the group and all below it, deepest first. They must be empty of processes."""
    for folder, _, _ in os.walk(path, topdown=False):
        _remove_one(Path(folder))


def _remove_one(path: Path) -> None:
    """A group stays busy for a moment after its last process died."""
    deadline = time.monotonic() + _KILL_LIMIT_S
    while True:
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise CommandError(f"cannot remove {path}: {error.strerror}") from error
            time.sleep(0.005)
        else:
            return


def remove_if_empty(path: Path) -> None:
    """Remove the group unless something is in it."""
    with contextlib.suppress(OSError):
        path.rmdir()
