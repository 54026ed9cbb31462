"""Flows: GetFlows of observer.Observer, and GetFlowBatches and StreamEvents of our own service."""

from __future__ import annotations

import asyncio
import re
import secrets
import threading
import time
from collections import deque
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from cilium.flows.v1 import flows_pb2
from cilium_core.serving.packed import Call, Method, pack, stream, unary
from cilium_core.telemetry import counter
from observer import observer_pb2

from hubble_server.encoding.encoder import Encoder
from hubble_server.encoding.masks import Mask, freeze, parse_mask
from hubble_server.errors import ContradictionError, RequestError
from hubble_server.filters import FilterContext, Filters, are_much_work, compile_filters
from hubble_server.flows.aggregating import aggregate
from hubble_server.flows.naming import Namer
from hubble_server.flows.querying import Cursor, Query
from hubble_server.ingest import LOST
from hubble_server.ring.records import pick
from hubble_server.servicers.streaming import Encoding, NewEvents, chunks

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from flow import flow_pb2
    from google.protobuf.timestamp_pb2 import Timestamp

    from hubble_server.facts import NodeFacts
    from hubble_server.flows.store import Attached, FlowStore
    from hubble_server.history.answering import Past
    from hubble_server.ingest import Ingest
    from hubble_server.metadata.directory import Directory
    from hubble_server.ring.records import Events
    from hubble_server.servicers.streaming import Chunk

RESUME = "hubble-resume"
"""Metadata of a stream that goes on where another was cut off."""

FLOWS_SERVICE = "cilium.flows.v1.FlowsService"

_POSITION = re.compile(r"[0-9]{1,18}:[0-9]{1,18}")

_ENCODERS = 32
"""Encoders kept, one for each field mask in use."""

_TAP_LIMIT = 64
"""Batches of raw events held for one slow reader."""

_SENT = counter("hubble_server_flows_sent_total", "Responses of flow streams handed to clients.")
_OVERTAKEN = counter(
    "hubble_server_overtaken_events_total",
    "Events that were overwritten before a slow client had read them.",
)


def _note_overtaken(count: int) -> None:
    _OVERTAKEN.add(count)
    LOST.add(count, "hubble_ring_buffer")


def nanoseconds(timestamp: Timestamp, name: str) -> int:
    """Nanoseconds since the epoch. Raises RequestError for a timestamp out of range."""
    if not 0 <= timestamp.nanos < 1_000_000_000 or not 0 <= timestamp.seconds < 1 << 33:
        raise RequestError(
            f"{name}: {timestamp.seconds} s and {timestamp.nanos} ns is no valid timestamp"
        )
    return timestamp.seconds * 1_000_000_000 + timestamp.nanos


def time_range(request: Any) -> tuple[int | None, int | None]:
    """The since and until of a request."""
    since = nanoseconds(request.since, "since") if request.HasField("since") else None
    until = nanoseconds(request.until, "until") if request.HasField("until") else None
    return since, until


def check_direction(request: Any) -> None:
    """Refuse what can be neither first nor live."""
    if request.first and request.follow:
        raise ContradictionError("first cannot be specified with follow")


def _narrowed(request: observer_pb2.GetFlowsRequest, call: Call) -> observer_pb2.GetFlowsRequest:
    """A request for no more than the client may see. Raises ForbiddenError."""
    return request if call.limits is None else call.limits.narrow(request)


class FlowStreams:
    """Streams of flows out of one store. Used on the event loop."""

    def __init__(
        self,
        store: FlowStore,
        directory: Directory,
        ingest: Ingest,
        node: Callable[[], NodeFacts],
        new_events: NewEvents,
        *,
        lost_interval_s: float,
        past: Past | None = None,
    ) -> None:
        self._past = past
        self._store = store
        self._directory = directory
        self._ingest = ingest
        self._node = node
        self._new_events = new_events
        self._lost_interval_s = lost_interval_s
        self._encoders: dict[Any, Encoder] = {}
        self._ring = secrets.token_hex(8)
        self._namer: Namer | None = None

    def methods(self) -> dict[str, Method]:
        """Methods of our own service."""
        return {
            "GetFlowBatches": stream(self.get_flow_batches, observer_pb2.GetFlowsRequest),
            "AggregateFlows": unary(self.aggregate_flows, flows_pb2.AggregateFlowsRequest),
            "StreamEvents": stream(self.stream_events, flows_pb2.StreamEventsRequest),
        }

    async def get_flows(self, request: observer_pb2.GetFlowsRequest, call: Call) -> None:
        """Send one response for each flow."""
        async with aclosing(await self._chunks(_narrowed(request, call))) as found:
            await call.start()
            async for chunk in found:
                _SENT.add(len(chunk.responses))
                await call.send_packed(chunk.take())

    async def get_flow_batches(self, request: observer_pb2.GetFlowsRequest, call: Call) -> None:
        """Send the same responses, many to a message."""
        resume = self._resume_of(call.metadata.get(RESUME, "")) if request.follow else None
        async with aclosing(await self._chunks(_narrowed(request, call), resume)) as found:
            await call.start()
            async for chunk in found:
                _SENT.add(len(chunk.responses))
                batch = flows_pb2.FlowBatch(responses=chunk.responses, times_ns=chunk.times_ns)
                if request.follow and chunk.position is not None:
                    batch.resume = f"{self._ring}:{chunk.position}:{chunk.untold}"
                packed = pack((batch.SerializeToString(),))
                chunk.responses.clear()
                del batch
                await call.send_packed(packed)

    def _resume_of(self, text: str) -> tuple[int, int] | None:
        """Position and untold losses where a stream is to go on, None where time has to tell.

        That is so of another server's ring, as after a restart, and where the history has what the
        ring has no longer.
        """
        ring, _, rest = text.partition(":")
        position, _, untold = rest.partition(":")
        if ring != self._ring or not _POSITION.fullmatch(rest):
            return None
        if self._past is not None and int(position) < self._store.oldest:
            return None
        return int(position), int(untold)

    async def newest(
        self, request: observer_pb2.GetFlowsRequest, *, in_ring: bool = False
    ) -> observer_pb2.GetFlowsResponse | None:
        """The newest whole flow that passes a request's filters; None when there is none.

        With `in_ring`, the history is left out.
        """
        since_ns, until_ns = time_range(request)
        wanted = observer_pb2.GetFlowsRequest(
            whitelist=request.whitelist, blacklist=request.blacklist, number=1
        )
        found = None
        oldest_ns = self._store.oldest_ns
        if in_ring and until_ns is None:
            until_ns = time.time_ns()
        if until_ns is not None and oldest_ns is not None and until_ns >= oldest_ns:
            # "the last" are those before now: of an earlier time, go through the ring
            here = observer_pb2.GetFlowsRequest(
                whitelist=request.whitelist, blacklist=request.blacklist
            )
            here.until.FromNanoseconds(until_ns)
            here.since.FromNanoseconds(max(oldest_ns, since_ns or 0))
            found = await self._last(here)
            until_ns = oldest_ns - 1
            in_ring = in_ring or (since_ns or 0) > oldest_ns
        if found is None and not in_ring:
            if until_ns is not None:
                wanted.until.FromNanoseconds(until_ns)
            found = await self._last(wanted)
        if found is None or (since_ns is not None and found.time.ToNanoseconds() < since_ns):
            return None
        return found

    async def _last(
        self, request: observer_pb2.GetFlowsRequest
    ) -> observer_pb2.GetFlowsResponse | None:
        """The last flow of an answer."""
        last = b""
        async with aclosing(await self._chunks(request)) as found:
            async for chunk in found:
                for encoded in reversed(chunk.responses):
                    response = observer_pb2.GetFlowsResponse.FromString(encoded)
                    if response.HasField("flow"):
                        last = encoded
                        break
        return observer_pb2.GetFlowsResponse.FromString(last) if last else None

    async def _chunks(
        self, request: observer_pb2.GetFlowsRequest, resume: tuple[int, int] | None = None
    ) -> AsyncGenerator[Chunk, None]:
        """Check a request and take its place in the ring, before anything is sent."""
        check_direction(request)
        node = self._node()
        filters = await self._filters(node, request)
        since_ns, until_ns = time_range(request)
        mask = parse_mask(request.field_mask.paths)
        encoder = self._encoder(node, mask)
        query = Query(
            number=request.number,
            first=request.first,
            follow=request.follow,
            since_ns=since_ns,
            until_ns=until_ns,
            filters=filters,
        )
        if resume is not None:
            query = replace(query, number=0, since_ns=None, resume=resume[0])

        def encode(_kind: int, time_ns: int, record: Attached) -> bytes:
            return encoder.record(cast("bytes", record), time_ns)

        def encode_lost(event: flow_pb2.LostEvent, time_ns: int) -> bytes:
            response = observer_pb2.GetFlowsResponse(
                lost_events=event, node_name=node.qualified_name
            )
            response.time.FromNanoseconds(time_ns)
            return response.SerializeToString()

        def read(cursor: Cursor) -> AsyncGenerator[Chunk, None]:
            return chunks(
                self._store,
                cursor,
                Encoding(encoder.responses, encode, encode_lost),
                self._new_events,
                _note_overtaken,
                lost_interval_s=self._lost_interval_s,
                untold=resume[1] if resume is not None else 0,
            )

        if (
            resume is None
            and self._past is not None
            and await asyncio.to_thread(self._past.answers, query)
        ):
            return self._past.answer(query, request, mask, read)
        if filters.slow:
            gone = threading.Event()
            try:
                waited = replace(query, given_up=gone.is_set)
                return read(await self._new_events.aside(Cursor, self._store, waited))
            finally:
                gone.set()
        return read(Cursor(self._store, query))

    async def _filters(self, node: NodeFacts, request: observer_pb2.GetFlowsRequest) -> Filters:
        """The filters of a request; where they are many, compiled aside. Raises FilterError."""
        context = FilterContext(self._directory, node)
        allowed, denied = request.whitelist, request.blacklist
        if are_much_work(allowed, denied):
            return await self._new_events.aside(compile_filters, context, allowed, denied)
        return compile_filters(context, allowed, denied)

    def _encoder(self, node: NodeFacts, mask: Mask | None) -> Encoder:
        """Encoder of a mask; clients with the same mask share what is encoded already."""
        key = (node, freeze(mask))
        encoder = self._encoders.pop(key, None) or Encoder(node, self._directory, mask)
        self._encoders[key] = encoder
        if len(self._encoders) > _ENCODERS:
            del self._encoders[next(iter(self._encoders))]
        return encoder

    def _namer_of(self, node: NodeFacts) -> Namer:
        """What names flows to be counted; it keeps names for as long as the node is the same."""
        if self._namer is None or self._namer.node != node:
            self._namer = Namer(node, self._directory)
        return self._namer

    async def aggregate_flows(
        self, request: flows_pb2.AggregateFlowsRequest, call: Call
    ) -> flows_pb2.AggregateFlowsResponse:
        """Count flows by what the request asks for."""
        node, wanted = self._node(), _narrowed(request.flows, call)
        filters = await self._filters(node, wanted)
        since_ns, until_ns = time_range(wanted)
        query = Query(since_ns=since_ns, until_ns=until_ns, filters=filters)
        by, most, namer = tuple(request.by), request.most, self._namer_of(node)
        past, name = self._past, node.qualified_name
        aside = self._new_events.aside if filters.slow else asyncio.to_thread
        if past is not None and past.counts(query):
            return await aside(past.count, query, wanted, by, most, namer)
        return await aside(aggregate, self._store, query, by, most, namer, name)

    async def stream_events(self, request: flows_pb2.StreamEventsRequest, call: Call) -> None:
        """Send events as the kernel wrote them, from now on."""
        loop = asyncio.get_running_loop()
        waiting: deque[flows_pb2.EventBatch] = deque()
        arrival = asyncio.Event()
        dropped: dict[int, int] = {}

        def add(batch: flows_pb2.EventBatch) -> None:
            if len(waiting) >= _TAP_LIMIT:
                for cpu, count in batch.lost.items():
                    dropped[cpu] = dropped.get(cpu, 0) + count
                return
            for cpu, count in dropped.items():
                batch.lost[cpu] += count
            dropped.clear()
            waiting.append(batch)
            arrival.set()

        def tap(events: Events, lost: dict[int, int], offset_ns: int) -> None:
            chosen = pick(events, _wanted(events, request))
            if len(chosen) or lost:
                batch = flows_pb2.EventBatch(
                    records=chosen.tobytes(), lost=lost, clock_offset_ns=offset_ns
                )
                loop.call_soon_threadsafe(add, batch)

        stop = self._ingest.tap(tap)
        try:
            await call.start()
            while True:
                await arrival.wait()
                arrival.clear()
                while waiting:
                    await call.send(waiting.popleft())
        finally:
            stop()


def _wanted(events: Events, request: flows_pb2.StreamEventsRequest) -> np.typing.NDArray[np.bool_]:
    """Events that a stream of raw events asked for."""
    wanted = np.ones(len(events), dtype=np.bool_)
    if request.types:
        wanted &= np.isin(events["type"], list(request.types))
    sources, targets = events["endpoint"], events["dst_id"]
    if getattr(request, "from"):
        wanted &= np.isin(sources, list(getattr(request, "from")))
    if request.to:
        wanted &= np.isin(targets, list(request.to))
    if request.related_to:
        related = list(request.related_to)
        wanted &= np.isin(sources, related) | np.isin(targets, related)
    return wanted
