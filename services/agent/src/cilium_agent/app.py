"""Wiring and life cycle of the agent; the only module that knows every other.

Start-up: settings → probe → parts → API and CNI socket (which make callers wait) → what an earlier
run left on disk and in maps → the store → data plane → policies of restored endpoints → CNI
configuration → ready. Where the node's pod CIDRs are known from an earlier run, the data plane does
not wait for the store. Stopping ends the process and nothing else: programs, maps, leases and
devices stay, and the next run takes them up.
"""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import json
import os
import time
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

from cilium_core.errors import InvalidError
from cilium_core.identities import (
    RESERVED_IDENTITIES,
    Families,
    LocalIdentityAllocator,
    NumericIdentity,
)
from cilium_core.kvstore import EventKind
from cilium_core.kvstore.etcd import EtcdStore
from cilium_core.labels import LabelFilter
from cilium_core.policy import EnforcementMode, PolicyOptions
from cilium_core.records import POD_CIDRS, PodCIDRRecord
from cilium_core.resources.etcd import EtcdSource
from cilium_core.serving.sockets import stop_signal
from cilium_core.telemetry import Health, get_logger

from cilium_agent import hosts, statuses
from cilium_agent.accepted import AcceptedObjects
from cilium_agent.addresses import PodAddresses
from cilium_agent.cni import configs
from cilium_agent.cni.queueing import DeleteQueue
from cilium_agent.cni.serving import CNIService, Started
from cilium_agent.conntracks import FIRST_INTERVAL_S, MAX_INTERVAL_S, next_interval
from cilium_agent.controllers import Controller, Controllers
from cilium_agent.datapath import Counter, Datapath, DatapathPaths, NodeConfig, probe
from cilium_agent.endpoints.provisioning import Provisioner
from cilium_agent.endpoints.storing import EndpointDirectory, write_atomic
from cilium_agent.endpoints.tables import EndpointTable
from cilium_agent.errors import AgentBusyError, AgentError, NotStartedError
from cilium_agent.feeds import Feed
from cilium_agent.identities import Identities
from cilium_agent.ipcaches import IPCache
from cilium_agent.metadata import MetadataHub
from cilium_agent.nodes import Nodes, own_record
from cilium_agent.planes import Plane
from cilium_agent.pods import PodTable
from cilium_agent.policies import Policies
from cilium_agent.publishing import EndpointAnnouncer, Publisher
from cilium_agent.relabelling import Relabeller
from cilium_agent.restoring import Restorer, restored_entries, restored_identities
from cilium_agent.settings import AGGREGATION_LEVELS, AgentSettings, tcp_flag_mask
from cilium_agent.stores import Watches, persist

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from cilium_core.kvstore import Lease
    from cilium_core.records import Network
    from cilium_core.serving.grpc_server import GrpcServer
    from cilium_core.serving.http_server import HttpServer

    from cilium_agent.cni.requests import PodRequest
    from cilium_agent.endpoints.records import Endpoint
    from cilium_agent.restoring import Remains

log = get_logger()

COOKIE_SWEEP_S = 300.0
COUNTERS_S = 5.0
INTERFACE_SWEEP_S = 30.0
IPCACHE_REFRESH_S = 300.0


class Agent:
    """The agent of a node. Make it within a running event loop."""

    def __init__(self, settings: AgentSettings, *, version: str) -> None:
        """Make the parts that need nothing from outside."""
        self.settings = settings
        self.version = version
        self.started_at = time.time()
        self.phase = "reading its surroundings"
        self.features: Mapping[str, bool] = {}
        self.pod_cidr_error = ""
        self.cni_file: Path | None = None
        self.cni_error = ""
        self.started = Started()
        self.hub = MetadataHub()
        self.table = EndpointTable()
        self.controllers = Controllers()
        self.addresses = PodAddresses(ipv4=settings.enable_ipv4, ipv6=settings.enable_ipv6)
        self.directory = EndpointDirectory(settings.endpoint_dir)
        self.queue = DeleteQueue(settings.delete_queue_dir)
        self.feed = Feed(self.hub, self.table)
        self.plane = Plane(
            Datapath(
                DatapathPaths(bpf_root=settings.bpf_root, template_dir=settings.template_dir),
                _map_sizes(settings),
            )
        )
        self.ipcache = IPCache(self.plane.write_ipcache)
        self.restorer = Restorer(
            table=self.table,
            directory=self.directory,
            addresses=self.addresses,
            plane=self.plane,
        )
        self.families = Families(settings.enable_ipv4, settings.enable_ipv6)
        self._local_identities = LocalIdentityAllocator()
        self.policies = Policies(
            _policy_options(settings, self.families),
            table=self.table,
            ipcache=self.ipcache,
            write=self.plane.write_policies,
            feed=self.feed,
            allocator=self._local_identities,
            accepted=AcceptedObjects(settings.accepted_dir),
        )
        self.pods = PodTable(settings.cluster_name, LabelFilter.parse(settings.labels))
        self.nodes = Nodes(
            cluster=settings.cluster_name,
            name=settings.node_name,
            ipcache=self.ipcache,
            plane=self.plane,
            feed=self.feed,
        )
        self.publisher = Publisher()
        self.store = EtcdStore.from_settings(settings)
        self.counters: list[Counter] = []
        self._provisioner: Provisioner | None = None
        self._identities: Identities | None = None
        self._watches: Watches | None = None
        self._servers: list[HttpServer | GrpcServer] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._pid_file = -1
        self._gc_interval_s = settings.conntrack_gc_interval or FIRST_INTERVAL_S
        self.table.listen(self.feed.endpoint)
        self.ipcache.listen(self.feed.addresses)

    @property
    def ready(self) -> bool:
        """Whether the node enforces what it knows and serves pods."""
        return self.started.ready

    # ---- life cycle ----

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT. Raises CiliumError when it cannot start."""
        stop = stop_signal()
        starting = asyncio.create_task(self._start())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
            await stopping
        finally:
            log.info("stopping; the data plane goes on")
            for task in (starting, stopping):
                task.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)
            await self._stop()

    async def _start(self) -> None:
        began = time.monotonic()
        settings = self.settings
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        self._claim_state_dir()
        await self._probe()
        host = hosts.look(settings)
        self.feed.interfaces()
        self.feed.identities(RESERVED_IDENTITIES.values())
        await self._serve_api()
        with self.queue.locked():
            queued = self.queue.read()
            await self._serve_cni()
        known = self._read_pod_cidrs()
        if known:
            self._use_pod_cidrs(known)
        announced: Lease | None = None
        if not self.addresses.complete:
            announced = await self._join(host)
            await self._await_pod_cidrs()
        remains = await self._start_datapath(host, queued)
        lease = announced or await self._join(host)
        await self._synchronise(host, lease, remains)
        await self._enforce(remains)
        self._start_controllers(lease)
        self._finish()
        log.info("ready", took_s=round(time.monotonic() - began, 3), endpoints=len(self.table))

    async def _stop(self) -> None:
        self.started.stopping = True
        await asyncio.gather(*(server.stop() for server in self._servers), return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.controllers.stop()
        if self._watches is not None:
            await self._watches.stop()
        if self._identities is not None:
            await self._identities.stop()
        # Leases stay: other nodes shall go on knowing this node and its pods.
        await self.store.abandon()
        await asyncio.to_thread(self.plane.close)
        if self._pid_file >= 0:
            os.close(self._pid_file)

    def _claim_state_dir(self) -> None:
        path = self.settings.state_dir / "cilium.pid"
        self._pid_file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._pid_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._pid_file, 32, 0).decode("ascii", "replace").strip()
            raise AgentBusyError(
                f"another agent (process {holder}) runs on {self.settings.state_dir}; stop it or "
                "choose another state-dir"
            ) from error
        os.ftruncate(self._pid_file, 0)
        os.pwrite(self._pid_file, f"{os.getpid()}\n".encode(), 0)

    async def _probe(self) -> None:
        self.phase = "probing the kernel"
        self.features = await asyncio.to_thread(probe)
        missing = sorted(name for name, works in self.features.items() if not works)
        if missing:
            log.warning("kernel features missing", missing=missing)
        needed = [name for name in missing if name not in statuses.OPTIONAL_FEATURES]
        if needed:
            raise AgentError(
                f"this kernel ({os.uname().release}) lacks what the data plane needs: "
                f"{', '.join(needed)}; a kernel of 5.11 or later with BPF, clsact, veth and vxlan "
                "has it all, and the agent must run as root"
            )

    # ---- the node's pod CIDRs ----

    @property
    def _node_file(self) -> Path:
        return self.settings.state_dir / "state" / "node.json"

    def _read_pod_cidrs(self) -> tuple[Network, ...]:
        try:
            document = json.loads(self._node_file.read_bytes())
            return tuple(ipaddress.ip_network(text) for text in document["podCIDRs"])
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("node state ignored", file=str(self._node_file), error=str(error))
            return ()

    def _use_pod_cidrs(self, pod_cidrs: tuple[Network, ...]) -> None:
        self.addresses.set_pod_cidrs(pod_cidrs)
        if self.addresses.complete:
            document = {"podCIDRs": [str(cidr) for cidr in pod_cidrs]}
            write_atomic(self._node_file, json.dumps(document).encode())

    async def _await_pod_cidrs(self) -> None:
        self.phase = "waiting for the operator to assign pod CIDRs"
        key = f"{POD_CIDRS}{self.settings.node_name}"
        async with aclosing(self.store.watch(key)) as events:
            async for event in events:
                if event.kind is not EventKind.PUT or event.key != key:
                    continue
                try:
                    record = PodCIDRRecord.from_json(event.key, event.value)
                    self.pod_cidr_error = record.error
                    self._use_pod_cidrs(record.pod_cidrs)
                except InvalidError as error:
                    self.pod_cidr_error = str(error)
                if self.pod_cidr_error:
                    log.error("pod CIDRs", error=self.pod_cidr_error)
                if self.addresses.complete:
                    return

    async def _watch_pod_cidrs(self) -> None:
        """Report when the operator disagrees with the CIDRs in use; they change at a restart."""
        key = f"{POD_CIDRS}{self.settings.node_name}"
        async with aclosing(self.store.watch(key)) as events:
            async for event in events:
                if event.kind is not EventKind.PUT or event.key != key:
                    continue
                try:
                    record = PodCIDRRecord.from_json(event.key, event.value)
                except InvalidError as error:
                    log.warning("pod CIDR record ignored", error=str(error))
                    continue
                self.pod_cidr_error = record.error
                if record.pod_cidrs and set(record.pod_cidrs) != set(self.addresses.pool.pod_cidrs):
                    log.error(
                        "the operator assigned other pod CIDRs than those in use",
                        assigned=[str(cidr) for cidr in record.pod_cidrs],
                        used=[str(cidr) for cidr in self.addresses.pool.pod_cidrs],
                    )

    async def _join(self, host: hosts.Host) -> Lease:
        """Announce the node, below a lease that lives as long as the agent and a while longer."""
        self.phase = "waiting for the key-value store"
        lease = await persist("lease", lambda: self.store.lease(self.settings.kvstore_lease_ttl))
        await self._announce_node(host, lease)
        return lease

    async def _announce_node(self, host: hosts.Host, lease: Lease) -> None:
        record = own_record(
            name=self.settings.node_name,
            cluster=self.settings.cluster_name,
            cluster_id=self.settings.cluster_id,
            addresses=host.addresses,
            routers=self.addresses.routers(),
            pod_cidrs=self.addresses.pool.pod_cidrs,
        )
        await persist("node record", lambda: self.store.put(record.key, record.to_json(), lease))
        self.publisher.want(record.key, record.to_json())

    # ---- start-up steps ----

    async def _start_datapath(self, host: hosts.Host, queued: Mapping[Path, PodRequest]) -> Remains:
        """Bring the data plane up and take up what an earlier run left."""
        self.phase = "starting the data plane"
        config = self._node_config(host)
        await self.plane.run(self.plane.datapath.start_sync, config)
        dump = await self.plane.run(self.plane.datapath.ipcache.dump)
        self.ipcache.restore(restored_entries(dump))
        identities = restored_identities(dump, self.families)
        self._local_identities.restore(
            {NumericIdentity(number): labels for number, labels in identities.items()}
        )
        self.policies.restore_identities(identities)
        remains = await self.restorer.load(queued.values())
        self.announcer = EndpointAnnouncer(self.ipcache, self.publisher, str(host.ipv4 or ""))
        record = own_record(
            name=self.settings.node_name,
            cluster=self.settings.cluster_name,
            cluster_id=self.settings.cluster_id,
            addresses=host.addresses,
            routers=self.addresses.routers(),
            pod_cidrs=self.addresses.pool.pod_cidrs,
        )
        self.nodes.set_own(record)
        await self.nodes.write_host_rows(record)
        self._queued = queued
        return remains

    async def _synchronise(self, host: hosts.Host, lease: Lease, remains: Remains) -> None:
        """Learn from the store all there is, then drop what is gone."""
        self.phase = "learning the cluster's state"
        await self._announce_node(host, lease)
        self._watches = Watches(
            self.store,
            EtcdSource(self.store),
            nodes=self.nodes,
            pods=self.pods,
            policies=self.policies,
            publisher=self.publisher,
            host_ip=str(host.ipv4 or ""),
        )
        self._watches.start()
        self._identities = Identities(
            self.store,
            lease,
            node=str(host.ipv4 or self.settings.node_name),
            cluster_id=self.settings.cluster_id,
            policies=self.policies,
            feed=self.feed,
            moved=self._relabel_soon,
        )
        self._relabeller = Relabeller(
            table=self.table,
            pods=self.pods,
            identities=self._identities,
            policies=self.policies,
            announcer=self.announcer,
            directory=self.directory,
            grace_s=self.settings.identity_change_grace_period,
        )
        self._provisioner = Provisioner(
            table=self.table,
            directory=self.directory,
            pods=self.pods,
            plane=self.plane,
            addresses=self.addresses,
            identities=self._identities,
            policies=self.policies,
            announcer=self.announcer,
            remnants=self.restorer,
        )
        await self._identities.start()
        await self._watches.synced()
        await self.restorer.remove_gone(remains, self._provisioner)
        await self.restorer.remove_podless(remains, self.pods, self._provisioner)
        for path in self._queued:
            self.queue.done(path)

    async def _enforce(self, remains: Remains) -> None:
        """Give restored endpoints their identities and policies."""
        self.phase = "restoring endpoints"
        identities = self._identities
        assert identities is not None  # noqa: S101 - made by the step before
        numbers = await asyncio.gather(
            *(
                persist("identity", partial(identities.acquire, endpoint.labels))
                for endpoint in remains.kept
            )
        )
        for endpoint, number in zip(remains.kept, numbers, strict=True):
            endpoint.identity = number
            self.announcer.note(endpoint)
        await self.policies.reconcile()
        await self.policies.build_many(remains.kept)
        await self.policies.finish_restoring()
        await asyncio.to_thread(self._save_all, remains.kept)
        for endpoint in remains.kept:
            self.announcer.publish(endpoint)
            self.table.changed(endpoint)

    def _save_all(self, endpoints: Iterable[Endpoint]) -> None:
        for endpoint in endpoints:
            self.directory.save(endpoint)

    def _relabel_soon(self) -> None:
        self._relabeller.trigger()

    def _start_controllers(self, lease: Lease) -> None:
        add = self.controllers.add
        self.policies.trigger = add(Controller("policy", self.policies.reconcile)).trigger
        self.nodes.trigger = add(Controller("nodes", self.nodes.reconcile, interval_s=60)).trigger
        self.publisher.trigger = add(
            Controller("publish", self.publisher.reconcile, interval_s=60)
        ).trigger
        self._relabeller.trigger = add(
            Controller("labels", self._relabeller.reconcile, interval_s=60)
        ).trigger
        self.pods.listen(lambda _keys: self._relabeller.trigger())
        add(Controller("interfaces", self.provisioner().sweep, interval_s=INTERFACE_SWEEP_S))
        add(Controller("address-table", self.ipcache.refresh, interval_s=IPCACHE_REFRESH_S))
        add(Controller("cookies", self.policies.sweep_cookies, interval_s=COOKIE_SWEEP_S))
        if self.settings.prometheus_serve_addr:
            add(Controller("counters", self._read_counters, interval_s=COUNTERS_S)).trigger()
        self._collector = add(
            Controller("conntrack-gc", self._collect_connections, interval_s=self._gc_interval_s)
        )
        self.publisher.connect(self.store, lease)
        for trigger in (self.policies.trigger, self.nodes.trigger, self._relabeller.trigger):
            trigger()
        self._tasks.append(asyncio.create_task(self._watch_pod_cidrs(), name="watch pod CIDRs"))

    def _finish(self) -> None:
        if self.settings.cni_conf_dir is not None:
            try:
                self.cni_file = configs.write(
                    self.settings.cni_conf_dir,
                    self.settings.state_dir,
                    debug=self.settings.log_level == "debug",
                )
            except OSError as error:
                self.cni_error = f"{self.settings.cni_conf_dir} cannot be written: {error}"
                log.error("CNI configuration not written", error=self.cni_error)
        self.phase = "ready"
        self.started.set()
        self.feed.started()

    # ---- servers ----

    async def _serve_api(self) -> None:
        from cilium_agent.servicers.serving import serve

        self._servers.append(await serve(self))
        from cilium_core.serving.observability import observability_server

        settings = self.settings
        if settings.agent_health_port:
            health = Health()
            health.add("agent", self._health)
            server = observability_server(health, registry=None)
            await server.listen_tcp(f"127.0.0.1:{settings.agent_health_port}")
            self._servers.append(server)
        if settings.prometheus_serve_addr:
            from cilium_agent.measuring import register

            register(self)
            metrics = observability_server()
            await metrics.listen_tcp(settings.prometheus_serve_addr)
            self._servers.append(metrics)

    async def _serve_cni(self) -> None:
        from cilium_core.serving.http_server import HttpServer

        service = CNIService(
            started=self.started,
            table=self.table,
            provisioner=self.provisioner,
            check=self.plane.check_link,
            gateways=self.addresses.routers,
            trouble=self._cni_trouble,
        )
        server = HttpServer()
        service.routes(server)
        await server.listen_unix(self.settings.state_dir / "cni.sock", mode=0o600)
        self._servers.append(server)

    def provisioner(self) -> Provisioner:
        """What makes endpoints; raises `NotStartedError` before there is one."""
        if self._provisioner is None:
            raise NotStartedError(f"the agent is {self.phase}")
        return self._provisioner

    def _cni_trouble(self) -> str:
        if not self.ready:
            return f"the agent is {self.phase}"
        return "" if self.store.status().connected else "the key-value store does not answer"

    def _health(self) -> str:
        return statuses.failures(self) if self.ready else f"the agent is {self.phase}"

    # ---- periodic work ----

    async def _collect_connections(self) -> None:
        result = await self.plane.run(self.plane.datapath.conntrack.gc)
        log.debug("connections swept", scanned=result.scanned, deleted=result.deleted)
        if not self.settings.conntrack_gc_interval:
            limit = self.settings.conntrack_gc_max_interval or MAX_INTERVAL_S
            self._gc_interval_s = next_interval(
                self._gc_interval_s, result.deleted, result.scanned, max_interval_s=limit
            )
            self._collector.interval_s = self._gc_interval_s

    async def _read_counters(self) -> None:
        self.counters = await self.plane.run(self.plane.datapath.metrics.dump)

    def _node_config(self, host: hosts.Host) -> NodeConfig:
        settings = self.settings
        router4, router6 = self.addresses.routers()
        return NodeConfig(
            node_ipv4=host.ipv4,
            node_ipv6=host.ipv6,
            router_ipv4=ipaddress.IPv4Address(router4) if router4 else None,
            router_ipv6=ipaddress.IPv6Address(router6) if router6 else None,
            pod_cidrs=self.addresses.pool.pod_cidrs,
            devices=host.devices,
            tunnel_port=settings.tunnel_port,
            mtu=host.mtu,
            masquerade_ipv4=settings.enable_ipv4 and settings.enable_ipv4_masquerade,
            masquerade_ipv6=settings.enable_ipv6
            and settings.enable_ipv6_masquerade
            and host.ipv6 is not None,
            hubble=settings.enable_hubble,
            audit=settings.policy_audit_mode,
            aggregation=AGGREGATION_LEVELS[settings.monitor_aggregation],
            aggregation_flags=tcp_flag_mask(settings.monitor_aggregation_flags),
            aggregation_interval_s=round(settings.monitor_aggregation_interval),
            cluster_id=settings.cluster_id,
        )


def _map_sizes(settings: AgentSettings) -> dict[str, int]:
    return {
        "cilium_policy": settings.bpf_policy_map_max,
        "cilium_ct4_global": settings.bpf_ct_global_tcp_max,
        "cilium_ct6_global": settings.bpf_ct_global_tcp_max,
        "cilium_ct_any4_global": settings.bpf_ct_global_any_max,
        "cilium_ct_any6_global": settings.bpf_ct_global_any_max,
        "cilium_snat_v4_external": settings.bpf_nat_global_max,
        "cilium_snat_v6_external": settings.bpf_nat_global_max,
    }


def _policy_options(settings: AgentSettings, families: Families) -> PolicyOptions:
    return PolicyOptions(
        cluster=settings.cluster_name,
        families=families,
        enforcement=EnforcementMode(settings.enable_policy),
        allow_localhost=settings.allow_localhost != "policy",
    )
