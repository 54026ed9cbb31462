"""The maps of one node: created, pinned, reopened after a restart, migrated after an upgrade.

A pinned map outlives every process, so opening one is a comparison: when its shape is that of
`bpf/lib/maps.h` it is used as it is, otherwise a new map takes its entries. Once programs have been
loaded with the new map it takes the name too (`Maps.commit`), by rename, so that there is a whole
map under the name at every moment, and a failed load changes nothing. Programs loaded before go on
with the old map until they are replaced; `Maps.catch_up` brings over what they wrote.

A `Map` is used by one thread at a time; the kernel makes single operations atomic.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cilium_agent.datapath import pinning, syscalls
from cilium_agent.datapath.errors import BpfError, MapShapeError
from cilium_agent.datapath.specs import MapSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


_log = structlog.get_logger(__name__)

_COPIED_ACROSS = tuple(
    frozenset(syscalls.MAP_TYPES[name] for name in names)
    for names in (
        ("HASH", "LRU_HASH"),
        ("PERCPU_HASH", "LRU_PERCPU_HASH"),
        ("ARRAY",),
        ("PERCPU_ARRAY",),
        ("LPM_TRIE",),
        ("HASH_OF_MAPS",),
    )
)
"""Types between which entries are copied; those left out hold nothing that can be read back."""
_ARRAYS = frozenset(syscalls.MAP_TYPES[name] for name in ("ARRAY", "PERCPU_ARRAY"))
"""Every entry of these exists from the start, so a copy overwrites and is made but once."""
_FULL = (errno.E2BIG, errno.ENOSPC)


class Map:
    """An open map; keys and values are bytes of the structs that its definition names."""

    def __init__(self, spec: MapSpec, fd: int) -> None:
        self.spec = spec
        self.fd = fd
        self.key_size = spec.key_size
        self.value_size = spec.value_size
        if spec.per_cpu:
            self.value_size = -(-spec.value_size // 8) * 8 * syscalls.possible_cpus()

    @property
    def id(self) -> int:
        """The kernel's number of this map."""
        return syscalls.map_info(self.fd).id

    def get(self, key: bytes) -> bytes | None:
        """Value of a key, None when there is none; of all processors for a per-CPU map."""
        return syscalls.lookup(self.fd, self._fits(key), self.value_size)

    def set(self, key: bytes, value: bytes, flags: int = syscalls.ANY) -> None:
        """Set the value of a key in one step."""
        self._fits(key)
        if len(value) != self.value_size:
            raise ValueError(f"{self}: value of {len(value)} bytes, not {self.value_size}")
        try:
            syscalls.update(self.fd, key, value, flags)
        except BpfError as error:
            raise BpfError(f"{self}: update", error.errno) from error

    def delete(self, key: bytes) -> bool:
        """Remove a key; tells whether it was there."""
        return syscalls.delete(self.fd, self._fits(key))

    def set_many(self, entries: Mapping[bytes, bytes], flags: int = syscalls.ANY) -> None:
        """Set many keys, in order; on failure the first ones may have been set."""
        try:
            syscalls.update_batch(
                self.fd, b"".join(entries), b"".join(entries.values()), len(entries), flags
            )
        except BpfError as error:
            raise BpfError(f"{self}: update of {len(entries)} entries", error.errno) from error

    def delete_many(self, keys: Iterable[bytes]) -> int:
        """Remove many keys; returns how many were there."""
        listed = list(keys)
        return syscalls.delete_batch(self.fd, b"".join(listed), self.key_size, len(listed))

    def batches(self) -> Iterator[tuple[bytes, bytes, int]]:
        """All keys, all values and their number, piece by piece."""
        yield from syscalls.lookup_batch(self.fd, self.key_size, self.value_size)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every entry; one that changes meanwhile may be missed or come twice."""
        for keys, values, count in self.batches():
            for at in range(count):
                yield (
                    keys[at * self.key_size : (at + 1) * self.key_size],
                    values[at * self.value_size : (at + 1) * self.value_size],
                )

    def per_cpu(self, value: bytes) -> list[bytes]:
        """Split a per-CPU value into the values of the processors."""
        stride = self.value_size // syscalls.possible_cpus()
        return [value[at : at + self.spec.value_size] for at in range(0, self.value_size, stride)]

    def new_inner(self) -> int:
        """Create a map that fits into this map of maps; the caller closes the descriptor."""
        if self.spec.inner is None:
            raise MapShapeError(f"{self} is no map of maps")
        return create(self.spec.inner)

    def close(self) -> None:
        """Close the descriptor; a pinned map lives on."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _fits(self, key: bytes) -> bytes:
        if len(key) != self.key_size:
            raise ValueError(f"{self}: key of {len(key)} bytes, not {self.key_size}")
        return key

    def __str__(self) -> str:
        return f"map {self.spec.pin}"


def create(spec: MapSpec) -> int:
    """Create a map that has no name yet; returns its descriptor."""
    inner = create(spec.inner) if spec.inner is not None else 0
    try:
        return syscalls.map_create(
            spec.type,
            spec.pin,
            spec.key_size,
            spec.value_size,
            spec.max_entries,
            spec.flags,
            inner,
        )
    finally:
        if inner:
            os.close(inner)


@dataclass(slots=True)
class Migration:
    """A pinned map that was replaced because its shape was another."""

    spec: MapSpec
    path: Path
    old_fd: int
    new_fd: int
    why: str
    copied: int = 0
    left_out: int = 0

    def copy(self) -> None:
        """Bring the entries over that the new map has room for and does not have yet."""
        old = syscalls.map_info(self.old_fd)
        target = Map(self.spec, self.new_fd)
        room, width = target.value_size, old.value_size
        if self.spec.per_cpu:
            width = -(-old.value_size // 8) * 8 * syscalls.possible_cpus()
        alike = any({old.type, self.spec.type} <= types for types in _COPIED_ACROSS)
        if not alike or old.key_size != target.key_size:
            return
        if width > room or (self.spec.per_cpu and width != room):
            return
        copier = self._copy_inner if self.spec.inner is not None else self._copy_plain
        array = self.spec.type in _ARRAYS
        for keys, values, count in syscalls.lookup_batch(self.old_fd, old.key_size, width):
            for at in range(count):
                key = keys[at * old.key_size : (at + 1) * old.key_size]
                value = values[at * width : (at + 1) * width].ljust(room, b"\0")
                try:
                    copier(key, value, syscalls.ANY if array else syscalls.NOEXIST)
                    self.copied += 1
                except BpfError as error:
                    if error.errno in _FULL:
                        self.left_out += 1
                    elif error.errno != errno.EEXIST:
                        raise

    def _copy_plain(self, key: bytes, value: bytes, flags: int) -> None:
        syscalls.update(self.new_fd, key, value, flags)

    def _copy_inner(self, key: bytes, value: bytes, flags: int) -> None:
        """Hand an inner map over, or what it holds when its shape is another."""
        assert self.spec.inner is not None  # noqa: S101 - the caller chose this copier by it
        held = syscalls.map_by_id(int.from_bytes(value, "little"))
        try:
            why = difference(self.spec.inner, held)
            if not why:
                syscalls.update(self.new_fd, key, held.to_bytes(4, "little"), flags)
                return
            made = create(self.spec.inner)
            try:
                inner = Migration(self.spec.inner, self.path, held, made, why)
                inner.copy()
                self.left_out += inner.left_out
                syscalls.update(self.new_fd, key, made.to_bytes(4, "little"), flags)
            finally:
                os.close(made)
        finally:
            os.close(held)

    def catch_up(self) -> None:
        """Bring over what was written to the old map since, and let go of it.

        Call it once no program uses the old map any more.
        """
        try:
            if self.spec.type not in _ARRAYS:
                self.copy()
        finally:
            os.close(self.old_fd)
            self.old_fd = -1


def difference(spec: MapSpec, fd: int) -> str:
    """Tell how an open map differs from its definition; empty when it does not."""
    info = syscalls.map_info(fd)
    wanted = {
        "type": spec.type,
        "key size": spec.key_size,
        "value size": spec.value_size,
        "entries": spec.max_entries,
        "flags": spec.flags,
    }
    found = {
        "type": info.type,
        "key size": info.key_size,
        "value size": info.value_size,
        "entries": info.max_entries,
        "flags": info.flags,
    }
    return ", ".join(
        f"{what} {found[what]} instead of {value}"
        for what, value in wanted.items()
        if found[what] != value
    )


class Maps:
    """All maps of the node by their C names, as `bpf/lib/maps.h` lists them."""

    def __init__(self, maps: dict[str, Map], migrations: list[Migration]) -> None:
        self._maps = maps
        self.migrations = migrations

    def __getitem__(self, name: str) -> Map:
        return self._maps[name]

    def __iter__(self) -> Iterator[Map]:
        return iter(self._maps.values())

    def by_index(self) -> dict[int, Map]:
        """Return the maps by the number that stands for them in compiled programs."""
        return {entry.spec.index: entry for entry in self}

    def commit(self) -> None:
        """Give the maps that replace others their names; call it once the programs are loaded."""
        for migration in self.migrations:
            pinning.replace(migration.new_fd, migration.path)

    def catch_up(self) -> None:
        """Finish the migrations; call it once the new programs are in place."""
        for migration in self.migrations:
            migration.catch_up()
            _log.info(
                "map migrated",
                map=migration.spec.pin,
                copied=migration.copied,
                left_out=migration.left_out,
            )
        self.migrations = []

    def close(self) -> None:
        """Close every descriptor."""
        for migration in self.migrations:
            os.close(migration.old_fd)
        self.migrations = []
        for entry in self:
            entry.close()


def open_maps(specs: Mapping[str, MapSpec], root: Path | None) -> Maps:
    """Open or create every map but the tail call arrays, which belong to a load.

    `root` is the folder to pin them in; None leaves them without names, as long as the process
    lives. Raises BpfError, or MapShapeError when the folder cannot hold pins.
    """
    if root is not None:
        pinning.remove_unfinished(root)
    with contextlib.ExitStack() as undo:
        opened: dict[str, Map] = {}
        migrations: list[Migration] = []
        undo.callback(lambda: Maps(opened, migrations).close())
        for name, spec in specs.items():
            if spec.type == syscalls.MAP_TYPES["PROG_ARRAY"]:
                continue
            if root is None:
                opened[name] = Map(spec, create(spec))
            else:
                opened[name] = _open_pinned(spec, root / spec.pin, migrations)
        undo.pop_all()
        return Maps(opened, migrations)


def _open_pinned(spec: MapSpec, path: Path, migrations: list[Migration]) -> Map:
    if not path.exists():
        fd = create(spec)
        syscalls.obj_pin(fd, path)
        return Map(spec, fd)
    held = syscalls.obj_get(path)
    why = difference(spec, held)
    if not why and spec.inner is not None:
        why = _inner_difference(spec, held)
    if not why:
        return Map(spec, held)
    migration = Migration(spec, path, held, create(spec), why)
    _log.warning("map has another shape, migrating it", map=spec.pin, found=why)
    migrations.append(migration)
    migration.copy()
    return Map(spec, migration.new_fd)


def _inner_difference(spec: MapSpec, held: int) -> str:
    """Tell how the maps in a map of maps differ from their definition, by the first of them."""
    assert spec.inner is not None  # noqa: S101 - the caller has looked
    for _, values, _ in syscalls.lookup_batch(held, spec.key_size, 4):
        inner = syscalls.map_by_id(int.from_bytes(values[:4], "little"))
        try:
            return difference(spec.inner, inner)
        finally:
            os.close(inner)
    return "" if _accepts(held, spec) else "inner maps of another shape"


def _accepts(held: int, spec: MapSpec) -> bool:
    """Tell whether an empty map of maps takes inner maps of the defined shape."""
    assert spec.inner is not None  # noqa: S101 - the caller has looked
    inner = create(spec.inner)
    key = b"\xff" * spec.key_size
    try:
        syscalls.update(held, key, inner.to_bytes(4, "little"))
        syscalls.delete(held, key)
    except BpfError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    finally:
        os.close(inner)
    return True
