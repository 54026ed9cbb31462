"""cilium.flows.v1.ExplanationService: finds the node that saw a flow, and passes on what it says.

All nodes are asked at once, and the newest flow counts. A flow of a peer that cannot explain any is
told by what it says itself.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
from cilium.flows.v1 import explain_pb2
from cilium_core.errors import InvalidError
from cilium_core.flow_explanations import describe
from cilium_core.flow_questions import TYPE_SOCK, asked_address, translation_filter
from cilium_core.serving.packed import Method, unary
from flow import flow_pb2
from observer import observer_pb2

from hubble_relay.errors import NoSuchFlowError

if TYPE_CHECKING:
    from cilium_core.access import Limits
    from cilium_core.serving.packed import Call

    from hubble_relay.connections import Connection, Pool

EXPLANATIONS: Final = "cilium.flows.v1.ExplanationService"
_SKEW_NS: Final = 1_000_000_000
"""By how much the clocks of two nodes may differ."""

_TIMEOUT_S: Final = 30.0
"""A node may look through its history."""

_REFUSALS: Final = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INVALID_ARGUMENT)
"""What servers answer to requests that make no sense."""

_MOST_TOLD: Final = 10


class ExplanationServicer:
    """Explains the flows of all nodes."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def methods(self) -> dict[str, Method]:
        """What to serve."""
        return {"ExplainFlow": unary(self._explain_flow, explain_pb2.ExplainFlowRequest)}

    async def _explain_flow(
        self, request: explain_pb2.ExplainFlowRequest, call: Call
    ) -> explain_pb2.ExplainFlowResponse:
        limits = call.limits
        flows = request.flows if limits is None else limits.narrow(request.flows)
        each = explain_pb2.ExplainFlowRequest(flows=flows, verify=request.verify)
        found, missing = list[explain_pb2.ExplainFlowResponse](), list[str]()

        async def ask(connection: Connection) -> None:
            try:
                if connection.available:
                    answer = await self._explained(connection, each, limits)
                    if answer is not None:
                        found.append(answer)
                    return
            except grpc.aio.AioRpcError as error:
                if error.code() in _REFUSALS:
                    raise InvalidError(error.details() or "invalid request") from error
            missing.append(connection.name)

        await asyncio.gather(*map(ask, self._pool.connections))
        if not found:
            raise NoSuchFlowError(_nobody(len(self._pool.connections), sorted(missing)))
        newest = max(found, key=lambda one: one.flow.time.ToNanoseconds())
        await self._add_translation(newest, limits)
        if not _names_one(request.flows):
            newest.missing_nodes.extend(sorted(missing))
        return newest

    async def _add_translation(
        self, answer: explain_pb2.ExplainFlowResponse, limits: Limits | None
    ) -> None:
        """Add what the node of the client saw at the client's socket, if that is another one."""
        flow = answer.flow
        if answer.HasField("translation") or flow.event_type.type == TYPE_SOCK:
            return
        if asked_address(flow) is None:
            return
        point = flow_pb2.SOCK_XLATE_POINT_POST_DIRECTION_FWD
        each = explain_pb2.ExplainFlowRequest(no_history=True)
        each.flows.whitelist.append(translation_filter(flow, point))
        each.flows.until.FromNanoseconds(flow.time.ToNanoseconds() + _SKEW_NS)
        if limits is not None:
            each.flows.CopyFrom(limits.narrow(each.flows))

        async def ask(connection: Connection) -> explain_pb2.ExplainFlowResponse | None:
            try:
                if connection.available and connection.name != answer.node_name:
                    return await self._told(connection, each, limits)
            except grpc.aio.AioRpcError:
                pass  # a detail is not worth failing for
            return None

        for told in await asyncio.gather(*map(ask, self._pool.connections)):
            if told is not None and told.HasField("translation"):
                answer.translation.CopyFrom(told.translation)
                del answer.frontends[:]
                answer.frontends.extend(told.frontends)
                answer.ClearField("choice")
                if told.HasField("choice"):
                    answer.choice.CopyFrom(told.choice)
                return

    @staticmethod
    async def _told(
        connection: Connection, request: explain_pb2.ExplainFlowRequest, limits: Limits | None
    ) -> explain_pb2.ExplainFlowResponse:
        """What one node says. Raises AioRpcError."""
        told: explain_pb2.ExplainFlowResponse = await connection.ask(
            "ExplainFlow",
            request,
            explain_pb2.ExplainFlowResponse,
            _TIMEOUT_S,
            service=EXPLANATIONS,
            limits=limits,
        )
        return told

    @classmethod
    async def _explained(
        cls, connection: Connection, request: explain_pb2.ExplainFlowRequest, limits: Limits | None
    ) -> explain_pb2.ExplainFlowResponse | None:
        """What one node says, None when it has no such flow. Raises AioRpcError."""
        try:
            return await cls._told(connection, request, limits)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
        wanted = observer_pb2.GetFlowsRequest()
        wanted.CopyFrom(request.flows)
        # "the last" are those before now, whatever the range
        wanted.number = 0 if wanted.HasField("since") or wanted.HasField("until") else 1
        wanted.first, wanted.follow = False, False
        wanted.ClearField("field_mask")
        found: observer_pb2.GetFlowsResponse | None = None
        assert connection.channel is not None  # noqa: S101  only available ones are asked
        start: Any = connection.channel.unary_stream("/observer.Observer/GetFlows")
        async for encoded in start(wanted.SerializeToString(), timeout=_TIMEOUT_S):
            response = observer_pb2.GetFlowsResponse.FromString(encoded)
            if response.HasField("flow"):
                found = response
        if found is None:
            return None
        answer = describe(found.flow, found.node_name or connection.name)
        answer.notes.append(
            f"Policies were not asked: {connection.name} is a server of a kind that cannot tell."
        )
        return answer


def _names_one(request: observer_pb2.GetFlowsRequest) -> bool:
    """Whether a request can find one flow only, so that no node can have a newer one."""
    return bool(request.whitelist) and all(len(one.uuid) == 1 for one in request.whitelist)


def _nobody(nodes: int, missing: list[str]) -> str:
    text = f"none of {nodes} nodes has such a flow, or no longer"
    if missing:
        more = f" and {len(missing) - _MOST_TOLD} more" if len(missing) > _MOST_TOLD else ""
        text += f"; {', '.join(missing[:_MOST_TOLD])}{more} did not answer"
    return text
