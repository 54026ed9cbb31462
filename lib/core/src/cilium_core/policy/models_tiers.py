"""The models of the tiered policies of policy.networking.k8s.io.

AdminNetworkPolicy and BaselineAdminNetworkPolicy are v1alpha1; ClusterNetworkPolicy, v1alpha2,
takes the place of both. A peer or port of a kind that is not known (a newer version of the API may
have more) is kept as such, since it must not be ignored: what it would deny must stay denied.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    WithJsonSchema,
    model_validator,
)

from cilium_core.policy import fqdn
from cilium_core.policy.models_values import Cidr, Metadata, Model, PlainSelector, check_one_of
from cilium_core.policy.ports import PORT_MAX

MAX_PRIORITY: Final = 1000
_DOMAIN_LABEL: Final = "[a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?"
_DOMAIN_SCHEMA: Final = rf"^(\*\.)?({_DOMAIN_LABEL}\.)+{_DOMAIN_LABEL}\.?$"


def _check_domain(text: str) -> str:
    fqdn.check_selectable(fqdn.check_pattern(text))
    if "*" in text.removeprefix("*."):
        raise ValueError(f"{text[:80]!r} may have a star as its first label only")
    return text


DomainName = Annotated[
    StrictStr,
    AfterValidator(_check_domain),
    WithJsonSchema({"type": "string", "maxLength": 255, "pattern": _DOMAIN_SCHEMA}),
]
Port = Annotated[StrictInt, Field(ge=1, le=PORT_MAX)]
RuleName = Annotated[StrictStr, Field(max_length=100)]
PortName = Annotated[StrictStr, Field(min_length=1, max_length=63)]


class Open(Model):
    """An item of which other kinds may exist than are known."""

    model_config = ConfigDict(extra="allow")

    def written(self) -> list[str]:
        """The names of the known parts that are written."""
        return [name for name in type(self).model_fields if getattr(self, name) is not None]

    @property
    def is_known(self) -> bool:
        """Whether the item is of a known kind, and nothing unknown changes its meaning."""
        return bool(self.written()) and not self.model_extra

    @model_validator(mode="after")
    def _check_kinds(self) -> Self:
        if len(self.written()) > 1:
            fields = type(self).model_fields
            names = ", ".join(str(fields[name].alias or name) for name in self.written())
            raise ValueError(f"has {names}; write one list item for each")
        return self


class NamespacedPods(Model):
    """Pods by their labels and those of their namespaces."""

    namespace_selector: PlainSelector
    pod_selector: PlainSelector


class TierSubject(Model):
    """Whom a policy is about: all pods of some namespaces, or some pods of them."""

    namespaces: PlainSelector | None = None
    pods: NamespacedPods | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_one_of(self, "namespaces", "pods")
        return self


class TierIngressPeer(Open):
    """An item of `from`."""

    namespaces: PlainSelector | None = None
    pods: NamespacedPods | None = None


class TierEgressPeer(Open):
    """An item of `to`."""

    namespaces: PlainSelector | None = None
    pods: NamespacedPods | None = None
    nodes: PlainSelector | None = None
    networks: Annotated[list[Cidr] | None, Field(min_length=1, max_length=25)] = None
    domain_names: Annotated[list[DomainName] | None, Field(min_length=1, max_length=25)] = None


class PortNumberModel(Model):
    """One port of a protocol."""

    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"
    port: Port


class PortRangeModel(Model):
    """A range of ports of a protocol."""

    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"
    start: Port
    end: Port

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.end < self.start:
            raise ValueError("end must not be less than start")
        return self


class AdminPort(Open):
    """An item of `ports` in v1alpha1."""

    port_number: PortNumberModel | None = None
    port_range: PortRangeModel | None = None
    named_port: PortName | None = None


class DestinationRange(Model):
    """A range of ports."""

    start: Port
    end: Port

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.start >= self.end:
            raise ValueError("start must be less than end")
        return self


class DestinationPort(Model):
    """A port, or a range of ports."""

    number: Port | None = None
    range: DestinationRange | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_one_of(self, "number", "range")
        return self


class ProtocolPorts(Model):
    """The ports of a protocol; all of them when none is written."""

    destination_port: DestinationPort | None = None


class ClusterProtocol(Open):
    """An item of `protocols` in v1alpha2."""

    tcp: ProtocolPorts | None = None
    udp: ProtocolPorts | None = None
    sctp: ProtocolPorts | None = None
    destination_named_port: PortName | None = None


_AdminPorts = Annotated[list[AdminPort] | None, Field(max_length=100)]
_Protocols = Annotated[list[ClusterProtocol] | None, Field(min_length=1, max_length=25)]


class IngressRule(Model):
    """What the ingress rules of all kinds share."""

    name: RuleName = ""
    action: Literal["Allow", "Accept", "Deny", "Pass"]
    peers: Annotated[list[TierIngressPeer], Field(min_length=1, max_length=100)] = Field(
        alias="from"
    )
    ports: _AdminPorts | _Protocols = None


class EgressRule(Model):
    """What the egress rules of all kinds share."""

    name: RuleName = ""
    action: Literal["Allow", "Accept", "Deny", "Pass"]
    peers: Annotated[list[TierEgressPeer], Field(min_length=1, max_length=100)] = Field(alias="to")
    ports: _AdminPorts | _Protocols = None

    @model_validator(mode="after")
    def _check_peers(self) -> Self:
        if self.action not in {"Allow", "Accept"} and any(peer.domain_names for peer in self.peers):
            raise ValueError(f"domainNames can be allowed only, not {self.action}")
        outside = any(
            peer.networks or peer.domain_names or peer.nodes is not None for peer in self.peers
        )
        named = any(
            getattr(port, "named_port", None) or getattr(port, "destination_named_port", None)
            for port in self.ports or ()
        )
        if outside and named:
            raise ValueError("named ports cannot stand beside networks, nodes and domainNames")
        return self


class AdminIngress(IngressRule):
    """An ingress rule of AdminNetworkPolicy."""

    action: Literal["Allow", "Deny", "Pass"]
    ports: _AdminPorts = None


class AdminEgress(EgressRule):
    """An egress rule of AdminNetworkPolicy."""

    action: Literal["Allow", "Deny", "Pass"]
    ports: _AdminPorts = None


class BaselineIngress(IngressRule):
    """An ingress rule of BaselineAdminNetworkPolicy."""

    action: Literal["Allow", "Deny"]
    ports: _AdminPorts = None


class BaselineEgress(EgressRule):
    """An egress rule of BaselineAdminNetworkPolicy."""

    action: Literal["Allow", "Deny"]
    ports: _AdminPorts = None


class ClusterIngress(IngressRule):
    """An ingress rule of ClusterNetworkPolicy."""

    action: Literal["Accept", "Deny", "Pass"]
    peers: Annotated[list[TierIngressPeer], Field(min_length=1, max_length=25)] = Field(
        alias="from"
    )
    ports: _Protocols = Field(default=None, alias="protocols")


class ClusterEgress(EgressRule):
    """An egress rule of ClusterNetworkPolicy."""

    action: Literal["Accept", "Deny", "Pass"]
    peers: Annotated[list[TierEgressPeer], Field(min_length=1, max_length=25)] = Field(alias="to")
    ports: _Protocols = Field(default=None, alias="protocols")


Priority = Annotated[StrictInt, Field(ge=0, le=MAX_PRIORITY)]


class AdminSpec(Model):
    """The `spec` of AdminNetworkPolicy."""

    priority: Priority
    subject: TierSubject
    ingress: Annotated[list[AdminIngress] | None, Field(max_length=100)] = None
    egress: Annotated[list[AdminEgress] | None, Field(max_length=100)] = None


class BaselineSpec(Model):
    """The `spec` of BaselineAdminNetworkPolicy."""

    subject: TierSubject
    ingress: Annotated[list[BaselineIngress] | None, Field(max_length=100)] = None
    egress: Annotated[list[BaselineEgress] | None, Field(max_length=100)] = None


class ClusterSpec(Model):
    """The `spec` of ClusterNetworkPolicy."""

    tier: Literal["Admin", "Baseline"]
    priority: Priority
    subject: TierSubject
    ingress: Annotated[list[ClusterIngress] | None, Field(max_length=25)] = None
    egress: Annotated[list[ClusterEgress] | None, Field(max_length=25)] = None


class AdminPolicy(Model):
    """AdminNetworkPolicy."""

    api_version: Literal["policy.networking.k8s.io/v1alpha1"]
    kind: Literal["AdminNetworkPolicy"]
    metadata: Metadata
    spec: AdminSpec
    status: Any = None


class BaselinePolicy(Model):
    """BaselineAdminNetworkPolicy, of which there is one, named `default`."""

    api_version: Literal["policy.networking.k8s.io/v1alpha1"]
    kind: Literal["BaselineAdminNetworkPolicy"]
    metadata: Metadata
    spec: BaselineSpec
    status: Any = None

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if self.metadata.name != "default":
            raise ValueError("metadata.name must be default: a cluster has one baseline")
        return self


class ClusterPolicy(Model):
    """ClusterNetworkPolicy."""

    api_version: Literal["policy.networking.k8s.io/v1alpha2"]
    kind: Literal["ClusterNetworkPolicy"]
    metadata: Metadata
    spec: ClusterSpec
    status: Any = None
