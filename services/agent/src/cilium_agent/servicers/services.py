"""Calls about services."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from cilium.agent.v1 import agent_pb2
from cilium_core.policy.ports import Protocol
from cilium_core.services.explaining import asked
from cilium_core.services.models import L4Address
from cilium_core.services.redirecting import redirect_service

from cilium_agent.errors import NotStartedError, RequestError, ServiceNotFoundError
from cilium_agent.servicers import service_messages
from cilium_agent.servicers.calls import Calls
from cilium_agent.servicers.service_clients import Askers
from cilium_agent.servicers.service_messages import Ids
from cilium_agent.servicers.service_verifying import ChoiceTeller, Question

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cilium_core.policy.local_redirects import LocalRedirect
    from cilium_core.services.explaining import Explanation, Place
    from cilium_core.services.models import Frontend
    from cilium_core.services.tables import ServiceTable

    from cilium_agent.datapath import Datapath
    from cilium_agent.servicers.calls import Context

SERVICES_PER_MESSAGE = 500
_PORT_MAX = 65535
_PROTOCOLS = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)


class ServiceCalls(Calls):
    """Shows services and explains who serves."""

    async def ListServices(  # noqa: N802
        self, request: agent_pb2.ListServicesRequest, context: Context
    ) -> AsyncIterator[agent_pb2.ListServicesResponse]:
        """Frontends by address, in batches."""
        del context
        ids = await self._ids()
        found = service_messages.in_order(
            one
            for one in self._services().all_frontends()
            if one.at.port
            and (not request.name or str(one.service) == request.name)
            and (not request.id or ids.of(one) == request.id)
        )
        for start in range(0, len(found), SERVICES_PER_MESSAGE):
            part = found[start : start + SERVICES_PER_MESSAGE]
            yield agent_pb2.ListServicesResponse(
                services=[service_messages.service(one, ids) for one in part]
            )

    async def ExplainService(  # noqa: N802
        self, request: agent_pb2.ExplainServiceRequest, context: Context
    ) -> agent_pb2.ExplainServiceResponse:
        """Who would serve a client, and why."""
        del context
        at = _address(request.frontend)
        if request.client_port > _PORT_MAX:
            raise RequestError(f"client_port: {request.client_port} is not a number up to 65535")
        agent, table = self._agent, self._services()
        config = agent.plane.datapath.config.services
        nodes = agent.nodes
        askers = Askers(agent.table, agent.ipcache, agent.pods, nodes.own, nodes.all(), config)
        asker = askers.find(request.client, at.address.version, int(at.protocol))
        of_node = asker.endpoint is None
        frontend = asked(table.frontend, at, asker.place, table.node, of_node=of_node)
        if frontend is None:
            raise ServiceNotFoundError(
                f"no service is asked at {at}; packets go to the address itself"
            )
        question = Question(asker, request.client_port, at, frontend, table.node)

        def tell(datapath: Datapath) -> agent_pb2.ExplainServiceResponse:
            teller = ChoiceTeller(datapath)
            found = teller.explain(question)
            answer = _answer(found, asker.place, Ids(datapath.service_dumps))
            answer.client, answer.node = asker.name, asker.node
            answer.client_address = str(asker.address or "")
            if not request.no_verify:
                teller.verify(question, found, answer)
            return answer

        told: agent_pb2.ExplainServiceResponse = await self._run(tell)
        return told

    async def ListRedirectPolicies(  # noqa: N802
        self, request: agent_pb2.ListRedirectPoliciesRequest, context: Context
    ) -> agent_pb2.ListRedirectPoliciesResponse:
        """Local redirect policies, and what they redirect here."""
        del request, context
        table = self._services()
        ids = await self._ids()
        return agent_pb2.ListRedirectPoliciesResponse(
            policies=[_redirect(one, table, ids) for one, _ in table.redirects()]
        )

    def _services(self) -> ServiceTable:
        if not self._agent.ready:
            raise NotStartedError(f"the agent is {self._agent.phase}")
        table: ServiceTable = self._agent.services.table
        return table

    async def _ids(self) -> Ids:
        ids: Ids = await self._run(lambda datapath: Ids(datapath.service_dumps))
        return ids


def _address(message: agent_pb2.ServiceAddress) -> L4Address:
    try:
        address = ipaddress.ip_address(message.ip)
    except ValueError as error:
        raise RequestError(f"frontend.ip: {message.ip[:80]!r} is not an address") from error
    if not 0 < message.port <= _PORT_MAX:
        raise RequestError(f"frontend.port: {message.port} is not a number from 1 to 65535")
    if message.protocol not in _PROTOCOLS:
        names = ", ".join(f"{int(one)} ({one.name})" for one in _PROTOCOLS)
        raise RequestError(f"frontend.protocol: {message.protocol} is none of {names}")
    return L4Address(address, message.port, Protocol(message.protocol))


def _answer(found: Explanation, place: Place, ids: Ids) -> agent_pb2.ExplainServiceResponse:
    eligible = set(found.frontend.eligible)
    answer = agent_pb2.ExplainServiceResponse(
        service=service_messages.service(found.frontend, ids),
        place=place.value,
        choice=f"SERVICE_CHOICE_{found.choice.name}",
        steps=found.steps,
        candidates=[
            agent_pb2.ServiceCandidate(
                backend=service_messages.backend(
                    fate.backend, ids, eligible=fate.backend in eligible
                ),
                possible=fate.chance > 0,
                chance=fate.chance,
                message=fate.text,
            )
            for fate in found.fates
        ],
        maglev_entry=found.entry,
        maglev_hash=found.hash,
    )
    if found.backend is not None:
        chosen = found.backend
        answer.backend.CopyFrom(service_messages.backend(chosen, ids, eligible=chosen in eligible))
    return answer


def _redirect(one: LocalRedirect, table: ServiceTable, ids: Ids) -> agent_pb2.RedirectPolicy:
    frontends = table.frontends(redirect_service(one))
    own = f"CiliumLocalRedirectPolicy {one.namespace}/{one.name}"
    errors = [f"{remark.path}: {remark.text}" for remark in table.remarks if remark.subject == own]
    return agent_pb2.RedirectPolicy(
        namespace=one.namespace,
        name=one.name,
        type="service" if one.address is None else "address",
        service=f"{one.namespace}/{one.service}" if one.address is None else "",
        frontends=[_redirected(frontend, ids) for frontend in frontends],
        skip_redirect_from_backend=one.skip_from_backend,
        error="; ".join(errors) or ("" if frontends else "no pod of this node serves"),
    )


def _redirected(frontend: Frontend, ids: Ids) -> agent_pb2.RedirectFrontend:
    return agent_pb2.RedirectFrontend(
        address=service_messages.address(frontend.at),
        backends=[service_messages.backend(b, ids, eligible=True) for b in frontend.eligible],
    )
