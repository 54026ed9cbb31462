"""Policy objects as they were last accepted, on disk.

An object whose new version is refused goes on being enforced as it was. That must also hold for an
agent that restarts in between, which never saw the earlier version: without it, the pods that the
object selects would be open. The files are written when an object is accepted and removed when it
is deleted; one that cannot be read is left out with a warning.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from cilium_core.files import write_atomic
from cilium_core.policy import PolicyRef
from cilium_core.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

log = get_logger()


class AcceptedObjects:
    """A folder with a file for each object in force."""

    def __init__(self, folder: Path) -> None:
        """Nothing is read or written yet."""
        self._folder = folder

    def load(self) -> dict[PolicyRef, Mapping[str, Any]]:
        """What an earlier run accepted."""
        found: dict[PolicyRef, Mapping[str, Any]] = {}
        for path in sorted(self._folder.glob("*.json")):
            try:
                document = json.loads(path.read_bytes())
                found[PolicyRef(*document["ref"])] = document["object"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("accepted policy ignored", file=str(path), error=str(error))
        return found

    def keep(self, ref: PolicyRef, document: Mapping[str, Any]) -> None:
        """Write an object; a disk that refuses costs a warning, not the policy."""
        content = json.dumps({"ref": list(ref), "object": document}).encode()
        try:
            write_atomic(self._path(ref), content)
        except OSError as error:
            log.warning("accepted policy not kept", policy=str(ref), error=str(error))

    def forget(self, ref: PolicyRef) -> None:
        """Remove an object; one that is not there is fine."""
        try:
            self._path(ref).unlink(missing_ok=True)
        except OSError as error:
            log.warning("accepted policy not removed", policy=str(ref), error=str(error))

    def _path(self, ref: PolicyRef) -> Path:
        return self._folder / f"{hashlib.sha256(json.dumps(list(ref)).encode()).hexdigest()}.json"
