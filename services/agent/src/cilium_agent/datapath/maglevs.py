"""The tables of Maglev in the maps: made anew for each change, and swapped in one step.

Frontends with the same backends and weights share a table. Used by `services` alone.
"""

from __future__ import annotations

import mmap
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from cilium_core.services import maglev

from cilium_agent.datapath import syscalls

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cilium_core.services.models import Backend

    from cilium_agent.datapath.maps import Map

    Key = tuple[tuple[int, ...], tuple[int, ...]]


class MaglevTables:
    """Tables by id of a frontend."""

    def __init__(self, held: Map, seed: str) -> None:
        """Take over the tables that are there; `seed` is the same on all nodes."""
        self._map = held
        self._seed = seed
        inner = held.spec.inner
        self._size = inner.max_entries if inner is not None else 0
        self._keys: dict[int, Key] = {}
        self._wanted: dict[int, tuple[Key, tuple[Backend, ...]]] = {}
        self._inherited = {
            int.from_bytes(key, "little"): int.from_bytes(value, "little")
            for key, value in held.items()
        }
        self._made: dict[Key, int] = {}
        self._uses: Counter[Key] = Counter()

    @property
    def count(self) -> int:
        """Frontends that have a table."""
        return len(self._keys.keys() | self._inherited.keys())

    def has(self, number: int) -> bool:
        """Whether a frontend has a table."""
        return number in self._keys or number in self._inherited or number in self._wanted

    def want(self, number: int, backends: tuple[Backend, ...], ids: tuple[int, ...]) -> None:
        """Have a frontend served by a table of these backends; `write` makes it so."""
        key = (ids, tuple(backend.weight for backend in backends))
        if self._keys.get(number) != key:
            self._wanted[number] = (key, backends)
        else:
            self._wanted.pop(number, None)

    def write(self) -> None:
        """Make the tables that are wanted. Raises BpfError."""
        if not self._wanted:
            return
        contents: dict[Key, Any] = {}
        made: dict[Key, int] = {}
        rows: dict[bytes, bytes] = {}
        try:
            for number, (key, backends) in self._wanted.items():
                if key not in contents:
                    positions = maglev.table(backends, self._size, self._seed)
                    contents[key] = np.array(key[0], np.uint32)[positions]
                if self._is_there(number, contents[key]):
                    self._made.setdefault(key, self._inherited[number])
                    continue
                if key not in made:
                    made[key] = self._share(key) or self._make(contents[key])
                rows[number.to_bytes(4, "little")] = made[key].to_bytes(4, "little")
            self._map.set_many(rows)
            self._made |= {key: syscalls.map_info(fd).id for key, fd in made.items()}
        finally:
            for fd in made.values():
                os.close(fd)
        for number, (key, _) in self._wanted.items():
            self._uses[key] += 1
            self._forget(number)
            self._keys[number] = key
        self._wanted = {}

    def drop(self, numbers: Iterable[int]) -> None:
        """Remove the tables of frontends."""
        listed = list(numbers)
        self._map.delete_many(number.to_bytes(4, "little") for number in listed)
        for number in listed:
            self._wanted.pop(number, None)
            self._forget(number)

    def prune(self) -> None:
        """Remove the tables that an earlier run left and nobody has asked for since."""
        self.drop(list(self._inherited))

    def erase(self) -> None:
        """Remove all tables."""
        self.drop([*self._inherited, *self._keys])

    def _forget(self, number: int) -> None:
        self._inherited.pop(number, None)
        key = self._keys.pop(number, None)
        if key is None:
            return
        self._uses[key] -= 1
        if not self._uses[key]:
            del self._uses[key]
            self._made.pop(key, None)

    def _is_there(self, number: int, content: Any) -> bool:
        """Whether a table that an earlier run left says the same."""
        map_id = self._inherited.get(number)
        if map_id is None:
            return False
        fd = syscalls.map_by_id(map_id)
        try:
            with mmap.mmap(fd, self._length, mmap.MAP_SHARED) as memory:
                return bool(np.array_equal(self._view(memory), content))
        finally:
            os.close(fd)

    def _share(self, key: Key) -> int:
        """Open the table of another frontend with the same backends, 0 when there is none."""
        map_id = self._made.get(key)
        return 0 if map_id is None else syscalls.map_by_id(map_id)

    def _make(self, content: Any) -> int:
        fd = self._map.new_inner()
        try:
            with mmap.mmap(fd, self._length, mmap.MAP_SHARED) as memory:
                self._view(memory)[:] = content
        except BaseException:
            os.close(fd)
            raise
        return fd

    @property
    def _length(self) -> int:
        return -(-self._size * 8 // mmap.PAGESIZE) * mmap.PAGESIZE

    def _view(self, memory: mmap.mmap) -> Any:
        return np.frombuffer(memory, np.uint32, 2 * self._size)[::2]
