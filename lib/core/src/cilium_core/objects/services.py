"""Service and EndpointSlice: what a Kubernetes API server would refuse is refused here as well."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, StrictBool, StrictInt, StrictStr, model_validator

from cilium_core.objects.bases import ObjectMetadata, Whatever
from cilium_core.policy.models_values import Cidr, Model

if TYPE_CHECKING:
    from collections.abc import Iterable

_DNS_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DNS_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\.?")
_PORT_NAME: Final = re.compile(r"(?=.*[a-z])[a-z0-9](-?[a-z0-9]+)*")
_HEADLESS: Final = "None"
_EXTERNAL: Final = ("NodePort", "LoadBalancer")

Protocol = Literal["TCP", "UDP", "SCTP"]
Family = Literal["IPv4", "IPv6"]
PortNumber = Annotated[StrictInt, Field(ge=1, le=65535)]


def _check_address(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"{text[:80]!r} is not an IP address") from None
    return text


def _check_cluster_ip(text: str) -> str:
    return text if text in ("", _HEADLESS) else _check_address(text)


def _check_external_ip(text: str) -> str:
    found = ipaddress.ip_address(_check_address(text))
    if found.is_loopback or found.is_unspecified or found.is_link_local or found.is_multicast:
        raise ValueError(f"{text} is an address that nobody outside can ask")
    return text


def _check_label(text: str) -> str:
    if text and not _DNS_LABEL.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is not a name of lower-case letters, digits and dashes")
    return text


def _check_target(value: int | str) -> int | str:
    if isinstance(value, int):
        if not 0 <= value <= 65535:
            raise ValueError(f"{value} is not a port; it must be from 1 to 65535")
    elif len(value) > 15 or not _PORT_NAME.fullmatch(value):
        raise ValueError(
            f"{value[:80]!r} is not the name of a port; use at most 15 lower-case letters, digits "
            "and dashes, and at least one letter"
        )
    return value


Address = Annotated[StrictStr, AfterValidator(_check_address)]
ClusterAddress = Annotated[StrictStr, AfterValidator(_check_cluster_ip)]
ExternalAddress = Annotated[StrictStr, AfterValidator(_check_external_ip)]
PortName = Annotated[StrictStr, AfterValidator(_check_label)]
TargetPort = Annotated[StrictInt | StrictStr, AfterValidator(_check_target)]


class ServicePort(Model):
    """A port of a Service, and where it leads."""

    name: PortName | None = None
    protocol: Protocol | None = None
    app_protocol: StrictStr | None = None
    port: PortNumber
    target_port: TargetPort | None = None
    node_port: Annotated[StrictInt, Field(ge=0, le=65535)] | None = None


class ClientIPConfig(Model):
    """How long a client stays with its backend, in seconds."""

    timeout_seconds: Annotated[StrictInt, Field(ge=1, le=86400)] | None = None


class AffinityConfig(Model):
    """Settings of the session affinity."""

    client_ip: ClientIPConfig | None = Field(default=None, alias="clientIP")


class ServiceSpec(Model):
    """The `spec` of Service."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] | None = None
    ports: list[ServicePort] | None = None
    selector: dict[StrictStr, StrictStr] | None = None
    cluster_ip: ClusterAddress | None = Field(default=None, alias="clusterIP")
    cluster_ips: Annotated[list[ClusterAddress], Field(max_length=2)] | None = Field(
        default=None, alias="clusterIPs"
    )
    ip_families: Annotated[list[Family], Field(max_length=2)] | None = None
    ip_family_policy: Literal["SingleStack", "PreferDualStack", "RequireDualStack"] | None = None
    external_ips: list[ExternalAddress] | None = Field(default=None, alias="externalIPs")
    external_name: StrictStr | None = None
    external_traffic_policy: Literal["Cluster", "Local"] | None = None
    internal_traffic_policy: Literal["Cluster", "Local"] | None = None
    health_check_node_port: Annotated[StrictInt, Field(ge=0, le=65535)] | None = None
    publish_not_ready_addresses: StrictBool | None = None
    session_affinity: Literal["None", "ClientIP"] | None = None
    session_affinity_config: AffinityConfig | None = None
    load_balancer_ip: StrictStr | None = Field(default=None, alias="loadBalancerIP")
    load_balancer_source_ranges: list[Cidr] | None = None
    load_balancer_class: StrictStr | None = None
    allocate_load_balancer_node_ports: StrictBool | None = None
    traffic_distribution: StrictStr | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_ports()
        self._check_addresses()
        kind = self.type or "ClusterIP"
        if kind == "ExternalName" and not _DNS_NAME.fullmatch(self.external_name or ""):
            raise ValueError("externalName must be a DNS name where the type is ExternalName")
        if self.external_traffic_policy and kind not in _EXTERNAL and not self.external_ips:
            raise ValueError(
                "externalTrafficPolicy needs the type NodePort or LoadBalancer, or externalIPs"
            )
        local = kind == "LoadBalancer" and self.external_traffic_policy == "Local"
        if self.health_check_node_port and not local:
            raise ValueError(
                "healthCheckNodePort needs the type LoadBalancer and the externalTrafficPolicy "
                "Local"
            )
        if self.load_balancer_source_ranges and kind != "LoadBalancer":
            raise ValueError("loadBalancerSourceRanges needs the type LoadBalancer")
        return self

    def _check_ports(self) -> None:
        ports, kind = self.ports or [], self.type or "ClusterIP"
        if not ports and kind != "ExternalName" and not self._headless:
            raise ValueError("ports is empty; give at least one")
        if len(ports) > 1:
            if not all(port.name for port in ports):
                raise ValueError("ports need a name each where there are several")
            _check_once("the name", (port.name for port in ports))
        _check_once("the port", ((port.protocol or "TCP", port.port) for port in ports))
        chosen = [(port.protocol or "TCP", port.node_port) for port in ports if port.node_port]
        _check_once("the nodePort", chosen)
        if chosen and kind not in _EXTERNAL:
            raise ValueError("nodePort in ports needs the type NodePort or LoadBalancer")

    def _check_addresses(self) -> None:
        several = self.cluster_ips or []
        if several and self.cluster_ip and several[0] != self.cluster_ip:
            raise ValueError("the first of clusterIPs is not the clusterIP")
        chosen = several or ([self.cluster_ip] if self.cluster_ip else [])
        if self.type == "ExternalName" and chosen:
            raise ValueError("clusterIP has no meaning where the type is ExternalName; remove it")
        if self._headless:
            if self.type in _EXTERNAL:
                raise ValueError(f"clusterIP None cannot be of the type {self.type}")
            return
        versions = [f"IPv{ipaddress.ip_address(text).version}" for text in chosen if text]
        _check_once("the family of clusterIPs", versions)
        _check_once("the family", self.ip_families or ())
        for version, family in zip(versions, self.ip_families or versions, strict=False):
            if version != family:
                raise ValueError(f"clusterIPs and ipFamilies differ: {version}, {family}")

    @property
    def _headless(self) -> bool:
        return self.cluster_ip == _HEADLESS or (self.cluster_ips or [])[:1] == [_HEADLESS]


def _check_once(what: str, values: Iterable[object]) -> None:
    for value, count in Counter(values).items():
        if count > 1:
            shown = "/".join(map(str, value[::-1])) if isinstance(value, tuple) else value
            raise ValueError(f"{what} {shown} stands here more than once")


class ServiceObject(Model):
    """Service."""

    api_version: Literal["v1"]
    kind: Literal["Service"]
    metadata: ObjectMetadata
    spec: ServiceSpec
    status: Any = None


class EndpointConditions(Model):
    """What may be asked of an endpoint."""

    ready: StrictBool | None = None
    serving: StrictBool | None = None
    terminating: StrictBool | None = None


class Endpoint(Model):
    """Where a Service is served."""

    addresses: Annotated[list[StrictStr], Field(min_length=1, max_length=100)]
    conditions: EndpointConditions | None = None
    hostname: StrictStr | None = None
    target_ref: Whatever = None
    deprecated_topology: dict[StrictStr, StrictStr] | None = None
    node_name: StrictStr | None = None
    zone: StrictStr | None = None
    hints: Whatever = None


class EndpointPort(Model):
    """A port at which the endpoints of a slice serve."""

    name: PortName | None = None
    protocol: Protocol | None = None
    port: PortNumber | None = None
    app_protocol: StrictStr | None = None


class SliceObject(Model):
    """EndpointSlice."""

    api_version: Literal["discovery.k8s.io/v1"]
    kind: Literal["EndpointSlice"]
    metadata: ObjectMetadata
    address_type: Literal["IPv4", "IPv6", "FQDN"]
    endpoints: Annotated[list[Endpoint], Field(max_length=1000)] | None = None
    ports: Annotated[list[EndpointPort], Field(max_length=100)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.address_type == "FQDN":
            return self
        for endpoint in self.endpoints or ():
            for text in endpoint.addresses:
                found = ipaddress.ip_address(_check_address(text))
                if f"IPv{found.version}" != self.address_type:
                    raise ValueError(
                        f"{text} is no {self.address_type} address, as addressType says"
                    )
        return self
