"""Waiting for a condition, with a limit."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


async def eventually(condition: Callable[[], Any], limit_s: float = 10.0) -> Any:
    """Wait until `condition`, or what it awaits, is true, and give its value."""
    async with asyncio.timeout(limit_s):
        while True:
            result = condition()
            if inspect.isawaitable(result):
                result = await result
            if result:
                return result
            await asyncio.sleep(0.01)
