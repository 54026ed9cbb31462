import asyncio

import pytest
from cilium_agent.controllers import Controller, Controllers


@pytest.fixture
async def controllers():
    group = Controllers()
    yield group
    await group.stop()


async def test_triggers_during_a_run_fold_into_one_more(controllers):
    runs = []
    go = asyncio.Event()

    began = asyncio.Event()

    async def action():
        runs.append(1)
        began.set()
        await go.wait()

    controller = controllers.add(Controller("c", action))
    controller.trigger()
    await began.wait()
    for _ in range(5):
        controller.trigger()
    go.set()
    await controller.settle()
    assert len(runs) <= 3


async def test_a_failing_action_is_repeated_until_it_succeeds(controllers):
    attempts = []

    async def action():
        attempts.append(1)
        if len(attempts) < 4:
            raise OSError("not yet")

    controller = controllers.add(Controller("c", action, min_backoff_s=0.001))
    async with asyncio.timeout(5):
        await controller.settle()
    status = controller.status
    assert (
        status.runs,
        status.failures,
        status.consecutive_failures,
        status.last_error,
    ) == (4, 3, 0, "")


async def test_the_error_shows_while_it_lasts(controllers):
    again = asyncio.Event()
    runs = []

    async def action():
        runs.append(1)
        if len(runs) == 2:
            again.set()
        raise OSError("disk on fire")

    controllers.add(Controller("c", action, min_backoff_s=0.001)).trigger()
    await again.wait()
    assert [status.last_error for status in controllers.failing()] == ["OSError: disk on fire"]


async def test_an_interval_runs_without_triggers(controllers):
    twice = asyncio.Event()
    runs = []

    async def action():
        runs.append(1)
        if len(runs) == 2:
            twice.set()

    controllers.add(Controller("c", action, interval_s=0.001))
    async with asyncio.timeout(5):
        await twice.wait()
