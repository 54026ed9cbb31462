"""The programs at sockets: attached to the node's cgroup, and whose sockets are whose.

A program is held by a link that is pinned below the folder of pins: it serves on while no agent
runs, and the next one puts its own program into the same link, in one step. Whatever runs in the
cgroup or below it is served, so each node of a machine must have a cgroup of its own, none within
another's. Called by one thread at a time, like all of the data plane.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from cilium_core import abi

from cilium_agent.datapath import netns, pinning, syscalls
from cilium_agent.datapath.errors import BpfError, CgroupError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cilium_agent.datapath.maps import Maps

_log = structlog.get_logger(__name__)

_FOLDER = "links"
_SO_NETNS_COOKIE = 71
_MOUNTS = Path("/proc/self/mounts")


def cgroup_mount() -> Path:
    """Where cgroup v2 is mounted. Raises CgroupError when it is not."""
    for line in _MOUNTS.read_text(encoding="utf-8").splitlines():
        _, target, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(target)
    raise CgroupError(
        "cgroup v2 is not mounted, so services cannot be translated at sockets;"
        " mount -t cgroup2 cgroup2 /sys/fs/cgroup, or set bpf-lb-sock to false"
    )


def attach(root: Path, cgroup: Path, programs: Mapping[str, int]) -> None:
    """Put the programs at a cgroup, in the place of those that an earlier agent has put there.

    `root` is the folder of pins, `programs` maps names to descriptors. Raises CgroupError when
    there is no such cgroup, and BpfError when the kernel refuses.
    """
    folder = root / _FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    pinning.remove_unfinished(folder)
    with _opened(cgroup) as (fd, number):
        for name, kind in syscalls.ATTACH_TYPES.items():
            _attach_one(folder / name, fd, number, programs[name], kind)
        for path in folder.iterdir():
            if path.name not in syscalls.ATTACH_TYPES:
                _remove(path)  # of another version, which had a hook that this one has not


def _attach_one(path: Path, cgroup_fd: int, cgroup: int, program_fd: int, kind: int) -> None:
    if (held := _open(path)) is not None:
        try:
            if syscalls.cgroup_link(held).cgroup == cgroup:
                syscalls.link_update(held, program_fd)
                return
        finally:
            os.close(held)
    made = syscalls.link_create(program_fd, cgroup_fd, kind)
    try:
        pinning.replace(made, path)
    finally:
        os.close(made)


def detach(root: Path) -> None:
    """Take the programs off, wherever they are: sockets reach what they ask for themselves."""
    folder = root / _FOLDER
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        _remove(path)
    folder.rmdir()


def attached(root: Path) -> dict[str, syscalls.CgroupLink]:
    """Tell what is attached, by the name of the program; a cgroup that is gone has the number 0."""
    found = {}
    for name in syscalls.ATTACH_TYPES:
        if (fd := _open(root / _FOLDER / name)) is not None:
            try:
                found[name] = syscalls.cgroup_link(fd)
            finally:
                os.close(fd)
    return found


def _remove(path: Path) -> None:
    if (fd := _open(path)) is not None:
        try:
            with contextlib.suppress(BpfError):  # its cgroup is gone
                syscalls.link_detach(fd)
        finally:
            os.close(fd)
    path.unlink(missing_ok=True)


def _open(path: Path) -> int | None:
    try:
        return syscalls.obj_get(path)
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return None


@contextlib.contextmanager
def _opened(cgroup: Path) -> Iterator[tuple[int, int]]:
    """Open a cgroup; gives its descriptor and its number."""
    try:
        fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise CgroupError(f"cgroup-root {cgroup}: {error.strerror}") from error
    try:
        if not (cgroup / "cgroup.procs").exists():
            raise CgroupError(f"cgroup-root {cgroup} is no cgroup; name a folder of cgroup v2")
        yield fd, os.fstat(fd).st_ino
    finally:
        os.close(fd)


# ---- whose sockets ----


def own_cookie() -> int:
    """Cookie of the calling thread's network namespace, as programs at sockets know it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        value = asked.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        return int(struct.unpack("=Q", value)[0])


def cookie_of(path: str | Path) -> int:
    """Cookie of a pod's network namespace. Raises NamespaceError when it is not there."""
    return netns.run_inside(path, own_cookie)


@dataclass(frozen=True, slots=True)
class PodNamespace:
    """Whose sockets those of a namespace are."""

    endpoint: int
    identity: int
    no_redirect: bool = False
    """The pod serves a local redirect that is not for its backends' own traffic."""


class Namespaces:
    """The pods' namespaces by their cookies: cilium_netns."""

    def __init__(self, maps: Maps) -> None:
        self._map = maps["NETNS"]

    def upsert(self, cookie: int, pod: PodNamespace) -> None:
        """Say whose a namespace is."""
        info = abi.pack(
            "netns_info",
            identity=pod.identity,
            endpoint=pod.endpoint,
            flags=abi.NETNS_NO_REDIRECT if pod.no_redirect else 0,
        )
        self._map.set(_key(cookie), info)

    def delete(self, cookie: int) -> bool:
        """Forget a namespace; tells whether it was known."""
        return self._map.delete(_key(cookie))

    def dump(self) -> dict[int, PodNamespace]:
        """Every namespace that is known, by its cookie."""
        found = {}
        for key, value in self._map.items():
            info = abi.unpack("netns_info", value)
            found[int.from_bytes(key, "little")] = PodNamespace(
                info.endpoint, info.identity, bool(info.flags & abi.NETNS_NO_REDIRECT)
            )
        return found

    def prune(self, keep: set[int]) -> int:
        """Forget the namespaces whose cookies are not to be kept; returns how many."""
        return self._map.delete_many(_key(cookie) for cookie in set(self.dump()) - keep)


def _key(cookie: int) -> bytes:
    return cookie.to_bytes(8, "little")
