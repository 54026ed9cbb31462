# SPDX-License-Identifier: Apache-2.0
"""Starts and stops the lab's processes: each in a namespace, a cgroup and a log file.

A process is started through `sh` and `nsenter`, which put it into its cgroup and namespace before
its first instruction and leave its view of the file system alone (`ip netns exec` would remount
/sys and hide the BPF file system).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING

from cilium_cli.lab import cgroups
from cilium_cli.lab.layouts import NETNS_ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_JOIN = 'echo 0 > "$0/cgroup.procs" && cd "$1" && shift && exec "$@"'
_STOP_LIMIT_S = 5.0
_UNSET = ("PYTHONDONTWRITEBYTECODE",)
"""Not handed on: services that start without compiled modules start twice as slowly."""


def start(
    command: Sequence[str],
    *,
    netns: str,
    cgroup: Path,
    log: Path,
    cwd: Path,
) -> int:
    """Start the command detached from this terminal and return its process id.

    Output is appended to the log. The caller need not wait for it: init inherits it.
    """
    environment = {key: value for key, value in os.environ.items() if key not in _UNSET}
    wrapper = ["sh", "-c", _JOIN, str(cgroups.create(cgroup)), str(cwd)]
    enter = ["nsenter", f"--net={NETNS_ROOT / netns}", "--"]
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawn(
        "/bin/sh",
        [*wrapper, *enter, *command],
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), append, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    # The child joins by itself before it runs the command; doing it here as well makes sure that
    # whoever kills the group after this call returns hits it.
    with contextlib.suppress(ProcessLookupError):
        (cgroup / "cgroup.procs").write_text(str(pid))
    return pid


def start_time(pid: int) -> int | None:
    """Kernel start time of a living process in clock ticks since boot; None for none or a zombie.

    Together with the id it names a process for ever: ids are reused.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - called in loops
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {b"Z", b"X"} else int(fields[19])


def write_pidfile(path: Path, pid: int) -> None:
    """Record process id and start time."""
    path.write_text(f"{pid} {start_time(pid) or 0}\n")


def recorded_pid(path: Path) -> int | None:
    """Return the process id that was recorded, whether it is alive or not."""
    try:
        return int(path.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def read_pidfile(path: Path) -> int | None:
    """Return the process id if that very process is alive."""
    try:
        pid, started = (int(word) for word in path.read_text().split())
    except (OSError, ValueError):
        return None
    return pid if start_time(pid) == started else None


def stop(pid: int) -> None:
    """Ask the process to end, and give it a moment."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_LIMIT_S
    while start_time(pid) is not None and time.monotonic() < deadline:
        reap()
        time.sleep(0.005)


def reap() -> None:
    """Collect children of this process that ended, so that they do not linger as zombies."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
