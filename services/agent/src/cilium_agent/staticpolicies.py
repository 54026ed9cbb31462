"""Policies from a folder on the node (`static-cnp-path`), beside those of the store.

The folder is read when the agent starts, and looked at every second. A file is read anew once it
has kept still between two looks, so that none is taken up half-written. A file that cannot be read
as a whole is told as a finding, and what it last held stays in force; so does everything while the
folder cannot be read. Event loop, with a thread for the disk.
"""

from __future__ import annotations

import asyncio
import stat
from typing import TYPE_CHECKING, Any, NamedTuple

from cilium_core.errors import InvalidError
from cilium_core.policy import PolicyRef
from cilium_core.policy.files import file_of, read_file
from cilium_core.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from cilium_agent.policies import Policies

log = get_logger()

INTERVAL_S = 1.0
"""Time between two looks."""

MAX_BYTES = 1 << 21
"""Largest file."""

_ENDINGS = (".yaml", ".yml", ".json")
_FILE_KIND = "File"


class _Stamp(NamedTuple):
    """What changes whenever a file does."""

    inode: int
    size: int
    modified_ns: int


class StaticPolicies:
    """The files of a folder."""

    def __init__(self, folder: Path, policies: Policies, earlier: Iterable[PolicyRef]) -> None:
        """`earlier` are the policies that an earlier run of the agent had accepted."""
        self._folder = folder
        self._policies = policies
        self._held: dict[str, set[PolicyRef]] = {}
        for ref in earlier:
            if file := file_of(ref):
                self._held.setdefault(file, set()).add(ref)
        self._seen: dict[str, _Stamp] = {}
        self._taken: dict[str, _Stamp] = {}
        self._doubted: dict[PolicyRef, str] = {}

    async def load(self) -> None:
        """Note every policy in the folder; for the start."""
        await self._look(at_once=True)

    async def reconcile(self) -> None:
        """Note what changed."""
        await self._look(at_once=False)

    async def _look(self, *, at_once: bool) -> None:
        try:
            stamps = await asyncio.to_thread(_stamps, self._folder)
        except OSError as error:
            reason = f"static-cnp-path {self._folder} cannot be read: {error.strerror or error}"
            self._doubt("", {ref for refs in self._held.values() for ref in refs}, reason)
            return
        self._trust("")
        still = {file for file, stamp in stamps.items() if self._seen.get(file) == stamp}
        self._seen = stamps
        wanted: dict[PolicyRef, Mapping[str, Any]] = {}
        before: set[PolicyRef] = set()
        for file in sorted(self._held.keys() | self._taken.keys() | stamps.keys()):
            if file not in stamps:
                before |= self._held.pop(file, set())
                self._taken.pop(file, None)
                self._trust(file)
            elif self._taken.get(file) != stamps[file] and (at_once or file in still):
                self._taken[file] = stamps[file]
                found = await self._read(file)
                if found is not None:
                    before |= self._held.get(file, set())
                    self._held[file] = set(found)
                    wanted.update(found)
        for ref, document in wanted.items():
            self._policies.upsert_object(ref, document)
        for ref in before - wanted.keys():
            self._policies.delete_object(ref)

    async def _read(self, file: str) -> dict[PolicyRef, Mapping[str, Any]] | None:
        """What a file holds; None when that cannot be told."""
        try:
            text = await asyncio.to_thread(_text, self._folder / file)
            found = await asyncio.to_thread(read_file, text, file)
        except OSError as error:
            self._doubt(file, self._held.get(file, set()), f"{file}: {error.strerror or error}")
            return None
        except InvalidError as error:
            self._doubt(file, self._held.get(file, set()), str(error))
            return None
        self._trust(file)
        log.info("policies read", file=file, policies=len(found))
        return found

    def _doubt(self, file: str, refs: set[PolicyRef], reason: str) -> None:
        """Have what is known of a file, or of all, stay as it is, and say why."""
        place = self._place(file)
        if self._doubted.get(place) == reason:
            return
        self._doubted[place] = reason
        log.error("file of policies refused; what was accepted stays", error=reason)
        for ref in (place, *refs):
            self._policies.doubt_object(ref, {}, reason)

    def _trust(self, file: str) -> None:
        """Take back that a file, or the folder, cannot be read."""
        place = self._place(file)
        if self._doubted.pop(place, None) is not None:
            self._policies.forget_object(place)
            if not file:
                self._taken.clear()

    def _place(self, file: str) -> PolicyRef:
        return PolicyRef(_FILE_KIND, "", str(self._folder / file) if file else str(self._folder))


def _stamps(folder: Path) -> dict[str, _Stamp]:
    """The files of policies in a folder; those whose name begins with a dot are none."""
    found = {}
    for path in folder.iterdir():
        if path.name.startswith(".") or path.suffix not in _ENDINGS:
            continue
        try:
            status = path.stat()
        except FileNotFoundError:
            if path.is_symlink():  # leads nowhere: a file that cannot be read, not one that is gone
                found[path.name] = _Stamp(0, 0, 0)
            continue
        if stat.S_ISREG(status.st_mode):
            found[path.name] = _Stamp(status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def _text(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise InvalidError(f"{path.name}: has more than {MAX_BYTES} bytes; split it")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InvalidError(f"{path.name}: is not UTF-8: {error.reason}") from error
