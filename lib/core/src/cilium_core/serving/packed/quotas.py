"""What all clients of a packed server may take of it, and what each of them has taken.

A server is there for all of its clients, so none may use it up. Counted are calls in progress, of
all and of each client; bytes of requests that are still coming in; bytes of answers that wait for a
client to read them. A client is known by the subject of its certificate, else by its address; those
on a unix socket are one client together. Owned by the server's event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from cilium_core.errors import ExhaustedError
from cilium_core.telemetry.metrics import counter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

MAX_REQUEST_BYTES = 256 << 10
"""Largest request that is read. Parsed, one of many empty messages takes 200 times its size."""

REQUEST_TIMEOUT_S = 20.0
"""How long a large request may take to come in."""

_SMALL = 4 << 10
"""Bytes of a request for which there is always room."""

_REFUSED = counter(
    "grpc_server_calls_refused_total", "Calls refused since too many were in progress."
)


@dataclass(frozen=True, slots=True)
class Quotas:
    """What all clients of a server, or one of them, may take."""

    connections: int = 1024
    calls: int = 4096
    calls_of_client: int = 1024
    request_bytes: int = 16 << 20
    """Of requests that are not here as a whole yet."""
    unsent_of_client: int = 64 << 20
    """Of answers that wait for one client to read them."""


class Calls:
    """Calls in progress and answers that wait, by client."""

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas
        self._unsent: Counter[str] = Counter()
        self._of_client: Counter[str] = Counter()
        self._count = 0

    @contextmanager
    def one(self, client: str) -> Iterator[None]:
        """Count a call of a client while it runs. Raises ExhaustedError for one too many."""
        quotas = self._quotas
        whose, count, most = "the server has", self._count, quotas.calls
        if self._of_client[client] >= quotas.calls_of_client:
            whose, count, most = "this client has", self._of_client[client], quotas.calls_of_client
        if count >= most:
            _REFUSED.add(1)
            raise ExhaustedError(
                f"{whose} {count} calls in progress, and {most} is the most; end some of them or "
                "ask later"
            )
        self._count += 1
        self._of_client[client] += 1
        try:
            yield
        finally:
            self._count -= 1
            self._of_client[client] -= 1
            if not self._of_client[client]:
                del self._of_client[client]

    @contextmanager
    def unsent(self, client: str, size: int) -> Iterator[None]:
        """Count bytes while they wait for a client. Raises ExhaustedError for too many."""
        if self._unsent[client] + size > self._quotas.unsent_of_client:
            raise ExhaustedError(
                f"{self._unsent[client]} bytes wait for this client to read them, and "
                f"{self._quotas.unsent_of_client} are the most; read faster or ask for less"
            )
        self._unsent[client] += size
        try:
            yield
        finally:
            self._unsent[client] -= size
            if not self._unsent[client]:
                del self._unsent[client]


class Requests:
    """Bytes of requests that are coming in, of all calls of a server."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._most_of_client = max(limit // 4, MAX_REQUEST_BYTES)
        self._of_client: Counter[str] = Counter()
        self._given_back = asyncio.Event()

    @asynccontextmanager
    async def room(self, client: str, size: int) -> AsyncIterator[None]:
        """Wait for room for a request, and hold it. Raises GRPCError when that takes too long."""
        if size <= _SMALL:
            yield
            return
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                while not self._fits(client, size):
                    self._given_back.clear()
                    await self._given_back.wait()
                self._take(client, size)
                try:
                    yield
                finally:
                    self._take(client, -size)
                    self._given_back.set()
        except TimeoutError as error:
            raise GRPCError(
                Status.DEADLINE_EXCEEDED,
                f"the request of {size} bytes did not come within {REQUEST_TIMEOUT_S:g} s",
            ) from error

    def _fits(self, client: str, size: int) -> bool:
        return size <= self._left and size + self._of_client[client] <= self._most_of_client

    def _take(self, client: str, size: int) -> None:
        self._left -= size
        self._of_client[client] += size
        if not self._of_client[client]:
            del self._of_client[client]
