"""Reconcilers that never give up: the agent's only way of converging on desired state.

A `Controller` runs one idempotent action whenever it is triggered and, if it has an interval, at
least that often. Triggers that arrive while it runs are folded into one further run. A failed run
is repeated after an exponential back-off with jitter; the last error stays visible until a run
succeeds. Everything happens on the event loop; actions take blocking work to threads themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilium_core.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

log = get_logger()

MIN_BACKOFF_S = 0.1
MAX_BACKOFF_S = 10.0


@dataclass(frozen=True)
class ControllerStatus:
    """How a controller fares; times are seconds of the monotonic clock, 0 for never."""

    name: str
    runs: int
    failures: int
    consecutive_failures: int
    last_success_s: float
    last_error: str


class Controller:
    """One reconciler.

    `action` brings the world to the desired state or raises. `interval_s` of None runs it on
    triggers only. Back-off between failed runs is in seconds.
    """

    def __init__(
        self,
        name: str,
        action: Callable[[], Awaitable[object]],
        *,
        interval_s: float | None = None,
        min_backoff_s: float = MIN_BACKOFF_S,
        max_backoff_s: float = MAX_BACKOFF_S,
    ) -> None:
        self.name = name
        self.interval_s = interval_s
        self._action = action
        self._min_backoff_s = min_backoff_s
        self._max_backoff_s = max_backoff_s
        self._wake = asyncio.Event()
        self._succeeded = asyncio.Condition()
        self._requested = 0
        self._finished = 0
        self._runs = 0
        self._failures = 0
        self._consecutive = 0
        self._last_success_s = 0.0
        self._last_error = ""

    @property
    def status(self) -> ControllerStatus:
        """How the controller fares now."""
        return ControllerStatus(
            name=self.name,
            runs=self._runs,
            failures=self._failures,
            consecutive_failures=self._consecutive,
            last_success_s=self._last_success_s,
            last_error=self._last_error,
        )

    def trigger(self) -> None:
        """Ask for a run soon."""
        self._requested += 1
        self._wake.set()

    async def settle(self) -> None:
        """Trigger, and return once a run that began after this call has succeeded."""
        self.trigger()
        wanted = self._requested
        async with self._succeeded:
            await self._succeeded.wait_for(lambda: self._finished >= wanted)

    async def run(self) -> None:
        """Reconcile until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self.interval_s)
            while not await self._once():
                await self._back_off()

    async def _once(self) -> bool:
        self._wake.clear()
        taken = self._requested
        self._runs += 1
        try:
            await self._action()
        except Exception as error:  # a reconciler survives whatever its action raises
            self._failures += 1
            self._consecutive += 1
            self._last_error = f"{type(error).__name__}: {error}"
            log.warning(
                "reconciliation failed",
                controller=self.name,
                error=self._last_error,
                attempt=self._consecutive,
                exc_info=self._consecutive == 1,
            )
            return False
        self._consecutive = 0
        self._last_error = ""
        self._last_success_s = time.monotonic()
        async with self._succeeded:
            self._finished = max(self._finished, taken)
            self._succeeded.notify_all()
        return True

    async def _back_off(self) -> None:
        ceiling = min(self._max_backoff_s, self._min_backoff_s * 2 ** (self._consecutive - 1))
        await asyncio.sleep(ceiling * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret


class Controllers:
    """The controllers of an agent, started and stopped together."""

    def __init__(self) -> None:
        self._controllers: dict[str, Controller] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def __iter__(self) -> Iterator[Controller]:
        return iter(self._controllers.values())

    def add(self, controller: Controller) -> Controller:
        """Start a controller under its name, which must be new."""
        if controller.name in self._controllers:
            raise ValueError(f"controller {controller.name!r} exists already")
        self._controllers[controller.name] = controller
        self._tasks[controller.name] = asyncio.create_task(
            controller.run(), name=f"controller {controller.name}"
        )
        return controller

    async def stop(self) -> None:
        """Stop all controllers; running actions are cancelled."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()

    def failing(self) -> list[ControllerStatus]:
        """Those whose last run failed."""
        return [c.status for c in self._controllers.values() if c.status.consecutive_failures]
