"""The delete queue: pods that were deleted while no agent was there to hear of it.

The plugin writes `<state-dir>/deleteQueue/<random>.delete`, each the body of a DEL request, holding
an exclusive lock on `lockfile` while it does. The agent holds the same lock from reading the queue
until its socket answers, so no request falls in between.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cilium_core.telemetry import get_logger

from cilium_agent.cni import requests
from cilium_agent.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = get_logger()

LOCK_NAME = "lockfile"
SUFFIX = ".delete"


class DeleteQueue:
    """The queue in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the plugin's lock; blocks while a plugin writes, which takes it microseconds."""
        self._directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._directory / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def read(self) -> dict[Path, requests.PodRequest]:
        """The queued requests by file. A file that makes no sense is reported and removed."""
        queued: dict[Path, requests.PodRequest] = {}
        for path in sorted(self._directory.glob(f"*{SUFFIX}")):
            if not path.is_file():
                log.warning("no queued delete: not a file", path=str(path))
                continue
            try:
                queued[path] = requests.parse(path.read_bytes(), pod_required=False)
            except (OSError, RequestError) as error:
                log.warning("queued delete dropped", file=str(path), error=str(error))
                self.done(path)
        return queued

    def done(self, path: Path) -> None:
        """Forget a request that was carried out."""
        path.unlink(missing_ok=True)
