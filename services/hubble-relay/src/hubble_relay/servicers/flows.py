"""Streams of flows and events, and our own batches of flows."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from cilium.flows.v1 import flows_pb2
from cilium_core.access import METADATA_KEY
from cilium_core.errors import InvalidError
from cilium_core.flow_filters import work_of
from cilium_core.flow_totals import Totals
from cilium_core.serving.packed import Method, stream, unary
from observer import observer_pb2

from hubble_relay.collecting import (
    AGENT_EVENTS,
    DEBUG_EVENTS,
    FLOWS,
    CollectingOptions,
    Collector,
    Topic,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cilium_core.access import Limits
    from cilium_core.serving.packed import Call

    from hubble_relay.collecting import Request
    from hubble_relay.connections import Connection, Pool

_OWN_METADATA = ("grpc-", ":", "content-type", "user-agent", "te", "hubble-resume", METADATA_KEY)
_BATCH = 512
_COUNT_TIMEOUT_S = 30.0
_REFUSALS = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INVALID_ARGUMENT)
"""What servers answer to requests that make no sense."""


def _checked(
    request: observer_pb2.GetFlowsRequest, limits: Limits | None
) -> observer_pb2.GetFlowsRequest:
    """A request that is no more than nodes answer, for no more than the client may see.

    Raises FilterLimitError and ForbiddenError.
    """
    work_of(request.whitelist, request.blacklist)
    return request if limits is None else limits.narrow(request)


class FlowsServicer:
    """Hands out the flows and events of all nodes."""

    def __init__(self, pool: Pool, options: CollectingOptions) -> None:
        self._pool = pool
        self._options = options

    def public_methods(self) -> dict[str, Method]:
        """The part of observer.Observer that streams."""
        return {
            "GetFlows": stream(self._get_flows, observer_pb2.GetFlowsRequest),
            "GetAgentEvents": stream(self._get_agent_events, observer_pb2.GetAgentEventsRequest),
            "GetDebugEvents": stream(self._get_debug_events, observer_pb2.GetDebugEventsRequest),
        }

    def batch_methods(self) -> dict[str, Method]:
        """The part of cilium.flows.v1.FlowsService that a relay can serve."""
        return {
            "GetFlowBatches": stream(self._get_batches, observer_pb2.GetFlowsRequest),
            "AggregateFlows": unary(self._aggregate, flows_pb2.AggregateFlowsRequest),
        }

    async def _get_flows(self, request: observer_pb2.GetFlowsRequest, call: Call) -> None:
        await self._single(FLOWS, request, call)

    async def _get_agent_events(
        self, request: observer_pb2.GetAgentEventsRequest, call: Call
    ) -> None:
        await self._single(AGENT_EVENTS, request, call)

    async def _get_debug_events(
        self, request: observer_pb2.GetDebugEventsRequest, call: Call
    ) -> None:
        await self._single(DEBUG_EVENTS, request, call)

    async def _single(self, topic: Topic, request: Request, call: Call) -> None:
        async def send(_: list[int], responses: list[bytes]) -> None:
            for start in range(0, len(responses), _BATCH):
                await call.send_many(responses[start : start + _BATCH])

        await call.start()
        collector = self._collector(topic, request, call)
        call.held = collector.held_bytes
        await collector.run(send)

    async def _get_batches(self, request: observer_pb2.GetFlowsRequest, call: Call) -> None:
        async def send(times: list[int], responses: list[bytes]) -> None:
            for start in range(0, len(responses), _BATCH):
                part = slice(start, start + _BATCH)
                await call.send(
                    flows_pb2.FlowBatch(responses=responses[part], times_ns=times[part])
                )

        await call.start()
        collector = self._collector(FLOWS, request, call)
        call.held = collector.held_bytes
        await collector.run(send)

    async def _aggregate(
        self, request: flows_pb2.AggregateFlowsRequest, call: Call
    ) -> flows_pb2.AggregateFlowsResponse:
        limits = call.limits
        flows = _checked(request.flows, limits)
        # a group that is small on each node may be large in all
        each = flows_pb2.AggregateFlowsRequest(flows=flows, by=request.by)
        answers, missing = list[flows_pb2.AggregateFlowsResponse](), list[str]()

        async def ask(connection: Connection) -> None:
            try:
                if connection.available:
                    answers.append(await self._counts(connection, each, limits))
                    return
            except grpc.aio.AioRpcError as error:
                if error.code() in _REFUSALS:
                    raise InvalidError(error.details() or "invalid request") from error
            missing.append(connection.name)

        await asyncio.gather(*map(ask, self._pool.connections))
        # many groups take a while to add up, and other clients are not to wait for it
        return await asyncio.to_thread(_added_up, answers, request.most, sorted(missing))

    @staticmethod
    async def _counts(
        connection: Connection, request: flows_pb2.AggregateFlowsRequest, limits: Limits | None
    ) -> flows_pb2.AggregateFlowsResponse:
        """What one node counts; of a node that cannot count, what its flows say."""
        try:
            counted: flows_pb2.AggregateFlowsResponse = await connection.ask(
                "AggregateFlows",
                request,
                flows_pb2.AggregateFlowsResponse,
                _COUNT_TIMEOUT_S,
                service="cilium.flows.v1.FlowsService",
                limits=limits,
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
        else:
            return counted
        wanted = observer_pb2.GetFlowsRequest()
        wanted.CopyFrom(request.flows)
        wanted.number, wanted.first, wanted.follow = 0, False, False
        wanted.ClearField("field_mask")
        totals = Totals()
        budget = flows_pb2.LossBudget(node_name=connection.name)
        assert connection.channel is not None  # noqa: S101  only available ones are asked
        start: Any = connection.channel.unary_stream("/observer.Observer/GetFlows")
        async for encoded in start(wanted.SerializeToString(), timeout=_COUNT_TIMEOUT_S):
            response = observer_pb2.GetFlowsResponse.FromString(encoded)
            if response.HasField("flow"):
                totals.count([response.flow], request.by)
            elif response.HasField("lost_events"):
                budget.lost_in_kernel += response.lost_events.num_events_lost
        totals.note(budget)
        return totals.answer(0, ())

    def _collector(self, topic: Topic, request: Request, call: Call) -> Collector:
        if request.first and request.follow:
            raise InvalidError("first cannot be specified with follow")
        metadata = [
            (key, value)
            for key, value in call.metadata.items()
            if not key.startswith(_OWN_METADATA)
        ]
        if call.limits is not None:
            metadata.append(call.limits.metadata)
        if isinstance(request, observer_pb2.GetFlowsRequest):
            request = _checked(request, call.limits)
        return Collector(self._pool, topic, request, metadata, self._options, limits=call.limits)


def _added_up(
    answers: Sequence[flows_pb2.AggregateFlowsResponse], most: int, missing: Sequence[str]
) -> flows_pb2.AggregateFlowsResponse:
    totals = Totals()
    for answer in answers:
        totals.add(answer)
    return totals.answer(most, missing)
