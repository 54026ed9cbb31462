"""Streams of flows and events, and our own batches of flows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cilium.flows.v1 import flows_pb2
from cilium_core.errors import InvalidError
from cilium_core.serving.packed import Method, stream
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
    from cilium_core.serving.packed import Call

    from hubble_relay.collecting import Request
    from hubble_relay.connections import Pool

_OWN_METADATA = ("grpc-", ":", "content-type", "user-agent", "te")
_BATCH = 512


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
        return {"GetFlowBatches": stream(self._get_batches, observer_pb2.GetFlowsRequest)}

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
        await self._collector(topic, request, call).run(send)

    async def _get_batches(self, request: observer_pb2.GetFlowsRequest, call: Call) -> None:
        async def send(times: list[int], responses: list[bytes]) -> None:
            for start in range(0, len(responses), _BATCH):
                part = slice(start, start + _BATCH)
                await call.send(
                    flows_pb2.FlowBatch(responses=responses[part], times_ns=times[part])
                )

        await call.start()
        await self._collector(FLOWS, request, call).run(send)

    def _collector(self, topic: Topic, request: Request, call: Call) -> Collector:
        if request.first and request.follow:
            raise InvalidError("first cannot be specified with follow")
        metadata = [
            (key, value)
            for key, value in call.metadata.items()
            if not key.startswith(_OWN_METADATA)
        ]
        return Collector(self._pool, topic, request, metadata, self._options)
