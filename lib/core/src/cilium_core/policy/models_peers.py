"""The models of the items of the four rule lists: whom they name, and on which ports.

`None` is "not written", `[]` is nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StrictStr,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel

from cilium_core.policy.models_l7 import FqdnModel
from cilium_core.policy.models_ports import IcmpRule, PortDenyRule, PortRule
from cilium_core.policy.models_values import (
    Cidr,
    CidrOrAddress,
    Model,
    ObjectName,
    Selector,
    check_excepts,
    check_one_of,
    one_of,
)

ENTITIES: Final = (
    "all",
    "world",
    "world-ipv4",
    "world-ipv6",
    "host",
    "remote-node",
    "kube-apiserver",
    "ingress",
    "health",
    "init",
    "unmanaged",
    "none",
    "cluster",
)


def _check_entity(text: str) -> str:
    if text not in ENTITIES:
        raise ValueError(f"{text[:40]!r} is not one of {', '.join(ENTITIES)}")
    return text


def _refuse_removed(value: object) -> None:
    if value not in (None, []):
        raise ValueError("was removed; write what is required into the peer's selector instead")


Entity = Annotated[
    StrictStr,
    AfterValidator(_check_entity),
    WithJsonSchema({"type": "string", "enum": list(ENTITIES)}),
]
Removed = Annotated[
    None,
    PlainValidator(_refuse_removed),
    WithJsonSchema({"type": "array", "items": {"type": "string"}, "maxItems": 0}),
]
"""A list that may not have content any more."""


class CidrRule(Model):
    """A prefix, or all prefixes of some CIDR groups, without some parts."""

    model_config = one_of("cidr", "cidrGroupRef", "cidrGroupSelector")

    cidr: Cidr | None = None
    cidr_group_ref: ObjectName | None = None
    cidr_group_selector: Selector | None = None
    excepted: list[Cidr] | None = Field(default=None, alias="except")

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_one_of(self, "cidr", "cidr_group_ref", "cidr_group_selector")
        if self.cidr is not None:
            check_excepts(self.cidr, self.excepted or [])
        return self


class ServiceName(Model):
    """A service by name; without a namespace, that of every namespace."""

    service_name: Annotated[ObjectName, Field(description="Name of the Service.")]
    namespace: StrictStr | None = None


class ServiceLabels(Model):
    """Services by their own labels; without a namespace, those of every namespace."""

    selector: Selector
    namespace: StrictStr | None = None


class ServiceModel(Model):
    """An item of `toServices`."""

    model_config = one_of("k8sService", "k8sServiceSelector")

    k8s_service: ServiceName | None = Field(default=None, alias="k8sService")
    k8s_service_selector: ServiceLabels | None = Field(default=None, alias="k8sServiceSelector")

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_one_of(self, "k8s_service", "k8s_service_selector")
        return self


class AwsGroup(Model):
    """Addresses of a cloud provider's instances."""

    labels: dict[StrictStr, StrictStr] | None = None
    region: StrictStr | None = None
    security_groups_ids: list[StrictStr] | None = None
    security_groups_names: list[StrictStr] | None = None


class GroupModel(Model):
    """An item of `fromGroups` and `toGroups`."""

    aws: AwsGroup | None = None


class Authentication(Model):
    """What peers must prove before they may speak."""

    mode: Literal["disabled", "required", "test-always-fail"]


_SUFFIXES: Final = {
    "endpoints": "Endpoints",
    "entities": "Entities",
    "cidr": "CIDR",
    "cidr_set": "CIDRSet",
    "nodes": "Nodes",
    "groups": "Groups",
    "requires": "Requires",
    "services": "Services",
    "fqdns": "FQDNs",
}


def _peer_alias(word: str) -> Callable[[str], str]:
    """The public names of peer fields: fromEndpoints, toCIDRSet and so on."""
    return lambda name: word + _SUFFIXES[name] if name in _SUFFIXES else to_camel(name)


class PeerItem(Model):
    """What the items of all four rule lists share."""

    endpoints: list[Selector] | None = None
    entities: list[Entity] | None = None
    cidr: list[CidrOrAddress] | None = None
    cidr_set: list[CidrRule] | None = None
    nodes: list[Selector] | None = None
    groups: list[GroupModel] | None = None
    requires: Removed = None
    icmps: list[IcmpRule] | None = None
    to_ports: Sequence[PortRule | PortDenyRule] | None = None

    def peer_lists(self) -> tuple[Sequence[object] | None, ...]:
        """Every peer list of the item."""
        return (
            self.endpoints,
            self.entities,
            self.cidr,
            self.cidr_set,
            self.nodes,
            self.groups,
        )

    @classmethod
    def public_name(cls, field: str) -> str:
        """How users write a field, such as `toFQDNs`."""
        return cls.model_fields[field].alias or field

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if sum(bool(peers) for peers in self.peer_lists()) > 1:
            raise ValueError("names two kinds of peers; write one list item for each")
        if self.icmps and self.to_ports:
            raise ValueError("has both icmps and toPorts; write one list item for each")
        return self


class IngressDenyItem(PeerItem):
    """An item of `ingressDeny`."""

    model_config = ConfigDict(alias_generator=_peer_alias("from"))

    to_ports: list[PortDenyRule] | None = None


class IngressItem(PeerItem):
    """An item of `ingress`."""

    model_config = ConfigDict(alias_generator=_peer_alias("from"))

    to_ports: list[PortRule] | None = None
    authentication: Authentication | None = None


class EgressDenyItem(PeerItem):
    """An item of `egressDeny`."""

    model_config = ConfigDict(alias_generator=_peer_alias("to"))

    to_ports: list[PortDenyRule] | None = None
    services: list[ServiceModel] | None = None

    def peer_lists(self) -> tuple[Sequence[object] | None, ...]:
        """Every peer list of the item."""
        return (*super().peer_lists(), self.services)


class EgressItem(PeerItem):
    """An item of `egress`."""

    model_config = ConfigDict(alias_generator=_peer_alias("to"))

    to_ports: list[PortRule] | None = None
    services: list[ServiceModel] | None = None
    fqdns: list[FqdnModel] | None = None
    authentication: Authentication | None = None

    def peer_lists(self) -> tuple[Sequence[object] | None, ...]:
        """Every peer list of the item."""
        return (*super().peer_lists(), self.services, self.fqdns)
