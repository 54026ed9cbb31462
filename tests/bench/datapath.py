"""What a packet costs in the programs, by prog-test-run, without the kernel around them."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Any

from cilium_agent.datapath import syscalls
from cilium_core import abi

from tests.bench import report
from tests.bpf.conftest import CACHE
from tests.bpf.harness import EventRing, Plane
from tests.bpf.scenes import ALLOW, BLUE, RED, Scene, port_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A run starts from the packet as given and each repetition lowers its TTL.
REPEAT = 200
TTL = 255
SAMPLES = 300
# `r0 = 0; exit`, in the kernel's instruction encoding.
EMPTY = bytes.fromhex("b7000000000000009500000000000000")


def rows() -> Iterator[report.Row]:
    """One row per kind of packet and family; needs root."""
    plane = Plane(CACHE)
    try:
        empty = _empty(plane)
        yield report.told("an empty program", "ns/packet", empty)
        for family in (4, 6):
            yield from _family(Scene(plane, family), empty)
    finally:
        plane.close()


def _family(scene: Scene, empty: float) -> Iterator[report.Row]:
    limits = {"established": 1000.0, "reply": 700.0, "new": None, "denied": 1100.0}
    for kind, limit in limits.items():
        cost = _cost(scene, kind)
        name = f"{kind}, pod to pod, IPv{scene.family}"
        if limit is None:
            yield report.told(name, "ns/packet", cost, "an empty program", empty)
        else:
            yield report.absolute(name, "ns/packet", cost, "<=", limit)
    name = f"denied, IPv{scene.family}"
    alone, read, silent = [], [], []
    for _ in range(5):
        silent.append(_cost(scene, "denied", QUIET))
        alone.append(_cost(scene, "denied"))
        with _reading(scene.plane):
            read.append(_cost(scene, "denied"))
    yield report.compare(f"{name}, events read", "ns/packet", read, "not read", alone, "<=", 1.5)
    yield report.told(f"{name}, two events", "ns/packet", median(read), "none", median(silent))


@contextmanager
def _reading(plane: Plane) -> Iterator[None]:
    """Somebody reads the events meanwhile, as often as hubble-server does."""
    ring, stop = EventRing(plane.maps), threading.Event()

    def read() -> None:
        while not stop.wait(0.025):
            ring.read()

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        ring.close()


QUIET = {"hubble": False, "policy_verdicts": False, "drop_events": False}


def _cost(scene: Scene, kind: str, config: dict[str, Any] | None = None) -> float:
    plane = scene.plane
    plane.reset()
    scene.build()
    if config:
        scene.configure(**config)
    allowed = port_rule(abi.DIR_INGRESS, RED.identity, 80)
    rules = {allowed: ALLOW}
    scene.rules(BLUE, rules)
    hop: dict[str, Any] = {"ttl": TTL} if scene.family == 4 else {"hlim": TTL}
    port = 81 if kind == "denied" else 80
    opening = scene.tcp(RED, BLUE, dport=port, **hop)
    forward = scene.tcp(RED, BLUE, dport=port, flags="A", **hop)
    back = scene.tcp(BLUE, RED, sport=80, dport=40000, flags="A", **hop)
    if kind == "new":
        packets = [scene.tcp(RED, BLUE, sport=p, **hop) for p in range(20000, 20000 + SAMPLES)]
        times = [scene.send(RED, packet).duration_ns for packet in packets]
        return float(median(times)) - _single(plane)
    scene.send(RED, opening)
    if kind != "denied":
        scene.send(BLUE, scene.tcp(BLUE, RED, sport=80, dport=40000, flags="SA"))
    sender, packet = {
        "established": (RED, forward),
        "reply": (BLUE, back),
        "denied": (RED, opening),
    }[kind]
    data = bytes(packet)
    return _median(lambda: scene.send(sender, data, repeat=REPEAT).duration_ns)


def _median(once: Callable[[], int]) -> float:
    return float(median(once() for _ in range(SAMPLES)))


def _empty(plane: Plane) -> float:
    plane.generation.programs.setdefault(
        "empty", syscalls.prog_load_raw(syscalls.PROG_TYPES["SCHED_CLS"], "empty", EMPTY)
    )
    return _median(lambda: plane.run("empty", bytes(64), repeat=REPEAT).duration_ns)


def _single(plane: Plane) -> float:
    """What one run alone costs beside the program: the clock and the switch into it."""
    return _median(lambda: plane.run("empty", bytes(64)).duration_ns) - _empty(plane)
