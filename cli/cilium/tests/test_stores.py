# SPDX-License-Identifier: Apache-2.0
"""Work with etcd is given up when an answer takes too long, however many there are."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from cilium_cli import stores
from cilium_cli.errors import DeadlineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cilium_core.resources.model import Source

NOWHERE = stores.StoreAddress("127.0.0.1:1", "")


async def _next_answer() -> None:
    """What comes when half of the time for an answer is over."""
    waiting = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.1, waiting.set_result, None)
    await waiting


@pytest.fixture(autouse=True)
def short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "_LIMIT_S", 0.2)


def test_many_answers_may_take_longer_than_one() -> None:
    count = 0

    async def work(_source: Source, answered: Callable[[], None]) -> None:
        nonlocal count
        while count < 5:
            await _next_answer()
            answered()
            count += 1

    stores.with_source(NOWHERE, work)

    assert count == 5


def test_no_answer_is_an_error_that_says_so() -> None:
    async def work(_source: Source, _answered: Callable[[], None]) -> None:
        await asyncio.Event().wait()

    with pytest.raises(DeadlineError, match="did not answer within"):
        stores.with_source(NOWHERE, work)
