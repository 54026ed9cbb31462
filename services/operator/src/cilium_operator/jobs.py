"""Recurring jobs of the leader, and how they fare."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilium_core.errors import CiliumError
from cilium_core.telemetry import counter, get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = get_logger()

RUNS = counter(
    "cilium_operator_controllers_group_runs_total", "Runs of jobs.", "status", "group_name"
)

_FIRST_DELAY_S = 0.2
_LAST_DELAY_S = 10.0


@dataclass(slots=True)
class Job:
    """How a job fares; kept over leaderships."""

    name: str
    runs: int = 0
    failures: int = 0
    last_success: float = 0.0
    """Seconds since the epoch; 0 before the first success."""
    error: str = ""

    def done(self, error: str = "") -> None:
        """Count a run, with the text of its error or an empty one."""
        self.runs += 1
        self.error = error
        RUNS.add(1, "failure" if error else "success", self.name)
        if error:
            self.failures += 1
        else:
            self.last_success = time.time()

    async def every(self, interval_s: float, work: Callable[[], Awaitable[object]]) -> None:
        """Run `work` now and then every `interval_s`, sooner after a failure, for ever."""
        delay_s = _FIRST_DELAY_S
        while True:
            if await self._once(work):
                delay_s = _FIRST_DELAY_S
                await asyncio.sleep(interval_s)
            else:
                await asyncio.sleep(random.uniform(delay_s / 2, delay_s))  # noqa: S311 - jitter
                delay_s = min(2 * delay_s, _LAST_DELAY_S)

    async def _once(self, work: Callable[[], Awaitable[object]]) -> bool:
        try:
            await work()
        except CiliumError as error:
            log.warning("job failed", job=self.name, error=str(error))
            self.done(str(error))
            return False
        except Exception as error:
            log.exception("job failed", job=self.name)
            self.done(f"{type(error).__name__}: {error}")
            return False
        self.done()
        return True
