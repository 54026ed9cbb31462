"""The models of NetworkPolicy, networking.k8s.io/v1."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainValidator, StrictInt, model_validator

from cilium_core.policy.models_values import Cidr, Metadata, Model, PlainSelector, check_excepts
from cilium_core.policy.ports import PORT_MAX, parse_port


class IpBlock(Model):
    """A prefix of a NetworkPolicy peer."""

    cidr: Cidr
    excepted: list[Cidr] | None = Field(default=None, alias="except")

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_excepts(self.cidr, self.excepted or [], strict=True)
        return self


class KubernetesPeer(Model):
    """An item of `from` or `to`."""

    pod_selector: PlainSelector | None = None
    namespace_selector: PlainSelector | None = None
    ip_block: IpBlock | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        selects = self.pod_selector is not None or self.namespace_selector is not None
        if selects == (self.ip_block is not None):
            raise ValueError(
                "needs podPlainSelector and/or namespacePlainSelector, or ipBlock alone"
            )
        return self


def _kubernetes_port(value: object) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= PORT_MAX:
            raise ValueError(f"must be a number from 1 to {PORT_MAX}")
        return value
    if not isinstance(value, str):
        raise ValueError("must be a number or the name of a container port")
    port = parse_port(value)
    if isinstance(port, int):
        raise ValueError(f"write the number without quotes: {port}")
    return port


class KubernetesPort(Model):
    """An item of `ports` in a NetworkPolicy."""

    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"
    port: Annotated[int | str, PlainValidator(_kubernetes_port)] | None = None
    end_port: Annotated[StrictInt, Field(ge=1, le=PORT_MAX)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.end_port is not None and (
            not isinstance(self.port, int) or self.end_port < self.port
        ):
            raise ValueError("endPort needs a numeric port that is not greater")
        return self


class KubernetesIngress(Model):
    """An item of `ingress` in a NetworkPolicy."""

    ports: list[KubernetesPort] | None = None
    peers: list[KubernetesPeer] | None = Field(default=None, alias="from")


class KubernetesEgress(Model):
    """An item of `egress` in a NetworkPolicy."""

    ports: list[KubernetesPort] | None = None
    peers: list[KubernetesPeer] | None = Field(default=None, alias="to")


class KubernetesSpec(Model):
    """The `spec` of a NetworkPolicy."""

    pod_selector: PlainSelector | None = None
    ingress: list[KubernetesIngress] | None = None
    egress: list[KubernetesEgress] | None = None
    policy_types: list[Literal["Ingress", "Egress"]] | None = None


class KubernetesPolicy(Model):
    """NetworkPolicy of networking.k8s.io/v1."""

    api_version: Literal["networking.k8s.io/v1"]
    kind: Literal["NetworkPolicy"]
    metadata: Metadata
    spec: KubernetesSpec
    status: Any = None
