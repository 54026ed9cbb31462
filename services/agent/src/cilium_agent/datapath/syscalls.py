"""The bpf() calls that maps and programs need, through libbpf.

A thin layer: descriptors are ints, keys and values are bytes. Every failure is a BpfError with its
errno, except where a docstring says otherwise. Thread-safe, as the kernel is.
"""

from __future__ import annotations

import ctypes as ct
import errno
import functools
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cilium_agent.datapath.errors import BpfError

if TYPE_CHECKING:
    from collections.abc import Iterator

ANY, NOEXIST, EXIST = 0, 1, 2
"""Flags of an update: create or replace, create only, replace only."""

MAP_TYPES = {
    "HASH": 1,
    "ARRAY": 2,
    "PROG_ARRAY": 3,
    "PERF_EVENT_ARRAY": 4,
    "PERCPU_HASH": 5,
    "PERCPU_ARRAY": 6,
    "LRU_HASH": 9,
    "LRU_PERCPU_HASH": 10,
    "LPM_TRIE": 11,
    "ARRAY_OF_MAPS": 12,
    "HASH_OF_MAPS": 13,
}
"""enum bpf_map_type of the kernel."""

PER_CPU_TYPES = frozenset(
    MAP_TYPES[name] for name in ("PERCPU_HASH", "PERCPU_ARRAY", "LRU_PERCPU_HASH")
)

MAP_FLAGS = {
    "BPF_F_NO_PREALLOC": 1,
    "BPF_F_NO_COMMON_LRU": 2,
    "BPF_F_RDONLY_PROG": 1 << 7,
    "BPF_F_WRONLY_PROG": 1 << 8,
    "BPF_F_MMAPABLE": 1 << 10,
    "BPF_F_PRESERVE_ELEMS": 1 << 11,
    "BPF_F_INNER_MAP": 1 << 12,
}

PROG_TYPES = {
    "SCHED_CLS": 3,
    "XDP": 6,
    "CGROUP_SOCK": 9,
    "RAW_TRACEPOINT": 17,
    "CGROUP_SOCK_ADDR": 18,
}
"""enum bpf_prog_type of the kernel."""

ATTACH_TYPES = {
    "cil_sock4_connect": 10,
    "cil_sock6_connect": 11,
    "cil_sock4_post_bind": 12,
    "cil_sock6_post_bind": 13,
    "cil_sock4_sendmsg": 14,
    "cil_sock6_sendmsg": 15,
    "cil_sock4_recvmsg": 19,
    "cil_sock6_recvmsg": 20,
    "cil_sock4_getpeername": 29,
    "cil_sock6_getpeername": 30,
    "cil_sock_release": 34,
}
"""enum bpf_attach_type of the kernel, for programs that are loaded for one place only."""

_OBJECT_NAME_LENGTH = 15
_BATCH = 4096
_MEMBARRIER = {"x86_64": 324, "aarch64": 283}
_MEMBARRIER_GLOBAL = 1
_TEST_XDP_LIVE_FRAMES = 2


class _MapCreateOpts(ct.Structure):
    _fields_ = (
        ("sz", ct.c_size_t),
        ("btf_fd", ct.c_uint32),
        ("btf_key_type_id", ct.c_uint32),
        ("btf_value_type_id", ct.c_uint32),
        ("btf_vmlinux_value_type_id", ct.c_uint32),
        ("inner_map_fd", ct.c_uint32),
        ("map_flags", ct.c_uint32),
        ("map_extra", ct.c_uint64),
        ("numa_node", ct.c_uint32),
        ("map_ifindex", ct.c_uint32),
    )


class _BatchOpts(ct.Structure):
    _fields_ = (("sz", ct.c_size_t), ("elem_flags", ct.c_uint64), ("flags", ct.c_uint64))


class _MapInfo(ct.Structure):
    """Start of struct bpf_map_info."""

    _fields_ = (
        ("type", ct.c_uint32),
        ("id", ct.c_uint32),
        ("key_size", ct.c_uint32),
        ("value_size", ct.c_uint32),
        ("max_entries", ct.c_uint32),
        ("map_flags", ct.c_uint32),
        ("name", ct.c_char * 16),
    )


class _ProgInfo(ct.Structure):
    """Start of struct bpf_prog_info."""

    _fields_ = (
        ("type", ct.c_uint32),
        ("id", ct.c_uint32),
        ("tag", ct.c_uint8 * 8),
        ("jited_prog_len", ct.c_uint32),
        ("xlated_prog_len", ct.c_uint32),
        ("jited_prog_insns", ct.c_uint64),
        ("xlated_prog_insns", ct.c_uint64),
        ("load_time", ct.c_uint64),
        ("created_by_uid", ct.c_uint32),
        ("nr_map_ids", ct.c_uint32),
        ("map_ids", ct.c_uint64),
        ("name", ct.c_char * 16),
    )


class _TestRunOpts(ct.Structure):
    _fields_ = (
        ("sz", ct.c_size_t),
        ("data_in", ct.c_void_p),
        ("data_out", ct.c_void_p),
        ("data_size_in", ct.c_uint32),
        ("data_size_out", ct.c_uint32),
        ("ctx_in", ct.c_void_p),
        ("ctx_out", ct.c_void_p),
        ("ctx_size_in", ct.c_uint32),
        ("ctx_size_out", ct.c_uint32),
        ("retval", ct.c_uint32),
        ("repeat", ct.c_int),
        ("duration", ct.c_uint32),
        ("flags", ct.c_uint32),
        ("cpu", ct.c_uint32),
        ("batch_size", ct.c_uint32),
    )


class _CgroupLinkInfo(ct.Structure):
    """Start of struct bpf_link_info, of a link to a cgroup."""

    _fields_ = (
        ("type", ct.c_uint32),
        ("id", ct.c_uint32),
        ("prog_id", ct.c_uint32),
        ("cgroup_id", ct.c_uint64),
        ("attach_type", ct.c_uint32),
        ("pad", ct.c_uint32),
    )


@dataclass(frozen=True, slots=True)
class CgroupLink:
    """A program's place at a cgroup."""

    program: int
    """The kernel's number of the program."""
    cgroup: int
    """Inode number of the cgroup's folder, 0 when the cgroup is gone."""
    attach_type: int
    """enum bpf_attach_type."""


@dataclass(frozen=True, slots=True)
class MapInfo:
    """Shape of a map that the kernel has."""

    id: int
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


@dataclass(frozen=True, slots=True)
class PacketRun:
    """Outcome of running a program on a packet."""

    verdict: int
    packet: bytes
    context: bytes
    duration_ns: int
    """Of one run, averaged over the repetitions."""


@functools.cache
def _lib() -> Any:
    lib = ct.CDLL("libbpf.so.1", use_errno=True)
    fd, pointer, u64 = ct.c_int, ct.c_void_p, ct.c_uint64
    for name, arguments in {
        "bpf_map_create": (ct.c_int, ct.c_char_p, ct.c_uint32, ct.c_uint32, ct.c_uint32, pointer),
        "bpf_map_lookup_elem": (fd, pointer, pointer),
        "bpf_map_update_elem": (fd, pointer, pointer, u64),
        "bpf_map_delete_elem": (fd, pointer),
        "bpf_map_get_next_key": (fd, pointer, pointer),
        "bpf_map_lookup_batch": (fd, pointer, pointer, pointer, pointer, pointer, pointer),
        "bpf_map_update_batch": (fd, pointer, pointer, pointer, pointer),
        "bpf_map_delete_batch": (fd, pointer, pointer, pointer),
        "bpf_map_get_fd_by_id": (ct.c_uint32,),
        "bpf_prog_get_fd_by_id": (ct.c_uint32,),
        "bpf_obj_pin": (fd, ct.c_char_p),
        "bpf_obj_get": (ct.c_char_p,),
        "bpf_obj_get_info_by_fd": (fd, pointer, pointer),
        "bpf_prog_test_run_opts": (fd, pointer),
        "bpf_link_create": (fd, ct.c_int, ct.c_int, pointer),
        "bpf_link_update": (fd, ct.c_int, pointer),
        "bpf_link_detach": (fd,),
        "bpf_raw_tracepoint_open": (ct.c_char_p, fd),
        "bpf_prog_load": (
            ct.c_int,
            ct.c_char_p,
            ct.c_char_p,
            ct.c_char_p,
            ct.c_size_t,
            pointer,
        ),
    }.items():
        function = getattr(lib, name)
        function.argtypes = arguments
        function.restype = ct.c_int
    return lib


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise BpfError(what, -result)
    return result


@functools.cache
def possible_cpus() -> int:
    """Count the processors a per-CPU value has room for, which may exceed those running."""
    ranges = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii").strip()
    return max(int(part.split("-")[-1]) for part in ranges.split(",")) + 1


def map_create(
    kind: int,
    name: str,
    key_size: int,
    value_size: int,
    max_entries: int,
    flags: int = 0,
    inner_fd: int = 0,
) -> int:
    """Create a map and return its descriptor; `inner_fd` is the template of a map of maps."""
    opts = _MapCreateOpts(sz=ct.sizeof(_MapCreateOpts), inner_map_fd=inner_fd, map_flags=flags)
    label = name.encode()[:_OBJECT_NAME_LENGTH]
    made = _lib().bpf_map_create(kind, label, key_size, value_size, max_entries, ct.byref(opts))
    return _checked(made, f"map {name}: create with {max_entries} entries")


def map_info(fd: int) -> MapInfo:
    """Tell the shape of an open map."""
    info = _MapInfo()
    size = ct.c_uint32(ct.sizeof(info))
    _checked(_lib().bpf_obj_get_info_by_fd(fd, ct.byref(info), ct.byref(size)), "map info")
    return MapInfo(
        id=info.id,
        type=info.type,
        key_size=info.key_size,
        value_size=info.value_size,
        max_entries=info.max_entries,
        flags=info.map_flags,
        name=info.name.decode(errors="replace"),
    )


def prog_name(number: int) -> str:
    """Name of the program with the kernel's number, empty when it is gone; 15 letters at most."""
    fd = _lib().bpf_prog_get_fd_by_id(number)
    if fd == -errno.ENOENT:
        return ""
    _checked(fd, f"program {number}: open")
    info = _ProgInfo()
    size = ct.c_uint32(ct.sizeof(info))
    try:
        _checked(_lib().bpf_obj_get_info_by_fd(fd, ct.byref(info), ct.byref(size)), "program info")
    finally:
        os.close(fd)
    return str(info.name.decode(errors="replace"))


def link_create(program_fd: int, cgroup_fd: int, attach_type: int) -> int:
    """Put a program at a cgroup, beside those of others; returns the descriptor of the link."""
    made = _lib().bpf_link_create(program_fd, cgroup_fd, attach_type, None)
    return _checked(made, f"cgroup program: attach as {attach_type}")


def link_update(fd: int, program_fd: int) -> None:
    """Put another program into a link in the place of the one before it, in one step."""
    _checked(_lib().bpf_link_update(fd, program_fd, None), "cgroup program: replace")


def link_detach(fd: int) -> None:
    """Take a link's program off at once, whoever holds the link."""
    _checked(_lib().bpf_link_detach(fd), "cgroup program: detach")


def raw_tracepoint_open(name: str, program_fd: int) -> int:
    """Put a program at a tracepoint; returns the descriptor of the link.

    EINVAL is what the kernel says of a program that asks for more than the tracepoint tells.
    """
    made = _lib().bpf_raw_tracepoint_open(name.encode(), program_fd)
    return _checked(made, f"tracepoint {name}: attach")


def cgroup_link(fd: int) -> CgroupLink:
    """Tell what an open link to a cgroup holds."""
    info = _CgroupLinkInfo()
    size = ct.c_uint32(ct.sizeof(info))
    _checked(_lib().bpf_obj_get_info_by_fd(fd, ct.byref(info), ct.byref(size)), "link info")
    return CgroupLink(info.prog_id, info.cgroup_id, info.attach_type)


def map_by_id(number: int) -> int:
    """Open a map by the kernel's number."""
    return _checked(_lib().bpf_map_get_fd_by_id(number), f"map {number}: open")


def obj_pin(fd: int, path: Path) -> None:
    """Give a map or program a name in a bpffs."""
    _checked(_lib().bpf_obj_pin(fd, os.fsencode(path)), f"{path}: pin")


def obj_get(path: Path) -> int:
    """Open a pinned map or program."""
    return _checked(_lib().bpf_obj_get(os.fsencode(path)), f"{path}: open")


def lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """Value of a key, None when there is none."""
    value = ct.create_string_buffer(value_size)
    result = _lib().bpf_map_lookup_elem(fd, key, value)
    if result == -errno.ENOENT:
        return None
    _checked(result, "map lookup")
    return value.raw


def update(fd: int, key: bytes, value: bytes, flags: int = ANY) -> None:
    """Set the value of a key in one step."""
    _checked(_lib().bpf_map_update_elem(fd, key, value, flags), "map update")


def delete(fd: int, key: bytes) -> bool:
    """Remove a key; tells whether it was there."""
    result = _lib().bpf_map_delete_elem(fd, key)
    if result == -errno.ENOENT:
        return False
    _checked(result, "map delete")
    return True


def keys(fd: int, key_size: int) -> Iterator[bytes]:
    """Every key; the caller may not delete while iterating (the walk would start over)."""
    current: Any = None
    following = ct.create_string_buffer(key_size)
    while (result := _lib().bpf_map_get_next_key(fd, current, following)) == 0:
        current = following.raw
        yield current
    if result != -errno.ENOENT:
        _checked(result, "map walk")


def lookup_batch(
    fd: int, key_size: int, value_size: int, batch: int = _BATCH
) -> Iterator[tuple[bytes, bytes, int]]:
    """Read a whole map piece by piece: keys, values and how many of them.

    Entries added or removed meanwhile may be missed or seen twice.
    """
    opts = _BatchOpts(sz=ct.sizeof(_BatchOpts))
    token_size = max(key_size, 8)
    token_in: Any = None
    token_out = ct.create_string_buffer(token_size)
    while True:
        key_buffer = ct.create_string_buffer(batch * key_size)
        value_buffer = ct.create_string_buffer(batch * value_size)
        count = ct.c_uint32(batch)
        result = _lib().bpf_map_lookup_batch(
            fd, token_in, token_out, key_buffer, value_buffer, ct.byref(count), ct.byref(opts)
        )
        if result == -errno.ENOSPC:
            batch *= 2  # one bucket of the hash holds more than fits
            continue
        if result not in (0, -errno.ENOENT):
            _checked(result, "map batch lookup")
        if count.value:
            yield (
                key_buffer.raw[: count.value * key_size],
                value_buffer.raw[: count.value * value_size],
                count.value,
            )
        if result:
            return
        token_in = token_out.raw


def update_batch(fd: int, all_keys: bytes, values: bytes, count: int, flags: int = ANY) -> None:
    """Set many keys; on failure the first ones may have been set."""
    if not count:
        return
    opts = _BatchOpts(sz=ct.sizeof(_BatchOpts), elem_flags=flags)
    done = ct.c_uint32(count)
    result = _lib().bpf_map_update_batch(fd, all_keys, values, ct.byref(done), ct.byref(opts))
    _checked(result, f"map batch update, entry {done.value} of {count}")


def delete_batch(fd: int, all_keys: bytes, key_size: int, count: int) -> int:
    """Remove many keys, passing over those that are gone; returns how many were removed."""
    opts = _BatchOpts(sz=ct.sizeof(_BatchOpts))
    removed = start = 0
    while start < count:
        done = ct.c_uint32(count - start)
        rest = all_keys[start * key_size :]
        result = _lib().bpf_map_delete_batch(fd, rest, ct.byref(done), ct.byref(opts))
        removed += done.value
        start += done.value
        if result == -errno.ENOENT:
            start += 1
        elif result == 0:
            break
        else:
            _checked(result, "map batch delete")
    return removed


def run_packet(
    fd: int,
    packet: bytes,
    context: bytes = b"",
    repeat: int = 1,
    room: int = 512,
) -> PacketRun:
    """Run a loaded program on a packet, outside of any device.

    `context` is a struct __sk_buff or xdp_md to start from, `room` how many bytes the packet may
    grow by.
    """
    data_out = ct.create_string_buffer(len(packet) + room)
    context_out = ct.create_string_buffer(max(len(context), 1))
    data_in = ct.create_string_buffer(packet, len(packet))
    context_in = ct.create_string_buffer(context, max(len(context), 1))
    opts = _TestRunOpts(
        sz=ct.sizeof(_TestRunOpts),
        data_in=ct.addressof(data_in),
        data_out=ct.addressof(data_out),
        data_size_in=len(packet),
        data_size_out=len(data_out),
        repeat=repeat,
    )
    if context:
        opts.ctx_in = ct.addressof(context_in)
        opts.ctx_out = ct.addressof(context_out)
        opts.ctx_size_in = opts.ctx_size_out = len(context)
    _checked(_lib().bpf_prog_test_run_opts(fd, ct.byref(opts)), "program test run")
    return PacketRun(
        verdict=opts.retval,
        packet=data_out.raw[: opts.data_size_out],
        context=context_out.raw[: opts.ctx_size_out] if context else b"",
        duration_ns=opts.duration,
    )


def packet_durations(fd: int, packet: bytes, context: bytes, times: int) -> list[int]:
    """Run a loaded program on a packet again and again; the nanoseconds that each run took.

    Each run begins with the packet as it is here, and little else happens between them.
    """
    data_in = ct.create_string_buffer(packet, len(packet))
    context_in = ct.create_string_buffer(context, max(len(context), 1))
    opts = _TestRunOpts(
        sz=ct.sizeof(_TestRunOpts),
        data_in=ct.addressof(data_in),
        data_size_in=len(packet),
        ctx_in=ct.addressof(context_in) if context else None,
        ctx_size_in=len(context),
        repeat=1,
    )
    run, pointer = _lib().bpf_prog_test_run_opts, ct.byref(opts)
    durations = []
    for _ in range(times):
        _checked(run(fd, pointer), "program test run")
        durations.append(opts.duration)
    return durations


def send_frames(fd: int, frame: bytes, ifindex: int, count: int) -> None:
    """Let an XDP program do with `count` copies of a frame what it decides, as if all came in.

    With XDP_TX they leave by the device `ifindex`: a sender that costs next to nothing.
    """
    context = struct.pack("<IIIIII", 0, len(frame), 0, ifindex, 0, 0)
    data_in = ct.create_string_buffer(frame, len(frame))
    context_in = ct.create_string_buffer(context, len(context))
    opts = _TestRunOpts(
        sz=ct.sizeof(_TestRunOpts),
        data_in=ct.addressof(data_in),
        data_size_in=len(frame),
        ctx_in=ct.addressof(context_in),
        ctx_size_in=len(context),
        repeat=count,
        flags=_TEST_XDP_LIVE_FRAMES,
        batch_size=64,
    )
    _checked(_lib().bpf_prog_test_run_opts(fd, ct.byref(opts)), "sending frames")


def wait_for_running_programs() -> None:
    """Return once every program run that had begun before the call has ended.

    The kernel's global memory barrier is an RCU grace period, under which programs run; where it
    is not offered, a wait that is much longer than any run takes its place.
    """
    libc = ct.CDLL(None, use_errno=True)
    if libc.syscall(_MEMBARRIER[os.uname().machine], _MEMBARRIER_GLOBAL, 0, 0):
        time.sleep(0.1)


class ProgLoadOpts(ct.Structure):
    """struct bpf_prog_load_opts of libbpf, which libbcc takes as well."""

    _fields_ = (
        ("sz", ct.c_size_t),
        ("attempts", ct.c_int),
        ("expected_attach_type", ct.c_int),
        ("prog_btf_fd", ct.c_uint32),
        ("prog_flags", ct.c_uint32),
        ("prog_ifindex", ct.c_uint32),
        ("kern_version", ct.c_uint32),
        ("attach_btf_id", ct.c_uint32),
        ("attach_prog_fd", ct.c_uint32),
        ("attach_btf_obj_fd", ct.c_uint32),
        ("fd_array", ct.c_void_p),
        ("func_info", ct.c_void_p),
        ("func_info_cnt", ct.c_uint32),
        ("func_info_rec_size", ct.c_uint32),
        ("line_info", ct.c_void_p),
        ("line_info_cnt", ct.c_uint32),
        ("line_info_rec_size", ct.c_uint32),
        ("log_level", ct.c_uint32),
        ("log_size", ct.c_uint32),
        ("log_buf", ct.c_void_p),
    )


def prog_load_raw(kind: int, name: str, instructions: bytes, licence: str = "Dual BSD/GPL") -> int:
    """Load a program given as instructions, without BCC; for feature probes.

    Programs of the data plane are loaded through libbcc, see `loading`.
    """
    opts = ProgLoadOpts(sz=ct.sizeof(ProgLoadOpts), attempts=1)
    made = _lib().bpf_prog_load(
        kind,
        name.encode()[:_OBJECT_NAME_LENGTH],
        licence.encode(),
        instructions,
        len(instructions) // 8,
        ct.byref(opts),
    )
    return _checked(made, f"program {name}: load")
