"""The policy objects as users write them: both Cilium kinds, and NetworkPolicy.

Pydantic models with the names and limits of the public schemas. They check shape and values; what
an object means is the business of the translation. Unknown fields are errors. Fields that are
understood but not enforced yet are in the models too, and refuse any content: a restriction is
never dropped silently.

`None` in a model always means "not written", which is not the same as an empty list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    StrictInt,
    StrictStr,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from cilium_core.identities import Prefix, cidr_of_label, parse_prefix
from cilium_core.labels import (
    KEY_NAMESPACE_LABELS_PREFIX,
    SOURCE_ANY,
    SOURCE_CIDR,
    SOURCE_UNSPEC,
    Label,
    LabelError,
)
from cilium_core.policy.ports import PORT_MAX, PROTOCOL_NAMES, PortRange, icmp_range, parse_port
from cilium_core.policy.selectors import prefix_contains

NOT_SUPPORTED: Final = "not_supported_yet"
"""The type of a validation error about a field that is understood but not enforced yet."""

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

_NAME: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", re.ASCII)
_KEY_PREFIX: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)
_OBJECT_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)


def _refuse(value: object) -> None:
    if value is not None:
        raise PydanticCustomError(NOT_SUPPORTED, "is not supported yet")


def _refuse_content(value: object) -> list[Any] | None:
    if value is None or value == []:
        return value
    raise PydanticCustomError(NOT_SUPPORTED, "is not supported yet")


def _refuse_removed(value: object) -> None:
    if value not in (None, []):
        raise ValueError("was removed; write what is required into the peer's selector instead")


Later = Annotated[None, PlainValidator(_refuse)]
"""A field that is refused as soon as it is written."""

LaterList = Annotated[list[Any] | None, PlainValidator(_refuse_content)]
"""A list that is refused as soon as it has content."""

Removed = Annotated[None, PlainValidator(_refuse_removed)]


def _check_key(text: str) -> str:
    """Check a selector key: an optional source with a colon, then a Kubernetes label key."""
    try:
        label = Label.parse(text, SOURCE_ANY)
    except LabelError as error:
        raise ValueError(str(error)) from error
    if label.source == SOURCE_CIDR and not label.value:
        if cidr_of_label(label) is None:
            raise ValueError(f"{text[:80]!r} does not name an address prefix")
        return text
    # A namespace's label may be as long as any other, whatever its key is prefixed with here.
    key = label.key.removeprefix(KEY_NAMESPACE_LABELS_PREFIX)
    prefix, slash, name = key.rpartition("/")
    if label.value or not _NAME.fullmatch(name) or (slash and not _KEY_PREFIX.fullmatch(prefix)):
        raise ValueError(
            f"{text[:80]!r} is not a label key; write [source:][prefix/]name with a name of at "
            "most 63 letters, digits and -_."
        )
    return text


def _check_value(text: str) -> str:
    if text and not _NAME.fullmatch(text):
        raise ValueError(
            f"{text[:80]!r} is not a label value; it must be empty or at most 63 letters, digits "
            "and -_. with a letter or digit at both ends"
        )
    return text


def _integer_to_text(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if 0 <= value <= PORT_MAX else "out of range"
    return value


def _check_object_name(text: str) -> str:
    if not _OBJECT_NAME.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is not a Kubernetes object name")
    return text


def _check_protocol(text: str) -> str:
    if text.upper() not in PROTOCOL_NAMES:
        raise ValueError(f"{text[:40]!r} is not one of {', '.join(PROTOCOL_NAMES)}")
    return text.upper()


def _check_entity(text: str) -> str:
    if text not in ENTITIES:
        raise ValueError(f"{text[:40]!r} is not one of {', '.join(ENTITIES)}")
    return text


def _prefix_or_address(value: object) -> Prefix:
    if not isinstance(value, str):
        raise ValueError("write an address prefix as a string, like '10.0.0.0/8'")
    return parse_prefix(value)


def _prefix(value: object) -> Prefix:
    prefix = _prefix_or_address(value)
    if isinstance(value, str) and "/" not in value:
        raise ValueError(f"{value!r} has no prefix length; write {prefix}")
    return prefix


def _rule_label(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        label = Label.parse(value)
    except LabelError as error:
        raise ValueError(str(error)) from error
    return {"key": label.key, "value": label.value, "source": label.source}


LabelKey = Annotated[StrictStr, AfterValidator(_check_key)]
LabelValue = Annotated[StrictStr, AfterValidator(_check_value)]
ObjectName = Annotated[StrictStr, AfterValidator(_check_object_name)]
Entity = Annotated[StrictStr, AfterValidator(_check_entity)]
Cidr = Annotated[Prefix, PlainValidator(_prefix)]
CidrOrAddress = Annotated[Prefix, PlainValidator(_prefix_or_address)]
PortText = Annotated[StrictStr, BeforeValidator(_integer_to_text)]
PortNumber = Annotated[StrictInt, Field(ge=0, le=PORT_MAX)]
ProtocolName = Annotated[StrictStr, AfterValidator(_check_protocol)]


class Model(BaseModel):
    """Base of all policy models: frozen, camel case on the outside, no unknown fields.

    Validators are built at first use, which saves an agent that has no policy yet 50 ms.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, defer_build=True
    )


class Metadata(BaseModel):
    """The part of an object's metadata that matters to policy; the rest is ignored."""

    model_config = ConfigDict(
        extra="ignore", frozen=True, alias_generator=to_camel, defer_build=True
    )

    name: StrictStr
    namespace: StrictStr | None = None
    uid: StrictStr | None = None
    annotations: dict[StrictStr, StrictStr] | None = None

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if not _OBJECT_NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name[:80]!r} is not a Kubernetes object name")
        if self.namespace and not _NAMESPACE.fullmatch(self.namespace):
            raise ValueError(
                f"namespace {self.namespace[:80]!r} is not a Kubernetes namespace name"
            )
        return self


class MatchExpression(Model):
    """One requirement of a selector."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[LabelValue] | None = None

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        if self.operator in {"In", "NotIn"} and not self.values:
            raise ValueError(f"operator {self.operator} needs at least one of values")
        if self.operator in {"Exists", "DoesNotExist"} and self.values:
            raise ValueError(f"operator {self.operator} takes no values")
        return self


class Selector(Model):
    """A label selector; every part must hold."""

    match_labels: dict[LabelKey, LabelValue] | None = None
    match_expressions: list[MatchExpression] | None = None


class CidrRule(Model):
    """A prefix, or all prefixes of some CIDR groups, without some parts."""

    cidr: Cidr | None = None
    cidr_group_ref: ObjectName | None = None
    cidr_group_selector: Selector | None = None
    excepted: list[Cidr] | None = Field(default=None, alias="except")

    @model_validator(mode="after")
    def _check(self) -> Self:
        kinds = (self.cidr, self.cidr_group_ref, self.cidr_group_selector)
        if sum(kind is not None for kind in kinds) != 1:
            raise ValueError("needs exactly one of cidr, cidrGroupRef, cidrGroupSelector")
        if self.cidr is not None:
            check_excepts(self.cidr, self.excepted or [])
        return self


def check_excepts(cidr: Prefix, excepts: list[Prefix], *, strict: bool = False) -> None:
    """Raise `ValueError` unless every except lies inside the prefix (`strict`: and is smaller)."""
    for excepted in excepts:
        if not prefix_contains(cidr, excepted) or (strict and excepted == cidr):
            raise ValueError(f"except {excepted} does not lie inside {cidr}")


class PortProtocol(Model):
    """One port, named port or port range of a protocol."""

    port: PortText | None = None
    end_port: PortNumber | None = None
    protocol: ProtocolName = "ANY"

    @model_validator(mode="after")
    def _check_port(self) -> Self:
        number = None if self.port is None else parse_port(self.port)
        if number == 0 and self.end_port not in {None, 0, PORT_MAX}:
            raise ValueError("port 0 means every port and takes no endPort; start the range at 1")
        return self


class L7Rules(Model):
    """Rules above layer 4; only the empty lists, which restrict nothing, are accepted."""

    http: LaterList = None
    kafka: LaterList = None
    dns: LaterList = None
    l7proto: Later = Field(default=None, alias="l7proto")
    l7: LaterList = Field(default=None, alias="l7")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = sum(rules is not None for rules in (self.http, self.kafka, self.dns))
        if kinds != 1 or self.l7 is not None:
            raise ValueError("needs exactly one of http, kafka, dns, l7proto")
        return self


Ports = Annotated[list[PortProtocol] | None, Field(max_length=40)]


class PortDenyRule(Model):
    """An item of toPorts in a deny rule."""

    ports: Ports = None


class PortRule(Model):
    """An item of toPorts in an allow rule."""

    ports: Ports = None
    rules: L7Rules | None = None
    terminating_tls: Later = Field(default=None, alias="terminatingTLS")
    originating_tls: Later = Field(default=None, alias="originatingTLS")
    server_names: Later = None
    listener: Later = None


def _icmp_type(value: object) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("an ICMP type is a number from 0 to 255 or a name")
    return value


class IcmpField(Model):
    """One ICMP type."""

    family: Literal["IPv4", "IPv6"] = "IPv4"
    type: Annotated[int | str, PlainValidator(_icmp_type)]

    @model_validator(mode="after")
    def _check_type(self) -> Self:
        self.to_range()
        return self

    def to_range(self) -> PortRange:
        """The type as protocol and number."""
        return icmp_range(self.family, self.type)


class IcmpRule(Model):
    """A list of ICMP types."""

    fields: Annotated[list[IcmpField] | None, Field(max_length=40)] = None


def _peer_alias(word: str) -> Callable[[str], str]:
    """The public names of peer fields: fromEndpoints, toCIDRSet and so on."""
    suffixes = {
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
    return lambda name: word + suffixes[name] if name in suffixes else to_camel(name)


class PeerItem(Model):
    """What the items of all four rule lists share; `None` is "not written", `[]` is nobody."""

    endpoints: list[Selector] | None = None
    entities: list[Entity] | None = None
    cidr: list[CidrOrAddress] | None = None
    cidr_set: list[CidrRule] | None = None
    nodes: LaterList = None
    groups: LaterList = None
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
    authentication: Later = None


class EgressDenyItem(PeerItem):
    """An item of `egressDeny`."""

    model_config = ConfigDict(alias_generator=_peer_alias("to"))

    to_ports: list[PortDenyRule] | None = None
    services: LaterList = None

    def peer_lists(self) -> tuple[Sequence[object] | None, ...]:
        """Every peer list of the item."""
        return (*super().peer_lists(), self.services)


class EgressItem(PeerItem):
    """An item of `egress`."""

    model_config = ConfigDict(alias_generator=_peer_alias("to"))

    to_ports: list[PortRule] | None = None
    services: LaterList = None
    fqdns: LaterList = None
    authentication: Later = None

    def peer_lists(self) -> tuple[Sequence[object] | None, ...]:
        """Every peer list of the item."""
        return (*super().peer_lists(), self.services, self.fqdns)


class DefaultDeny(Model):
    """Whether unmatched traffic is dropped, by direction."""

    ingress: StrictBool | None = None
    egress: StrictBool | None = None


class RuleLabel(Model):
    """A label that the user attaches to a rule; also written as `source:key=value`."""

    key: Annotated[StrictStr, Field(min_length=1, max_length=317)]
    value: Annotated[StrictStr, Field(max_length=253)] = ""
    source: Annotated[StrictStr, Field(max_length=63)] = SOURCE_UNSPEC

    def to_label(self) -> Label:
        """The label itself; an empty source counts as none."""
        return Label(self.source or SOURCE_UNSPEC, self.key, self.value)


def _check_log(text: str) -> str:
    if len(text) > 32 or not text.isprintable():
        raise ValueError("must be at most 32 printable characters")
    return text


class LogConfig(Model):
    """What flow records of the rule carry."""

    value: Annotated[StrictStr, AfterValidator(_check_log)] = ""


class CiliumRule(Model):
    """One rule: `spec`, or an item of `specs`."""

    endpoint_selector: Selector | None = None
    node_selector: Selector | None = None
    ingress: list[IngressItem] | None = None
    egress: list[EgressItem] | None = None
    ingress_deny: list[IngressDenyItem] | None = None
    egress_deny: list[EgressDenyItem] | None = None
    enable_default_deny: DefaultDeny | None = None
    labels: list[Annotated[RuleLabel, BeforeValidator(_rule_label)]] | None = None
    description: StrictStr | None = None
    log: LogConfig | None = None

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if (self.endpoint_selector is None) == (self.node_selector is None):
            raise ValueError("needs exactly one of endpointSelector and nodeSelector")
        if not (self.ingress or self.egress or self.ingress_deny or self.egress_deny):
            raise ValueError("needs at least one of ingress, egress, ingressDeny, egressDeny")
        return self


class CiliumPolicy(Model):
    """CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy."""

    api_version: Literal["cilium.io/v2"]
    kind: Literal["CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"]
    metadata: Metadata
    spec: CiliumRule | None = None
    specs: list[CiliumRule] | None = None
    status: Any = None

    @model_validator(mode="after")
    def _check_specs(self) -> Self:
        if self.spec is None and not self.specs:
            raise ValueError("needs spec or specs")
        return self


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

    pod_selector: Selector | None = None
    namespace_selector: Selector | None = None
    ip_block: IpBlock | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        selects = self.pod_selector is not None or self.namespace_selector is not None
        if selects == (self.ip_block is not None):
            raise ValueError("needs podSelector and/or namespaceSelector, or ipBlock alone")
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

    pod_selector: Selector | None = None
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
