"""The data plane of one node: what the agent's other parts call.

`start` brings everything up, over a living data plane as well: maps and programs that fit are taken
over, what differs is replaced one piece at a time, and no packet finds nothing in between. Stopping
closes descriptors and nothing else; the kernel goes on by itself.

Every call blocks for the time of its system calls, and is made by one thread at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

import structlog

from cilium_agent.datapath import (
    compiling,
    devices,
    kernel_drops,
    loading,
    maps,
    pinning,
    redirecting,
    sockets,
    specs,
    syscalls,
)
from cilium_agent.datapath.configuring import LIVE_FIELDS, Configuration, fields
from cilium_agent.datapath.counters import Counters
from cilium_agent.datapath.endpoints import Endpoints
from cilium_agent.datapath.errors import DatapathError
from cilium_agent.datapath.exemptions import Exemptions
from cilium_agent.datapath.ipcache import Ipcache
from cilium_agent.datapath.models import DatapathPaths, NodeConfig
from cilium_agent.datapath.policies import Policies
from cilium_agent.datapath.prefilter import Prefilter
from cilium_agent.datapath.routes import Routes
from cilium_agent.datapath.servicedumps import ServiceDumps
from cilium_agent.datapath.services import Services
from cilium_agent.datapath.sockets import Namespaces
from cilium_agent.datapath.terminating import Terminator
from cilium_agent.datapath.tracking import Nat, Tracking
from cilium_agent.datapath.trials import Trials

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_log = structlog.get_logger(__name__)


class Datapath:
    """Maps, programs and devices of one node; the parts exist once `start` has returned."""

    endpoints: Endpoints
    ipcache: Ipcache
    policy: Policies
    conntrack: Tracking
    nat: Nat
    metrics: Counters
    prefilter: Prefilter
    routes: Routes
    exemptions: Exemptions
    trials: Trials
    services: Services
    service_dumps: ServiceDumps
    namespaces: Namespaces
    terminator: Terminator
    config: NodeConfig

    def __init__(
        self, paths: DatapathPaths | None = None, sizes: Mapping[str, int] | None = None
    ) -> None:
        """Prepare; touches nothing yet. `sizes` maps pin names to numbers of entries."""
        self.paths = paths or DatapathPaths()
        self._sizes = dict(sizes or {})
        self._undo = contextlib.ExitStack()
        self._configuration: Configuration | None = None
        self._programs: dict[str, int] = {}
        self._devices: devices.Devices | None = None

    async def start(self, config: NodeConfig) -> None:
        """Bring the data plane up; see `start_sync`."""
        await asyncio.to_thread(self.start_sync, config)

    def start_sync(self, config: NodeConfig) -> None:
        """Compile, open or make maps, load programs, set up devices and attach, in this order.

        Raises DatapathError; what ran before goes on running then, and calling again is safe.
        """
        started = time.monotonic()
        self.stop()
        with contextlib.ExitStack() as undo:
            undo.callback(self._forget)
            self._start(config, undo)
            self._undo = undo.pop_all()
        _log.info("data plane is up", took_s=round(time.monotonic() - started, 3))

    def _start(self, config: NodeConfig, undo: contextlib.ExitStack) -> None:
        folder = specs.bpf_folder()
        root = self.paths.bpf_root
        node_fields = fields(config)
        listed = specs.read_maps(folder, self._sizes)
        templates = compiling.compile_all(folder, self.paths.template_dir)
        pinning.ensure_bpffs(root)
        undo.callback(os.close, pinning.own(root))
        opened = maps.open_maps(listed, root)
        undo.callback(opened.close)
        generation = loading.load(templates, opened, listed, specs.read_calls(folder), root)
        undo.callback(generation.close)

        opened.commit()

        held = devices.ensure(config)
        self._configuration = Configuration(opened)
        self._configuration.patch(
            **node_fields, **held.config_fields(), netns_cookie=sockets.own_cookie()
        )
        self.config, self._devices, self._programs = config, held, generation.programs
        self.endpoints = Endpoints(opened)
        self.ipcache = Ipcache(opened)
        self.policy = Policies(opened, self.endpoints)
        undo.callback(self.policy.close)
        self.conntrack = Tracking(opened)
        self.nat = Nat(opened)
        self.metrics = Counters(opened)
        self.prefilter = Prefilter(
            opened,
            self._configuration,
            held.node,
            generation.programs,
            acceleration=config.services.acceleration,
        )
        self.routes = Routes(config, held)
        self.exemptions = Exemptions(opened)
        self.trials = Trials(generation.programs, held)
        self.services = Services(
            opened,
            maglev_seed=config.services.maglev_seed,
            external_clusterip=config.services.external_clusterip,
        )
        undo.callback(self.services.close)
        self.service_dumps = ServiceDumps(opened)
        self.namespaces = Namespaces(opened)
        self.terminator = Terminator(opened)

        self.routes.ensure_local()
        redirecting.ensure(config.versions)
        pods = [info.ifindex for info in self.endpoints.dump() if info.id]
        for ifindex in devices.attach_all(held, generation.programs, pods):
            _log.warning("endpoint's device is gone", ifindex=ifindex)
        self.prefilter.apply()
        if config.services.sockets:
            cgroup = config.services.cgroup or sockets.cgroup_mount()
            sockets.attach(root, cgroup, generation.programs)
        else:
            sockets.detach(root)
        kernel_drops.attach(
            opened,
            root,
            self.paths.template_dir,
            generation.programs,
            config.kernel_drops_per_second if config.hubble else 0,
        )
        if opened.migrations or loading.others(root, generation.key):
            syscalls.wait_for_running_programs()
            opened.catch_up()
            loading.remove_others(root, generation.key)

    def set_config(self, **changed: Any) -> None:
        """Change fields of the node's configuration while it runs, e.g. `hubble=False`.

        Raises DatapathError for a field that only `start` can change, as devices and addresses
        are, and for a value out of range.
        """
        configuration = self._running()
        if fixed := sorted(set(changed) - LIVE_FIELDS):
            raise DatapathError(f"{fixed[0]} cannot change while the data plane runs; start anew")
        config = dataclasses.replace(self.config, **changed)
        configuration.patch(**fields(config))
        self.config = config

    def host_link(self) -> tuple[int, str]:
        """Index and MAC address of cilium_host."""
        self._running()
        held = self._devices
        return (held.host, held.host_mac) if held is not None else (0, "")

    def live_config(self) -> dict[str, Any]:
        """Return the fields of struct config as the programs read them now."""
        return self._running().read()

    def attach_endpoint(self, ifindex: int) -> None:
        """Put the programs on the host side of a pod. Raises DeviceError when it is gone."""
        self._running()
        devices.attach_endpoint(ifindex, self._programs)

    def stop(self) -> None:
        """Close every descriptor; the data plane goes on without us."""
        self._undo.close()

    def _forget(self) -> None:
        self._configuration = None
        self._programs = {}

    def teardown(self) -> None:
        """Remove programs, devices and pins: pods of this node lose their network."""
        if self._configuration is not None:
            pods = [info.ifindex for info in self.endpoints.dump() if info.id]
            self.prefilter.detach()
            devices.remove(self.config.devices, pods)
            redirecting.remove()
        self.stop()
        root: Path = self.paths.bpf_root
        sockets.detach(root)
        kernel_drops.detach(root)
        if root.is_dir():
            shutil.rmtree(root)

    def _running(self) -> Configuration:
        if self._configuration is None:
            raise DatapathError("the data plane is not started; call start first")
        return self._configuration
