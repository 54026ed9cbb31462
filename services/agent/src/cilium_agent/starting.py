"""The agent's start, step by step.

Claim the state directory → probe the kernel → API and CNI socket (which make callers wait) → what
an earlier run left on disk and in maps → the store → data plane → policies of restored endpoints →
CNI configuration → ready. Where the node's pod CIDRs are known from an earlier run, the data plane
does not wait for the store. A step that fails ends the process; the data plane of an earlier run
goes on as it was.
"""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import os
import time
from functools import partial
from typing import TYPE_CHECKING

from cilium_core.errors import CiliumError
from cilium_core.identities import RESERVED_IDENTITIES, NumericIdentity
from cilium_core.resources.etcd import EtcdSource
from cilium_core.telemetry import gauge, get_logger

from cilium_agent import configurations, hosts, statuses
from cilium_agent.cni import configs
from cilium_agent.datapath import DatapathError, probe
from cilium_agent.endpoints.provisioning import Provisioner
from cilium_agent.errors import AgentBusyError, AgentError
from cilium_agent.fqdn import restored_labels
from cilium_agent.identities import Identities
from cilium_agent.nodes import own_record
from cilium_agent.publishing import EndpointAnnouncer
from cilium_agent.relabelling import Relabeller
from cilium_agent.restoring import restored_entries, restored_identities
from cilium_agent.stores import Watches, persist
from cilium_agent.watching import handlers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from cilium_core.kvstore import Lease
    from cilium_core.records import NodeRecord

    from cilium_agent.app import Agent
    from cilium_agent.cni.requests import PodRequest
    from cilium_agent.endpoints.records import Endpoint
    from cilium_agent.restoring import Remains

log = get_logger()

RESTORATION_SECONDS = gauge(
    "cilium_endpoint_restoration_duration_seconds", "Time that restoring endpoints took.", "phase"
)


class StartUp:
    """One start of an agent; makes the parts that need the store or the data plane."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._settings = agent.settings

    async def run(self) -> None:
        """Start. Raises CiliumError or DatapathError when that is impossible."""
        began = time.monotonic()
        agent = self._agent
        self._settings.state_dir.mkdir(parents=True, exist_ok=True)
        self._claim_state_dir()
        await self._probe()
        self._host = hosts.look(self._settings)
        agent.feed.interfaces()
        agent.feed.identities(RESERVED_IDENTITIES.values())
        await agent.servers.serve_api()
        if self._settings.enable_l7_proxy:
            await agent.servers.serve_proxies()
            await agent.proxies.start()
        with agent.queue.locked():
            queued = agent.queue.read()
            await agent.servers.serve_cni()
        agent.pod_cidrs.restore()
        announced: Lease | None = None
        if not agent.addresses.complete:
            announced = await self._join()
            agent.phase = "waiting for the operator to assign pod CIDRs"
            await agent.pod_cidrs.wait()
        remains = await self._start_datapath(queued)
        lease = announced or await self._join()
        await self._synchronise(lease, remains, queued)
        await self._enforce(remains)
        agent.upkeep.start(self._relabeller, lease)
        self._finish()
        log.info("ready", took_s=round(time.monotonic() - began, 3), endpoints=len(agent.table))

    def _claim_state_dir(self) -> None:
        state_dir = self._settings.state_dir
        file = os.open(state_dir / "cilium.pid", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._agent.at_exit(partial(os.close, file))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(file, 32, 0).decode("ascii", "replace").strip()
            raise AgentBusyError(
                f"another agent (process {holder}) runs on {state_dir}; stop it or choose another "
                "state-dir"
            ) from error
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)

    async def _probe(self) -> None:
        self._agent.phase = "probing the kernel"
        features = self._agent.features = await asyncio.to_thread(probe)
        missing = sorted(name for name, works in features.items() if not works)
        if missing:
            log.warning("kernel features missing", missing=missing)
        needed = [name for name in missing if name not in statuses.OPTIONAL_FEATURES]
        if needed:
            raise AgentError(
                f"this kernel ({os.uname().release}) lacks what the data plane needs: "
                f"{', '.join(needed)}; a kernel of 5.11 or later with BPF, clsact, veth and vxlan "
                "has it all, and the agent must run as root"
            )

    # ---- the node's record ----

    async def _join(self) -> Lease:
        """Announce the node, below a lease that lives as long as the agent and a while longer."""
        agent = self._agent
        agent.phase = "waiting for the key-value store"
        lease = await persist("lease", lambda: agent.store.lease(self._settings.kvstore_lease_ttl))
        await self._announce_node(lease)
        return lease

    async def _announce_node(self, lease: Lease) -> None:
        agent, record = self._agent, self._record()
        await persist("node record", lambda: agent.store.put(record.key, record.to_json(), lease))
        agent.publisher.want(record.key, record.to_json())

    def _announce_again(self) -> None:
        """Tell of this node as it is now; its labels changed."""
        record = self._record()
        self._agent.nodes.set_own(record)
        self._agent.publisher.want(record.key, record.to_json())
        self._agent.upkeep.relabel_host()

    def _record(self) -> NodeRecord:
        addresses = self._agent.addresses
        return own_record(
            name=self._settings.node_name,
            cluster=self._settings.cluster_name,
            cluster_id=self._settings.cluster_id,
            addresses=self._host.addresses,
            routers=addresses.routers(),
            pod_cidrs=addresses.pool.pod_cidrs,
            labels=self._agent.nodes.labels,
        )

    # ---- steps ----

    async def _start_datapath(self, queued: Mapping[Path, PodRequest]) -> Remains:
        """Bring the data plane up and take up what an earlier run left."""
        agent, plane = self._agent, self._agent.plane
        agent.phase = "starting the data plane"
        config = configurations.node_config(self._settings, self._host, agent.addresses)
        config = dataclasses.replace(config, **agent.kept_options.restore(config))
        await plane.run(plane.datapath.start_sync, config)
        await agent.policies.set_audit(audit=config.audit)
        exemptions = configurations.exemptions(self._settings)
        await plane.run(plane.datapath.exemptions.sync, exemptions)
        dump = await plane.run(plane.datapath.ipcache.dump)
        agent.ipcache.restore(restored_entries(dump))
        kept = {
            **restored_labels(self._settings.state_dir / "fqdn.json"),
            **agent.node_identities.restore(),
        }
        identities = restored_identities(dump, agent.families, kept)
        agent.local_identities.restore(
            {NumericIdentity(number): labels for number, labels in identities.items()}
        )
        agent.policies.restore_identities(identities)
        remains = await agent.restorer.load(queued.values())
        await agent.names.restore({endpoint.id for endpoint in remains.kept})
        host_ip = str(self._host.ipv4 or "")
        self._announcer = EndpointAnnouncer(agent.ipcache, agent.publisher, host_ip)
        record = self._record()
        agent.nodes.set_own(record)
        await agent.nodes.write_host_rows(record)
        return remains

    async def _synchronise(self, lease: Lease, remains: Remains, queued: Iterable[Path]) -> None:
        """Learn from the store all there is, then drop what is gone."""
        agent = self._agent
        agent.phase = "learning the cluster's state"
        await self._announce_node(lease)
        host_ip = str(self._host.ipv4 or "")
        watches = agent.watches = Watches(
            agent.store,
            EtcdSource(agent.store),
            nodes=agent.nodes,
            policies=agent.policies,
            publisher=agent.publisher,
            host_ip=host_ip,
            handlers=handlers(
                pods=agent.pods,
                policies=agent.policies,
                nodes=agent.nodes,
                secrets=agent.proxies.secrets,
                services=agent.services,
            ),
        )
        watches.start()
        identities = agent.identities = Identities(
            agent.store,
            lease,
            node=host_ip or self._settings.node_name,
            cluster_id=self._settings.cluster_id,
            policies=agent.policies,
            feed=agent.feed,
            moved=self._relabel_soon,
        )
        self._relabeller = Relabeller(
            table=agent.table,
            pods=agent.pods,
            identities=identities,
            policies=agent.policies,
            announcer=self._announcer,
            directory=agent.directory,
            grace_s=self._settings.identity_change_grace_period,
        )
        provisioner = Provisioner(
            table=agent.table,
            directory=agent.directory,
            pods=agent.pods,
            plane=agent.plane,
            addresses=agent.addresses,
            identities=identities,
            policies=agent.policies,
            announcer=self._announcer,
            remnants=agent.restorer,
        )
        agent.provide(provisioner)
        await identities.start()
        await watches.synced()
        await self._serve_services()
        if agent.static_policies is not None:
            await agent.static_policies.load()
        agent.nodes.labels_changed = self._announce_again
        self._announce_again()
        await agent.restorer.remove_gone(remains, provisioner)
        await agent.restorer.remove_podless(remains, agent.pods, provisioner)
        for path in queued:
            agent.queue.done(path)

    async def _serve_services(self) -> None:
        """Have the maps say what the sources say; what an earlier run left has served until now."""
        agent = self._agent
        agent.phase = "programming services"
        agent.follow_node()
        began = time.monotonic()
        try:
            await agent.services.begin()
        except (CiliumError, DatapathError) as error:
            log.error("not every service is served yet", error=str(error))
        agent.socket_namespaces.mark()
        took = time.monotonic() - began
        log.info("services", frontends=len(agent.services.frontends()), took_s=round(took, 3))

    def _relabel_soon(self) -> None:
        self._relabeller.trigger()

    async def _enforce(self, remains: Remains) -> None:
        """Give restored endpoints their identities and policies."""
        agent, identities = self._agent, self._agent.identities
        agent.phase = "restoring endpoints"
        began = time.monotonic()
        assert identities is not None  # noqa: S101 - made by the step before
        numbers = await asyncio.gather(
            *(
                persist("identity", partial(identities.acquire, endpoint.labels))
                for endpoint in remains.kept
            )
        )
        for endpoint, number in zip(remains.kept, numbers, strict=True):
            endpoint.identity = number
            self._announcer.note(endpoint)
        await agent.policies.reconcile()
        await agent.names.settle()
        built = list(remains.kept)
        if self._settings.enable_host_firewall:
            ifindex, mac = await agent.plane.run(agent.plane.datapath.host_link)
            built.append(agent.host.make(ifindex, mac, agent.nodes.labels))
        await agent.policies.build_many(built)
        await agent.policies.finish_restoring()
        agent.node_identities.finish_restoring()
        agent.proxies.restored()
        RESTORATION_SECONDS.set(time.monotonic() - began, "regeneration")
        await asyncio.to_thread(self._save_all, remains.kept)
        for endpoint in remains.kept:
            self._announcer.publish(endpoint)
            agent.table.changed(endpoint)

    def _save_all(self, endpoints: Iterable[Endpoint]) -> None:
        for endpoint in endpoints:
            self._agent.directory.save(endpoint)

    def _finish(self) -> None:
        agent, settings = self._agent, self._settings
        if settings.cni_conf_dir is not None:
            try:
                agent.cni_file = configs.write(
                    settings.cni_conf_dir, settings.state_dir, debug=settings.log_level == "debug"
                )
            except OSError as error:
                agent.cni_error = f"{settings.cni_conf_dir} cannot be written: {error}"
                log.error("CNI configuration not written", error=agent.cni_error)
        agent.phase = "ready"
        agent.started.set()
        agent.feed.started()
