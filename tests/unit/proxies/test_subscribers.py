"""Our own proxies as backends: told over a board, kept alive as programs."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest
from cilium_agent.proxies.serving import RedirectBoard
from cilium_agent.proxies.subscribers import Subscriber
from cilium_core.policy.l7 import DnsRule, L7Kind, Redirect

from tests.unit.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

A, B = (Redirect(ingress=False, kind=L7Kind.DNS, dns=(DnsRule(name=name),)) for name in "ab")
COMMAND = (sys.executable, "-S", "-c", "import time\nwhile True: time.sleep(60)")


@pytest.fixture
async def board() -> RedirectBoard:
    return RedirectBoard()


@pytest.fixture
async def subscriber(board: RedirectBoard, tmp_path: Path) -> AsyncIterator[Subscriber]:
    made = Subscriber(L7Kind.DNS, board, COMMAND, tmp_path)
    yield made
    await made._supervisor.terminate()


async def test_the_program_starts_with_the_first_redirect(
    subscriber: Subscriber, board: RedirectBoard
) -> None:
    await subscriber.start()
    assert subscriber.status().program is None
    subscriber.want({A: 10000})
    await subscriber._supervisor.up()
    assert board.assignment.redirects == {10000: A}
    program = subscriber.status().program
    assert program is not None
    assert program.pid


async def test_a_redirect_is_settled_once_it_is_served(
    subscriber: Subscriber, board: RedirectBoard
) -> None:
    subscriber.want({A: 10000, B: 10001})
    waiting = asyncio.create_task(subscriber.settled([A]))
    await asyncio.wait([waiting], timeout=0.05)
    assert not waiting.done()
    board.joined(1)
    board.acknowledge(board.assignment, {})
    async with asyncio.timeout(5):
        await waiting
    assert subscriber.status().acknowledged == {A, B}
    board.left()


async def test_a_port_that_cannot_be_listened_on_is_known(
    subscriber: Subscriber, board: RedirectBoard
) -> None:
    subscriber.want({A: 10000, B: 10001})
    board.joined(1)
    board.acknowledge(board.assignment, {10001: "address in use"})
    async with asyncio.timeout(5):
        await subscriber.settled([A, B])
    assert subscriber.port_taken(B)
    assert not subscriber.port_taken(A)
    status = subscriber.status()
    assert (status.acknowledged, dict(status.errors)) == ({A}, {B: "address in use"})
    board.left()


async def test_a_program_that_was_left_running_is_adopted(
    subscriber: Subscriber, board: RedirectBoard, tmp_path: Path
) -> None:
    subscriber.want({A: 10000})
    await subscriber._supervisor.up()
    pid = subscriber._supervisor.status.pid
    await subscriber.stop()
    heir = Subscriber(L7Kind.DNS, board, COMMAND, tmp_path)
    await heir.start()
    await eventually(lambda: heir._supervisor.status.pid == pid)
    await heir._supervisor.terminate()
