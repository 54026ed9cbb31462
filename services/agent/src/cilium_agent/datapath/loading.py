"""Programs in the kernel: map indices made descriptors, verified, wired by tail calls, pinned.

A *generation* is one load of all programs with the tail call arrays they share. It is pinned in a
folder named after what it was made of, templates and maps, so an agent that restarts with neither
changed takes it over in milliseconds and runs no verifier. A new generation never touches the
arrays of the old one: packets that are in the old programs finish there.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import mmap
import os
import shutil
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from cilium_agent.datapath import syscalls
from cilium_agent.datapath.errors import BpfError, LoadError, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cilium_agent.datapath.compiling import Template
    from cilium_agent.datapath.maps import Maps
    from cilium_agent.datapath.specs import MapSpec

_log = structlog.get_logger(__name__)

_INSTRUCTION = struct.Struct("<BBhi")
_LD_IMM64 = 0x18
_MAP_SOURCES = (1, 2)
"""BPF_PSEUDO_MAP_FD and BPF_PSEUDO_MAP_VALUE, where the compiler left a map index."""
_LOG_SIZE = 16 << 20
_LICENCE = b"Dual BSD/GPL"
_FOLDER = "programs_"
_UNFINISHED = "new_programs_"
_CALLS = "CALLS"


@dataclass(slots=True)
class Generation:
    """One load of all programs."""

    key: str
    folder: Path | None
    programs: dict[str, int] = field(default_factory=dict)
    """Entry and tail programs to descriptors."""
    arrays: dict[int, int] = field(default_factory=dict)
    """Program type to the descriptor of its tail call array."""

    def close(self) -> None:
        """Close every descriptor; what is pinned or attached lives on."""
        for fd in (*self.programs.values(), *self.arrays.values()):
            os.close(fd)
        self.programs.clear()
        self.arrays.clear()


def relocate(code: bytes, fds: Mapping[int, int], program: str) -> bytes:
    """Put descriptors in the place of map indices. Raises SourceError for an unknown index."""
    patched = bytearray(code)
    at = 0
    while at < len(code):
        opcode, registers, offset, value = _INSTRUCTION.unpack_from(code, at)
        if opcode == _LD_IMM64:
            if registers >> 4 in _MAP_SOURCES:
                if value not in fds:
                    raise SourceError(f"program {program} uses map {value}, not in maps.h")
                _INSTRUCTION.pack_into(patched, at, opcode, registers, offset, fds[value])
            at += 8
        at += 8
    return bytes(patched)


def uses(code: bytes) -> set[int]:
    """Return the indices of the maps that a program refers to."""
    found = set()
    at = 0
    while at < len(code):
        opcode, registers, _, value = _INSTRUCTION.unpack_from(code, at)
        if opcode == _LD_IMM64:
            if registers >> 4 in _MAP_SOURCES:
                found.add(value)
            at += 8
        at += 8
    return found


def load(
    templates: Sequence[Template],
    maps: Maps,
    specs: Mapping[str, MapSpec],
    slots: Mapping[str, int],
    root: Path | None,
) -> Generation:
    """Load all programs, or take the pinned ones over that are the same.

    `root` is the folder of the pins; None pins nothing. Raises LoadError with the verifier's log.
    """
    key = _key(templates, maps, slots)
    folder = root / f"{_FOLDER}{key}" if root is not None else None
    wanted = _wanted(templates, slots)
    if folder is not None and (found := _reuse(key, folder, wanted, templates)) is not None:
        return found
    started = time.monotonic()
    generation = Generation(key, folder)
    try:
        _load_all(generation, templates, wanted, maps, specs, slots)
        if folder is not None:
            _pin(generation, folder)
    except BaseException:
        generation.close()
        raise
    _log.info(
        "programs loaded",
        programs=len(generation.programs),
        took_s=round(time.monotonic() - started, 3),
    )
    return generation


def others(root: Path, keep: str) -> list[Path]:
    """Folders of the pinned generations but one, and of loads that never came to an end."""
    found = (*root.glob(f"{_FOLDER}*"), *root.glob(f"{_UNFINISHED}*"))
    return [folder for folder in found if folder.name != f"{_FOLDER}{keep}"]


def remove_others(root: Path, keep: str) -> None:
    """Unpin the generations but one; call it once nothing runs their programs."""
    for folder in others(root, keep):
        shutil.rmtree(folder, ignore_errors=True)


def _key(templates: Sequence[Template], maps: Maps, slots: Mapping[str, int]) -> str:
    ids = sorted((entry.spec.index, entry.id) for entry in maps)
    about = ([template.key for template in templates], ids, sorted(slots.items()))
    return hashlib.sha256(repr(about).encode()).hexdigest()[:16]


def _wanted(templates: Sequence[Template], slots: Mapping[str, int]) -> dict[str, Template]:
    """Return entry programs and tail call targets with the file that has them."""
    found: dict[str, Template] = {}
    for template in templates:
        for name in template.functions:
            if name.startswith("cil_") or name in slots:
                if name in found:
                    raise SourceError(f"{name} is in {found[name].file} and in {template.file}")
                found[name] = template
    if missing := sorted(set(slots) - set(found)):
        raise SourceError(f"calls.h: no file has the function {missing[0]}")
    return found


def _reuse(
    key: str, folder: Path, wanted: Mapping[str, Template], templates: Sequence[Template]
) -> Generation | None:
    generation = Generation(key, folder)
    try:
        for name in wanted:
            generation.programs[name] = syscalls.obj_get(folder / name)
        for kind in sorted({template.type for template in templates}):
            path = folder / _array_name(kind)
            if path.exists():
                generation.arrays[kind] = syscalls.obj_get(path)
    except BpfError as error:
        generation.close()
        if error.errno != errno.ENOENT:
            raise
        return None
    return generation


def _array_name(kind: int) -> str:
    return f"cilium_calls_{kind}"


def _load_all(
    generation: Generation,
    templates: Sequence[Template],
    wanted: Mapping[str, Template],
    maps: Maps,
    specs: Mapping[str, MapSpec],
    slots: Mapping[str, int],
) -> None:
    fds = {index: entry.fd for index, entry in maps.by_index().items()}
    calls = specs.get(_CALLS)
    for kind in sorted({template.type for template in templates}):
        mine = {name: template for name, template in wanted.items() if template.type == kind}
        if calls is not None and _calls_used(mine, calls.index):
            generation.arrays[kind] = syscalls.map_create(
                calls.type, calls.pin, calls.key_size, calls.value_size, calls.max_entries
            )
            fds[calls.index] = generation.arrays[kind]
        relocated = {
            name: relocate(template.functions[name], fds, name) for name, template in mine.items()
        }
        _load_in_parallel(generation, kind, relocated)
        for name in mine:
            if name in slots:
                if kind not in generation.arrays:
                    raise SourceError(f"calls.h: nothing of {mine[name].file} calls {name}")
                fd = generation.programs[name]
                slot = slots[name].to_bytes(4, "little")
                syscalls.update(generation.arrays[kind], slot, fd.to_bytes(4, "little"))


def _calls_used(programs: Mapping[str, Template], index: int) -> bool:
    return any(index in uses(template.functions[name]) for name, template in programs.items())


def _load_in_parallel(generation: Generation, kind: int, programs: Mapping[str, bytes]) -> None:
    """Load programs on all processors: the verifier is what takes the time."""
    biggest_first = sorted(programs, key=lambda name: len(programs[name]), reverse=True)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        loads = {name: pool.submit(_load_one, kind, name, programs[name]) for name in biggest_first}
    failures = []
    for name, load_ in loads.items():
        if (failure := load_.exception()) is None:
            generation.programs[name] = load_.result()
        else:
            failures.append(failure)
    if failures:
        raise failures[0]


def _load_one(kind: int, name: str, code: bytes) -> int:
    log = mmap.mmap(-1, _LOG_SIZE)  # costs memory only if the verifier has something to say
    opts = syscalls.ProgLoadOpts(
        sz=ctypes.sizeof(syscalls.ProgLoadOpts),
        expected_attach_type=syscalls.ATTACH_TYPES.get(name, 0),
    )
    fd = _bcc_prog_load()(
        kind,
        name.encode(),
        _LICENCE,
        code,
        ctypes.byref(opts),
        len(code),
        (ctypes.c_char * _LOG_SIZE).from_buffer(log),
        _LOG_SIZE,
        True,
    )
    if fd < 0:
        number = ctypes.get_errno() or errno.EINVAL
        told = log.read(_LOG_SIZE).split(b"\0", 1)[0]
        raise LoadError(name, number, told.decode(errors="replace"))
    return int(fd)


@functools.cache
def _bcc_prog_load() -> Any:
    """Return BCC's loader; a restart that reuses a generation never comes here."""
    import bcc

    function = bcc.lib.bcc_prog_load_xattr
    function.restype = ctypes.c_int
    function.argtypes = (
        ctypes.c_int,  # program type
        ctypes.c_char_p,  # name
        ctypes.c_char_p,  # licence
        ctypes.c_char_p,  # instructions
        ctypes.c_void_p,  # options; on failure BCC asks once more with a log
        ctypes.c_int,  # bytes of instructions
        ctypes.c_void_p,  # log
        ctypes.c_uint,
        ctypes.c_bool,  # raise the limit of locked memory where old kernels ask for it
    )
    return function


def _pin(generation: Generation, folder: Path) -> None:
    """Pin the whole generation under its name in one step."""
    fresh = folder.with_name(f"{_UNFINISHED}{generation.key}")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    try:
        for name, fd in _objects(generation):
            syscalls.obj_pin(fd, fresh / name)
        fresh.rename(folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _objects(generation: Generation) -> Iterator[tuple[str, int]]:
    yield from generation.programs.items()
    for kind, fd in generation.arrays.items():
        yield _array_name(kind), fd
