"""What the kernel of this machine can do, found out by trying and not by its version.

Every feature is tried with the smallest program, map or device that needs it; devices are made in
a network namespace that is gone right after. Nothing is left behind.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cilium_agent.datapath import syscalls
from cilium_agent.datapath.errors import BpfError
from cilium_agent.datapath.netlink import IPRoute, NetlinkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CLONE_NEWNET = 0x40000000
_PROGRAM_TYPES = {"sched_cls": 3, "xdp": 6, "cgroup_sock": 9, "cgroup_sock_addr": 18}
_HELPERS = {
    "tail_call": 12,
    "redirect": 23,
    "perf_event_output": 25,
    "skb_set_tunnel_key": 21,
    "skb_get_tunnel_key": 20,
    "skb_change_tail": 38,
    "fib_lookup": 69,
    "redirect_neigh": 152,
    "redirect_peer": 155,
}
_MAP_TYPES = ("LPM_TRIE", "LRU_HASH", "PERCPU_HASH", "PERF_EVENT_ARRAY", "PROG_ARRAY")


def probe() -> dict[str, bool]:
    """Try every feature that the data plane needs; names to whether it works. Takes some 50 ms."""
    found: dict[str, bool] = {}
    for name, kind in _PROGRAM_TYPES.items():
        found[f"program type {name}"] = _libbpf("libbpf_probe_bpf_prog_type", kind)
    for name, number in _HELPERS.items():
        found[f"helper {name}"] = _libbpf(
            "libbpf_probe_bpf_helper", syscalls.PROG_TYPES["SCHED_CLS"], number
        )
    for name in _MAP_TYPES:
        kind = syscalls.MAP_TYPES[name]
        found[f"map type {name.lower()}"] = _libbpf("libbpf_probe_bpf_map_type", kind)
    found["map of longest-prefix maps"] = _works(_try_map_in_map)
    found["map batch operations"] = _works(_try_batch)
    found["direct map values"] = _works(_try_direct_value)
    found["bpffs"] = "\tbpf\n" in Path("/proc/filesystems").read_text(encoding="ascii")
    found.update(_devices())
    found["compiler bcc"] = importlib.util.find_spec("bcc") is not None
    found["kernel headers"] = (Path("/lib/modules") / os.uname().release / "build").is_dir()
    return found


def _libbpf(function: str, *arguments: int) -> bool:
    """Ask one of libbpf's own probes, which load a tiny program or make a tiny map."""
    lib = ctypes.CDLL("libbpf.so.1")
    return int(getattr(lib, function)(*map(ctypes.c_uint32, arguments), None)) == 1


def _works(attempt: Callable[[], None]) -> bool:
    try:
        attempt()
    except (BpfError, OSError):
        return False
    return True


def _try_map_in_map() -> None:
    flags = syscalls.MAP_FLAGS["BPF_F_NO_PREALLOC"]
    inner = syscalls.map_create(syscalls.MAP_TYPES["LPM_TRIE"], "probe_inner", 8, 4, 1, flags)
    try:
        outer = syscalls.map_create(
            syscalls.MAP_TYPES["HASH_OF_MAPS"], "probe_outer", 4, 4, 1, flags, inner
        )
        try:
            syscalls.update(outer, bytes(4), inner.to_bytes(4, "little"))
        finally:
            os.close(outer)
    finally:
        os.close(inner)


def _try_batch() -> None:
    fd = syscalls.map_create(syscalls.MAP_TYPES["HASH"], "probe_batch", 4, 4, 2)
    try:
        syscalls.update_batch(fd, bytes(range(8)), bytes(8), 2)
        if sum(count for _, _, count in syscalls.lookup_batch(fd, 4, 4)) != 2:
            raise OSError("batch lookup lost entries")
    finally:
        os.close(fd)


def _try_direct_value() -> None:
    fd = syscalls.map_create(syscalls.MAP_TYPES["ARRAY"], "probe_value", 4, 8, 1)
    try:
        code = (
            bytes([0x18, 0x21, 0, 0])
            + fd.to_bytes(4, "little")
            + bytes(8)  # r1 = &map[0]
            + bytes([0x61, 0x10, 0, 0, 0, 0, 0, 0])  # r0 = *(u32 *)r1
            + bytes([0x95, 0, 0, 0, 0, 0, 0, 0])  # exit
        )
        os.close(syscalls.prog_load_raw(syscalls.PROG_TYPES["SCHED_CLS"], "probe_value", code))
    finally:
        os.close(fd)


def _devices() -> dict[str, bool]:
    """Try the kinds of devices and the hook, in a namespace that dies with its thread."""
    found: dict[str, bool] = {}

    def attempt() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        inside = libc.unshare(_CLONE_NEWNET) == 0
        found["network namespaces"] = inside
        found.update(_try_devices(inside))

    thread = threading.Thread(target=attempt, name="probe")
    thread.start()
    thread.join()
    return found


def _try_devices(inside: bool) -> Iterator[tuple[str, bool]]:
    if not inside:
        yield from dict.fromkeys(("veth devices", "vxlan devices", "clsact filters"), False).items()
        return
    with IPRoute() as netlink:
        yield (
            "veth devices",
            _request(netlink, "add", ifname="a", kind="veth", peer={"ifname": "b"}),
        )
        yield (
            "vxlan devices",
            _request(
                netlink,
                "add",
                ifname="v",
                kind="vxlan",
                vxlan_collect_metadata=True,
                vxlan_learning=False,
                vxlan_port=8472,
            ),
        )
        try:
            netlink.tc("add", "clsact", 1)
        except NetlinkError:
            yield "clsact filters", False
        else:
            yield "clsact filters", True


def _request(netlink: Any, command: str, **arguments: Any) -> bool:
    try:
        netlink.link(command, **arguments)
    except NetlinkError:
        return False
    return True
