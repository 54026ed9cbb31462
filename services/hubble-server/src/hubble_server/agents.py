"""Questions to the node's agent: what its policies and services say; and what it is to write.

A connection is made for each question: they are rare, and the agent may have been restarted in
between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from cilium.agent.v1 import agent_pb2
from cilium.metadata.v1 import notices_pb2
from cilium_core.errors import CiliumError, NotFoundError, UnavailableError
from grpclib.client import UnaryStreamMethod, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from hubble_server.dialing import calling

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from grpclib.client import Channel

_SERVICE: Final = "/cilium.agent.v1.AgentService/"
_REPORT: Final = "/cilium.metadata.v1.NoticeService/ReportNotices"
_TIMEOUT_S: Final = 5.0

Answer = TypeVar("Answer")


class AgentAwayError(UnavailableError):
    """The agent does not answer."""


class UnknownToAgentError(NotFoundError):
    """The agent does not know what it was asked about."""


class AgentRefusedError(CiliumError):
    """The agent cannot answer that question."""


class AgentClient:
    """Asks the agent behind the unix socket at `path`. All methods raise the errors above."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def explain_policy(
        self, request: agent_pb2.ExplainPolicyRequest
    ) -> agent_pb2.ExplainPolicyResponse:
        """Why traffic passes or not."""

        async def ask(channel: Channel) -> agent_pb2.ExplainPolicyResponse:
            method = UnaryUnaryMethod[
                agent_pb2.ExplainPolicyRequest, agent_pb2.ExplainPolicyResponse
            ](
                channel,
                f"{_SERVICE}ExplainPolicy",
                agent_pb2.ExplainPolicyRequest,
                agent_pb2.ExplainPolicyResponse,
            )
            return await method(request, timeout=_TIMEOUT_S)

        return await self._ask(f"{_SERVICE}ExplainPolicy", ask)

    async def explain_service(
        self, request: agent_pb2.ExplainServiceRequest
    ) -> agent_pb2.ExplainServiceResponse:
        """Which backend a client gets."""

        async def ask(channel: Channel) -> agent_pb2.ExplainServiceResponse:
            method = UnaryUnaryMethod[
                agent_pb2.ExplainServiceRequest, agent_pb2.ExplainServiceResponse
            ](
                channel,
                f"{_SERVICE}ExplainService",
                agent_pb2.ExplainServiceRequest,
                agent_pb2.ExplainServiceResponse,
            )
            return await method(request, timeout=_TIMEOUT_S)

        return await self._ask(f"{_SERVICE}ExplainService", ask)

    async def services(self, name: str) -> list[agent_pb2.Service]:
        """Frontends of the service `namespace/name`."""

        async def ask(channel: Channel) -> list[agent_pb2.Service]:
            method = UnaryStreamMethod[
                agent_pb2.ListServicesRequest, agent_pb2.ListServicesResponse
            ](
                channel,
                f"{_SERVICE}ListServices",
                agent_pb2.ListServicesRequest,
                agent_pb2.ListServicesResponse,
            )
            parts = await method(agent_pb2.ListServicesRequest(name=name), timeout=_TIMEOUT_S)
            return [one for part in parts for one in part.services]

        return await self._ask(f"{_SERVICE}ListServices", ask)

    async def report(self, notices: Sequence[notices_pb2.Notice]) -> int:
        """Have events written about pods of this node; tells how many were."""

        async def ask(channel: Channel) -> notices_pb2.ReportNoticesResponse:
            method = UnaryUnaryMethod[
                notices_pb2.ReportNoticesRequest, notices_pb2.ReportNoticesResponse
            ](
                channel,
                _REPORT,
                notices_pb2.ReportNoticesRequest,
                notices_pb2.ReportNoticesResponse,
            )
            request = notices_pb2.ReportNoticesRequest(notices=notices)
            return await method(request, timeout=_TIMEOUT_S)

        return (await self._ask(_REPORT, ask)).written

    async def _ask(self, method: str, ask: Callable[[Channel], Awaitable[Answer]]) -> Answer:
        try:
            async with calling(self._path, method) as channel:
                return await ask(channel)
        except GRPCError as error:
            text = error.message or error.status.name
            if error.status is Status.NOT_FOUND:
                raise UnknownToAgentError(text) from error
            if error.status in (Status.UNAVAILABLE, Status.DEADLINE_EXCEEDED):
                raise AgentAwayError(f"the agent does not answer: {text}") from error
            raise AgentRefusedError(text) from error
        except (OSError, StreamTerminatedError, TimeoutError) as error:
            reason = str(error) or "it took too long"
            raise AgentAwayError(
                f"the agent does not answer at {self._path} ({reason}); is it running?"
            ) from error
