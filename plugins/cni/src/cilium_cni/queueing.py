# SPDX-License-Identifier: Apache-2.0
"""Keeps deletes on disk while the agent is down, so that a runtime is never kept waiting.

A queued delete is one file, the JSON the agent would have been sent, named after the attachment:
deleting twice queues once. The agent takes the lock, applies and removes the files and opens its
socket before it lets go; so whoever holds the lock and still cannot connect may queue safely.
"""

import fcntl
import hashlib
import json
import os
from pathlib import Path

from cilium_cni.errors import TRY_AGAIN_LATER, CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LOCK_FILE = "lockfile"
SUFFIX = ".delete"
LIMIT = 256
"""Most files the queue holds; beyond it the runtime is asked to try again."""


def queue_name(container_id: str, ifname: str) -> str:
    """Return the name of the file for one attachment."""
    digest = hashlib.sha256(f"{container_id}:{ifname}".encode()).hexdigest()
    return digest[:32] + SUFFIX


def defer(directory: str, body: "dict[str, Any]", last_try: "Callable[[], bool]") -> bool:
    """Queue the delete unless `last_try`, called under the lock, carried it out after all.

    Returns whether a file was written. Raises CNIError when the queue is full or the directory
    cannot be written.
    """
    name = queue_name(body["containerID"], body["ifname"])
    try:
        queue = Path(directory)
        queue.mkdir(mode=0o770, parents=True, exist_ok=True)
        lock = os.open(queue / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if last_try():
                return False
            waiting = {path.name for path in queue.glob(f"*{SUFFIX}")}
            if len(waiting) >= LIMIT and name not in waiting:
                raise CNIError(
                    TRY_AGAIN_LATER,
                    f"{directory} already holds {LIMIT} deletes; the agent is down",
                    "start cilium-agent, which works them off, and delete again",
                )
            _write(queue, name, json.dumps(body).encode())
        finally:
            os.close(lock)
    except OSError as error:
        raise CNIError(
            TRY_AGAIN_LATER, f"the agent is down and {directory} cannot be written", str(error)
        ) from error
    return True


def _write(queue: Path, name: str, content: bytes) -> None:
    """Put the file in place in one step, so that the agent never reads half of it."""
    draft = queue / f".{name}.{os.getpid()}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    draft.rename(queue / name)
