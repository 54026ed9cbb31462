"""CiliumEndpoint, the state of a pod's network, and CiliumEndpointSlice, a bundle of them."""

from __future__ import annotations

from typing import Literal

from pydantic import StrictBool, StrictInt, StrictStr

from cilium_core.objects.bases import Dashed, Int64, ObjectMetadata, Whatever
from cilium_core.policy.models_values import Model

State = Literal[
    "creating",
    "waiting-for-identity",
    "not-ready",
    "waiting-to-regenerate",
    "regenerating",
    "restoring",
    "ready",
    "disconnecting",
    "disconnected",
    "invalid",
]


class AddressPair(Model):
    """An IPv4 and an IPv6 address, or one of them."""

    ipv4: StrictStr | None = None
    ipv6: StrictStr | None = None


class EndpointNetworking(Model):
    """The addresses of an endpoint, and of its node."""

    addressing: list[AddressPair]
    node: StrictStr | None = None


class EndpointIdentity(Model):
    """The identity of an endpoint: its number and the labels that it stands for."""

    id: Int64 | None = None
    labels: list[StrictStr] | None = None


class ExternalIdentifiers(Dashed):
    """What others call the endpoint."""

    cni_attachment_id: StrictStr | None = None
    container_id: StrictStr | None = None
    container_name: StrictStr | None = None
    docker_endpoint_id: StrictStr | None = None
    docker_network_id: StrictStr | None = None
    k8s_namespace: StrictStr | None = None
    k8s_pod_name: StrictStr | None = None
    pod_name: StrictStr | None = None


class AllowedIdentity(Dashed):
    """A peer that policy names, with port and protocol."""

    identity: Int64 | None = None
    identity_labels: dict[StrictStr, StrictStr] | None = None
    dest_port: StrictInt | None = None
    protocol: StrictInt | None = None


class EndpointDirection(Model):
    """The policy of one direction."""

    enforcing: StrictBool
    state: Literal["enforcing", "non-enforcing", "disabled"] | None = None
    allowed: list[AllowedIdentity] | None = None
    denied: list[AllowedIdentity] | None = None
    adding: list[AllowedIdentity] | None = None
    removing: list[AllowedIdentity] | None = None


class EndpointPolicyState(Model):
    """The policy of both directions."""

    ingress: EndpointDirection | None = None
    egress: EndpointDirection | None = None


class NamedPortModel(Model):
    """A port that a container names."""

    name: StrictStr | None = None
    port: StrictInt | None = None
    protocol: StrictStr | None = None


class EncryptionKey(Model):
    """The key of an endpoint's or node's encrypted traffic."""

    key: StrictInt | None = None


class EndpointHealth(Model):
    """How the parts of an endpoint are."""

    bpf: StrictStr | None = None
    connected: StrictBool | None = None
    overall_health: StrictStr | None = None
    policy: StrictStr | None = None


class ControllerModel(Model):
    """A recurring job of an endpoint."""

    name: StrictStr | None = None
    uuid: StrictStr | None = None
    configuration: Whatever = None
    status: Whatever = None


class LogEntry(Model):
    """A change of an endpoint's state."""

    code: StrictStr | None = None
    message: StrictStr | None = None
    state: StrictStr | None = None
    timestamp: StrictStr | None = None


class EndpointStatusModel(Dashed):
    """The `status` of CiliumEndpoint; it has no spec."""

    id: Int64 | None = None
    identity: EndpointIdentity | None = None
    networking: EndpointNetworking | None = None
    external_identifiers: ExternalIdentifiers | None = None
    state: State | None = None
    policy: EndpointPolicyState | None = None
    named_ports: list[NamedPortModel] | None = None
    encryption: EncryptionKey | None = None
    health: EndpointHealth | None = None
    controllers: list[ControllerModel] | None = None
    log: list[LogEntry] | None = None
    service_account: StrictStr | None = None


class EndpointObject(Model):
    """CiliumEndpoint."""

    api_version: Literal["cilium.io/v2"]
    kind: Literal["CiliumEndpoint"]
    metadata: ObjectMetadata
    status: EndpointStatusModel | None = None


class CoreEndpoint(Dashed):
    """One endpoint of a slice."""

    name: StrictStr | None = None
    id: Int64 | None = None
    networking: EndpointNetworking | None = None
    encryption: EncryptionKey | None = None
    named_ports: list[NamedPortModel] | None = None
    service_account: StrictStr | None = None


class EndpointSliceObject(Model):
    """CiliumEndpointSlice: endpoints of one namespace."""

    api_version: Literal["cilium.io/v2alpha1"]
    kind: Literal["CiliumEndpointSlice"]
    metadata: ObjectMetadata
    namespace: StrictStr | None = None
    endpoints: list[CoreEndpoint]
