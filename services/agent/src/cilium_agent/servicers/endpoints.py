"""Calls about endpoints."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from cilium.agent.v1 import agent_pb2

from cilium_agent.endpoints import options
from cilium_agent.errors import RequestError
from cilium_agent.servicers import dumps, messages
from cilium_agent.servicers.calls import Calls

if TYPE_CHECKING:
    from cilium_agent.endpoints.records import Endpoint
    from cilium_agent.servicers.calls import Context


class EndpointCalls(Calls):
    """Lists, shows and sets endpoints."""

    async def ListEndpoints(  # noqa: N802
        self, request: agent_pb2.ListEndpointsRequest, context: Context
    ) -> agent_pb2.ListEndpointsResponse:
        """All endpoints by id."""
        del request, context
        return agent_pb2.ListEndpointsResponse(
            endpoints=[messages.endpoint(e, audit=self._audit()) for e in self._agent.table]
        )

    async def GetEndpoint(  # noqa: N802
        self, request: agent_pb2.GetEndpointRequest, context: Context
    ) -> agent_pb2.GetEndpointResponse:
        """One endpoint with what the kernel enforces for it."""
        del context
        endpoint = self._find(request)
        answer = agent_pb2.GetEndpointResponse(
            endpoint=messages.endpoint(endpoint, audit=self._audit()),
            log=messages.endpoint_log(endpoint),
        )
        if self._agent.ready and endpoint.alive:
            plane = self._agent.plane
            dump = await plane.run(plane.datapath.policy.dump, endpoint.id)
            entries = dumps.policies(
                {endpoint.id: dump}, self._labels(), self._cookies(), self._redirects()
            )
            answer.realized_policy.extend(entry.policy.entry for entry in entries)
            messages.add_default_denies(answer.endpoint, dump, self._cookies())
        return answer

    async def UpdateEndpointConfig(  # noqa: N802
        self, request: agent_pb2.UpdateEndpointConfigRequest, context: Context
    ) -> agent_pb2.UpdateEndpointConfigResponse:
        """Change options of one endpoint."""
        del context
        endpoint = self._agent.table.get(request.id)
        if request.options and options.change(endpoint, request.options):
            await self._agent.policies.build(endpoint)
            await self._agent.store_endpoint(endpoint)
        return agent_pb2.UpdateEndpointConfigResponse(options=options.current(endpoint))

    def _find(self, request: agent_pb2.GetEndpointRequest) -> Endpoint:
        table = self._agent.table
        match request.WhichOneof("selector"):
            case "id":
                return table.get(request.id)
            case "ip":
                try:
                    return table.by_ip(str(ipaddress.ip_address(request.ip)))
                except ValueError as error:
                    raise RequestError(f"ip: {request.ip!r} is not an address") from error
            case "pod":
                namespace, slash, name = request.pod.partition("/")
                if not slash:
                    raise RequestError(f"pod: {request.pod!r} is not of the form namespace/name")
                return table.by_pod(namespace, name)
            case _:
                raise RequestError("selector: name an endpoint by id, ip or pod")
