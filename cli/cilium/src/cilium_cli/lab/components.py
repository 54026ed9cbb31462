# SPDX-License-Identifier: Apache-2.0
"""Which services a lab consists of, and how each is started: its command line and configuration.

Every service is its real executable with `--config-dir`, as in any other installation. What
differs from a default installation is only where things are.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cilium_cli.errors import CommandError, InputError, NotFoundError
from cilium_cli.lab import cgroups, processes
from cilium_cli.lab.layouts import (
    ETCD_PORT,
    FABRIC_IPV4,
    HUBBLE_PORT,
    POD_CIDR_IPV4,
    POD_CIDR_IPV6,
    RELAY_PORT,
    Layout,
    NodeLayout,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

OPERATORS = 2
_JUDGED_BY = (
    "enable-extended-ip-protocols",
    "enable-host-firewall",
    "enable-icmp-rules",
    "enable-l7-proxy",
    "enable-node-selector-labels",
)
"""Settings of the agents by which an operator judges policies."""

_OPERATOR_API_PORT = 9234


class Component(NamedTuple):
    """One process of a lab. `name` is what users call it, such as `node1/agent`."""

    name: str
    netns: str
    command: list[str]
    cgroup: Path
    log: Path
    pidfile: Path
    folder: Path

    def pid(self) -> int | None:
        """Process id while it runs."""
        return processes.read_pidfile(self.pidfile)

    def start(self) -> int:
        """Start it; raises CommandError when it runs already."""
        running = self.pid()
        if running is not None:
            raise CommandError(f"{self.name} runs already as process {running}")
        pid = processes.start(
            self.command,
            netns=self.netns,
            cgroup=self.cgroup,
            log=self.log,
            cwd=self.folder,
        )
        processes.write_pidfile(self.pidfile, pid)
        return pid

    def kill(self) -> None:
        """SIGKILL it and all it started, but for what it started to outlive it."""
        self._kill_session()
        processes.reap()

    def stop(self) -> None:
        """Ask it to end, then kill what is left, but for what it started to outlive it."""
        pid = self.pid()
        if pid is not None:
            processes.stop(pid)
        self._kill_session()

    def _kill_session(self) -> None:
        session = processes.recorded_pid(self.pidfile)
        if session is not None:
            cgroups.kill_session(self.cgroup, session)


def executable(name: str) -> str:
    """Path of a service's executable: beside this interpreter, else on PATH."""
    beside = Path(sys.executable).parent / name
    if beside.exists():
        return str(beside)
    found = shutil.which(name)
    if found is None:
        raise CommandError(f"{name} is not installed", "`make setup` installs what a lab needs")
    return found


def write_config(folder: Path, values: Mapping[str, object]) -> None:
    """Write one file per key, as a mounted ConfigMap looks."""
    folder.mkdir(parents=True, exist_ok=True)
    for key, value in values.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        (folder / key).write_text(text)


def _component(lab: Layout, name: str, netns: str, command: list[str]) -> Component:
    flat = name.replace("/", "-")
    return Component(
        name=name,
        netns=netns,
        command=command,
        cgroup=cgroups.group(lab.name, *name.split("/")),
        log=lab.logs / f"{flat}.log",
        pidfile=lab.pids / flat,
        folder=lab.folder,
    )


def etcd(lab: Layout) -> Component:
    """The cluster's store, in the fabric."""
    url = f"http://{FABRIC_IPV4}:{ETCD_PORT}"
    peer = "http://127.0.0.1:2380"
    return _component(
        lab,
        "etcd",
        lab.fabric_netns,
        [
            executable("etcd"),
            "--name=lab",
            f"--data-dir={lab.folder / 'etcd'}",
            f"--listen-client-urls={url},http://127.0.0.1:{ETCD_PORT}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=lab={peer}",
            "--heartbeat-interval=50",
            "--election-timeout=250",
            "--logger=zap",
            "--log-level=warn",
        ],
    )


def operator(lab: Layout, number: int) -> Component:
    """One of the operators, numbered from 1."""
    name = f"operator{number}"
    return _component(
        lab,
        name,
        lab.fabric_netns,
        [executable("cilium-operator"), f"--config-dir={lab.folder / name}"],
    )


def agent(lab: Layout, node: NodeLayout) -> Component:
    """The node's agent."""
    return _component(
        lab,
        f"{node.name}/agent",
        node.netns,
        [executable("cilium-agent"), f"--config-dir={node.config}"],
    )


def hubble_server(lab: Layout, node: NodeLayout) -> Component:
    """The node's hubble-server."""
    return _component(
        lab,
        f"{node.name}/hubble-server",
        node.netns,
        [executable("hubble-server"), f"--config-dir={node.hubble_config}"],
    )


def relay(lab: Layout) -> Component:
    """The relay, in the fabric; clients outside reach it over its unix socket."""
    return _component(
        lab,
        "relay",
        lab.fabric_netns,
        [executable("hubble-relay"), "serve", f"--config-dir={lab.folder / 'relay'}"],
    )


def write_configs(
    lab: Layout, nodes: list[NodeLayout], settings: Mapping[str, Mapping[str, str]]
) -> None:
    """Write the configuration folders of all services.

    `settings` are further ones of the agents, by the name of the node; "" stands for every node.
    """
    store = {"kvstore": "etcd", "etcd-endpoints": lab.etcd_endpoint}
    logs = {"log-format": "json", "log-level": "info"}
    for number in range(1, OPERATORS + 1):
        write_config(
            lab.folder / f"operator{number}",
            store
            | logs
            | {
                "node-name": f"operator{number}",
                "enable-leader-election": True,
                "cluster-pool-ipv4-cidr": POD_CIDR_IPV4,
                "cluster-pool-ipv4-mask-size": 24,
                "cluster-pool-ipv6-cidr": POD_CIDR_IPV6,
                "cluster-pool-ipv6-mask-size": 64,
                "operator-api-serve-addr": f"127.0.0.1:{_OPERATOR_API_PORT + number - 1}",
                "operator-socket": lab.operator_socket(number),
            }
            | {name: value for name, value in settings.get("", {}).items() if name in _JUDGED_BY},
        )
    for node in nodes:
        shared = logs | {
            "node-name": node.name,
            "cluster-name": "default",
            "cluster-id": 0,
            "state-dir": node.run,
            "bpf-root": node.bpf,
        }
        write_config(
            node.config,
            store
            | shared
            | {
                "node-ipv4": node.ipv4,
                "node-ipv6": node.ipv6,
                "device": "eth0",
                "enable-ipv4": True,
                "enable-ipv6": True,
                "cni-conf-dir": node.cni_config,
                "enable-hubble": True,
                "node-labels": f"kubernetes.io/hostname={node.name}",
                "cgroup-root": cgroups.group(lab.name, node.name),
            }
            | dict(settings.get("", {}))
            | dict(settings.get(node.name, {})),
        )
        write_config(
            node.hubble_config,
            shared | {"hubble-listen-address": f":{HUBBLE_PORT}", "hubble-disable-tls": True},
        )
    write_config(
        lab.folder / "relay",
        logs
        | {
            "peer-service": ",".join(f"unix://{node.hubble_socket}" for node in nodes),
            "listen-address": f"{lab.relay_address},{FABRIC_IPV4}:{RELAY_PORT}",
            "disable-server-tls": True,
            "disable-client-tls": True,
        },
    )


def all_components(lab: Layout, nodes: list[NodeLayout]) -> list[Component]:
    """Every process of the lab, in the order they are listed."""
    return [
        etcd(lab),
        *(operator(lab, number) for number in range(1, OPERATORS + 1)),
        *(part for node in nodes for part in (agent(lab, node), hubble_server(lab, node))),
        relay(lab),
    ]


def find(components: list[Component], name: str) -> list[Component]:
    """Return the components a user means: one by its name, or all of a node."""
    found = [item for item in components if item.name == name or item.name.startswith(f"{name}/")]
    if not name:
        raise InputError("the name of a component is empty")
    if not found:
        raise NotFoundError(
            f"the lab has no component {name!r}",
            f"there are {', '.join(item.name for item in components)}",
        )
    return found
