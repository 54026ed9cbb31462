"""An endpoint as the agent knows it, and its log.

An `Endpoint` is changed on the event loop only, by the endpoint manager. What must survive the
agent is in `Endpoint.stored()` and goes to disk through `storing`; what the kernel enforces
survives in the maps.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NewType

from cilium_core.labels import LabelSet
from cilium_core.policy import PolicyRef
from cilium_core.policy.unions import Conflict

from cilium_agent.endpoints import states
from cilium_agent.endpoints.states import State

if TYPE_CHECKING:
    from collections.abc import Mapping

EndpointID = NewType("EndpointID", int)

MIN_ID = 1
MAX_ID = 65534
HOST_ID = EndpointID(65535)
"""The node itself; see `hostendpoint`."""

LOG_ENTRIES = 64


@dataclass(frozen=True)
class LogEntry:
    """A state change; `time_s` is seconds since 1970."""

    time_s: float
    state: State
    message: str


@dataclass(frozen=True, order=True)
class NamedPort:
    """A container port with a name; `protocol` is TCP, UDP or SCTP."""

    name: str
    port: int
    protocol: str


@dataclass(frozen=True)
class Attachment:
    """What the container runtime asked for: the key of an endpoint to the outside."""

    container_id: str
    netns: str
    ifname: str


@dataclass(frozen=True)
class Link:
    """The host side of a pod's interface pair. MACs are written with colons."""

    interface: str
    ifindex: int
    mac: str
    node_mac: str


@dataclass
class Endpoint:
    """A pod of this node, or the node itself.

    `identity` is 0 until one is allocated. `policy_revision` is the repository revision the kernel
    enforces, 0 before the first build. `ipv4` and `ipv6` are empty when the family is off.
    `row_stale` asks for the data plane's row to be written with the next policy.
    `audit` has what policy would deny reported and let pass. `conflicts` say which of the rules
    contradict each other, in which case the policy from before stays in force. `overflown` are the
    policies of which something did not fit into the endpoint's map.
    `no_redirect` exempts what it sends from local redirects that it serves.
    `created` is set once the container runtime may have been told that the pod's network is up.
    """

    id: EndpointID
    attachment: Attachment
    namespace: str
    pod_name: str
    pod_uid: str
    ipv4: str
    ipv6: str
    state: State
    link: Link | None = None
    labels: LabelSet = field(default_factory=LabelSet)
    identity: int = 0
    named_ports: tuple[NamedPort, ...] = ()
    workloads: tuple[tuple[str, str], ...] = ()
    created: bool = False
    policy_revision: int = 0
    ingress_enforced: bool = False
    egress_enforced: bool = False
    row_stale: bool = True
    audit: bool = False
    no_redirect: bool = False
    conflicts: tuple[Conflict, ...] = ()
    overflown: frozenset[PolicyRef] = frozenset()
    error: str = ""
    log: deque[LogEntry] = field(default_factory=lambda: deque(maxlen=LOG_ENTRIES))

    def __post_init__(self) -> None:
        if not MIN_ID <= self.id <= MAX_ID and self.id != HOST_ID:
            raise ValueError(f"endpoint id {self.id} is not in {MIN_ID} to {MAX_ID}")

    @property
    def is_host(self) -> bool:
        """Whether it is the node itself rather than a pod."""
        return self.id == HOST_ID

    @property
    def pod(self) -> str:
        """`namespace/name` of the pod."""
        if self.is_host:
            return "the node"
        return f"{self.namespace}/{self.pod_name}"

    @property
    def addresses(self) -> tuple[str, ...]:
        """The endpoint's addresses, IPv4 first."""
        return tuple(address for address in (self.ipv4, self.ipv6) if address)

    @property
    def alive(self) -> bool:
        """Whether the endpoint still has a part in the data plane."""
        return self.state not in (State.DISCONNECTING, State.DISCONNECTED, State.INVALID)

    def enter(self, state: State, message: str, *, builder: bool = False) -> None:
        """Change state and log why; raises `IllegalTransitionError` where no edge leads."""
        states.require(self.state, state, builder=builder)
        self.state = state
        self.note(message)

    def note(self, message: str) -> None:
        """Log something that happened in the present state."""
        self.log.append(LogEntry(time_s=time.time(), state=self.state, message=message))

    def stored(self) -> Mapping[str, object]:
        """What goes to disk."""
        return {
            "version": 1,
            "id": self.id,
            "containerID": self.attachment.container_id,
            "netns": self.attachment.netns,
            "ifname": self.attachment.ifname,
            "namespace": self.namespace,
            "podName": self.pod_name,
            "podUID": self.pod_uid,
            "ipv4": self.ipv4,
            "ipv6": self.ipv6,
            "interface": self.link.interface if self.link else "",
            "ifindex": self.link.ifindex if self.link else 0,
            "mac": self.link.mac if self.link else "",
            "nodeMac": self.link.node_mac if self.link else "",
            "labels": self.labels.texts(),
            "identity": self.identity,
            "namedPorts": [
                {"name": p.name, "port": p.port, "protocol": p.protocol} for p in self.named_ports
            ],
            "workloads": [{"kind": kind, "name": name} for kind, name in self.workloads],
            "created": self.created,
            "audit": self.audit,
        }
