"""Wiring and life cycle of the operator; the only module that knows every other.

Every replica serves health, metrics and its status; the leader alone runs the jobs. A stop gives
the leadership back at once, a crash after the election's lease ran out; either way the next
leader begins from what the store says.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cilium_core.identities import cluster_range
from cilium_core.kvstore.etcd import EtcdStore
from cilium_core.leading import Election
from cilium_core.records import HEARTBEAT, OPERATOR_LEADER, Network, PodCIDRRecord
from cilium_core.resources.announcing import Announcer
from cilium_core.serving.observability import observability_server
from cilium_core.serving.sockets import stop_signal
from cilium_core.telemetry import Health, get_logger

from cilium_operator.assigning import LostLeadershipError, PodCIDRAssigner, read_assignments
from cilium_operator.collecting import IdentityCollector
from cilium_operator.jobs import Job
from cilium_operator.services.assigning import ServiceAssigner
from cilium_operator.services.publishing import SlicePublisher

if TYPE_CHECKING:
    from cilium_core.kvstore import Compare, Lease, Store
    from cilium_core.serving.grpc_server import GrpcServer
    from cilium_core.serving.http_server import HttpServer

    from cilium_operator.pools import PoolUsage
    from cilium_operator.settings import OperatorSettings

log = get_logger()

_HEARTBEAT_S = 60.0
_SWEEP_S = 300.0
_SERVICE = "cilium.operator.v1.OperatorService"


class App:
    """One replica of the operator."""

    def __init__(
        self, settings: OperatorSettings, *, version: str = "", store: Store | None = None
    ) -> None:
        """Make a replica; `store` replaces etcd in tests. Call within a running event loop."""
        self.settings = settings
        self.version = version
        self.candidate = f"{settings.node_name}-{secrets.token_hex(4)}"
        self.started_at = time.time()
        self.store = store or EtcdStore.from_settings(settings)
        self.election = Election(
            self.store,
            OPERATOR_LEADER,
            self.candidate,
            ttl_s=settings.leader_election_lease_duration,
        )
        self._assigning = Job("pod-cidr-assignment")
        self._collecting = Job("identity-gc")
        self._beating = Job("heartbeat")
        self._judging = Job("policy-validation")
        self._sweeping = Job("event-gc")
        self._giving = Job("service-allocation")
        self._slicing = Job("endpoint-slices")
        self._assigner: PodCIDRAssigner | None = None
        self._heartbeat_lease: Lease | None = None
        self.health = Health()
        self.health.add("kvstore", lambda: self.store.status().error)

    @property
    def jobs(self) -> list[Job]:
        """Give the jobs with how they fare."""
        return [
            self._assigning,
            self._collecting,
            self._beating,
            self._judging,
            self._sweeping,
            self._giving,
            self._slicing,
        ]

    @property
    def leads(self) -> bool:
        """Whether this replica acts."""
        return self.election.leads if self.settings.enable_leader_election else True

    @property
    def leader(self) -> str:
        """Name of the replica that acts, as far as known here."""
        return self.election.leader if self.settings.enable_leader_election else self.candidate

    def pool_usage(self) -> list[PoolUsage]:
        """Tell how full the pools are; empty on a replica that does not lead."""
        return self._assigner.usage() if self._assigner else []

    async def allocations(self) -> list[PodCIDRRecord]:
        """Read the pod CIDRs of every node. Raises StoreUnavailableError."""
        return [record for _item, record in await read_assignments(self.store)]

    async def run(self) -> None:
        """Serve and act until SIGTERM or SIGINT. Raises CiliumError when it cannot start."""
        stop = stop_signal()
        servers = await self._serve()
        acting = asyncio.create_task(self.act())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([acting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if acting.done():
                acting.result()
        finally:
            log.info("stopping")
            for task in (acting, stopping):
                task.cancel()
            await asyncio.gather(acting, stopping, return_exceptions=True)
            for server in servers:
                await server.stop(0.5)
            await self.store.close()

    async def act(self) -> None:
        """Lead whenever elected, for ever."""
        if self.settings.enable_leader_election:
            await self.election.run(self._lead)
        else:
            await self._lead()

    async def _lead(self) -> None:
        settings = self.settings
        collector = IdentityCollector(
            self.store,
            cluster_range(settings.cluster_id),
            rate_limit=settings.identity_gc_rate_limit,
            fence=self._fence,
        )
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._assign_always())
                group.create_task(self._beating.every(_HEARTBEAT_S, self._beat))
                if settings.identity_gc_interval:
                    group.create_task(
                        self._collecting.every(settings.identity_gc_interval, collector.run)
                    )
                announcer = Announcer(self.store, "cilium-operator")
                group.create_task(self._sweeping.every(_SWEEP_S, announcer.sweep))
                if settings.validate_network_policy:
                    group.create_task(self._judge_always(announcer))
                if settings.manage_services:
                    group.create_task(self._giving.every(1.0, partial(self._give, announcer)))
                    group.create_task(self._slicing.every(1.0, self._slice))
        finally:
            self._assigner = None

    async def _assign_always(self) -> None:
        """Assign from a fresh view of the store after each failure."""

        async def assign() -> None:
            self._assigner = PodCIDRAssigner(
                self.store,
                self._pools(),
                cluster=self.settings.cluster_name,
                fence=self._fence,
                release_grace_s=self.settings.pod_cidr_release_grace,
                on_pass=self._assigning.done,
            )
            with contextlib.suppress(LostLeadershipError):
                await self._assigner.run()

        await self._assigning.every(1.0, assign)

    async def _judge_always(self, announcer: Announcer) -> None:
        """Judge all policies anew after each failure."""
        from cilium_operator.judging import PolicyJudge  # the models take a while to load

        judge = PolicyJudge(
            self.store,
            self.settings.policy_options(),
            announcer,
            fence=self._fence,
            on_pass=self._judging.done,
        )
        await self._judging.every(1.0, judge.run)

    async def _give(self, announcer: Announcer) -> None:
        """Give Services what they lack, from a fresh view of the store after each failure."""
        await ServiceAssigner(
            self.store,
            self.settings.service_cluster_ip_range,
            self.settings.node_ports(),
            announcer,
            balance=self.settings.enable_lb_ipam,
            fence=self._fence,
            on_pass=self._giving.done,
        ).run()

    async def _slice(self) -> None:
        """Keep EndpointSlices, from a fresh view of the store after each failure."""
        await SlicePublisher(self.store, fence=self._fence, on_pass=self._slicing.done).run()

    def _fence(self) -> list[Compare]:
        return [self.election.fence] if self.settings.enable_leader_election else []

    def _pools(self) -> list[tuple[Network, int]]:
        settings = self.settings
        pools: list[tuple[Network, int]] = []
        if settings.enable_ipv4:
            size = settings.cluster_pool_ipv4_mask_size
            pools += [(cidr, size) for cidr in settings.cluster_pool_ipv4_cidr]
        if settings.enable_ipv6:
            size = settings.cluster_pool_ipv6_mask_size
            pools += [(cidr, size) for cidr in settings.cluster_pool_ipv6_cidr]
        return pools

    async def _beat(self) -> None:
        if self._heartbeat_lease is None:
            self._heartbeat_lease = await self.store.lease(self.settings.kvstore_lease_ttl)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        await self.store.put(HEARTBEAT, now.encode(), self._heartbeat_lease)

    async def _serve(self) -> list[HttpServer | GrpcServer]:
        settings = self.settings
        servers: list[HttpServer | GrpcServer] = []
        api = observability_server(self.health)
        await api.listen_tcp(settings.operator_api_serve_addr)
        servers.append(api)
        if settings.operator_prometheus_serve_addr:
            metrics = observability_server()
            await metrics.listen_tcp(settings.operator_prometheus_serve_addr)
            servers.append(metrics)
        if settings.operator_socket:
            servers.append(await self._serve_grpc(settings.operator_socket))
        return servers

    async def _serve_grpc(self, address: str) -> GrpcServer:
        from cilium.operator.v1 import operator_pb2_grpc
        from cilium_core.serving.grpc_server import GrpcServer

        from cilium_operator.servicers.status import StatusServicer

        server = GrpcServer()
        server.add(
            _SERVICE,
            operator_pb2_grpc.add_OperatorServiceServicer_to_server,
            StatusServicer(self),
        )
        if address.startswith("/"):
            server.listen_unix(Path(address))
        else:
            server.listen(address)
        await server.start()
        return server
