"""Services: from objects of the cluster to frontends and backends of a node; no I/O.

`ServiceTable` takes objects and gives frontends. A CiliumLocalRedirectPolicy, a host port and a
Service are all the same to it: something that claims places.
"""

from cilium_core.services.models import (
    Algorithm,
    Backend,
    BackendState,
    Forwarding,
    Frontend,
    FrontendKind,
    L4Address,
    Scope,
    ServiceName,
)
from cilium_core.services.objects import (
    WHOLE_ADDRESS,
    HealthCheck,
    HostPort,
    LocalPod,
    NodeFacts,
    PodName,
    PortRange,
    Remark,
    ServiceOptions,
    anywhere,
    whole,
)
from cilium_core.services.tables import Changes, ServiceTable

__all__ = [
    "WHOLE_ADDRESS",
    "Algorithm",
    "Backend",
    "BackendState",
    "Changes",
    "Forwarding",
    "Frontend",
    "FrontendKind",
    "HealthCheck",
    "HostPort",
    "L4Address",
    "LocalPod",
    "NodeFacts",
    "PodName",
    "PortRange",
    "Remark",
    "Scope",
    "ServiceName",
    "ServiceOptions",
    "ServiceTable",
    "anywhere",
    "whole",
]
