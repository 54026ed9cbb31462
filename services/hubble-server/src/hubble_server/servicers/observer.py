"""observer.Observer: flows, agent and debug events, namespaces, status."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from cilium_core.serving.packed import Call, CallError, Method, Status, stream, unary
from observer import observer_pb2

from hubble_server.facts import DEFAULT_CLUSTER, VERSION
from hubble_server.flows.querying import AGENT_EVENTS, DEBUG_EVENTS, Cursor, Query
from hubble_server.servicers.flows import check_direction, time_range
from hubble_server.servicers.streaming import Encoding, chunks

if TYPE_CHECKING:
    from collections.abc import Callable

    from flow import flow_pb2
    from google.protobuf.message import Message

    from hubble_server.facts import NodeFacts
    from hubble_server.flows.store import Attached, FlowStore
    from hubble_server.ingest import Ingest
    from hubble_server.metadata.directory import Directory
    from hubble_server.servicers.flows import FlowStreams
    from hubble_server.servicers.streaming import NewEvents

OBSERVER = "observer.Observer"

_RATE_WINDOW_NS = 60_000_000_000
_SHORTEST_WINDOW_NS = 1_000_000_000
"""Flows are counted over the last minute for their rate; of a younger server, since its start."""


class ObserverService:
    """The public service of a node."""

    def __init__(
        self,
        streams: FlowStreams,
        store: FlowStore,
        directory: Directory,
        ingest: Ingest,
        node: Callable[[], NodeFacts],
        new_events: NewEvents,
    ) -> None:
        self._streams = streams
        self._store = store
        self._directory = directory
        self._ingest = ingest
        self._node = node
        self._new_events = new_events
        self._started_ns = time.monotonic_ns()

    def methods(self) -> dict[str, Method]:
        """Methods of the service."""
        pb = observer_pb2
        return {
            "GetFlows": stream(self._streams.get_flows, pb.GetFlowsRequest),
            "GetAgentEvents": stream(self._get_agent_events, pb.GetAgentEventsRequest),
            "GetDebugEvents": stream(self._get_debug_events, pb.GetDebugEventsRequest),
            "GetNodes": unary(self._get_nodes, pb.GetNodesRequest),
            "GetNamespaces": unary(self._get_namespaces, pb.GetNamespacesRequest),
            "ServerStatus": unary(self._server_status, pb.ServerStatusRequest),
        }

    async def _get_agent_events(
        self, request: observer_pb2.GetAgentEventsRequest, call: Call
    ) -> None:
        def encode(_kind: int, time_ns: int, message: Attached) -> bytes:
            response = observer_pb2.GetAgentEventsResponse(
                agent_event=cast("flow_pb2.AgentEvent", message),
                node_name=self._node().qualified_name,
            )
            response.time.FromNanoseconds(time_ns)
            return response.SerializeToString()

        shows = call.limits.shows_agent_event if call.limits else None
        await self._send_events(request, call, AGENT_EVENTS, encode, shows)

    async def _get_debug_events(
        self, request: observer_pb2.GetDebugEventsRequest, call: Call
    ) -> None:
        def encode(_kind: int, time_ns: int, message: Attached) -> bytes:
            response = observer_pb2.GetDebugEventsResponse(
                debug_event=cast("flow_pb2.DebugEvent", message),
                node_name=self._node().qualified_name,
            )
            response.time.FromNanoseconds(time_ns)
            return response.SerializeToString()

        shows = call.limits.shows_debug_event if call.limits else None
        await self._send_events(request, call, DEBUG_EVENTS, encode, shows)

    async def _send_events(
        self,
        request: Any,
        call: Call,
        kinds: frozenset[int],
        encode: Callable[[int, int, Attached], bytes],
        shows: Callable[[Any], bool] | None,
    ) -> None:
        check_direction(request)
        since_ns, until_ns = time_range(request)
        query = Query(
            number=request.number,
            first=request.first,
            follow=request.follow,
            since_ns=since_ns,
            until_ns=until_ns,
            kinds=kinds,
            shows=shows,
        )
        encoding = Encoding(lambda _: [], encode, None)
        cursor = Cursor(self._store, query)
        found = chunks(self._store, cursor, encoding, self._new_events, lambda _: None)
        async with aclosing(found):
            await call.start()
            async for chunk in found:
                await call.send_many(chunk.responses)

    async def _get_nodes(self, _request: observer_pb2.GetNodesRequest, _call: Call) -> Message:
        raise CallError(Status.UNIMPLEMENTED, "GetNodes not implemented")

    async def _get_namespaces(
        self, _request: observer_pb2.GetNamespacesRequest, call: Call
    ) -> observer_pb2.GetNamespacesResponse:
        cluster = self._node().cluster
        shown = "" if cluster == DEFAULT_CLUSTER else cluster
        response = observer_pb2.GetNamespacesResponse()
        found = self._directory.namespaces()
        for namespace in sorted(call.limits.namespaces & found if call.limits else found):
            response.namespaces.add(cluster=shown, namespace=namespace)
        return response

    async def _server_status(
        self, _request: observer_pb2.ServerStatusRequest, _call: Call
    ) -> observer_pb2.ServerStatusResponse:
        uptime_ns = time.monotonic_ns() - self._started_ns
        return observer_pb2.ServerStatusResponse(
            num_flows=len(self._store),
            max_flows=self._store.capacity,
            seen_flows=self._ingest.flows_seen,
            uptime_ns=uptime_ns,
            version=f"cilium v{VERSION}",
            flows_rate=self._store.rate(
                time.time_ns(), min(_RATE_WINDOW_NS, max(uptime_ns, _SHORTEST_WINDOW_NS))
            ),
        )
