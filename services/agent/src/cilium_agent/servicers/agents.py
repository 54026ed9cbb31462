"""AgentService: what command lines and probes ask of a node's agent."""

from __future__ import annotations

import ipaddress
from collections import Counter as CountOf
from typing import TYPE_CHECKING, Any

from cilium.agent.v1 import agent_pb2, agent_pb2_grpc
from cilium_core.errors import InvalidError
from cilium_core.identities import Prefix, parse_prefix

from cilium_agent import options, statuses
from cilium_agent.endpoints.states import State
from cilium_agent.errors import RequestError
from cilium_agent.servicers import dumps, messages, service_messages
from cilium_agent.servicers.endpoints import EndpointCalls
from cilium_agent.servicers.enforcing import PolicyCalls
from cilium_agent.servicers.proxying import ProxyCalls
from cilium_agent.servicers.services import ServiceCalls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    import grpc.aio

    from cilium_agent.app import Agent

    Context = grpc.aio.ServicerContext[Any, Any]

ENTRIES_PER_MESSAGE = 500
_SERVICE_DUMPS = {
    agent_pb2.MAP_KIND_LB_FRONTENDS: service_messages.frontends,
    agent_pb2.MAP_KIND_LB_BACKENDS: service_messages.backends,
    agent_pb2.MAP_KIND_LB_REVERSE_NAT: service_messages.reverse,
    agent_pb2.MAP_KIND_LB_SOURCE_RANGES: service_messages.ranges,
    agent_pb2.MAP_KIND_LB_AFFINITY: service_messages.affinity,
}


class AgentServicer(
    EndpointCalls,
    PolicyCalls,
    ProxyCalls,
    ServiceCalls,
    agent_pb2_grpc.AgentServiceServicer,
):
    """Serves one agent; see the proto for what each call promises."""

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent)
        self._prefilter_revision = 1

    async def GetStatus(  # noqa: N802
        self, request: agent_pb2.GetStatusRequest, context: Context
    ) -> agent_pb2.GetStatusResponse:
        """Health of the components and a summary."""
        del request, context
        agent, pool = self._agent, self._agent.addresses.pool
        endpoints = [e for e in agent.table if e.alive]
        answer = agent_pb2.GetStatusResponse(
            ready=agent.ready,
            version=agent.version,
            node_name=agent.settings.node_name,
            cluster_name=agent.settings.cluster_name,
            components=[messages.component(item) for item in statuses.collect(agent)],
            ipam=agent_pb2.IPAMStatus(
                pod_cidrs=[str(cidr) for cidr in pool.pod_cidrs],
                allocations={str(address): owner for address, owner in pool.owners.items()},
                ipv4_capacity=pool.capacity(4),
                ipv6_capacity=min(pool.capacity(6), 2**64 - 1),
            ),
            endpoints=len(endpoints),
            endpoints_ready=sum(e.state is State.READY and not e.error for e in endpoints),
            policy_revision=agent.policies.engine.revision,
            features=agent.features,
        )
        answer.started_at.FromNanoseconds(int(agent.started_at * 1e9))
        return answer

    async def ListIdentities(  # noqa: N802
        self, request: agent_pb2.ListIdentitiesRequest, context: Context
    ) -> agent_pb2.ListIdentitiesResponse:
        """Known identities by number."""
        del request, context
        used = CountOf(e.identity for e in self._agent.table if e.alive)
        return agent_pb2.ListIdentitiesResponse(
            identities=[
                agent_pb2.Identity(id=number, labels=labels.texts(), endpoints=used[number])
                for number, labels in sorted(self._labels().items())
            ]
        )

    async def ListIPs(  # noqa: N802
        self, request: agent_pb2.ListIPsRequest, context: Context
    ) -> agent_pb2.ListIPsResponse:
        """The address table of user space."""
        del request, context
        labels = self._labels()
        rows = sorted(
            self._agent.ipcache.entries(),
            key=lambda row: _prefix_order(ipaddress.ip_network(row[0])),
        )
        return agent_pb2.ListIPsResponse(
            entries=[
                messages.ip_entry(prefix, source, entry, labels.get(entry.identity))
                for prefix, source, entry in rows
            ]
        )

    async def ListNodes(  # noqa: N802
        self, request: agent_pb2.ListNodesRequest, context: Context
    ) -> agent_pb2.ListNodesResponse:
        """The nodes, the local one first."""
        del request, context
        nodes = self._agent.nodes
        return agent_pb2.ListNodesResponse(
            nodes=[messages.node(record, local=record is nodes.own) for record in nodes.all()]
        )

    async def DumpMap(  # noqa: N802
        self, request: agent_pb2.DumpMapRequest, context: Context
    ) -> AsyncIterator[agent_pb2.DumpMapResponse]:
        """Entries of a map, in batches."""
        del context
        entries = await self._dump(request)
        for start in range(0, len(entries), ENTRIES_PER_MESSAGE):
            yield agent_pb2.DumpMapResponse(entries=entries[start : start + ENTRIES_PER_MESSAGE])

    async def GetPrefilter(  # noqa: N802
        self, request: agent_pb2.GetPrefilterRequest, context: Context
    ) -> agent_pb2.GetPrefilterResponse:
        """The XDP deny list and rate limit."""
        del request, context
        state = await self._run(lambda datapath: datapath.prefilter.get())
        return agent_pb2.GetPrefilterResponse(
            prefilter=messages.prefilter(state, self._prefilter_revision)
        )

    async def UpdatePrefilter(  # noqa: N802
        self, request: agent_pb2.UpdatePrefilterRequest, context: Context
    ) -> agent_pb2.UpdatePrefilterResponse:
        """Change them."""
        del context
        add = _prefixes("add_cidrs", request.add_cidrs)
        remove = _prefixes("remove_cidrs", request.remove_cidrs)
        pps = request.rate_limit_pps if request.HasField("rate_limit_pps") else None
        burst = request.rate_limit_burst if request.HasField("rate_limit_burst") else None
        state = await self._run(lambda datapath: datapath.prefilter.update(add, remove, pps, burst))
        self._prefilter_revision += 1
        return agent_pb2.UpdatePrefilterResponse(
            prefilter=messages.prefilter(state, self._prefilter_revision)
        )

    async def UpdateConfig(  # noqa: N802
        self, request: agent_pb2.UpdateConfigRequest, context: Context
    ) -> agent_pb2.UpdateConfigResponse:
        """Change options that need no restart."""
        del context
        changed = options.changes(request.options)
        if changed:
            await self._run(lambda datapath: datapath.set_config(**changed))
            await self._agent.keep_options(request.options)
        config = await self._run(lambda datapath: datapath.config)
        await self._agent.policies.set_audit(audit=config.audit)
        return agent_pb2.UpdateConfigResponse(options=options.current(config))

    # ---- helpers ----

    async def _dump(self, request: agent_pb2.DumpMapRequest) -> list[agent_pb2.MapEntry]:
        match request.map:
            case agent_pb2.MAP_KIND_CT:
                found: list[agent_pb2.MapEntry] = await self._run(dumps.connections)
                return found
            case agent_pb2.MAP_KIND_POLICY:
                return await self._dump_policy(request.endpoint_id)
            case agent_pb2.MAP_KIND_IPCACHE:
                return list(dumps.ipcache(await self._run(lambda d: d.ipcache.dump())))
            case agent_pb2.MAP_KIND_TUNNEL:
                return list(dumps.tunnels(await self._run(lambda d: d.ipcache.dump())))
            case agent_pb2.MAP_KIND_ENDPOINT:
                return list(dumps.endpoints(await self._run(lambda d: d.endpoints.dump())))
            case agent_pb2.MAP_KIND_METRICS:
                return list(dumps.metrics(await self._run(lambda d: d.metrics.dump())))
            case agent_pb2.MAP_KIND_NAT:
                return await self._run(lambda d: list(dumps.translations(d.nat.dump())))  # type: ignore[no-any-return]
            case _ if request.map in _SERVICE_DUMPS:
                tell = _SERVICE_DUMPS[request.map]
                return await self._run(lambda d: list(tell(d.service_dumps)))  # type: ignore[no-any-return]
            case agent_pb2.MAP_KIND_LB_MAGLEV:
                only = request.rev_nat
                return await self._run(  # type: ignore[no-any-return]
                    lambda d: list(service_messages.maglev(d.service_dumps, only))
                )
            case _:
                raise RequestError(f"map {request.map} cannot be dumped; name one of MapKind")

    async def _dump_policy(self, endpoint_id: int) -> list[agent_pb2.MapEntry]:
        if endpoint_id:
            self._agent.table.get(endpoint_id)
            wanted = [endpoint_id]
        else:
            wanted = [e.id for e in self._agent.table if e.alive]
        dump = await self._run(lambda d: {number: d.policy.dump(number) for number in wanted})
        return list(dumps.policies(dump, self._labels(), self._cookies(), self._redirects()))


def _prefixes(field: str, texts: Iterable[str]) -> list[Prefix]:
    try:
        return [parse_prefix(text) for text in texts]
    except ValueError as error:
        raise InvalidError(f"{field}: {error}") from error


def _prefix_order(prefix: Prefix) -> tuple[int, bytes, int]:
    return prefix.version, prefix.network_address.packed, prefix.prefixlen
