# SPDX-License-Identifier: Apache-2.0
"""Names, addresses and paths of everything a lab consists of. Pure."""

from __future__ import annotations

import re
from pathlib import Path

from cilium_cli.errors import InputError

RUN_ROOT = Path("/run/cilium-lab")
BPF_ROOT = Path("/sys/fs/bpf/cilium-lab")
NETNS_ROOT = Path("/run/netns")
CGROUP_NAME = "cilium-lab"

DEFAULT_NAME = "lab"
MAX_NODES = 200
FABRIC_IPV4 = "172.30.0.1"
FABRIC_IPV6 = "fd00:30::1"
WORLD_IPV4 = "172.30.0.2"
WORLD_IPV6 = "fd00:30::2"
OUTSIDE_IPV4 = "203.0.113.0/24"
OUTSIDE_IPV6 = "2001:db8:113::/64"
OUTSIDE_HOSTS = (10, 20, 30)
"""Host parts of the outside addresses that answer, in both families."""
POD_CIDR_IPV4 = "10.244.0.0/16"
POD_CIDR_IPV6 = "fd00:244::/48"
ETCD_PORT = 2379
RELAY_PORT = 4245
HUBBLE_PORT = 4244

_NAME = re.compile(r"[a-z0-9]{1,16}")
_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DNS_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,126}[a-z0-9])?")


class NodeLayout:
    """One node of a lab, numbered from 1."""

    def __init__(self, lab: Layout, number: int) -> None:
        self.number = number
        self.name = f"node{number}"
        self.netns = f"{lab.prefix}{self.name}"
        self.ipv4 = f"172.30.0.{10 + number}"
        self.ipv6 = f"fd00:30::{10 + number}"
        self.folder = lab.folder / self.name
        self.config = self.folder / "config"
        self.hubble_config = self.folder / "hubble-config"
        self.run = self.folder / "run"
        """The agent's state-dir: sockets, endpoint state, queued deletes."""
        self.cni_config = self.folder / "cni"
        self.bpf = lab.bpf / self.name

    @property
    def agent_socket(self) -> Path:
        """Where the agent serves the command line."""
        return self.run / "cilium.sock"

    @property
    def hubble_socket(self) -> Path:
        """Where the node's hubble-server serves."""
        return self.run / "hubble.sock"


class Layout:
    """A lab by name. The name has no dash, so that the prefix of one is never that of another."""

    def __init__(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"lab name: {name!r} is not usable", "1 to 16 lower case letters and digits"
            )
        self.name = name
        self.prefix = f"cil-{name}-"
        self.folder = RUN_ROOT / name
        self.bpf = BPF_ROOT / name
        self.logs = self.folder / "logs"
        self.pids = self.folder / "pids"
        self.pods = self.folder / "pods"
        self.bin = self.folder / "bin"
        """Plugin folder of the lab's container runtime."""
        self.fabric_netns = f"{self.prefix}fabric"
        self.world_netns = f"{self.prefix}world"
        self.record = self.folder / "lab.json"
        self.relay_socket = self.folder / "relay.sock"

    @property
    def relay_address(self) -> str:
        """What a Hubble client is pointed at."""
        return f"unix://{self.relay_socket}"

    @property
    def etcd_endpoint(self) -> str:
        """Reachable inside the fabric namespace."""
        return f"{FABRIC_IPV4}:{ETCD_PORT}"

    def operator_socket(self, number: int) -> Path:
        """Where an operator, numbered from 1, serves."""
        return self.folder / f"operator{number}.sock"

    def exists(self) -> bool:
        """Whether `lab up` got as far as leaving its record."""
        return self.record.exists()

    def node(self, number: int) -> NodeLayout:
        """Return the node with this number, whether it exists or not."""
        return NodeLayout(self, number)

    def pod_netns(self, namespace: str, name: str) -> str:
        """Name of a pod's network namespace; a dot cannot be part of a namespace's name."""
        return f"{self.prefix}pod-{namespace}.{name}"

    def pod_record(self, namespace: str, name: str) -> Path:
        """Where the runtime remembers a pod."""
        return self.pods / f"{namespace}.{name}.json"


def node_number(name: str) -> int:
    """Turn `node3` into 3; raises InputError for anything else."""
    match = re.fullmatch(r"node([1-9][0-9]{0,2})", name)
    if match is None:
        raise InputError(f"node: {name!r} is not a node of a lab", "nodes are node1, node2, …")
    return int(match[1])


def parse_pod(text: str, default_namespace: str = "default") -> tuple[str, str]:
    """Split `namespace/name` or `name`; raises InputError unless both are names Kubernetes has."""
    namespace, separator, name = text.partition("/")
    if not separator:
        namespace, name = default_namespace, text
    if not _DNS_LABEL.fullmatch(namespace):
        raise InputError(
            f"pod {text!r}: namespace {namespace!r} is not a DNS label",
            "lower case letters, digits and '-', at most 63",
        )
    if not _DNS_NAME.fullmatch(name):
        raise InputError(
            f"pod {text!r}: name {name!r} is not a DNS name",
            "lower case letters, digits, '-' and '.', beginning and ending with a letter or digit",
        )
    return namespace, name


def labs() -> list[str]:
    """Names of the labs that have a record, sorted."""
    try:
        return sorted(path.parent.name for path in RUN_ROOT.glob("*/lab.json"))
    except OSError:
        return []
