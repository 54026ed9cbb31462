"""What a node's data plane is told of services: frontends, and the backends behind them.

Immutable values; no I/O.
"""

from __future__ import annotations

import enum
import ipaddress
from dataclasses import dataclass

from cilium_core.policy.ports import Protocol

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class FrontendKind(enum.Enum):
    """Where a frontend comes from; the values are the names users see."""

    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"
    EXTERNAL_IPS = "ExternalIPs"
    HOST_PORT = "HostPort"
    LOCAL_REDIRECT = "LocalRedirect"


class BackendState(enum.Enum):
    """What may be asked of a backend."""

    ACTIVE = "active"
    TERMINATING = "terminating"
    QUARANTINED = "quarantined"
    MAINTENANCE = "maintenance"


class Scope(enum.Enum):
    """Who asks: somebody outside the cluster, or a pod or node."""

    EXTERNAL = "external"
    INTERNAL = "internal"


class Algorithm(enum.Enum):
    """How a backend is chosen for what comes from outside."""

    RANDOM = "random"
    MAGLEV = "maglev"


class Forwarding(enum.Enum):
    """How backends of other nodes are reached from outside."""

    DEFAULT = ""
    SNAT = "snat"
    DSR = "dsr"


@dataclass(frozen=True, slots=True, order=True)
class ServiceName:
    """Namespace and name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class L4Address:
    """An address with a port, 0 to 65535, and its protocol (TCP, UDP or SCTP)."""

    address: Address
    port: int
    protocol: Protocol

    def __hash__(self) -> int:
        # These are the keys of everything; the ordinary way takes five times as long.
        return hash((int(self.address), self.port))

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}/{self.protocol.name}"


@dataclass(frozen=True, slots=True)
class Backend:
    """Who serves. `weight` counts with Maglev only; `node` and `zone` are empty when unknown."""

    at: L4Address
    state: BackendState = BackendState.ACTIVE
    weight: int = 1
    node: str = ""
    zone: str = ""
    local: bool = False


@dataclass(frozen=True, slots=True)
class Frontend:
    """One address and port that is translated, for those who ask from a scope.

    `backends` are all of them, in a stable order; `eligible` those that new connections may go to
    (the active ones, or the terminating ones where none is active). Port 0 stands for the address
    as a whole: what is no other frontend's is refused. On 0.0.0.0 and :: are the NodePorts as
    programs at sockets look for them.
    """

    at: L4Address
    scope: Scope
    kind: FrontendKind
    service: ServiceName
    port_name: str = ""
    backends: tuple[Backend, ...] = ()
    eligible: tuple[Backend, ...] = ()
    two_scopes: bool = False
    external_local: bool = False
    internal_local: bool = False
    routable: bool = True
    affinity_timeout: int = 0
    """Seconds a client keeps its backend; 0 without session affinity."""
    source_ranges: tuple[Network, ...] | None = None
    """Who may ask, None for everybody; with `source_ranges_deny` who may not."""
    source_ranges_deny: bool = False
    algorithm: Algorithm = Algorithm.RANDOM
    forwarding: Forwarding = Forwarding.DEFAULT
    skip_own: bool = False
    """A local redirect that the backends' own traffic is exempt from."""
