"""Pinned maps outlive agents: reopened when they fit, migrated when they do not."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from cilium_agent.datapath import maps, pinning, syscalls
from cilium_agent.datapath.errors import BpfError, MapShapeError
from cilium_agent.datapath.specs import MapSpec

if TYPE_CHECKING:
    from pathlib import Path

_HASH = MapSpec(0, "THING", "thing", syscalls.MAP_TYPES["HASH"], "__u32", "__u64", 8, 1)
_TRIE = syscalls.MAP_TYPES["LPM_TRIE"]
_INNER = MapSpec(-1, "THING", "thing", _TRIE, "policy_key", "policy_entry", 16, 1)
_OUTER = MapSpec(
    0, "THING", "thing", syscalls.MAP_TYPES["HASH_OF_MAPS"], "__u32", "__u32", 8, 1, _INNER
)


def _key(number: int) -> bytes:
    return number.to_bytes(4, "little")


def _value(number: int) -> bytes:
    return number.to_bytes(8, "little")


def _open(spec: MapSpec, root: Path) -> maps.Maps:
    opened = maps.open_maps({"THING": spec}, root)
    opened.commit()
    return opened


def _filled(root: Path, spec: MapSpec = _HASH, count: int = 5) -> int:
    """Leave a pinned map with entries behind, as an earlier agent would; returns its number."""
    opened = _open(spec, root)
    width = opened["THING"].value_size
    for number in range(count):
        opened["THING"].set(_key(number), _value(number).ljust(width, b"\0")[:width])
    kept = opened["THING"].id
    opened.close()
    return kept


def test_a_map_that_fits_is_taken_over(bpf_root: Path) -> None:
    before = _filled(bpf_root)

    again = _open(_HASH, bpf_root)

    assert again["THING"].id == before
    assert again.migrations == []
    again.close()


def test_a_migration_that_nobody_commits_changes_nothing(bpf_root: Path) -> None:
    before = _filled(bpf_root)

    maps.open_maps({"THING": replace(_HASH, max_entries=20)}, bpf_root).close()

    again = _open(_HASH, bpf_root)
    assert again["THING"].id == before
    again.close()


@pytest.mark.parametrize("entries", [6, 100])
def test_another_size_keeps_the_entries(bpf_root: Path, entries: int) -> None:
    before = _filled(bpf_root)

    again = _open(replace(_HASH, max_entries=entries), bpf_root)

    assert again["THING"].id != before
    assert dict(again["THING"].items()) == {_key(n): _value(n) for n in range(5)}
    again.catch_up()
    again.close()


def test_what_does_not_fit_is_left_out_and_told(bpf_root: Path) -> None:
    _filled(bpf_root)

    again = _open(replace(_HASH, max_entries=3), bpf_root)

    assert (again.migrations[0].copied, again.migrations[0].left_out) == (3, 2)
    again.close()


def test_a_value_that_grew_is_filled_up_with_zeroes(bpf_root: Path) -> None:
    _filled(bpf_root)

    again = _open(replace(_HASH, value="metrics_value"), bpf_root)

    assert again["THING"].get(_key(3)) == _value(3) + bytes(8)
    again.close()


def test_entries_of_another_key_are_not_taken_for_ours(bpf_root: Path) -> None:
    _filled(bpf_root)

    again = _open(replace(_HASH, key="__u64"), bpf_root)

    assert list(again["THING"].items()) == []
    again.close()


def test_a_hash_may_become_one_that_evicts(bpf_root: Path) -> None:
    _filled(bpf_root)

    lru = replace(_HASH, type=syscalls.MAP_TYPES["LRU_HASH"], flags=0, max_entries=64)
    again = _open(lru, bpf_root)

    assert dict(again["THING"].items()) == {_key(n): _value(n) for n in range(5)}
    again.close()


@pytest.mark.parametrize("before", ["PERF_EVENT_ARRAY", "HASH"])
def test_a_map_of_an_unlike_type_starts_empty(bpf_root: Path, before: str) -> None:
    kind = syscalls.MAP_TYPES[before]
    flags = 1 if before == "HASH" else 0
    _open(replace(_HASH, type=kind, value="__u32", flags=flags), bpf_root).close()

    array = replace(_HASH, type=syscalls.MAP_TYPES["ARRAY"], flags=0)
    again = _open(array, bpf_root)

    assert [value for _, value in again["THING"].items()] == [bytes(8)] * 8
    again.catch_up()
    again.close()


def test_an_array_keeps_its_first_entries(bpf_root: Path) -> None:
    array = replace(_HASH, type=syscalls.MAP_TYPES["ARRAY"], flags=0)
    _filled(bpf_root, array)

    again = _open(replace(array, value="metrics_value"), bpf_root)

    assert again["THING"].get(_key(4)) == _value(4) + bytes(8)
    again.close()


def test_what_old_programs_wrote_meanwhile_is_brought_over(bpf_root: Path) -> None:
    _filled(bpf_root)
    old = syscalls.obj_get(bpf_root / "thing")

    again = _open(replace(_HASH, max_entries=20), bpf_root)
    syscalls.update(old, _key(6), _value(66))  # an old program, not replaced yet
    syscalls.update(old, _key(1), _value(11))
    again["THING"].set(_key(1), _value(12))  # a new program knows better
    again.catch_up()

    assert again["THING"].get(_key(6)) == _value(66)
    assert again["THING"].get(_key(1)) == _value(12)
    os.close(old)
    again.close()


def test_the_name_has_a_whole_map_at_every_moment(
    bpf_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _filled(bpf_root)
    seen: list[int] = []
    real = maps.Migration.copy

    def looking(self: maps.Migration) -> None:
        fd = syscalls.obj_get(bpf_root / "thing")
        seen.append(len(list(maps.Map(_HASH, fd).items())))
        os.close(fd)
        real(self)

    monkeypatch.setattr(maps.Migration, "copy", looking)
    _open(replace(_HASH, max_entries=20), bpf_root).close()

    assert seen == [5]
    assert [path.name for path in bpf_root.iterdir()] == ["thing"]


def test_what_a_killed_agent_left_half_done_is_removed(bpf_root: Path) -> None:
    _filled(bpf_root)
    left = maps.create(_HASH)
    syscalls.obj_pin(left, bpf_root / "thing_new")
    os.close(left)

    _open(_HASH, bpf_root).close()

    assert [path.name for path in bpf_root.iterdir()] == ["thing"]


def test_a_folder_of_pins_has_one_owner(bpf_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinning, "_OWNER_WAIT_S", 0.1)
    first = pinning.own(bpf_root)

    with pytest.raises(MapShapeError, match="another agent works in"):
        pinning.own(bpf_root)

    os.close(first)
    os.close(pinning.own(bpf_root))


def test_a_map_of_maps_hands_its_inner_maps_over(bpf_root: Path) -> None:
    opened = _open(_OUTER, bpf_root)
    inner = opened["THING"].new_inner()
    entry = bytes(12)
    syscalls.update(inner, _key(64) + bytes(8), entry)
    opened["THING"].set(_key(7), _key(inner))
    os.close(inner)
    opened.close()

    again = _open(replace(_OUTER, max_entries=32), bpf_root)

    held = syscalls.map_by_id(int.from_bytes(again["THING"].get(_key(7)) or b"", "little"))
    assert syscalls.lookup(held, _key(64) + bytes(8), 12) == entry
    os.close(held)
    again.close()


@pytest.mark.parametrize("filled", [True, False])
def test_inner_maps_of_another_size_are_migrated(bpf_root: Path, filled: bool) -> None:
    small = replace(_OUTER, inner=replace(_INNER, value="__u64"))
    opened = _open(small, bpf_root)
    if filled:
        inner = opened["THING"].new_inner()
        syscalls.update(inner, _key(64) + bytes(8), _value(9))
        opened["THING"].set(_key(7), _key(inner))
        os.close(inner)
    opened.close()

    again = _open(_OUTER, bpf_root)

    assert len(again.migrations) == 1
    if filled:
        held = syscalls.map_by_id(int.from_bytes(again["THING"].get(_key(7)) or b"", "little"))
        assert syscalls.lookup(held, _key(64) + bytes(8), 12) == _value(9) + bytes(4)
        os.close(held)
    again.close()


def test_a_full_map_says_which_one(bpf_root: Path) -> None:
    opened = _open(_HASH, bpf_root)

    with pytest.raises(BpfError, match="map thing: update of 9 entries: Argument list too long"):
        opened["THING"].set_many({_key(n): _value(n) for n in range(9)})

    opened.close()


def test_batches_cover_a_big_map_once(root: None) -> None:
    opened = maps.open_maps({"THING": replace(_HASH, max_entries=20_000)}, None)
    entries = {_key(n): _value(n) for n in range(20_000)}
    opened["THING"].set_many(entries)

    found = list(opened["THING"].items())

    assert len(found) == len(entries)
    assert dict(found) == entries
    assert opened["THING"].delete_many([_key(1), _key(99_999), _key(2)]) == 2
    opened.close()


def test_a_per_cpu_value_has_a_share_for_each_possible_processor(root: None) -> None:
    kind = syscalls.MAP_TYPES["PERCPU_HASH"]
    opened = maps.open_maps({"THING": replace(_HASH, type=kind, value="__u32")}, None)
    shares = [_key(n + 1) for n in range(syscalls.possible_cpus())]
    opened["THING"].set(_key(0), b"".join(share + bytes(4) for share in shares))

    value = opened["THING"].get(_key(0))

    assert value is not None
    assert opened["THING"].per_cpu(value) == shares
    opened.close()


def test_a_key_of_another_length_is_refused(root: None) -> None:
    opened = maps.open_maps({"THING": _HASH}, None)

    with pytest.raises(ValueError, match="map thing: key of 3 bytes, not 4"):
        opened["THING"].get(b"abc")

    opened.close()
