"""Unix sockets on the file system and listening addresses."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from cilium_core.errors import ConflictError, InvalidError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MAX_UNIX_PATH = 107  # sun_path of sockaddr_un, less its final zero


def claim_unix_path(path: Path) -> None:
    """Make `path` free to bind: create its directory, remove a socket that nobody serves.

    Raises ConflictError when a process answers there or the file is no socket, InvalidError when
    the path is too long for the kernel.
    """
    if len(os.fsencode(path)) > _MAX_UNIX_PATH:
        raise InvalidError(
            f"the socket path {path} is longer than {_MAX_UNIX_PATH} bytes; choose a shorter one"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return
    if not path.is_socket():
        raise ConflictError(f"{path} is not a socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise ConflictError(f"{path} cannot be probed: {error}") from error
    raise ConflictError(f"another process serves {path}; stop it first")


@contextmanager
def file_mode(mode: int) -> Iterator[None]:
    """Create files within with at most `mode`, so that no socket is ever open to more."""
    before = os.umask(0o777 & ~mode)
    try:
        yield
    finally:
        os.umask(before)


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`, `[v6]:port` or `:port`. Raises InvalidError."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535 or host.count("[") != host.count("]"):
        raise InvalidError(f"the address {address!r} is not of the form host:port or [v6]:port")
    return host.strip("[]"), int(port)


def raise_file_limit() -> None:
    """Let this process have as many connections open as it may; best effort."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def stop_signal() -> asyncio.Event:
    """Return an event of the running loop that SIGTERM and SIGINT set."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, event.set)
    return event
