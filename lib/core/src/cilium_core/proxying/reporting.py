"""Hands a proxy's records over to the agent: in batches, at most so many waiting, losses counted.

`add` never waits and never fails: when the buffer is full the new record is lost and counted, and
the next batch tells the agent how many were. A batch that was not answered is sent again, so that
an agent's restart loses nothing that the buffer can hold; the agent may see a batch twice.

Records are added as encoded messages (`cilium.proxy.v1.Record`): a proxy with a hot path may
compose them from parts that it encoded before. Used from one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from cilium.proxy.v1 import proxy_pb2

from cilium_core.proxying.redirects import KINDS
from cilium_core.telemetry.logs import get_logger
from cilium_core.varints import varint

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    import grpc.aio

    from cilium_core.policy.l7 import L7Kind

    Counters = Callable[[], Iterable[tuple[str, str, int]]]

log = get_logger()

BUFFER = 65_536
BATCH = 1_000
INTERVAL_S = 0.1
"""How long records wait for company."""

TIMEOUT_S = 10.0
RETRY_S = 0.5

_METHOD = "/cilium.proxy.v1.ProxyService/ReportRecords"
_RECORDS_FIELD = b"\x12"  # field 2, length-delimited


class Reporter:
    """The records of one proxy."""

    def __init__(
        self, kind: L7Kind, *, buffer: int = BUFFER, counters: Counters = lambda: ()
    ) -> None:
        """`counters` gives what the proxy counts, to go with the records: event, reason, total."""
        self._kind = kind
        self._counters = counters
        self._buffer = buffer
        self._waiting: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self.reported = 0
        """Records that the agent took over."""
        self.lost = 0
        """Records that never will be."""
        self._told_lost = 0

    def add(self, record: bytes) -> None:
        """Report an encoded `Record`."""
        if len(self._waiting) >= self._buffer:
            self.lost += 1
            return
        self._waiting.append(record)
        if len(self._waiting) == 1:
            self._wake.set()

    def add_message(self, record: proxy_pb2.Record) -> None:
        """Report a `Record`."""
        self.add(record.SerializeToString())

    @property
    def waiting(self) -> int:
        """Records that wait for the agent."""
        return len(self._waiting)

    async def run(self, channel: grpc.aio.Channel) -> None:
        """Hand over until cancelled."""
        import grpc.aio

        call: Callable[..., Awaitable[proxy_pb2.ReportRecordsResponse]] = channel.unary_unary(
            _METHOD,
            request_serializer=None,
            response_deserializer=proxy_pb2.ReportRecordsResponse.FromString,
        )
        while True:
            await self._wake.wait()
            await asyncio.sleep(INTERVAL_S)
            self._wake.clear()
            while self._waiting:
                batch = [self._waiting[i] for i in range(min(BATCH, len(self._waiting)))]
                lost = self.lost
                request = encode_request(
                    self._kind, batch, lost - self._told_lost, self._counters()
                )
                try:
                    await call(request, timeout=TIMEOUT_S)
                except grpc.aio.AioRpcError as error:
                    log.debug("records not taken over", details=error.details())
                    await asyncio.sleep(RETRY_S)
                    continue
                self._told_lost = lost
                self.reported += len(batch)
                for _ in batch:
                    self._waiting.popleft()


def encode_request(
    kind: L7Kind,
    records: list[bytes],
    lost: int,
    counters: Iterable[tuple[str, str, int]] = (),
) -> bytes:
    """A `ReportRecordsRequest` with records that are encoded already."""
    rest = proxy_pb2.ReportRecordsRequest(
        kind=KINDS[kind],
        lost=lost,
        counters=[
            proxy_pb2.Counter(event=event, reason=reason, total=total)
            for event, reason, total in counters
        ],
    )
    parts = [rest.SerializeToString()]
    for record in records:
        parts += (_RECORDS_FIELD, varint(len(record)), record)
    return b"".join(parts)
