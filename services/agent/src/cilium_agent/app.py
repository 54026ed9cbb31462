"""Wiring and life cycle of the agent; with its steps in `starting`, what knows every other module.

Stopping ends the process and nothing else: programs, maps, leases and devices stay, and the next
run takes them up.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from cilium_core.identities import Families, LocalIdentityAllocator
from cilium_core.kvstore.etcd import EtcdStore
from cilium_core.labels import LabelFilter
from cilium_core.policy.l7 import L7Kind
from cilium_core.services import NodeFacts, ServiceTable
from cilium_core.serving.sockets import stop_signal
from cilium_core.telemetry import get_logger

from cilium_agent import configurations
from cilium_agent.accepted import AcceptedObjects
from cilium_agent.addresses import PodAddresses
from cilium_agent.cni.queueing import DeleteQueue
from cilium_agent.cni.serving import Started
from cilium_agent.controllers import Controllers
from cilium_agent.datapath import Datapath, DatapathPaths
from cilium_agent.endpoints.storing import EndpointDirectory
from cilium_agent.endpoints.tables import EndpointTable
from cilium_agent.errors import NotStartedError
from cilium_agent.feeds import Feed
from cilium_agent.findings import Findings
from cilium_agent.fqdn import NameManager
from cilium_agent.hostendpoint import HostEndpoint
from cilium_agent.ipcaches import IPCache
from cilium_agent.keptoptions import KeptOptions
from cilium_agent.metadata import MetadataHub
from cilium_agent.nodeidentities import NodeIdentities
from cilium_agent.nodes import Nodes
from cilium_agent.planes import Plane
from cilium_agent.podcidrs import PodCIDRs
from cilium_agent.pods import PodTable
from cilium_agent.policies import Policies
from cilium_agent.proxies.making import make_proxies
from cilium_agent.proxies.records import RecordSink
from cilium_agent.proxies.serving import RedirectBoard
from cilium_agent.publishing import Publisher
from cilium_agent.resolving import Resolver
from cilium_agent.restoring import Restorer
from cilium_agent.servers import Servers
from cilium_agent.services import HealthChecks, Services, SocketNamespaces
from cilium_agent.services.facts import node_facts, own_addresses
from cilium_agent.starting import StartUp
from cilium_agent.staticpolicies import StaticPolicies
from cilium_agent.upkeep import Upkeep

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from cilium_agent.endpoints.provisioning import Provisioner
    from cilium_agent.endpoints.records import Endpoint
    from cilium_agent.identities import Identities
    from cilium_agent.settings import AgentSettings
    from cilium_agent.stores import Watches

log = get_logger()


class Agent:
    """The agent of a node. Make it within a running event loop."""

    def __init__(self, settings: AgentSettings, *, version: str) -> None:
        """Make the parts that need nothing from outside."""
        self.settings = settings
        self.version = version
        self.started_at = time.time()
        self.phase = "reading its surroundings"
        self.features: Mapping[str, bool] = {}
        self.cni_file: Path | None = None
        self.cni_error = ""
        self.started = Started()
        self.hub = MetadataHub()
        self.table = EndpointTable()
        self.controllers = Controllers()
        self.addresses = PodAddresses(ipv4=settings.enable_ipv4, ipv6=settings.enable_ipv6)
        self.directory = EndpointDirectory(settings.endpoint_dir)
        self.kept_options = KeptOptions(settings.endpoint_dir / "options.json")
        self.queue = DeleteQueue(settings.delete_queue_dir)
        self.feed = Feed(self.hub, self.table)
        self.plane = Plane(
            Datapath(
                DatapathPaths(bpf_root=settings.bpf_root, template_dir=settings.template_dir),
                configurations.map_sizes(settings),
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
        self.resolver = Resolver(
            self.table,
            self.ipcache,
            lambda: self.policies.engine.selectors.identities,
            cluster=settings.cluster_name,
            families=self.families,
        )
        self.boards = {kind: RedirectBoard() for kind in (L7Kind.DNS, L7Kind.KAFKA)}
        self.boards[L7Kind.DNS].publish_options(configurations.dns_options(settings))
        self.sink = RecordSink(self.resolver, self.feed.l7, limit_per_s=settings.proxy_flow_limit)
        self.proxies = make_proxies(
            settings.state_dir,
            boards=self.boards,
            sink=self.sink,
            options=configurations.envoy_options(settings),
            ports=settings.proxy_ports,
        )
        self.local_identities = LocalIdentityAllocator()
        self.policies = Policies(
            configurations.policy_options(settings, self.families),
            table=self.table,
            ipcache=self.ipcache,
            write=self.plane.write_policies,
            feed=self.feed,
            allocator=self.local_identities,
            accepted=AcceptedObjects(settings.accepted_dir),
            proxies=self.proxies,
            lockdown=settings.enable_endpoint_lockdown_on_policy_overflow,
        )
        self.static_policies = (
            StaticPolicies(settings.static_cnp_path, self.policies, self.policies.accepted_earlier)
            if settings.static_cnp_path is not None
            else None
        )
        self.proxies.on_ports_changed = self.policies.redirects_moved
        self.names = NameManager(
            settings.state_dir / "fqdn.json",
            configurations.name_options(settings),
            apply=self.policies.apply_names,
            owner=self.table.owner,
            connections=self.plane.live_connections,
            identities=self.policies.named_identities,
            publish=self.hub.publish,
        )
        self.policies.names_changed = self.names.set_selectors
        self.pods = PodTable(settings.cluster_name, LabelFilter.parse(settings.labels))
        self.health_checks = HealthChecks()
        self.services = Services(
            ServiceTable(NodeFacts(settings.node_name), configurations.service_options(settings)),
            plane=self.plane,
            feed=self.feed,
            endpoints=self.table,
            checks=self.health_checks if settings.enable_health_check_nodeport else None,
            terminate=settings.bpf_lb_sock_terminate_pod_connections,
        )
        self.socket_namespaces = SocketNamespaces(
            self.plane, self.table, self.services.exempt_pods, self.policies.build_many
        )
        self.node_identities = NodeIdentities(
            settings.endpoint_dir / "node-identities.json",
            by_labels=settings.enable_node_selector_labels,
            by_address=settings.policy_cidr_match_mode == "nodes",
        )
        self.nodes = Nodes(
            cluster=settings.cluster_name,
            name=settings.node_name,
            ipcache=self.ipcache,
            plane=self.plane,
            feed=self.feed,
            policies=self.policies,
            labels=settings.node_labels,
            identities=self.node_identities if self.node_identities.distinct else None,
            tunnelled=settings.enable_host_firewall,
        )
        self.host = HostEndpoint(self.table, self.policies, settings.endpoint_dir / "host.json")
        self.publisher = Publisher()
        self.store = EtcdStore.from_settings(settings)
        self.pod_cidrs = PodCIDRs(
            self.store, self.addresses, settings.endpoint_dir / "node.json", settings.node_name
        )
        self.findings = Findings(
            self.policies,
            self.table,
            self.feed,
            self.publisher,
            cluster=settings.cluster_name,
            node=settings.node_name,
        )
        self.servers = Servers(self)
        self.upkeep = Upkeep(self)
        self.watches: Watches | None = None
        self.identities: Identities | None = None
        self._provisioner: Provisioner | None = None
        self._exit = contextlib.ExitStack()
        self.table.listen(self.feed.endpoint)
        self.table.listen(self._forget_names)
        self.table.listen(self.services.pods.endpoint_changed)
        self.table.listen(self.socket_namespaces.endpoint_changed)
        self.ipcache.listen(self.feed.addresses)

    @property
    def ready(self) -> bool:
        """Whether the node enforces what it knows and serves pods."""
        return self.started.ready

    def provide(self, provisioner: Provisioner) -> None:
        """Take the part that makes endpoints, once there is one."""
        self._provisioner = provisioner

    def provisioner(self) -> Provisioner:
        """What makes endpoints; raises `NotStartedError` before there is one."""
        if self._provisioner is None:
            raise NotStartedError(f"the agent is {self.phase}")
        return self._provisioner

    async def store_endpoint(self, endpoint: Endpoint) -> None:
        """Have the disk know an endpoint as it is now."""
        if endpoint.is_host:
            await self.host.save()
            return
        await asyncio.to_thread(self.directory.save, endpoint)

    async def keep_options(self, changed: Mapping[str, str]) -> None:
        """Have options that were changed at run time survive a restart."""
        await asyncio.to_thread(self.kept_options.keep, changed)

    def follow_node(self) -> None:
        """Have services follow what is known of this node and of the others."""
        self.services.set_node(node_facts(self.settings, self.nodes, own_addresses()))

    def at_exit(self, call: Callable[[], None]) -> None:
        """Have something done at the very end of stopping."""
        self._exit.callback(call)

    def _forget_names(self, endpoint: Endpoint) -> None:
        if endpoint not in self.table:
            self.names.endpoint_gone(endpoint.id)

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT. Raises CiliumError when it cannot start."""
        stop = stop_signal()
        starting = asyncio.create_task(StartUp(self).run())
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

    async def _stop(self) -> None:
        self.started.stopping = True
        await self.servers.stop()
        await self.upkeep.stop()
        if self.watches is not None:
            await self.watches.stop()
        if self.identities is not None:
            await self.identities.stop()
        await self.proxies.stop()
        await self.health_checks.stop()
        # Leases stay: other nodes shall go on knowing this node and its pods.
        await self.store.abandon()
        await asyncio.to_thread(self.plane.close)
        self._exit.close()
