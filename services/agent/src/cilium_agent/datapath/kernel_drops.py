"""What the kernel drops outside the programs: the program at its tracepoint, and what it is told.

A kernel that does not describe its types, or whose tracepoint has no reason (before Linux 5.17),
has its drops go untold; everything else works on. The program is held by a link that is pinned
below the folder of pins, and serves on while no agent runs. One thread at a time.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from typing import TYPE_CHECKING, Any

import structlog
from cilium_core import abi, drops

from cilium_agent.datapath import pinning, syscalls
from cilium_agent.datapath.errors import BpfError, KernelTypesError
from cilium_agent.datapath.kernel_types import KernelTypes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cilium_agent.datapath.maps import Maps

_log = structlog.get_logger(__name__)

_FOLDER = "tracepoints"
_TRACEPOINT = "kfree_skb"
_PROGRAMS = ("cil_kfree_skb_at_socket", "cil_kfree_skb")
"""The tracepoint has told of the socket since Linux 6.11; the program must ask for no more."""

_FIELDS = {
    "sk_buff": {
        "dev": "skb_dev",
        "sk": "skb_sk",
        "head": "skb_head",
        "network_header": "skb_network_header",
        "protocol": "skb_protocol",
        "len": "skb_len",
        "mark": "skb_mark",
    },
    "net_device": {"ifindex": "device_ifindex", "nd_net": "device_net"},
    "sock_common": {"skc_net": "sock_net"},
    "net": {"net_cookie": "net_cookie"},
}
"""Fields of the kernel's structs, and those of struct kernel_drops for their offsets."""

_PREFIX = "SKB_DROP_REASON_"
_NO_DROPS = frozenset({"SKB_NOT_DROPPED_YET", "SKB_CONSUMED", _PREFIX + "MAX"})
_OUR_OWN = frozenset({"TC_INGRESS", "TC_EGRESS", "XDP"})
"""Reasons that the kernel gives for what tc and XDP programs drop."""
_NOTHING_LOST = frozenset({"QUEUE_PURGE"})
"""Reasons for what had arrived: the end of a stream, say, that a closed socket had not read."""
_UNTOLD = _OUR_OWN | _NOTHING_LOST

_BURST_NS = 250_000_000
"""How much time's worth of events a processor may tell at once."""


def attach(
    maps: Maps, root: Path, cache: Path, programs: Mapping[str, int], per_second: int
) -> bool:
    """Begin to tell of the kernel's drops, or end it where `per_second` is 0.

    `per_second` is the most events of a processor, `cache` the folder for what is known of the
    kernel. Returns whether drops are told; the log says why not.
    """
    if not per_second:
        detach(root)
        return False
    try:
        told = _known(cache)
        told["interval_ns"] = 1_000_000_000 // per_second
        told["burst_ns"] = max(_BURST_NS, told["interval_ns"])
        codes = bytes(told.pop("codes"))
        maps["KERNEL_DROPS"].set(bytes(4), abi.pack("kernel_drops", codes=codes, **told))
        link = _link(programs)
    except (KernelTypesError, BpfError) as error:
        _log.warning("packets that the kernel drops are not told", reason=str(error))
        detach(root)
        return False
    folder = root / _FOLDER
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        pinning.remove_unfinished(folder)
        pinning.replace(link, folder / _TRACEPOINT)
    finally:
        os.close(link)
    return True


def detach(root: Path) -> None:
    """Tell of the kernel's drops no more."""
    shutil.rmtree(root / _FOLDER, ignore_errors=True)


def _link(programs: Mapping[str, int]) -> int:
    for name in _PROGRAMS:
        try:
            return syscalls.raw_tracepoint_open(_TRACEPOINT, programs[name])
        except BpfError as error:
            if error.errno != errno.EINVAL or name == _PROGRAMS[-1]:
                raise
    raise AssertionError("unreachable")


def _known(cache: Path) -> dict[str, Any]:
    """Return the fields of struct kernel_drops that the kernel decides, read once for each."""
    kernel = os.uname()
    path = cache / f"kernel-{kernel.release}.json"
    names = ",".join(each.name for each in drops.kernel_drops.values())
    wanted = sorted(field for fields in _FIELDS.values() for field in fields.values())
    about = [kernel.version, wanted, zlib.crc32(names.encode()), sorted(_UNTOLD)]
    try:
        held = json.loads(path.read_bytes())
        if held["about"] == about:
            return dict(held["fields"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is none, or of another build: read anew
    fields = _read()
    cache.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    fresh.write_text(json.dumps({"about": about, "fields": fields}), encoding="utf-8")
    fresh.rename(path)
    return fields


def _read() -> dict[str, Any]:
    fields: dict[str, Any] = {}
    with KernelTypes() as types:
        for struct, wanted in _FIELDS.items():
            offsets = types.offsets(struct, *wanted)
            fields |= dict(zip(wanted.values(), offsets, strict=True))
        fields["codes"] = codes(types.enum("skb_drop_reason"))
    return fields


def codes(reasons: Mapping[str, int]) -> list[int]:
    """Return our number for each of the kernel's reasons, 0 for what is not to be told."""
    numbers = {text.name: number for number, text in drops.kernel_drops.items()}
    made = [0] * int(abi.constants["KERNEL_REASONS"])
    for name, value in reasons.items():
        reason = name.removeprefix(_PREFIX)
        if value < len(made) and name not in _NO_DROPS and reason not in _UNTOLD:
            made[value] = numbers.get(reason, int(drops.KERNEL_DROP_OTHER))
    return made
