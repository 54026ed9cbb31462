"""Drives a lab through the command line, as its users do."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BIN = Path(sys.executable).parent
TRAFFIC = Path(__file__).with_name("traffic.py")
ECHO_PORT = 7007
PYTHON = "/usr/bin/python3"
"""Starts faster than the project's own interpreter, and traffic.py needs nothing more."""


class CommandFailedError(Exception):
    """A command ended with another exit code than expected."""


class Pod(NamedTuple):
    """A pod that runs."""

    full_name: str
    node: str
    ipv4: str
    ipv6: str


def eventually(condition: Callable[[], Any], limit_s: float, what: str) -> Any:
    """Wait until the condition is true and return its value; AssertionError after the limit."""
    deadline = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {limit_s:g} s"
        time.sleep(0.02)
    return value


class Running:
    """A traffic.py that runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def wait_line(self, text: str) -> None:
        """Wait until it prints that line next."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == text

    def stopped(self, limit_s: float = 20) -> Any:
        """Tell it to stop, and return what it prints then."""
        self.process.terminate()
        return self.outcome(limit_s)

    def outcome(self, limit_s: float) -> Any:
        """Return what it prints at its end; AssertionError when that does not come in time."""
        try:
            output, _ = self.process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.process.args!r} still runs after {limit_s:g} s") from None
        assert self.process.returncode == 0, f"{self.process.args!r} failed"
        return json.loads(output)


class Lab:
    """A lab by name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = Path("/run/cilium-lab") / name

    @property
    def relay(self) -> str:
        """Address of the relay."""
        return f"unix://{self.folder}/relay.sock"

    def cilium(self, *arguments: str, exit_code: int | None = 0, stdin: str | None = None) -> str:
        """Run `cilium` and return what it prints; errors too when another exit code is expected."""
        return self._run("cilium", *arguments, exit_code=exit_code, stdin=stdin)

    def hubble(self, *arguments: str, server: str = "") -> str:
        """Run `hubble` against the relay, or another server."""
        return self._run("hubble", *arguments, "--server", server or self.relay)

    def _run(
        self, program: str, *arguments: str, exit_code: int | None = 0, stdin: str | None = None
    ) -> str:
        done = subprocess.run(
            [str(BIN / program), *arguments],
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=150,
            env=os.environ | {"CILIUM_LAB": self.name},
            check=False,
        )
        if exit_code is not None and done.returncode != exit_code:
            raise CommandFailedError(
                f"{program} {' '.join(arguments)}: exit code {done.returncode}\n"
                f"{done.stdout}{done.stderr}"
            )
        return done.stdout + (done.stderr if exit_code else "")

    def json(self, *arguments: str) -> Any:
        """Run `cilium … -o json` and decode it."""
        return json.loads(self.cilium(*arguments, "-o", "json"))

    def add_pod(self, name: str, *options: str, command: bool = True) -> Pod:
        """Create a pod that echoes on ECHO_PORT."""
        serve = f"{PYTHON} {TRAFFIC} serve {ECHO_PORT}"
        extra = ["--command", serve] if command else []
        (made,) = self.json("lab", "pod", "add", name, *options, *extra)
        ipv4, ipv6 = made["addresses"]
        pod = Pod(f"{made['namespace']}/{made['name']}", made["node"], ipv4, ipv6)
        if command:
            where = f"{made['namespace']}.{made['name']}"
            eventually(lambda: self._listens(f"cil-{self.name}-pod-{where}"), 10, f"{name} listens")
        return pod

    @contextlib.contextmanager
    def configured(self, component: str, settings: dict[str, str]) -> Iterator[None]:
        """Run a node's component with further settings meanwhile."""
        node, _, program = component.partition("/")
        folder = self.folder / node / ("config" if program == "agent" else "hubble-config")
        for name, value in settings.items():
            (folder / name).write_text(value)
        try:
            self.cilium("lab", "restart", component)
            self.cilium("lab", "wait")
            yield
        finally:
            for name in settings:
                (folder / name).unlink()
            self.cilium("lab", "restart", component)
            self.cilium("lab", "wait")

    def _listens(self, netns: str) -> bool:
        done = subprocess.run(
            ["ip", "netns", "exec", netns, "cat", "/proc/net/tcp6"],
            capture_output=True,
            text=True,
            check=False,
        )
        return f":{ECHO_PORT:04X} " in done.stdout

    @contextlib.contextmanager
    def spawned(
        self, place: str, *arguments: str, program: str = str(TRAFFIC)
    ) -> Iterator[Running]:
        """Run a program (traffic.py) in a pod or place while the block runs."""
        command = [
            *(str(BIN / "cilium"), "lab", "exec", "--lab", self.name, place, "--"),
            *(PYTHON, program, *arguments),
        ]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                yield Running(process)
            finally:
                process.kill()

    @contextlib.contextmanager
    def spawned_beside(self, netns: str, *arguments: str) -> Iterator[Running]:
        """Run traffic.py in a namespace but in no group of the lab, while the block runs."""
        command = ["nsenter", f"--net=/run/netns/{netns}", PYTHON, str(TRAFFIC), *arguments]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                yield Running(process)
            finally:
                process.kill()

    def traffic(self, place: str, *arguments: str) -> Any:
        """Run traffic.py in a pod or place and decode what it prints."""
        with self.spawned(place, *arguments) as running:
            return running.outcome(limit_s=60)

    def reaches(
        self, source: str, addresses: list[str], port: int = ECHO_PORT, protocol: str = "tcp"
    ) -> list[bool]:
        """Whether each address echoes, asked from a pod or place."""
        targets = [f"{protocol}:{address}:{port}" for address in addresses]
        answers = self.traffic(source, "try", *targets)
        return [answers[target] for target in targets]

    @contextlib.contextmanager
    def applied(self, text: str) -> Iterator[None]:
        """Apply YAML, and delete it afterwards."""
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(text)
            file.flush()
            self.cilium("apply", "-f", file.name)
            try:
                yield
            finally:
                self.cilium("delete", "-f", file.name, "--ignore-not-found")
