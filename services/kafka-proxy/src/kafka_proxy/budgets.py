"""Limits how many bytes of requests are held at once by all connections together."""

from __future__ import annotations

import asyncio
from collections import deque


class Budget:
    """Bytes that may be held; who wants more than there are waits, in order."""

    def __init__(self, limit: int) -> None:
        """`limit` is at least the largest amount anybody asks for."""
        self._free = limit
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def free(self) -> int:
        """Bytes that nobody holds."""
        return self._free

    async def take(self, amount: int) -> None:
        """Hold some bytes until they are given back."""
        if not self._waiting and amount <= self._free:
            self._free -= amount
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(amount)
            else:
                self._waiting.remove((amount, turn))
                self._serve()
            raise

    def give(self, amount: int) -> None:
        """Give bytes back."""
        self._free += amount
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            amount, turn = self._waiting.popleft()
            if not turn.done():
                self._free -= amount
                turn.set_result(None)
