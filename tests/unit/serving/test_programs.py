"""How a service starts and ends."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from cilium_core.errors import ConflictError
from cilium_core.serving.programs import run_program
from cilium_core.settings import NodeSettings, TelemetrySettings

from tests.unit.logs import logs_restored

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cilium_core.settings import Loaded


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    with logs_restored():
        yield


@dataclass(frozen=True)
class Example(TelemetrySettings, NodeSettings):
    """Settings of a service."""


def run(work, *words: str) -> None:
    run_program(Example, work, program="cilium-core", about="An example.", argv=words)


def test_work_gets_the_settings_within_the_event_loop():
    seen = []

    async def work(loaded: Loaded[Example]) -> None:
        seen.append((loaded.value.node_name, asyncio.get_running_loop().is_running()))

    run(work, "--node-name", "here")
    assert seen == [("here", True)]


def test_an_error_of_the_service_is_one_line_and_exit_code_1(capfd):
    async def work(_: Loaded[Example]) -> None:
        raise ConflictError("the port is taken")

    with pytest.raises(SystemExit) as ended:
        run(work, "--node-name", "here", "--log-format", "json")
    assert ended.value.code == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert '"the port is taken"' in line
    assert '"node": "here"' in line


def test_the_version_is_that_of_the_package(capsys):
    async def work(_: Loaded[Example]) -> None:
        raise AssertionError("it was only asked for its version")

    with pytest.raises(SystemExit) as ended:
        run(work, "--version")
    assert ended.value.code == 0
    name, version = capsys.readouterr().out.split()
    assert name == "cilium-core"
    assert version[0].isdecimal()
