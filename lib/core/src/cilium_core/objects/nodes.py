"""CiliumNode, CiliumIdentity, and CiliumExternalWorkload of older clusters."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictInt, StrictStr, model_validator

from cilium_core.objects.bases import Dashed, Int64, ObjectMetadata, Whatever
from cilium_core.objects.endpoints import AddressPair, EncryptionKey
from cilium_core.policy.models_values import Model


class NodeAddress(Model):
    """An address of a node, and what kind it is."""

    type: (
        Literal[
            "Hostname",
            "InternalIP",
            "ExternalIP",
            "InternalDNS",
            "ExternalDNS",
            "CiliumInternalIP",
        ]
        | None
    ) = None
    ip: StrictStr | None = None


class AllocationOwner(Model):
    """Who has an address of a pool."""

    owner: StrictStr | None = None
    resource: StrictStr | None = None


class NeededAddresses(Dashed):
    """How many addresses of each family are asked for."""

    ipv4_addrs: StrictInt | None = None
    ipv6_addrs: StrictInt | None = None


class PoolRequest(Model):
    """What a node asks of a pool."""

    pool: Annotated[StrictStr, Field(min_length=1)]
    needed: NeededAddresses | None = None


class PoolAllocation(Model):
    """What a node was given of a pool."""

    pool: Annotated[StrictStr, Field(min_length=1)]
    cidrs: list[StrictStr] | None = None


class NodePools(Model):
    """Demand and supply of address pools."""

    requested: list[PoolRequest] | None = None
    allocated: list[PoolAllocation] | None = None


class NodeIpam(Dashed):
    """Addresses for pods of the node."""

    pod_cidrs: list[StrictStr] | None = Field(default=None, alias="podCIDRs")
    pool: dict[StrictStr, AllocationOwner] | None = None
    ipv6_pool: dict[StrictStr, AllocationOwner] | None = None
    pools: NodePools | None = None
    min_allocate: StrictInt | None = None
    max_allocate: StrictInt | None = None
    pre_allocate: StrictInt | None = None
    max_above_watermark: StrictInt | None = None
    static_ip_tags: dict[StrictStr, StrictStr] | None = None


class NodeSpec(Dashed):
    """The `spec` of CiliumNode."""

    instance_id: StrictStr | None = None
    bootid: StrictStr | None = None
    addresses: list[NodeAddress] | None = None
    health: AddressPair | None = None
    ingress: AddressPair | None = None
    encryption: EncryptionKey | None = None
    ipam: NodeIpam | None = None
    nodeidentity: Int64 | None = None
    eni: Whatever = None
    azure: Whatever = None
    alibaba_cloud: Whatever = None


class PodCidrStatus(Model):
    """What became of a pod CIDR."""

    status: Literal["released", "depleted", "in-use"] | None = None


class OperatorStatus(Model):
    """What went wrong for the operator."""

    error: StrictStr | None = None


_Release = Literal["marked-for-release", "ready-for-release", "do-not-release", "released"]


class NodeIpamStatus(Dashed):
    """How the node's addresses are used."""

    used: dict[StrictStr, AllocationOwner] | None = None
    ipv6_used: dict[StrictStr, AllocationOwner] | None = None
    pod_cidrs: dict[StrictStr, PodCidrStatus] | None = None
    release_ips: dict[StrictStr, _Release] | None = None
    release_ipv6s: dict[StrictStr, _Release] | None = None
    operator_status: OperatorStatus | None = None
    assigned_static_ip: StrictStr | None = None


class NodeStatusModel(Dashed):
    """The `status` of CiliumNode."""

    ipam: NodeIpamStatus | None = None
    eni: Whatever = None
    azure: Whatever = None
    alibaba_cloud: Whatever = None


class NodeObject(Model):
    """CiliumNode."""

    api_version: Literal["cilium.io/v2"]
    kind: Literal["CiliumNode"]
    metadata: ObjectMetadata
    spec: NodeSpec
    status: NodeStatusModel | None = None


class IdentityObject(Dashed):
    """CiliumIdentity: its name is the number, and the labels stand at the top."""

    api_version: Literal["cilium.io/v2"] = Field(alias="apiVersion")
    kind: Literal["CiliumIdentity"]
    metadata: ObjectMetadata
    security_labels: dict[StrictStr, StrictStr]
    status: Any = None

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if not self.metadata.name.isdecimal():
            raise ValueError(f"metadata.name {self.metadata.name[:40]!r} is not a number")
        return self


class WorkloadSpec(Dashed):
    """The `spec` of CiliumExternalWorkload."""

    ipv4_alloc_cidr: StrictStr | None = None
    ipv6_alloc_cidr: StrictStr | None = None


class WorkloadStatus(Model):
    """The `status` of CiliumExternalWorkload."""

    id: Int64 | None = None
    ip: StrictStr | None = None


class WorkloadObject(Model):
    """CiliumExternalWorkload, a machine outside the cluster that takes part in it."""

    api_version: Literal["cilium.io/v2"]
    kind: Literal["CiliumExternalWorkload"]
    metadata: ObjectMetadata
    spec: WorkloadSpec | None = None
    status: WorkloadStatus | None = None
