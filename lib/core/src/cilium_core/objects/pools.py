"""CiliumPodIPPool and CiliumLoadBalancerIPPool: where addresses come from."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictBool, StrictInt, StrictStr, model_validator

from cilium_core.objects.bases import ObjectMetadata
from cilium_core.policy.models_values import Cidr, Model, Selector


class Ipv4Blocks(Model):
    """IPv4 prefixes of a pool, cut into blocks for nodes."""

    cidrs: Annotated[list[Cidr], Field(min_length=1)]
    mask_size: Annotated[StrictInt, Field(ge=1, le=32)]


class Ipv6Blocks(Model):
    """IPv6 prefixes of a pool, cut into blocks for nodes."""

    cidrs: Annotated[list[Cidr], Field(min_length=1)]
    mask_size: Annotated[StrictInt, Field(ge=1, le=128)]


class PodPoolSpec(Model):
    """The `spec` of CiliumPodIPPool."""

    ipv4: Ipv4Blocks | None = None
    ipv6: Ipv6Blocks | None = None
    pod_selector: Selector | None = None
    namespace_selector: Selector | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for version, blocks in ((4, self.ipv4), (6, self.ipv6)):
            for cidr in blocks.cidrs if blocks is not None else ():
                if cidr.version != version:
                    raise ValueError(f"ipv{version}.cidrs has {cidr}, which is of the other family")
                if blocks is not None and blocks.mask_size < cidr.prefixlen:
                    raise ValueError(f"ipv{version}.maskSize is wider than {cidr}")
        return self


class PodPoolObject(Model):
    """CiliumPodIPPool."""

    api_version: Literal["cilium.io/v2alpha1"]
    kind: Literal["CiliumPodIPPool"]
    metadata: ObjectMetadata
    spec: PodPoolSpec


class Block(Model):
    """A prefix, or a range of addresses; a range of one needs no end."""

    cidr: Cidr | None = None
    start: StrictStr | None = None
    stop: StrictStr | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.cidr is None) == (self.start is None) or (self.stop and self.start is None):
            raise ValueError("needs either cidr, or start and stop")
        if self.start is not None:
            first = ipaddress.ip_address(self.start)
            last = ipaddress.ip_address(self.stop) if self.stop else first
            if first.version != last.version or int(last) < int(first):
                raise ValueError(f"{self.stop!r} does not lie behind {self.start!r}")
        return self


class LoadBalancerPoolSpec(Model):
    """The `spec` of CiliumLoadBalancerIPPool."""

    blocks: list[Block] | None = None
    service_selector: Selector | None = None
    allow_first_last_ips: Literal["Yes", "No"] | None = Field(
        default=None, alias="allowFirstLastIPs"
    )
    disabled: StrictBool = False


class LoadBalancerPoolObject(Model):
    """CiliumLoadBalancerIPPool."""

    api_version: Literal["cilium.io/v2", "cilium.io/v2alpha1"]
    kind: Literal["CiliumLoadBalancerIPPool"]
    metadata: ObjectMetadata
    spec: LoadBalancerPoolSpec
    status: Any = None
