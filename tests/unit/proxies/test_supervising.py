"""Programs outlive the agent, and are not left dead."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cilium_agent.proxies import supervising
from cilium_agent.proxies.supervising import Program, Supervisor

from tests.unit.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FOREVER = "import time\nprint('hello', flush=True)\nwhile True: time.sleep(60)"


def program(code: str = FOREVER, name: str = "thing") -> Program:
    return Program(name, (sys.executable, "-S", "-c", code), {"GREETING": "hi"})


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    made = Supervisor(program(), tmp_path)
    yield made
    await made.terminate()


def is_alive(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        return text.rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def session_nice(pid: int) -> int | None:
    """None where the kernel does not schedule by sessions, or this test may not say so."""
    path = Path(f"/proc/{pid}/autogroup")
    if os.geteuid() or not path.exists() or not (text := path.read_text()):
        return None
    return int(text.split()[-1])


def open_files(pid: int) -> set[str]:
    return {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}


async def test_a_program_runs_in_a_session_of_its_own_with_its_output_in_a_file(
    supervisor: Supervisor,
) -> None:
    supervisor.start()
    await supervisor.up()
    pid = supervisor.status.pid
    assert os.getsid(pid) == pid
    assert session_nice(pid) in (None, supervising.SESSION_NICE)
    await eventually(lambda: supervisor.log_file.exists() and supervisor.log_file.read_text())
    assert supervisor.log_file.read_text() == "hello\n"


async def test_a_program_inherits_no_descriptor(supervisor: Supervisor, tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        supervisor.start()
        await supervisor.up()
        pid = supervisor.status.pid
        await eventually(lambda: supervisor.log_file.read_text() == "hello\n")
        targets = open_files(pid)
    assert targets == {"/dev/null", str(supervisor.log_file)}


async def test_a_program_that_is_killed_is_back_within_two_seconds(supervisor: Supervisor) -> None:
    supervisor.start()
    await supervisor.up()
    first = supervisor.status.pid
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: supervisor.status.pid not in (0, first), limit_s=2.0)
    status = supervisor.status
    assert (status.starts, status.exits, status.last_exit) == (2, 1, "killed by SIGKILL")


async def test_a_program_outlives_its_supervisor_and_is_adopted_by_the_next(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    supervisor.start()
    await supervisor.up()
    pid = supervisor.status.pid
    await supervisor.detach()
    assert is_alive(pid)

    heir = Supervisor(program(), tmp_path)
    assert heir.left_running()
    heir.start()
    await heir.up()
    assert (heir.status.pid, heir.status.adopted, heir.status.starts) == (pid, True, 0)
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: heir.status.starts == 1, limit_s=2.0)
    await heir.terminate()


async def test_a_program_with_other_arguments_is_replaced(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    supervisor.start()
    await supervisor.up()
    pid = supervisor.status.pid
    await supervisor.detach()
    heir = Supervisor(program(FOREVER + "\n#"), tmp_path)
    heir.start()
    await heir.up()
    assert heir.status.pid != pid
    assert not is_alive(pid)
    await heir.terminate()


async def test_a_program_without_pid_file_is_found_and_replaced(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    supervisor.start()
    await supervisor.up()
    pid = supervisor.status.pid
    await supervisor.detach()
    supervisor.pid_file.unlink()
    heir = Supervisor(program(), tmp_path)
    heir.start()
    await heir.up()
    assert not is_alive(pid)
    await heir.terminate()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"pid": -1}', b'{"pid": 1e99}'])
async def test_a_pid_file_that_makes_no_sense_is_ignored(
    supervisor: Supervisor, content: bytes
) -> None:
    supervisor.pid_file.write_bytes(content)
    assert not supervisor.left_running()


async def test_a_process_that_took_over_the_number_is_left_alone(supervisor: Supervisor) -> None:
    record = {"pid": os.getpid(), "startTicks": 1, "command": list(program().command)}
    supervisor.pid_file.write_text(json.dumps(record))
    assert not supervisor.left_running()
    supervisor.start()
    await supervisor.up()
    assert supervisor.status.pid != os.getpid()


async def test_a_program_that_ends_at_once_is_started_ever_less_often(tmp_path: Path) -> None:
    made = Supervisor(program("raise SystemExit(3)"), tmp_path)
    began = time.monotonic()
    made.start()
    await eventually(lambda: made.status.exits >= 4)
    assert time.monotonic() - began >= 0.2 + 0.4 + 0.8
    assert made.status.last_exit == "exit code 3"
    await made.terminate()


async def test_a_program_that_has_ended_before_it_is_looked_at_is_one_that_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervising, "_raise_share", _until_ended)
    made = Supervisor(program("raise SystemExit(3)"), tmp_path)
    made.start()
    await eventually(lambda: made.status.exits == 1)
    assert made.status.last_exit == "exit code 3"
    await made.terminate()


def _until_ended(pid: int) -> None:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


async def test_a_program_whose_pid_file_cannot_be_written_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(supervising, "write_atomic", full)
    made = Supervisor(program(), tmp_path)
    made.start()
    await made.up()
    assert is_alive(made.status.pid)
    await made.terminate()


async def test_a_program_that_does_not_exist_is_reported(tmp_path: Path) -> None:
    made = Supervisor(Program("none", ("/does/not/exist",)), tmp_path)
    made.start()
    await eventually(lambda: "cannot start" in made.status.last_exit)
    assert made.status.pid == 0
    await made.terminate()


async def test_terminating_ends_what_ignores_the_polite_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervising, "KILL_AFTER_S", 0.1)
    code = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FOREVER
    made = Supervisor(program(code), tmp_path)
    made.start()
    await made.up()
    pid = made.status.pid
    await eventually(lambda: made.log_file.read_text() == "hello\n")
    await made.terminate()
    assert not is_alive(pid)
    assert not made.pid_file.exists()


async def test_a_long_log_begins_anew(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.log_file.write_bytes(b"x" * 100)
    supervising._turn_over(supervisor.log_file)
    assert supervisor.log_file.read_bytes() == b""
    assert (tmp_path / "thing.log.1").read_bytes() == b"x" * 100
