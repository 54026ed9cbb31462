# SPDX-License-Identifier: Apache-2.0
"""Network namespaces with a name below /run/netns, as `ip netns` keeps them.

Called from the main thread of short-lived commands. `entered` changes the namespace of the calling
thread only; a socket opened inside stays in that namespace. Python 3.11 has no `os.setns`, hence
ctypes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import subprocess
from typing import TYPE_CHECKING

from cilium_cli.errors import CommandError
from cilium_cli.lab.layouts import NETNS_ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000
_MS_BIND, _MS_REC, _MS_SHARED = 4096, 16384, 1 << 20
_MNT_DETACH = 2
_OWN = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, doing: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        remedy = "run as root" if number == errno.EPERM else ""
        raise CommandError(f"{doing}: {os.strerror(number)}", remedy)


def _mount(source: str, target: str, flags: int) -> int:
    return int(_libc.mount(source.encode(), target.encode(), b"none", flags, None))


def _prepare_root() -> None:
    """Make /run/netns a shared mount, or `ip netns` would hide and leak what is below it."""
    NETNS_ROOT.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock = os.open(NETNS_ROOT, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        root = str(NETNS_ROOT)
        if _mount("", root, _MS_SHARED | _MS_REC) != 0:
            _check(_mount(root, root, _MS_BIND | _MS_REC), f"cannot mount {root} on itself")
            _check(_mount("", root, _MS_SHARED | _MS_REC), f"cannot share the mount {root}")
    finally:
        os.close(lock)


def create(name: str) -> None:
    """Create the namespace; raises CommandError when it exists or may not be created."""
    _prepare_root()
    path = NETNS_ROOT / name
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o000))
    except FileExistsError:
        raise CommandError(f"network namespace {name} exists already") from None
    own = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(_CLONE_NEWNET), "cannot create a network namespace")
        try:
            _check(_mount(_OWN, str(path), _MS_BIND), f"cannot keep network namespace {name}")
        finally:
            _check(_libc.setns(own, _CLONE_NEWNET), "cannot return to the former namespace")
    except CommandError:
        path.unlink()
        raise
    finally:
        os.close(own)


def delete(name: str) -> None:
    """Remove the name; the kernel takes the devices down once no process is inside."""
    path = NETNS_ROOT / name
    _libc.umount2(str(path).encode(), _MNT_DETACH)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def enter(name: str) -> None:
    """Move the calling thread into the namespace for good."""
    try:
        descriptor = os.open(NETNS_ROOT / name, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CommandError(f"there is no network namespace {name}") from None
    try:
        _check(_libc.setns(descriptor, _CLONE_NEWNET), f"cannot enter network namespace {name}")
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def entered(name: str) -> Iterator[None]:
    """Run the block inside the namespace."""
    own = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(name)
        try:
            yield
        finally:
            _check(_libc.setns(own, _CLONE_NEWNET), "cannot return to the former namespace")
    finally:
        os.close(own)


def names(prefix: str) -> list[str]:
    """Names of the namespaces that begin with the prefix, sorted."""
    try:
        return sorted(path.name for path in NETNS_ROOT.iterdir() if path.name.startswith(prefix))
    except FileNotFoundError:
        return []


def ip_batch(lines: list[str], name: str) -> None:
    """Feed lines to `ip -batch` inside the namespace: one process for many devices."""
    with entered(name):
        done = subprocess.run(
            ["ip", "-batch", "-"],
            input="\n".join(lines),
            text=True,
            capture_output=True,
            check=False,
        )
    if done.returncode:
        raise CommandError(f"cannot set up devices in {name}: {done.stderr.strip()}")


def write_sysctls(values: dict[str, str], name: str) -> None:
    """Set sysctls of the namespace, keys as paths below /proc/sys/net. Absent ones are skipped."""
    with entered(name):
        for key, value in values.items():
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(f"/proc/sys/net/{key}", os.O_WRONLY)
                try:
                    os.write(descriptor, value.encode())
                finally:
                    os.close(descriptor)


def members(prefix: str) -> list[int]:
    """Processes inside any namespace that begins with the prefix, the caller excepted."""
    inodes = set()
    for name in names(prefix):
        with contextlib.suppress(OSError):
            inodes.add(os.stat(NETNS_ROOT / name).st_ino)  # noqa: PTH116 - one call, no object
    own = os.getpid()
    found = []
    for entry in os.listdir("/proc"):  # noqa: PTH208 - hundreds of names, no objects
        if entry.isdigit() and int(entry) != own:
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{entry}/ns/net").st_ino in inodes:  # noqa: PTH116
                    found.append(int(entry))
    return found
