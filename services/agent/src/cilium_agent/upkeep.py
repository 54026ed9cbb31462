"""The agent's periodic and repeated work, once it has started: one controller for each concern."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cilium_core.telemetry import get_logger

from cilium_agent.conntracks import FIRST_INTERVAL_S, MAX_INTERVAL_S, next_interval
from cilium_agent.controllers import Controller
from cilium_agent.staticpolicies import INTERVAL_S as STATIC_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from cilium_core.kvstore import Lease

    from cilium_agent.app import Agent
    from cilium_agent.datapath import Counter
    from cilium_agent.relabelling import Relabeller

log = get_logger()

COOKIE_SWEEP_S = 300.0
COUNTERS_S = 5.0
REDIRECT_SWEEP_S = 30.0
INTERFACE_SWEEP_S = 30.0
IPCACHE_REFRESH_S = 300.0
NODE_ADDRESSES_S = 30.0
SERVICE_SWEEP_S = 30.0
RESYNC_S = 60.0


class Upkeep:
    """What keeps a started agent right.

    `counters` are the data plane's as read last, `policy_pressure` the share of the fullest policy
    map that is in use.
    """

    def __init__(self, agent: Agent) -> None:
        self.counters: list[Counter] = []
        self.policy_pressure = 0.0
        self.relabel_host: Callable[[], None] = lambda: None
        self._agent = agent
        self._gc_interval_s = agent.settings.conntrack_gc_interval or FIRST_INTERVAL_S
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, relabeller: Relabeller, lease: Lease) -> None:
        """Start all controllers; those that follow noted changes run at once."""
        agent, add = self._agent, self._agent.controllers.add
        agent.policies.trigger = add(Controller("policy", agent.policies.reconcile)).trigger
        findings = add(Controller("findings", agent.findings.reconcile, interval_s=RESYNC_S))
        agent.policies.passed = findings.trigger
        agent.nodes.trigger = add(
            Controller("nodes", agent.nodes.reconcile, interval_s=RESYNC_S)
        ).trigger
        agent.services.trigger = add(
            Controller("services", agent.services.reconcile, interval_s=RESYNC_S)
        ).trigger
        add(Controller("service-sweep", agent.services.sweep, interval_s=SERVICE_SWEEP_S))
        agent.nodes.changed = add(
            Controller("node-addresses", self._follow_node, interval_s=NODE_ADDRESSES_S)
        ).trigger
        agent.socket_namespaces.trigger = add(
            Controller("socket-namespaces", agent.socket_namespaces.reconcile, interval_s=RESYNC_S)
        ).trigger
        agent.services.redirects_changed = agent.socket_namespaces.trigger
        agent.publisher.trigger = add(
            Controller("publish", agent.publisher.reconcile, interval_s=RESYNC_S)
        ).trigger
        relabeller.trigger = add(
            Controller("labels", relabeller.reconcile, interval_s=RESYNC_S)
        ).trigger
        if agent.host.endpoint is not None:
            self.relabel_host = add(Controller("host-labels", self._relabel_host)).trigger
            self.relabel_host()
        agent.pods.listen(lambda _keys: relabeller.trigger())
        if agent.static_policies is not None:
            add(
                Controller("static-policies", agent.static_policies.reconcile, interval_s=STATIC_S)
            ).trigger()
        add(Controller("interfaces", agent.provisioner().sweep, interval_s=INTERFACE_SWEEP_S))
        add(Controller("address-table", agent.ipcache.refresh, interval_s=IPCACHE_REFRESH_S))
        add(Controller("cookies", agent.policies.sweep_cookies, interval_s=COOKIE_SWEEP_S))
        add(Controller("redirects", agent.policies.sweep_redirects, interval_s=REDIRECT_SWEEP_S))
        if agent.settings.prometheus_serve_addr:
            add(Controller("counters", self._read_counters, interval_s=COUNTERS_S)).trigger()
        self._collector = add(
            Controller("conntrack-gc", self._collect_connections, interval_s=self._gc_interval_s)
        )
        agent.publisher.connect(agent.store, lease)
        for trigger in (
            agent.policies.trigger,
            agent.nodes.trigger,
            relabeller.trigger,
            agent.services.trigger,
            agent.socket_namespaces.trigger,
        ):
            trigger()
        self._tasks = [
            asyncio.create_task(agent.pod_cidrs.watch(), name="watch pod CIDRs"),
            asyncio.create_task(agent.names.run(), name="keep names"),
        ]

    async def stop(self) -> None:
        """Stop all; running actions are cancelled."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._agent.controllers.stop()

    async def _relabel_host(self) -> None:
        await self._agent.host.relabel(self._agent.nodes.labels)

    async def _follow_node(self) -> None:
        self._agent.follow_node()

    async def _collect_connections(self) -> None:
        agent = self._agent
        result = await agent.plane.run(agent.plane.datapath.conntrack.gc)
        log.debug("connections swept", scanned=result.scanned, deleted=result.deleted)
        if not agent.settings.conntrack_gc_interval:
            limit = agent.settings.conntrack_gc_max_interval or MAX_INTERVAL_S
            self._gc_interval_s = next_interval(
                self._gc_interval_s, result.deleted, result.scanned, max_interval_s=limit
            )
            self._collector.interval_s = self._gc_interval_s

    async def _read_counters(self) -> None:
        plane = self._agent.plane
        self.counters = await plane.run(plane.datapath.metrics.dump)
        self.policy_pressure = await plane.run(plane.datapath.policy.pressure)
