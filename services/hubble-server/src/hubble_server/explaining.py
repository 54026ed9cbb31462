"""Explains a flow: what the flow says, and what the node's agent says about its two ends now.

What cannot be found out is no error: it becomes a note, and the rest is told all the same. An agent
looks through all it knows for an answer, so it is asked about few flows at a time, and clients that
would wait for too long are sent away. Used on the event loop.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from cilium_core.errors import CiliumError
from cilium_core.flow_explanations import changes, describe
from cilium_core.flow_questions import (
    FlowQuestionError,
    asked_address,
    policy_question,
    service_question,
    sides_of,
)

from hubble_server.agents import AgentRefusedError, UnknownToAgentError
from hubble_server.errors import BusyError

if TYPE_CHECKING:
    from cilium.agent.v1 import agent_pb2
    from cilium.flows.v1 import explain_pb2
    from flow import flow_pb2

    from hubble_server.agents import AgentClient
    from hubble_server.translations import Translations

_MOST_FRONTENDS: Final = 100
_AT_ONCE: Final = 2
_MOST_WAITING: Final = 32
"""Flows that are explained at once, and such as may wait for that."""


class Explainer:
    """Explains flows of one node."""

    def __init__(self, agent: AgentClient, translations: Translations) -> None:
        self._agent = agent
        self._translations = translations
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._present = 0

    async def explain(
        self, flow: flow_pb2.Flow, node_name: str, *, verify: bool
    ) -> explain_pb2.ExplainFlowResponse:
        """All there is to say; with `verify`, the loaded programs are asked as well.

        Raises BusyError.
        """
        if self._present >= _AT_ONCE + _MOST_WAITING:
            raise BusyError(
                f"{self._present} flows are being explained or wait for it on {node_name}; try "
                "again"
            )
        answer = describe(flow, node_name)
        self._present += 1
        try:
            async with self._turns:
                await self._ask_about_policies(flow, answer, verify=verify)
                await self._ask_about_services(flow, answer)
        finally:
            self._present -= 1
        return answer

    async def _ask_about_policies(
        self, flow: flow_pb2.Flow, answer: explain_pb2.ExplainFlowResponse, *, verify: bool
    ) -> None:
        try:
            policy = await self._policy(flow, answer, verify=verify)
        except FlowQuestionError as error:
            answer.notes.append(f"Policies were not asked: {error}.")
        except CiliumError as error:
            answer.notes.append(f"Policies could not be asked: {error}.")
        else:
            answer.policy.CopyFrom(policy)
            answer.notes.extend(changes(flow, policy))

    async def _policy(
        self, flow: flow_pb2.Flow, answer: explain_pb2.ExplainFlowResponse, *, verify: bool
    ) -> agent_pb2.ExplainPolicyResponse:
        question = policy_question(flow)
        question.verify = verify
        try:
            return await self._agent.explain_policy(question)
        except UnknownToAgentError as error:
            then = policy_question(flow, as_of_then=True)
            if then == question:
                raise
            found = await self._agent.explain_policy(then)
            answer.notes.append(
                f"Pods are told by the labels that they had, as one is not there any more: {error}."
            )
            return found

    async def _ask_about_services(
        self, flow: flow_pb2.Flow, answer: explain_pb2.ExplainFlowResponse
    ) -> None:
        named = sides_of(flow).server.service
        service = f"{named.namespace}/{named.name}" if named.name else ""
        frontend = asked_address(flow)
        if (translation := await self._translations.behind(flow)) is not None:
            frontend, service = translation.frontend, translation.service
            answer.translation.frontend.CopyFrom(frontend)
            answer.translation.service = service
            answer.translation.time_ns = translation.time_ns
        try:
            if service:
                found = await self._agent.services(service)
                answer.frontends.extend(found[:_MOST_FRONTENDS])
            if frontend is not None:
                question = service_question(flow, frontend)
                answer.choice.CopyFrom(await self._agent.explain_service(question))
        except UnknownToAgentError:
            # nothing is served at the address itself: no service, or a backend of one
            return
        except AgentRefusedError as error:
            if service:
                answer.notes.append(f"Services could not be asked: {error}.")
        except CiliumError as error:
            if answer.HasField("policy"):
                answer.notes.append(f"Services could not be asked: {error}.")
