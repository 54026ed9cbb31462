"""The node of `resolution.py` with the kernel behind it: until one more of anything is in the maps.

Resolution, and what the agent's writers do with its outcome: entries encoded, endpoints' maps
changed in place or swapped, policy revisions raised. Needs root.
"""

from __future__ import annotations

import gc
import ipaddress
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

from cilium_agent.datapath.models import EndpointInfo, PolicyChange

from tests.bench import report, resolution
from tests.bpf.conftest import CACHE
from tests.bpf.harness import Plane

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cilium_core.policy import PolicyEngine

CHANGES: Final = 100
PROXY_PORT: Final = 10_000
SIZES: Final = {"cilium_policy": 16384, "cilium_lxc": 1024, "cilium_devices": 1024}


def rows() -> Iterator[report.Row]:
    """Takes about half a minute."""
    plane = Plane(CACHE, sizes=SIZES)
    try:
        before = _resident()
        engine = resolution.loaded()
        for number in range(1, resolution.ENDPOINTS + 1):
            plane.endpoints.upsert(_endpoint(number))
        started = time.perf_counter()
        _carry_out(plane, engine)
        full_s = time.perf_counter() - started
        gc.collect()
        entries = sum(len(plane.policy.dump(number)) for number in plane.policy.endpoints())
        used = _resident() - before
        yield report.told("entries in the kernel", "entries", entries)
        yield report.absolute("everything into the maps", "s", full_s, "<=", 20)
        yield report.absolute("memory of the agent for each", "B", used / entries, "<=", 1536)
        for name, change in (
            ("identity", resolution.one_more_identity),
            ("policy", resolution.one_more_policy),
        ):
            taken = []
            for number in range(CHANGES):
                started = time.perf_counter()
                change(engine, number)
                _carry_out(plane, engine)
                taken.append((time.perf_counter() - started) * 1000)
            yield report.absolute(
                f"one more {name} into the maps, p50", "ms", median(taken), "<=", 50
            )
            yield report.compare(
                f"one more {name} into the maps against all anew",
                "ms",
                [median(taken)],
                "everything anew",
                [full_s * 1000],
                "<=",
                1,
            )
    finally:
        plane.close()


def _carry_out(plane: Plane, engine: PolicyEngine) -> None:
    """Write what changed, as the agent does."""
    changes: dict[int, PolicyChange] = {}
    for update in engine.flush():
        add = {
            key: entry._replace(redirect=PROXY_PORT) if entry.redirect else entry
            for key, entry in update.delta.add.items()
        }
        number = int(str(update.endpoint)) + 1
        changes[number] = PolicyChange(add, update.delta.remove, update.full)
    plane.policy.apply(changes)


def _endpoint(number: int) -> EndpointInfo:
    return EndpointInfo(
        id=number,
        identity=resolution.FIRST_IDENTITY + number - 1,
        ifindex=number,
        ipv4=ipaddress.IPv4Address("10.244.0.0") + number,
        ipv6=ipaddress.IPv6Address("fd00:244::") + number,
    )


def _resident() -> int:
    """Memory of this process in bytes."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * 4096
