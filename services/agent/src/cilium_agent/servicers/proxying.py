"""Calls about proxies and names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cilium.agent.v1 import agent_pb2

from cilium_agent.servicers import messages
from cilium_agent.servicers.calls import Calls

if TYPE_CHECKING:
    from cilium_agent.servicers.calls import Context


class ProxyCalls(Calls):
    """Shows proxies, shows and forgets names."""

    async def GetProxyStatus(  # noqa: N802
        self, request: agent_pb2.GetProxyStatusRequest, context: Context
    ) -> agent_pb2.GetProxyStatusResponse:
        """The proxies and what they enforce."""
        del request, context
        agent = self._agent
        status = agent.proxies.status()
        users = agent.policies.redirect_users()
        return agent_pb2.GetProxyStatusResponse(
            summary=status.line,
            problems=status.problems,
            first_port=status.ports[0],
            last_port=status.ports[-1],
            redirects=[
                agent_pb2.ProxyRedirect(
                    redirect=messages.redirect(one.redirect),
                    port=one.port,
                    in_use=one.in_use,
                    acknowledged=one.acknowledged,
                    error=one.error,
                    endpoints=sorted(users.get(one.redirect, ())),
                )
                for one in status.redirects
            ],
            programs=[
                agent_pb2.ProxyProgram(
                    name=backend.name,
                    pid=backend.program.pid,
                    starts=backend.program.starts,
                    last_exit=backend.program.last_exit,
                    connected=backend.connected,
                )
                for backend in status.backends
                if backend.program is not None
            ],
        )

    async def ListNames(  # noqa: N802
        self, request: agent_pb2.ListNamesRequest, context: Context
    ) -> agent_pb2.ListNamesResponse:
        """Names that endpoints looked up."""
        del context
        rows = self._agent.names.rows(request.endpoint_id or None, request.pattern)
        return agent_pb2.ListNamesResponse(names=[messages.name(row) for row in rows])

    async def CleanNames(  # noqa: N802
        self, request: agent_pb2.CleanNamesRequest, context: Context
    ) -> agent_pb2.CleanNamesResponse:
        """Forget names."""
        del context
        count = await self._agent.names.clean(request.pattern)
        return agent_pb2.CleanNamesResponse(addresses=count)
