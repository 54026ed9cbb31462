"""Instructions that name maps by index become programs of this node."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest
from cilium_agent.datapath import compiling, loading, maps, specs, syscalls
from cilium_agent.datapath.errors import LoadError, SourceError

if TYPE_CHECKING:
    from pathlib import Path


def _instruction(opcode: int, registers: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", opcode, registers, 0, value)


_EXIT = _instruction(0x95)
_WIDE = _instruction(0)


def test_map_indices_become_descriptors() -> None:
    code = _instruction(0x18, 0x11, 5) + _WIDE + _instruction(0x18, 0x21, 0) + _WIDE + _EXIT

    patched = loading.relocate(code, {5: 33, 0: 44}, "p")

    expected = _instruction(0x18, 0x11, 33) + _WIDE + _instruction(0x18, 0x21, 44) + _WIDE + _EXIT
    assert expected == patched


def test_plain_wide_constants_stay() -> None:
    code = _instruction(0x18, 0x01, 5) + _instruction(0, 0, 0x18) + _EXIT

    assert loading.relocate(code, {5: 33}, "p") == code
    assert loading.uses(code) == set()


def test_an_unknown_map_index_is_refused() -> None:
    code = _instruction(0x18, 0x11, 99) + _WIDE + _EXIT

    with pytest.raises(SourceError, match=r"program p uses map 99, not in maps\.h"):
        loading.relocate(code, {5: 33}, "p")


def _load(sources: Path, cache: Path, root: Path | None) -> tuple[maps.Maps, loading.Generation]:
    listed = specs.read_maps(sources, {"cilium_ipcache_v2": 16})
    opened = maps.open_maps(listed, root)
    templates = compiling.compile_all(sources, cache)
    slots = specs.read_calls(sources)
    return opened, loading.load(templates, opened, listed, slots, root)


def test_a_loaded_program_sees_maps_and_tail_calls(sources: Path, template_cache: Path) -> None:
    opened, generation = _load(sources, template_cache, None)
    program = generation.programs["cil_from_container"]

    through_tail_call = syscalls.run_packet(program, bytes(64)).verdict
    opened["DEVICES"].set((1).to_bytes(4, "little"), bytes(opened["DEVICES"].value_size))
    context = struct.pack("<40xI148x", 1)
    through_map = syscalls.run_packet(program, bytes(64), context).verdict

    assert (through_tail_call, through_map) == (42, 1)
    generation.close()
    opened.close()


def test_a_restart_takes_the_same_programs_over(
    sources: Path, template_cache: Path, bpf_root: Path
) -> None:
    opened, first = _load(sources, template_cache, bpf_root)
    before = {name: _id(fd) for name, fd in first.programs.items()}
    first.close()
    opened.close()

    opened, second = _load(sources, template_cache, bpf_root)

    assert {name: _id(fd) for name, fd in second.programs.items()} == before
    verdict = syscalls.run_packet(second.programs["cil_from_container"], bytes(64)).verdict
    assert verdict == 42  # the tail call array has kept its programs
    second.close()
    opened.close()


def test_programs_of_other_maps_are_another_generation(
    sources: Path, template_cache: Path, bpf_root: Path
) -> None:
    opened, first = _load(sources, template_cache, bpf_root)
    (bpf_root / "cilium_lxc").unlink()
    reopened, second = _load(sources, template_cache, bpf_root)

    loading.remove_others(bpf_root, second.key)

    assert first.key != second.key
    assert [path.name for path in bpf_root.glob("programs_*")] == [f"programs_{second.key}"]
    for each in (first, second, opened, reopened):
        each.close()


def test_a_refused_program_tells_the_verifiers_reason(
    sources: Path, template_cache: Path, tmp_path: Path
) -> None:
    opened = maps.open_maps(specs.read_maps(sources, {"cilium_ipcache_v2": 16}), None)
    bad = {"cil_bad": _instruction(0xBF, 0x50) + _EXIT}  # r0 = r5, never written
    template = compiling.Template("bad.c", "k", syscalls.PROG_TYPES["SCHED_CLS"], bad)

    with pytest.raises(LoadError, match=r"program cil_bad does not load.*\n(.*\n)*.*R5 !read_ok"):
        loading.load([template], opened, {}, {}, None)

    opened.close()


def test_a_slot_without_a_function_is_refused(sources: Path, template_cache: Path) -> None:
    listed = specs.read_maps(sources, {"cilium_ipcache_v2": 16})
    opened = maps.open_maps(listed, None)
    templates = compiling.compile_all(sources, template_cache)

    with pytest.raises(SourceError, match="no file has the function tail_lost"):
        loading.load(templates, opened, listed, {"tail_lost": 1}, None)

    opened.close()


def _id(fd: int) -> str:
    """The kernel's number of a program, from its descriptor."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:  # noqa: PTH123 - procfs
        return next(line for line in info if line.startswith("prog_id"))


def test_descriptors_do_not_leak(sources: Path, template_cache: Path, bpf_root: Path) -> None:
    def cycle() -> int:
        opened, generation = _load(sources, template_cache, bpf_root)
        generation.close()
        opened.close()
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - procfs

    assert cycle() == cycle()
