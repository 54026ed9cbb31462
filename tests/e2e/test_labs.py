"""The lab itself: what `up` makes, what `down` leaves, and two labs at once."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.running import BIN, Lab, eventually

if TYPE_CHECKING:
    from collections.abc import Callable


def traces(lab: Lab) -> list[str]:
    """Everything on this machine that bears the lab's name."""
    found = [str(path) for path in Path("/run/netns").glob(f"cil-{lab.name}-*")]
    found += [
        str(path)
        for root in ("/run/cilium-lab", "/sys/fs/bpf/cilium-lab")
        for path in Path(root).glob(f"*{lab.name}*")
    ]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/cilium-lab/{lab.name}")]
    found += [
        line for line in Path("/proc/self/mounts").read_text().splitlines() if lab.name in line
    ]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_text()
        except OSError:
            continue
        if f"/{lab.name}/" in text and int(path.parent.name) != os.getpid():
            found.append(text.replace("\0", " "))
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True)
    found += [line for line in links.stdout.splitlines() if lab.name in line]
    return found


def root_devices() -> list[str]:
    """Names of the machine's own devices."""
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True)
    return [line.split(": ")[1] for line in links.stdout.splitlines()]


def test_two_labs_run_side_by_side_and_down_leaves_no_trace(
    start_lab: Callable[[int], Lab],
) -> None:
    devices = root_devices()
    one, other = start_lab(1), start_lab(1)
    first, second = one.add_pod("web"), other.add_pod("web")
    assert root_devices() == devices

    one.cilium("lab", "down", "--name", one.name)

    assert traces(one) == []
    assert other.reaches("web", [second.ipv4]) == [True]
    assert first.full_name == second.full_name
    other.cilium("lab", "down", "--name", other.name)
    assert traces(other) == []
    assert root_devices() == devices


def test_pods_go_where_there_are_the_fewest(start_lab: Callable[[int], Lab]) -> None:
    lab = start_lab(3)
    assert "Connected Nodes: 3/3" in lab.hubble("status")

    lab.cilium("lab", "pod", "add", *(f"pod{number}" for number in range(7)))

    nodes = [pod["node"] for pod in lab.json("lab", "pod", "list")]
    assert {nodes.count(node) for node in ("node1", "node2", "node3")} == {2, 3}


def test_an_interrupted_up_cleans_up_after_itself() -> None:
    lab = Lab(f"e{os.getpid()}i")
    # what a shell starts in the background ignores the signal, these tests among it
    heeding = ["env", "--default-signal=INT", str(BIN / "cilium")]
    try:
        with subprocess.Popen(
            [*heeding, "lab", "up", "--name", lab.name, "--nodes", "2"],
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            eventually((lab.folder / "pids" / "etcd").exists, 20, "the start begins")
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)

        assert process.returncode == 130
        assert traces(lab) == []
    finally:
        lab.cilium("lab", "down", "--name", lab.name, exit_code=None)


def test_down_clears_what_a_killed_up_left() -> None:
    lab = Lab(f"e{os.getpid()}k")
    with subprocess.Popen(
        [str(BIN / "cilium"), "lab", "up", "--name", lab.name, "--nodes", "2"],
        stderr=subprocess.DEVNULL,
    ) as process:
        eventually((lab.folder / "pids" / "etcd").exists, 20, "the start begins")
        process.kill()
    assert traces(lab) != []

    lab.cilium("lab", "down", "--name", lab.name)

    assert traces(lab) == []
