"""What nodes write about themselves in the key-value store, with Cilium's JSON names.

Pure values and their JSON; nothing here talks to a store. `from_json` raises InvalidError, because
what lies in a shared store may come from anybody.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Any

from cilium_core.errors import InvalidError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

NODES = "cilium/state/nodes/v1/"
IPS = "cilium/state/ip/v1/default/"
POD_CIDRS = "cilium/state/podcidrs/v1/"
POLICY_FINDINGS = "cilium/state/policyfindings/v1/"
OPERATOR_LEADER = "cilium/state/leader/v1/operator"
HEARTBEAT = "cilium/.heartbeat"

INTERNAL_IP = "InternalIP"
"""Kind of a node's address on the network between nodes; tunnels end there."""
CILIUM_INTERNAL_IP = "CiliumInternalIP"
"""Kind of the address of cilium_host, the gateway of the node's pods."""


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """An address of a node; kinds are InternalIP, ExternalIP, CiliumInternalIP, Hostname."""

    kind: str
    ip: Address


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node as its agent announces it, below a lease."""

    name: str
    cluster: str = "default"
    addresses: tuple[NodeAddress, ...] = ()
    pod_cidrs: tuple[Network, ...] = ()
    health_ips: tuple[Address, ...] = ()
    cluster_id: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    encryption_key: int = 0
    wireguard_public_key: str = ""
    boot_id: str = ""

    @property
    def key(self) -> str:
        """Give the key of the record."""
        return f"{NODES}{self.cluster}/{self.name}"

    def address(self, version: int, kind: str = INTERNAL_IP) -> Address | None:
        """Give the first address of an IP version and kind."""
        for address in self.addresses:
            if address.kind == kind and address.ip.version == version:
                return address.ip
        return None

    def to_json(self) -> bytes:
        """Encode for the store."""
        v4 = [_go_network(cidr) for cidr in self.pod_cidrs if cidr.version == 4]
        v6 = [_go_network(cidr) for cidr in self.pod_cidrs if cidr.version == 6]
        health = {ip.version: str(ip) for ip in reversed(self.health_ips)}
        return _dump(
            {
                "Name": self.name,
                "Cluster": self.cluster,
                "IPAddresses": [{"Type": a.kind, "IP": str(a.ip)} for a in self.addresses],
                "IPv4AllocCIDR": v4[0] if v4 else None,
                "IPv4SecondaryAllocCIDRs": v4[1:],
                "IPv6AllocCIDR": v6[0] if v6 else None,
                "IPv6SecondaryAllocCIDRs": v6[1:],
                "IPv4HealthIP": health.get(4, ""),
                "IPv6HealthIP": health.get(6, ""),
                "ClusterID": self.cluster_id,
                "Source": "kvstore",
                "EncryptionKey": self.encryption_key,
                "Labels": self.labels,
                "Annotations": self.annotations,
                "NodeIdentity": 0,
                "WireguardPubKey": self.wireguard_public_key,
                "BootID": self.boot_id,
            }
        )

    @classmethod
    def from_json(cls, value: bytes) -> NodeRecord:
        """Decode. Raises InvalidError."""
        data = _load(value, "node record")
        try:
            cidrs = [
                *(data.get("IPv4AllocCIDR"), *(data.get("IPv4SecondaryAllocCIDRs") or ())),
                *(data.get("IPv6AllocCIDR"), *(data.get("IPv6SecondaryAllocCIDRs") or ())),
            ]
            health = [data.get("IPv4HealthIP"), data.get("IPv6HealthIP")]
            return cls(
                name=str(data["Name"]),
                cluster=str(data["Cluster"]),
                addresses=tuple(
                    NodeAddress(str(item["Type"]), ip_address(item["IP"]))
                    for item in data.get("IPAddresses") or ()
                ),
                pod_cidrs=tuple(_network(cidr) for cidr in cidrs if cidr),
                health_ips=tuple(ip_address(ip) for ip in health if ip),
                cluster_id=int(data.get("ClusterID", 0)),
                labels=dict(data.get("Labels") or {}),
                annotations=dict(data.get("Annotations") or {}),
                encryption_key=int(data.get("EncryptionKey", 0)),
                wireguard_public_key=str(data.get("WireguardPubKey", "")),
                boot_id=str(data.get("BootID", "")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidError(f"node record: {type(error).__name__} {error}") from None


@dataclass(frozen=True, slots=True)
class IPRecord:
    """Which identity an address or prefix has, and on which node it lives."""

    prefix: Network
    identity: int
    host_ip: Address | None = None
    encryption_key: int = 0
    namespace: str = ""
    pod_name: str = ""
    service_account: str = ""
    named_ports: tuple[tuple[str, int, str], ...] = ()
    """Name, port and protocol (`TCP`)."""
    metadata: str = ""

    @property
    def key(self) -> str:
        """Give the key of the record: the bare address for a single host."""
        return f"{IPS}{_shown(self.prefix)}"

    def to_json(self) -> bytes:
        """Encode for the store."""
        single = self.prefix.prefixlen == self.prefix.max_prefixlen
        return _dump(
            {
                "IP": str(self.prefix.network_address),
                "Mask": None if single else _go_network(self.prefix)["Mask"],
                "HostIP": str(self.host_ip) if self.host_ip else "",
                "ID": self.identity,
                "Key": self.encryption_key,
                "Metadata": self.metadata,
                "NamedPorts": [
                    {"Name": name, "Port": port, "Protocol": protocol}
                    for name, port, protocol in self.named_ports
                ],
                "K8sNamespace": self.namespace,
                "K8sPodName": self.pod_name,
                "K8sServiceAccount": self.service_account,
            }
        )

    @classmethod
    def from_json(cls, value: bytes) -> IPRecord:
        """Decode. Raises InvalidError."""
        data = _load(value, "IP record")
        try:
            host = data.get("HostIP")
            return cls(
                prefix=_network(data),
                identity=int(data["ID"]),
                host_ip=ip_address(host) if host else None,
                encryption_key=int(data.get("Key", 0)),
                namespace=str(data.get("K8sNamespace", "")),
                pod_name=str(data.get("K8sPodName", "")),
                service_account=str(data.get("K8sServiceAccount", "")),
                named_ports=tuple(
                    (str(item["Name"]), int(item["Port"]), str(item["Protocol"]))
                    for item in data.get("NamedPorts") or ()
                ),
                metadata=str(data.get("Metadata", "")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidError(f"IP record: {type(error).__name__} {error}") from None


@dataclass(frozen=True, slots=True, order=True)
class PolicyFinding:
    """A policy object that a node does not enforce as written; `reason` is one word."""

    kind: str
    namespace: str
    name: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class PolicyFindingsRecord:
    """Every policy object that a node does not enforce as written, below the node's lease."""

    cluster: str
    node: str
    findings: tuple[PolicyFinding, ...] = ()

    @property
    def key(self) -> str:
        """Give the key of the record."""
        return f"{POLICY_FINDINGS}{self.cluster}/{self.node}"

    def to_json(self) -> bytes:
        """Encode for the store."""
        return _dump(
            {
                "Cluster": self.cluster,
                "Node": self.node,
                "Findings": [
                    {
                        "Kind": one.kind,
                        "Namespace": one.namespace,
                        "Name": one.name,
                        "Reason": one.reason,
                        "Message": one.message,
                    }
                    for one in self.findings
                ],
            }
        )

    @classmethod
    def from_json(cls, value: bytes) -> PolicyFindingsRecord:
        """Decode. Raises InvalidError."""
        data = _load(value, "policy findings")
        try:
            return cls(
                cluster=str(data["Cluster"]),
                node=str(data["Node"]),
                findings=tuple(
                    PolicyFinding(
                        kind=str(one["Kind"]),
                        namespace=str(one["Namespace"]),
                        name=str(one["Name"]),
                        reason=str(one["Reason"]),
                        message=str(one["Message"]),
                    )
                    for one in data.get("Findings") or ()
                ),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidError(f"policy findings: {type(error).__name__} {error}") from None


def prefix_of_ip_key(key: str) -> Network:
    """Give the prefix that an IP record's key names. Raises InvalidError."""
    try:
        return ip_network(key.removeprefix(IPS))
    except ValueError as error:
        raise InvalidError(f"the key {key}: {error}") from None


@dataclass(frozen=True, slots=True)
class PodCIDRRecord:
    """What the operator assigned to a node; without a lease, it outlives both."""

    node: str
    pod_cidrs: tuple[Network, ...] = ()
    error: str = ""
    """Why the node has none, or not all it should."""

    @property
    def key(self) -> str:
        """Give the key of the record."""
        return f"{POD_CIDRS}{self.node}"

    def to_json(self) -> bytes:
        """Encode for the store."""
        return _dump({"podCIDRs": [str(cidr) for cidr in self.pod_cidrs], "error": self.error})

    @classmethod
    def from_json(cls, key: str, value: bytes) -> PodCIDRRecord:
        """Decode; the node is named by the key. Raises InvalidError."""
        data = _load(value, "pod CIDR record")
        try:
            cidrs = tuple(ip_network(cidr) for cidr in data.get("podCIDRs") or ())
        except (TypeError, ValueError) as error:
            raise InvalidError(f"pod CIDR record {key}: podCIDRs: {error}") from None
        return cls(key.removeprefix(POD_CIDRS), cidrs, str(data.get("error", "")))


def _dump(data: dict[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()


def _load(value: bytes, what: str) -> dict[str, Any]:
    try:
        data = json.loads(value)
    except ValueError as error:
        raise InvalidError(f"{what}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise InvalidError(f"{what}: not a JSON object")
    return data


def _go_network(network: Network) -> dict[str, str]:
    """Encode a network as Go's encoder does: the mask as base64 of its bytes."""
    mask = base64.b64encode(network.netmask.packed).decode()
    return {"IP": str(network.network_address), "Mask": mask}


def _network(data: dict[str, Any]) -> Network:
    address = ip_address(data["IP"])
    if not data.get("Mask"):
        return ip_network(address)
    bits = int.from_bytes(base64.b64decode(data["Mask"]), "big")
    return ip_network((address, bits.bit_count()))


def _shown(network: Network) -> str:
    if network.prefixlen == network.max_prefixlen:
        return str(network.network_address)
    return str(network)
