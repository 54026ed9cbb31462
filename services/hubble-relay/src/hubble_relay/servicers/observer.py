"""Questions about the cluster: states, nodes, namespaces. Each is put to all nodes at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from cilium_core.serving.packed import Method, unary
from observer import observer_pb2
from relay import relay_pb2

if TYPE_CHECKING:
    from cilium_core.serving.packed import Call
    from google.protobuf.message import Message

    from hubble_relay.connections import Connection, Pool

_TIMEOUT_S = 5.0
_UNAVAILABLE_NAMES = 10


class ObserverServicer:
    """The parts of observer.Observer that answer once."""

    def __init__(self, pool: Pool, version: str) -> None:
        self._pool = pool
        self._version = version

    def methods(self) -> dict[str, Method]:
        """What to serve."""
        return {
            "ServerStatus": unary(self._server_status, observer_pb2.ServerStatusRequest),
            "GetNodes": unary(self._get_nodes, observer_pb2.GetNodesRequest),
            "GetNamespaces": unary(self._get_namespaces, observer_pb2.GetNamespacesRequest),
        }

    async def _ask_all(
        self, method: str, request: Message, answer: type[Any], call: Call
    ) -> list[tuple[Connection, Any]]:
        """Every node with its answer, or None if it has none."""

        async def ask(connection: Connection) -> Any:
            if not connection.available:
                return None
            try:
                return await connection.ask(method, request, answer, _TIMEOUT_S, limits=call.limits)
            except grpc.aio.AioRpcError:
                return None
            except asyncio.CancelledError:
                # The connection was closed while it was asked.
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                return None

        connections = self._pool.connections
        answers = await asyncio.gather(*map(ask, connections))
        return list(zip(connections, answers, strict=True))

    async def _server_status(
        self, request: observer_pb2.ServerStatusRequest, call: Call
    ) -> observer_pb2.ServerStatusResponse:
        answers = await self._ask_all(
            "ServerStatus", request, observer_pb2.ServerStatusResponse, call
        )
        states = [answer for _, answer in answers if answer is not None]
        away = [connection.name for connection, answer in answers if answer is None]
        total = observer_pb2.ServerStatusResponse(
            version=f"hubble-relay v{self._version}",
            num_flows=sum(state.num_flows for state in states),
            max_flows=sum(state.max_flows for state in states),
            seen_flows=sum(state.seen_flows for state in states),
            uptime_ns=max((state.uptime_ns for state in states), default=0),
            flows_rate=sum(state.flows_rate for state in states),
            unavailable_nodes=away[:_UNAVAILABLE_NAMES],
        )
        total.num_connected_nodes.value = len(states)
        total.num_unavailable_nodes.value = len(away)
        return total

    async def _get_nodes(
        self, _: observer_pb2.GetNodesRequest, call: Call
    ) -> observer_pb2.GetNodesResponse:
        answers = await self._ask_all(
            "ServerStatus",
            observer_pb2.ServerStatusRequest(),
            observer_pb2.ServerStatusResponse,
            call,
        )
        found = observer_pb2.GetNodesResponse(
            nodes=[_node(connection, answer) for connection, answer in answers]
        )
        if call.limits is not None:
            # which nodes there are is told along with flows too, where they are is not
            for node in found.nodes:
                node.ClearField("address")
                node.tls.ClearField("server_name")
        return found

    async def _get_namespaces(
        self, request: observer_pb2.GetNamespacesRequest, call: Call
    ) -> observer_pb2.GetNamespacesResponse:
        answers = await self._ask_all(
            "GetNamespaces", request, observer_pb2.GetNamespacesResponse, call
        )
        found = {
            (one.cluster, one.namespace)
            for _, answer in answers
            if answer is not None
            for one in answer.namespaces
            if call.limits is None or one.namespace in call.limits.namespaces
        }
        return observer_pb2.GetNamespacesResponse(
            namespaces=[
                observer_pb2.Namespace(cluster=cluster, namespace=namespace)
                for cluster, namespace in sorted(found)
            ]
        )


def _node(connection: Connection, answer: Any) -> observer_pb2.Node:
    peer = connection.peer
    node = observer_pb2.Node(
        name=peer.name,
        address=peer.address,
        tls=observer_pb2.TLS(
            enabled=peer.server_name is not None, server_name=peer.server_name or ""
        ),
    )
    if answer is not None:
        node.state = relay_pb2.NODE_CONNECTED
        node.version = answer.version
        node.uptime_ns = answer.uptime_ns
        node.num_flows = answer.num_flows
        node.max_flows = answer.max_flows
        node.seen_flows = answer.seen_flows
    else:
        node.state = relay_pb2.NODE_ERROR if connection.available else relay_pb2.NODE_UNAVAILABLE
    return node
