"""One request for flows or events, put to all nodes and answered as one stream.

Every node gets the request as it came, so its `number` counts per node. A node is asked for batches
of flows first, and for single ones once it said that it has no batches. A node that fails is told
of in the stream, or at its end where answers have no room for that, and the stream goes on with the
others. When following, nodes that are new, failed or came back are asked every two seconds; one
that told something already is asked for later things only, so that nothing comes twice.

One task per node reads, one task merges and sends; a client that does not read holds back the
merging, that the readers, and flow control the nodes. All tasks end with the request.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from cilium.flows.v1 import flows_pb2
from cilium_core.access import Limits
from cilium_core.telemetry import get_logger
from observer import observer_pb2
from relay import relay_pb2

from hubble_relay.connections import AHEAD_BYTES
from hubble_relay.errors import BusyNodeError, MissingNodesError
from hubble_relay.merging import FOLLOWED_LIMIT, Merger
from hubble_relay.statuses import ErrorGathering, error_text, node_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Sequence

    from hubble_relay.connections import Connection, Pool

    Request = (
        observer_pb2.GetFlowsRequest
        | observer_pb2.GetAgentEventsRequest
        | observer_pb2.GetDebugEventsRequest
    )
    Send = Callable[[list[int], list[bytes]], Awaitable[None]]

log = get_logger()

_LOST = b"\x1a"
"""Tag of the field lost_events, with which such an answer begins."""

_RESUME = "hubble-resume"
_GET_BATCHES = "/cilium.flows.v1.FlowsService/GetFlowBatches"
_REFRESH_S = 2.0
_USUAL_BYTES = 512
"""Of an answer."""


@dataclass(frozen=True, slots=True)
class Topic:
    """What nodes are asked for: a streaming method of observer.Observer."""

    method: str
    response: type[Any]
    is_flows: bool = False
    """Whether nodes may have batches of it, and its answers can tell the state of nodes."""
    shows: Callable[[Limits], Callable[[Any], bool]] | None = None
    """What of it a client with limits may see, where filters do not say so."""


FLOWS = Topic("GetFlows", observer_pb2.GetFlowsResponse, is_flows=True)
AGENT_EVENTS = Topic(
    "GetAgentEvents",
    observer_pb2.GetAgentEventsResponse,
    shows=lambda limits: lambda answer: limits.shows_agent_event(answer.agent_event),
)
DEBUG_EVENTS = Topic(
    "GetDebugEvents",
    observer_pb2.GetDebugEventsResponse,
    shows=lambda limits: lambda answer: limits.shows_debug_event(answer.debug_event),
)


@dataclass(frozen=True, slots=True)
class CollectingOptions:
    """What is the same for all requests."""

    own_name: str
    """Name of the relay, the sender of its own messages."""
    sort_buffer_len_max: int = 100
    drain_timeout_s: float = 1.0
    refresh_s: float = _REFRESH_S


class Collector:
    """Answers one request."""

    def __init__(
        self,
        pool: Pool,
        topic: Topic,
        request: Request,
        metadata: Sequence[tuple[str, str]],
        options: CollectingOptions,
        *,
        limits: Limits | None = None,
    ) -> None:
        self._pool = pool
        self._topic = topic
        self._request = request
        self._metadata = tuple(metadata)
        self._options = options
        self._shows = topic.shows(limits) if limits is not None and topic.shows else None
        self._merger: Merger[bytes] = Merger(
            limit=options.sort_buffer_len_max,
            drain_timeout_s=options.drain_timeout_s,
            follow=request.follow,
            start_ns=time.time_ns(),
        )
        self._errors = ErrorGathering()
        self._messages: list[bytes] = []
        self._missing: list[str] = []
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._last_ns: dict[str, int] = {}
        self._resume: dict[str, str] = {}
        self._finished: set[str] = set()
        self._news = asyncio.Event()
        self._taken = asyncio.Event()

    def held_bytes(self) -> int:
        """How much may come to wait for the client while it does not read, more or less."""
        return len(self._readers) * (FOLLOWED_LIMIT * _USUAL_BYTES + AHEAD_BYTES)

    async def run(self, send: Send) -> None:
        """Send times and encoded answers until the nodes have no more, or for ever if following.

        Raises MissingNodesError at the end where the stream itself could not tell.
        """
        try:
            self._announce()
            refresh_at = time.monotonic() + self._options.refresh_s
            while True:
                now_s = time.monotonic()
                if self._request.follow and now_s >= refresh_at:
                    self._ask_available()
                    refresh_at = now_s + self._options.refresh_s
                await self._send_ready(send, now_s)
                if not self._goes_on():
                    break
                await self._wait(refresh_at)
            self._gather(self._errors.flush())
            await self._send_ready(send, time.monotonic())
            if self._missing:
                raise MissingNodesError(f"events are missing of {'; '.join(self._missing)}")
        finally:
            for reader in self._readers.values():
                reader.cancel()
            await asyncio.gather(*self._readers.values(), return_exceptions=True)

    def _announce(self) -> None:
        """Tell which nodes are covered, and begin to read from them."""
        connections = self._pool.connections
        for state, names in (
            (relay_pb2.NODE_CONNECTED, [one.name for one in connections if one.available]),
            (relay_pb2.NODE_UNAVAILABLE, [one.name for one in connections if not one.available]),
        ):
            if names:
                self._tell(state, names)
        self._ask_available()

    def _ask_available(self) -> None:
        for connection in self._pool.connections:
            name = connection.name
            reader = self._readers.get(name)
            busy = reader is not None and not reader.done()
            if connection.available and not busy and name not in self._finished:
                self._merger.add(name, time.monotonic())
                self._readers[name] = asyncio.create_task(self._read(connection))

    def _goes_on(self) -> bool:
        if self._merger.held or any(not reader.done() for reader in self._readers.values()):
            return True
        if not self._request.follow:
            return False
        # Following ends by itself only when every node has passed the end of the time range.
        return not self._finished or not self._finished.issuperset(
            one.name for one in self._pool.connections
        )

    async def _send_ready(self, send: Send, now_s: float) -> None:
        if self._errors.wait_s(now_s) == 0:
            self._gather(self._errors.flush())
        if self._messages:
            messages, self._messages = self._messages, []
            await send([0] * len(messages), messages)
        times, payloads = self._merger.take(now_s)
        if payloads:
            await send(times, payloads)
            self._taken.set()
            self._news.set()  # look again: sending may have taken a while

    async def _wait(self, refresh_at: float) -> None:
        now_s = time.monotonic()
        waits = [self._merger.wait_s(now_s), self._errors.wait_s(now_s)]
        if self._request.follow:
            waits.append(max(refresh_at - now_s, 0.0))
        timeout_s = min((one for one in waits if one is not None), default=None)
        if not self._news.is_set():
            try:
                async with asyncio.timeout(timeout_s):
                    await self._news.wait()
            except TimeoutError:
                return
        self._news.clear()

    def _gather(self, found: tuple[str, list[str]] | None) -> None:
        if found is not None:
            text, nodes = found
            self._tell(relay_pb2.NODE_ERROR, nodes, text)

    def _tell(self, state: int, names: list[str], text: str = "") -> None:
        """Tell of the state of nodes, in the stream or, without room there, at its end."""
        if self._topic.is_flows:
            message = node_status(state, names, self._options.own_name, time.time_ns(), text)
            self._messages.append(message)
        elif state != relay_pb2.NODE_CONNECTED:
            self._missing += [f"{name}: {text or 'cannot be reached'}" for name in names]

    async def _read(self, connection: Connection) -> None:
        """Read what one node tells, until it ends or fails."""
        name = connection.name
        try:
            with connection.stream():
                await self._read_all(connection)
            if not self._request.follow or self._request.HasField("until"):
                self._finished.add(name)
        except BusyNodeError as error:
            self._gather(self._errors.add(str(error), name, time.monotonic()))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.CANCELLED:
                self._gather(self._errors.add(error_text(error), name, time.monotonic()))
            else:
                self._lost(connection)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not this task was cancelled but the call, since the connection was closed.
            self._lost(connection)
        finally:
            self._merger.end(name)
            self._news.set()

    async def _read_all(self, connection: Connection) -> None:
        name = connection.name
        async for times, payloads, resume in self._answers(connection):
            while not self._merger.room(name):
                self._taken.clear()
                await self._taken.wait()
            self._last_ns[name] = max(self._last_ns.get(name, 0), _newest(times, payloads))
            self._resume[name] = resume
            self._merger.push(name, times, payloads, time.monotonic())
            self._news.set()

    def _lost(self, connection: Connection) -> None:
        """A stream was cut: tell it if the node is to blame, not if it only left the cluster."""
        if connection.problem:
            self._gather(self._errors.add(connection.problem, connection.name, time.monotonic()))

    async def _answers(
        self, connection: Connection
    ) -> AsyncIterator[tuple[Sequence[int], Sequence[bytes], str]]:
        """Times and encoded answers of a node, and where to go on after them. Raises AioRpcError.

        A node that was cut off goes on in its ring where it was, and so tells what got lost.
        """
        request = self._request_for(connection.name).SerializeToString()
        if self._topic.is_flows and connection.batches:
            try:
                resume = self._resume.get(connection.name, "")
                async for encoded in self._stream(connection, _GET_BATCHES, request, resume):
                    batch = flows_pb2.FlowBatch.FromString(encoded)
                    if batch.responses:
                        yield _times_of(batch), batch.responses, batch.resume
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                    raise
                log.info("peer has no batches, taking single flows", peer=connection.name)
                connection.batches = False
            else:
                return
        method = f"/observer.Observer/{self._topic.method}"
        async for encoded in self._stream(connection, method, request):
            response = self._topic.response.FromString(encoded)
            # foreign servers know no limits; of flows they keep to the filters
            if self._shows is not None and not self._shows(response):
                continue
            yield (response.time.ToNanoseconds(),), (encoded,), ""

    async def _stream(
        self, connection: Connection, method: str, request: bytes, resume: str = ""
    ) -> AsyncIterator[bytes]:
        assert connection.channel is not None  # noqa: S101  only available ones are asked
        start: Any = connection.channel.unary_stream(method)
        going_on = ((_RESUME, resume),) if resume else ()
        call = start(request, metadata=(*self._metadata, *going_on))
        try:
            async for encoded in call:
                yield encoded
        finally:
            call.cancel()

    def _request_for(self, name: str) -> Request:
        """The request, or what is left of it for a node that told something already."""
        last_ns = self._last_ns.get(name)
        if last_ns is None:
            return self._request
        rest = copy.deepcopy(self._request)
        rest.number = 0
        rest.since.FromNanoseconds(last_ns + 1)
        return rest


def _newest(times: Sequence[int], payloads: Sequence[bytes]) -> int:
    """Time of the last of a node's answers, 0 without one.

    Losses do not count: they bear the time at which they were noticed, and older flows may follow.
    """
    answers = zip(reversed(times), reversed(payloads), strict=True)
    return next((time_ns for time_ns, payload in answers if not payload.startswith(_LOST)), 0)


def _times_of(batch: flows_pb2.FlowBatch) -> Sequence[int]:
    """Times of a batch; a foreign server that sends too few gets zeros, which sort first."""
    missing = len(batch.responses) - len(batch.times_ns)
    return [*batch.times_ns, *([0] * missing)] if missing > 0 else batch.times_ns
