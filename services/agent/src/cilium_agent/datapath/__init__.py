"""The data plane of a node: eBPF programs, maps and devices.

The public face; everything else in this package is private to it.

    plane = Datapath(DatapathPaths(bpf_root=…, template_dir=…))
    await plane.start(NodeConfig(…))
    plane.endpoints.upsert(EndpointInfo(…))
    plane.attach_endpoint(ifindex)
    plane.policy.apply({endpoint_id: PolicyChange(add={…}, remove=[…])})

Importing it does not import BCC, which only a load of changed programs needs.
"""

from cilium_core.policy import PolicyEntry, PolicyKey

from cilium_agent.datapath import netns
from cilium_agent.datapath.errors import (
    BpfError,
    CompileError,
    DatapathError,
    DeviceError,
    LoadError,
    MapShapeError,
    NamespaceError,
    SourceError,
)
from cilium_agent.datapath.facade import Datapath
from cilium_agent.datapath.models import (
    NO_PORT,
    Connection,
    Counter,
    DatapathPaths,
    EndpointInfo,
    GcResult,
    IpcacheEntry,
    NatEntry,
    NodeConfig,
    PodInterface,
    PolicyChange,
    PolicyOverflow,
    PrefilterState,
    RemoteNode,
)
from cilium_agent.datapath.probing import probe
from cilium_agent.datapath.trials import Outcome, Packet, Trial

__all__ = [
    "NO_PORT",
    "BpfError",
    "CompileError",
    "Connection",
    "Counter",
    "Datapath",
    "DatapathError",
    "DatapathPaths",
    "DeviceError",
    "EndpointInfo",
    "GcResult",
    "IpcacheEntry",
    "LoadError",
    "MapShapeError",
    "NamespaceError",
    "NatEntry",
    "NodeConfig",
    "Outcome",
    "Packet",
    "PodInterface",
    "PolicyChange",
    "PolicyEntry",
    "PolicyKey",
    "PolicyOverflow",
    "PrefilterState",
    "RemoteNode",
    "SourceError",
    "Trial",
    "netns",
    "probe",
]
