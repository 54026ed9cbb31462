"""Programs that the agent keeps alive, and that live on without it.

A program runs in a session of its own, writes its log to `<directory>/<name>.log` and has a pid
file `<directory>/<name>.pid` beside it. An agent that starts finds it there and adopts it, if it is
the same process (pid and start time) with the same arguments; otherwise it is replaced. When the
program ends, it is started again: at once after a long life, after a growing pause when its life
was short.

One `Supervisor` per program, on one event loop. Stopping the agent detaches; only `terminate` ends
the program. A program inherits no file descriptor of the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cilium_core.files import write_atomic
from cilium_core.telemetry import counter, get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import IO

log = get_logger()

STARTS = counter("cilium_subprocess_start_total", "Starts of programs.", "subsystem")

MIN_PAUSE_S = 0.1
MAX_PAUSE_S = 10.0
STEADY_S = 5.0
"""A life of this length makes the next pause the shortest again."""

MAX_LOG_BYTES = 10 << 20
LOG_CHECK_S = 60.0
KILL_AFTER_S = 3.0
SESSION_NICE = -10
"""Of a program's session as a whole, where the kernel schedules by sessions."""

MARKER = "CILIUM_SUPERVISED_BY"
"""Environment variable of every program: its pid file. It finds a program whose agent died between
starting it and writing the file."""


@dataclass(frozen=True)
class Program:
    """What to run; `environment` comes on top of a few variables of the agent's own."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ProgramStatus:
    """How a program fares.

    `pid` is 0 while it does not run; `starts` and `exits` count since this agent began.
    """

    name: str
    pid: int
    running_s: float
    starts: int
    exits: int
    adopted: bool
    last_exit: str


@dataclass(frozen=True)
class _Process:
    pid: int
    start_ticks: int
    fd: int
    """A pidfd, readable once the process has ended."""


class Supervisor:
    """Keeps one program running. Make it on a running event loop."""

    def __init__(
        self,
        program: Program,
        directory: Path,
        *,
        prepare: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`prepare` is awaited before each start."""
        self.program = program
        self.log_file = directory / f"{program.name}.log"
        self.pid_file = directory / f"{program.name}.pid"
        self._prepare = prepare
        self._process: _Process | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._since = 0.0
        self._adopted = False
        self._starts = 0
        self._exits = 0
        self._last_exit = ""
        self._task: asyncio.Task[None] | None = None
        self._log_task: asyncio.Task[None] | None = None
        self._up = asyncio.Event()

    @property
    def status(self) -> ProgramStatus:
        """How the program fares now."""
        process = self._process
        return ProgramStatus(
            name=self.program.name,
            pid=process.pid if process else 0,
            running_s=time.monotonic() - self._since if process else 0.0,
            starts=self._starts,
            exits=self._exits,
            adopted=self._adopted,
            last_exit=self._last_exit,
        )

    @property
    def started(self) -> bool:
        """Whether `start` was called."""
        return self._task is not None

    def left_running(self) -> bool:
        """Whether an earlier agent's program is still there to be adopted."""
        process = self._find()
        if process is None:
            return False
        os.close(process.fd)
        return True

    def start(self) -> None:
        """Adopt or start the program and keep it running; calling it again changes nothing."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep(), name=f"keep {self.program.name}")
            self._log_task = asyncio.create_task(self._limit_log())

    async def up(self) -> None:
        """Return once the process exists."""
        await self._up.wait()

    async def detach(self) -> None:
        """Leave the program running and unattended."""
        for task in (self._task, self._log_task):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._task = self._log_task = None
        if self._child is not None:
            self._child.returncode = 0  # nobody waits for it any more, which is no mistake
            self._child = None
        self._forget()

    async def terminate(self) -> None:
        """End the program, by force after three seconds."""
        process, child = self._process or self._find(), self._child
        self._process = self._child = None
        await self.detach()
        if process is not None:
            try:
                await _end(process)
            finally:
                os.close(process.fd)
        if child is not None:
            child.wait()
        self.pid_file.unlink(missing_ok=True)

    # ---- the life of the process ----

    async def _keep(self) -> None:
        pause_s = MIN_PAUSE_S
        while True:
            try:
                if not await self._adopt():
                    if self._prepare is not None:
                        await self._prepare()
                    self._launch()
                process = self._process
                if process is not None:
                    self._up.set()
                    await _ended(process.fd)
                    self._note_exit()
            except OSError as error:
                self._last_exit = f"cannot start: {error}"
                log.error("program cannot start", program=self.program.name, error=str(error))
            lived_s = time.monotonic() - self._since
            pause_s = MIN_PAUSE_S if lived_s >= STEADY_S else min(pause_s * 2, MAX_PAUSE_S)
            await asyncio.sleep(pause_s)

    async def _adopt(self) -> bool:
        process = self._find()
        if process is None and (process := await asyncio.to_thread(self._search)) is None:
            return False
        record = self._recorded()
        if (record.get("pid"), record.get("command")) != (process.pid, list(self.program.command)):
            log.info("replacing a program of an earlier agent", program=self.program.name)
            try:
                await _end(process)
            finally:
                os.close(process.fd)
            return False
        self._process, self._adopted = process, True
        self._since = time.monotonic()
        log.info("adopted a running program", program=self.program.name, pid=process.pid)
        return True

    def _launch(self) -> None:
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        kept = ("PATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "SSL_CERT_FILE")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        with _open_log(self.log_file) as output:
            self._child = subprocess.Popen(
                self.program.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                close_fds=True,
                cwd="/",
                env={**environment, **self.program.environment, MARKER: str(self.pid_file)},
            )
        pid = self._child.pid
        self._since = time.monotonic()
        self._starts += 1
        self._adopted = False
        STARTS.add(1, self.program.name)
        _raise_share(pid)
        # one that has ended at once is there until it is reaped
        _, ticks = _state_of(pid)
        self._process = _Process(pid, ticks, os.pidfd_open(pid))
        log.info("started a program", program=self.program.name, pid=pid)
        record = {"pid": pid, "startTicks": ticks, "command": list(self.program.command)}
        try:
            write_atomic(self.pid_file, json.dumps(record).encode())
        except OSError as error:
            log.warning(
                "the next agent will start the program anew: its pid file cannot be written",
                program=self.program.name,
                file=str(self.pid_file),
                error=str(error),
            )

    def _note_exit(self) -> None:
        self._up.clear()
        self._exits += 1
        code = self._reap()
        self._last_exit = _exit_text(code)
        log.warning(
            "program ended",
            program=self.program.name,
            pid=self._process.pid if self._process else 0,
            how=self._last_exit,
            log=str(self.log_file),
        )
        self._forget()

    def _forget(self) -> None:
        if self._process is not None:
            os.close(self._process.fd)
            self._process = None

    def _reap(self) -> int | None:
        if self._child is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._child.wait(1.0)
            self._child = None
            return code
        return None

    # ---- what an earlier agent left ----

    def _recorded(self) -> dict[str, object]:
        try:
            document = json.loads(self.pid_file.read_bytes())
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}

    def _find(self) -> _Process | None:
        record = self._recorded()
        pid, ticks = record.get("pid"), record.get("startTicks")
        if not isinstance(pid, int) or pid <= 0:
            return None
        try:
            fd = os.pidfd_open(pid)
        except (OSError, OverflowError):
            return None
        with contextlib.suppress(OSError):
            if ticks == _start_ticks(pid):  # looked at after opening: the number is not reused now
                return _Process(pid, _start_ticks(pid), fd)
        os.close(fd)
        return None

    def _search(self) -> _Process | None:
        wanted = f"{MARKER}={self.pid_file}".encode()
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if wanted in (directory / "environ").read_bytes().split(b"\0"):
                    pid = int(directory.name)
                    fd = os.pidfd_open(pid)
                    try:
                        return _Process(pid, _start_ticks(pid), fd)
                    except OSError:
                        os.close(fd)
        return None

    async def _limit_log(self) -> None:
        while True:
            await asyncio.sleep(LOG_CHECK_S)
            with contextlib.suppress(OSError):
                if self.log_file.stat().st_size > MAX_LOG_BYTES:
                    await asyncio.to_thread(_turn_over, self.log_file)


def _raise_share(pid: int) -> None:
    """Let a program have more than one session's share of the processors.

    Where the kernel groups processes by session (autogroup), a busy shell weighs as much as a proxy
    that all pods of the node depend on, and each wake-up of the proxy waits for it.
    """
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(SESSION_NICE))


def _open_log(path: Path) -> IO[bytes]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    return os.fdopen(descriptor, "ab")


def _turn_over(path: Path) -> None:
    """Keep the log's content under another name; the program goes on appending to the file."""
    path.with_name(f"{path.name}.1").write_bytes(path.read_bytes()[-MAX_LOG_BYTES:])
    os.truncate(path, 0)


def _state_of(pid: int) -> tuple[bytes, int]:
    """Letter of a process's state, and when it started, in clock ticks since boot.

    Raises OSError.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
        fields = file.read().rpartition(b")")[2].split()
    return fields[0], int(fields[19])


def _start_ticks(pid: int) -> int:
    """When a process that runs started. Raises OSError; zombies count as gone."""
    state, ticks = _state_of(pid)
    if state in (b"Z", b"X"):
        raise ProcessLookupError(f"process {pid} has ended")
    return ticks


async def _ended(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def readable() -> None:
        if not future.done():
            future.set_result(None)

    loop.add_reader(descriptor, readable)
    try:
        await future
    finally:
        loop.remove_reader(descriptor)


async def _end(process: _Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(process.fd, signal.SIGTERM)
        try:
            await asyncio.wait_for(_ended(process.fd), KILL_AFTER_S)
        except TimeoutError:
            signal.pidfd_send_signal(process.fd, signal.SIGKILL)
            await _ended(process.fd)


def _exit_text(code: int | None) -> str:
    if code is None:
        return "ended"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
