"""cilium.flows.v1.ExplanationService: why a flow had its verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cilium.flows.v1 import explain_pb2
from cilium_core.flow_explanations import withhold
from cilium_core.serving.packed import Method, unary

from hubble_server.errors import NoSuchFlowError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cilium_core.serving.packed import Call

    from hubble_server.explaining import Explainer
    from hubble_server.facts import NodeFacts
    from hubble_server.servicers.flows import FlowStreams

EXPLANATIONS = "cilium.flows.v1.ExplanationService"


class ExplanationService:
    """Finds a flow, in the ring or in the history, and has it explained."""

    def __init__(
        self, streams: FlowStreams, explainer: Explainer, node: Callable[[], NodeFacts]
    ) -> None:
        self._streams = streams
        self._explainer = explainer
        self._node = node

    def methods(self) -> dict[str, Method]:
        """Methods of the service."""
        return {"ExplainFlow": unary(self._explain_flow, explain_pb2.ExplainFlowRequest)}

    async def _explain_flow(
        self, request: explain_pb2.ExplainFlowRequest, call: Call
    ) -> explain_pb2.ExplainFlowResponse:
        name = self._node().qualified_name
        limits = call.limits
        wanted = request.flows if limits is None else limits.narrow(request.flows)
        found = await self._streams.newest(wanted, in_ring=request.no_history)
        if found is None:
            raise NoSuchFlowError(f"{name} has no such flow, or no longer")
        answer = await self._explainer.explain(
            found.flow, found.node_name or name, verify=request.verify
        )
        if limits is not None:
            withhold(answer, limits.namespaces)
        return answer
