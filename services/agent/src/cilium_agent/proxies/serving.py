"""The agent's end of `cilium.proxy.v1`: what our own proxies enforce, and what they report.

A `RedirectBoard` holds what the proxies of one kind are to serve. Whoever assigns ports publishes
the whole of it; each stream gets a snapshot and then differences, and its acknowledgements tell
which ports are listened on. Everything happens on the event loop.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from cilium.proxy.v1 import proxy_pb2, proxy_pb2_grpc
from cilium_core.errors import InvalidError
from cilium_core.proxying.redirects import (
    KINDS,
    Assignment,
    DnsOptions,
    changed_ports,
    snapshot,
    to_message,
)
from cilium_core.telemetry import counter, get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence

    import grpc.aio
    from cilium_core.policy.l7 import L7Kind, Redirect

    Records = Callable[[L7Kind, Sequence[proxy_pb2.Record], int], Awaitable[None]]
    Requests = AsyncIterator[proxy_pb2.WatchRedirectsRequest]

log = get_logger()

SERVICE = "cilium.proxy.v1.ProxyService"
RECORDS = counter("cilium_proxy_records_total", "Records taken over from proxies.", "kind")
LOST = counter("cilium_proxy_records_lost_total", "Records that proxies lost.", "kind")
EVENTS = counter(
    "cilium_proxy_events_total",
    "What proxies of our own count, since the last start of each.",
    "kind",
    "event",
    "reason",
)

_KIND_OF: dict[int, L7Kind] = {int(number): kind for kind, number in KINDS.items()}


class Names(Protocol):
    """Who learns names."""

    async def observe(self, observations: Sequence[proxy_pb2.NameObservation]) -> list[float]:
        """Learn; returns when the data plane knows, with seconds for which it will, one each."""


class RedirectBoard:
    """What the proxies of one kind are to serve, and what they do serve."""

    def __init__(self) -> None:
        self.assignment = Assignment()
        self.pid = 0
        """Process of the proxy that subscribed last; 0 when none is connected."""
        self.errors: Mapping[int, str] = {}
        """Ports that the proxy cannot listen on."""
        self._acknowledged: Mapping[int, Redirect] = {}
        self._version = 0
        self._streams = 0
        self._changed = asyncio.Condition()
        self._wakers: set[asyncio.Task[None]] = set()

    @property
    def connected(self) -> bool:
        """Whether a proxy is subscribed."""
        return self._streams > 0

    def publish(self, redirects: Mapping[int, Redirect]) -> None:
        """Have exactly these ports served."""
        if redirects != self.assignment.redirects:
            self._assign(Assignment(dict(redirects), self.assignment.dns_options))

    def publish_options(self, options: DnsOptions) -> None:
        """Have DNS proxies behave like this."""
        if options != self.assignment.dns_options:
            self._assign(Assignment(self.assignment.redirects, options))

    def serves(self, port: int) -> bool:
        """Whether the proxy listens on a port and enforces there what was published."""
        wanted = self.assignment.redirects.get(port)
        acknowledged = self._acknowledged.get(port)
        return wanted is not None and acknowledged == wanted and port not in self.errors

    async def served(self, ports: Collection[int], timeout_s: float) -> frozenset[int]:
        """Wait until all of the ports are served; returns those that are when time is up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: all(self.serves(port) for port in ports))
        return frozenset(port for port in ports if self.serves(port))

    async def settled(self, ports: Collection[int]) -> None:
        """Wait until each of the ports is served, or is known not to be."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: all(self.serves(port) or port in self.errors for port in ports)
            )

    async def changes(
        self, sent: dict[int, Assignment]
    ) -> AsyncIterator[proxy_pb2.WatchRedirectsResponse]:
        """A snapshot, then what changes; `sent` gets what holds as of each revision."""
        revision, version = 1, self._version
        last = self.assignment
        first = snapshot(last)
        first.revision = revision
        sent[revision] = last
        yield first
        while True:
            await self._newer_than(version)
            revision, version = revision + 1, self._version
            change = difference(last, self.assignment)
            change.revision = revision
            last = sent[revision] = self.assignment
            yield change

    async def _newer_than(self, version: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._version != version)

    def _assign(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self._version += 1
        self._wake()

    def _wake(self) -> None:
        task = asyncio.ensure_future(self._notify())
        self._wakers.add(task)
        task.add_done_callback(self._wakers.discard)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def joined(self, pid: int) -> None:
        """A proxy subscribed."""
        self._streams += 1
        self.pid = pid

    def acknowledge(self, assignment: Assignment, errors: Mapping[int, str]) -> None:
        """A proxy serves an assignment, but for some ports."""
        self._acknowledged = assignment.redirects
        self.errors = errors
        self._wake()

    def left(self) -> None:
        """A proxy's stream ended. It may serve on, but nobody can tell."""
        self._streams -= 1
        if not self._streams:
            self.pid = 0
            self._acknowledged = {}


def difference(old: Assignment, new: Assignment) -> proxy_pb2.WatchRedirectsResponse:
    """What leads from one assignment to another."""
    change = proxy_pb2.WatchRedirectsResponse(
        redirects=[
            to_message(port, new.redirects[port])
            for port in changed_ports(old.redirects, new.redirects)
        ],
        deleted_ports=sorted(old.redirects.keys() - new.redirects.keys()),
    )
    if old.dns_options != new.dns_options:
        change.dns_options.CopyFrom(new.dns_options.message())
    return change


class ProxyServicer(proxy_pb2_grpc.ProxyServiceServicer):
    """Serves the proxies of a node."""

    def __init__(
        self, boards: Mapping[L7Kind, RedirectBoard], names: Names, records: Records
    ) -> None:
        """`records` takes a batch over and is told how many were lost before it."""
        self._boards = boards
        self._names = names
        self._records = records

    async def WatchRedirects(  # noqa: N802 - the name is the proto's
        self, request_iterator: Requests, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[proxy_pb2.WatchRedirectsResponse]:
        """See the proto."""
        del context
        first = await anext(request_iterator, None)
        kind = _kind(first.kind if first else 0)
        board = self._boards[kind]
        sent: dict[int, Assignment] = {}
        board.joined(first.pid if first else 0)
        reader = asyncio.create_task(_read(request_iterator, board, sent))
        log.info("proxy subscribed", kind=kind.value, pid=board.pid)
        try:
            async for change in board.changes(sent):
                yield change
        finally:
            reader.cancel()
            board.left()
            log.info("proxy gone", kind=kind.value)

    async def ReportRecords(  # noqa: N802 - the name is the proto's
        self,
        request: proxy_pb2.ReportRecordsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> proxy_pb2.ReportRecordsResponse:
        """See the proto."""
        del context
        kind = _kind(request.kind)
        RECORDS.add(len(request.records), kind.value)
        if request.lost:
            LOST.add(request.lost, kind.value)
            log.warning("a proxy lost records", kind=kind.value, lost=request.lost)
        for item in request.counters:
            EVENTS.set(item.total, kind.value, item.event, item.reason)
        await self._records(kind, request.records, request.lost)
        return proxy_pb2.ReportRecordsResponse()

    async def ReportNames(  # noqa: N802 - the name is the proto's
        self,
        request: proxy_pb2.ReportNamesRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> proxy_pb2.ReportNamesResponse:
        """See the proto."""
        del context
        lifetimes = await self._names.observe(request.observations)
        return proxy_pb2.ReportNamesResponse(
            lifetimes_ms=[min(round(seconds * 1000), 0xFFFFFFFF) for seconds in lifetimes]
        )


async def _read(requests: Requests, board: RedirectBoard, sent: dict[int, Assignment]) -> None:
    async for request in requests:
        assignment = sent.get(request.acknowledged_revision)
        if assignment is None:
            continue
        for revision in [r for r in sent if r < request.acknowledged_revision]:
            del sent[revision]
        board.acknowledge(assignment, {error.port: error.error for error in request.errors})


def _kind(number: int) -> L7Kind:
    kind = _KIND_OF.get(number)
    if kind is None:
        raise InvalidError(
            f"kind {number} is no kind of proxy that subscribes; known: "
            + ", ".join(str(one) for one in sorted(_KIND_OF))
        )
    return kind
