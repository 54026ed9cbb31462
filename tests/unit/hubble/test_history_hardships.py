"""What befalls a history from outside: the server is killed, the disk is full."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hubble_server.history.layout import parts_of
from hubble_server.history.writing import Limits

from tests.needing import need_root
from tests.unit.hubble.loads import traffic
from tests.unit.hubble.test_history import Kept, uuids

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_WRITER = """
import sys
import threading
from pathlib import Path
from hubble_server.history.writing import Limits
from tests.unit.hubble.test_history import Kept
from tests.unit.hubble.test_history_hardships import numbered
kept = Kept(Path(sys.argv[1]), limits=Limits(journal_bytes=300_000))
kept.history.start()
sent, turn = 0, threading.Event()
while True:
    kept.feed(numbered(sent, 700))
    sent += 700
    kept.history._written()
    while kept.history.snapshot().head < sent - 3000:
        turn.wait(0.001)
    print(kept.history.snapshot().head, flush=True)
"""
"""Keeps flows as fast as it can, and says how many are kept."""


def numbered(first: int, count: int) -> NDArray[Any]:
    """Traffic whose source ports count up."""
    events = traffic(count, 4)
    ports = (first + np.arange(count)) % 60_000
    events["sport"] = ports.astype(">u2").view("<u2")
    return events


@pytest.mark.parametrize("lines", [5, 40])
def test_a_killed_server_has_kept_all_that_it_said_it_had(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "history"
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        for _ in range(lines):
            said = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split()
    said = int(rest[-2]) if len(rest) > 1 else said
    again = Kept(path)
    before = [one.flow.l4.TCP.source_port for one in again.read()]
    assert len(before) >= said
    assert before == [number % 60_000 for number in range(len(before))]
    again.feed(numbered(len(before), 100))
    again.complete()
    assert all(not part.is_journal for part in parts_of(path)[0])
    after = [one.flow.l4.TCP.source_port for one in again.read()]
    assert after == [number % 60_000 for number in range(len(before) + 100)]
    assert not again.damage


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2.5 MB."""
    need_root("mounting a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2500k", "none", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_on_a_full_disk_what_is_kept_can_be_asked_and_the_rest_is_counted(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubble_server.history.writing._RETRY_S", 0)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_500_000))
    limits = Limits(max_bytes=1 << 40, journal_bytes=200_000)
    kept = Kept(small_disk / "history", limits=limits)
    sent = 0

    def send(times: int) -> None:
        nonlocal sent
        for _ in range(times):
            kept.feed(numbered(sent, 2000))
            sent += 2000
            kept.history.step()
            kept.history._worker.submit(lambda: None).result(10)

    while not kept.history._failing:
        send(1)
    send(20)
    assert kept.history._failing
    full = uuids(kept.read())
    assert 0 < len(full) < sent
    assert uuids(kept.read()) == full
    ballast.unlink()
    for _ in range(20):
        if kept.history._failing:
            send(1)
    assert not kept.history._failing
    kept.history.step()
    found = kept.read()
    assert uuids(found)[: len(full)] == full
    lost = sum(one.lost_events.num_events_lost for one in found if one.HasField("lost_events"))
    assert lost > 0
    assert len(uuids(found)) + lost == sent
