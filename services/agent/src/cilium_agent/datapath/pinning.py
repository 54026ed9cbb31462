"""The folder of pins in a bpffs: made, claimed by one agent, and changed without a gap."""

from __future__ import annotations

import ctypes
import fcntl
import os
import time
from pathlib import Path

import structlog

from cilium_agent.datapath import syscalls
from cilium_agent.datapath.errors import MapShapeError

_log = structlog.get_logger(__name__)

_BPF_FS_MAGIC = 0xCAFE4A11
_BPF_FS = Path("/sys/fs/bpf")
_UNFINISHED = "_new"
_OWNER_WAIT_S = 5.0


def replace(fd: int, path: Path) -> None:
    """Pin under a name that may be taken; whoever opens the name finds the old or the new one."""
    fresh = path.with_name(f"{path.name}{_UNFINISHED}")
    fresh.unlink(missing_ok=True)
    syscalls.obj_pin(fd, fresh)
    fresh.rename(path)


def remove_unfinished(root: Path) -> None:
    """Remove what an agent that was killed while replacing a pin has left."""
    for left in root.glob(f"*{_UNFINISHED}"):
        left.unlink()


def ensure_bpffs(root: Path) -> None:
    """Make the folder for pins, mounting a bpffs first where there is none.

    Raises MapShapeError when the folder cannot be made to hold pins.
    """
    base = _BPF_FS if root.is_relative_to(_BPF_FS) else root
    base.mkdir(parents=True, exist_ok=True)
    if not _is_bpffs(base):
        lock = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_bpffs(base):
                _mount(base)
        finally:
            os.close(lock)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)


def own(root: Path) -> int:
    """Claim a folder of pins; returns a descriptor that holds the claim until it is closed.

    A killed agent loses its claim with its descriptors. Raises MapShapeError when another agent
    still has it after some seconds.
    """
    claim = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    deadline = time.monotonic() + _OWNER_WAIT_S
    while True:
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(claim)
                raise MapShapeError(
                    f"bpf-root: another agent works in {root}; stop it or choose another folder"
                ) from None
            time.sleep(0.05)
        else:
            return claim


class _StatFs(ctypes.Structure):
    _fields_ = (("f_type", ctypes.c_long), ("rest", ctypes.c_byte * 240))


def _is_bpffs(path: Path) -> bool:
    found = _StatFs()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(path), ctypes.byref(found)):
        raise MapShapeError(f"{path}: {os.strerror(ctypes.get_errno())}")
    return bool(found.f_type == _BPF_FS_MAGIC)


def _mount(path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpffs", os.fsencode(path), b"bpf", 0, b"mode=0700"):
        raise MapShapeError(
            f"bpf-root: no bpffs can be mounted on {path}: {os.strerror(ctypes.get_errno())};"
            " mount one there, or choose a folder on one"
        )
    _log.info("bpffs mounted", path=str(path))
