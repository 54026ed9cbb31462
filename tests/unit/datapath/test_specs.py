"""The headers list maps and tail calls in a form that both sides read."""

from __future__ import annotations

import pytest
from cilium_agent.datapath import specs, syscalls
from cilium_agent.datapath.errors import SourceError
from cilium_core import abi

_LINE = (
    'MAP(3, IPCACHE, "cilium_ipcache_v2", LPM_TRIE, struct ipcache_key, struct ipcache_info,'
    " 512000, BPF_F_NO_PREALLOC)"
)


def test_a_line_becomes_a_definition() -> None:
    (spec,) = specs.parse_maps(_LINE).values()

    assert (spec.index, spec.name, spec.pin) == (3, "IPCACHE", "cilium_ipcache_v2")
    assert (spec.key_size, spec.value_size) == (abi.sizeof("ipcache_key"), 12)
    assert (spec.type, spec.flags, spec.max_entries) == (11, 1, 512000)


def test_an_inner_line_belongs_to_the_map_of_maps_before_it() -> None:
    text = (
        'MAP(4, POLICY, "p", HASH_OF_MAPS, __u32, __u32, 10, 0)\n'
        "INNER(POLICY, LPM_TRIE, struct policy_key, struct policy_entry, 99, BPF_F_NO_PREALLOC)"
    )

    inner = specs.parse_maps(text)["POLICY"].inner

    assert inner is not None
    assert (inner.key, inner.max_entries) == ("policy_key", 99)


def test_comments_are_passed_over() -> None:
    assert list(specs.parse_maps(f"/* MAP(9, X) */\n{_LINE} /* why */")) == ["IPCACHE"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('MAP(1, A, "a", HASH, __u32, __u32, 1)', "8 arguments are wanted"),
        ('MAP(1, A, "a", HASHED, __u32, __u32, 1, 0)', "'HASHED' is not known"),
        ('MAP(1, A, "a", HASH, __u32, __u32, many, 0)', "many"),
        ('MAP(1, A, "a", HASH, __u32, __u32, 1, BPF_F_X)', "'BPF_F_X' is not known"),
        (f"{_LINE}\n{_LINE.replace('IPCACHE', 'B')}", "index 3 is used twice, again by B"),
        ("INNER(A, HASH, __u32, __u32, 1, 0)", "does not follow its MAP line"),
        ("", "lists no map"),
    ],
)
def test_a_line_in_another_form_is_refused(line: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        specs.parse_maps(line)


def test_tail_call_slots_name_their_functions() -> None:
    text = "enum call {\n\tCALL_A = 1, /* tail_a */\n\tCALL_B = 7, /* tail_b */\n};"

    assert specs.parse_calls(text) == {"tail_a": 1, "tail_b": 7}


def test_a_slot_used_twice_is_refused() -> None:
    with pytest.raises(SourceError, match="slot 1 is used twice, again by CALL_B"):
        specs.parse_calls("CALL_A = 1, /* a */\nCALL_B = 1, /* b */")


def test_the_real_lists_are_read_whole() -> None:
    found = specs.read_maps(specs.bpf_folder(), {"cilium_policy": 512, "cilium_lxc": 10})

    indices = sorted(spec.index for spec in found.values())
    assert indices == list(range(len(found)))
    assert found["LXC"].max_entries == 10
    assert found["POLICY"].inner is not None
    assert found["POLICY"].inner.max_entries == 512
    assert found["EVENTS"].max_entries == abi.EVENT_RING_SIZE * syscalls.possible_cpus()
    assert found["EVENT_HEADS"].max_entries == syscalls.possible_cpus()


def test_a_size_for_an_unknown_map_is_refused() -> None:
    with pytest.raises(SourceError, match="size of map cilium_nope: there is no such map"):
        specs.read_maps(specs.bpf_folder(), {"cilium_nope": 1})
