"""A small world to try policies in: pods in three namespaces, nodes, and addresses outside.

`World` puts it into a policy engine, keeps the identities of address prefixes as an agent would,
and answers whether a packet passes by looking entries up as the kernel does.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from cilium_core.identities import Families, LocalIdentityAllocator
from cilium_core.labels import Label, LabelSet
from cilium_core.policy import (
    ContainerPort,
    Direction,
    EndpointPolicy,
    PolicyEngine,
    PolicyEntry,
    PolicyKey,
    PolicyOptions,
    PrefixIdentities,
    Protocol,
    Subject,
    look_up,
)

from tests.unit.policy import oracle

if TYPE_CHECKING:
    from collections.abc import Iterable

TCP, UDP, SCTP, ICMP, ICMP6 = 6, 17, 132, 1, 58
SERVED = tuple(
    (f"serve-{number}-{name}", protocol, number)
    for number in (80, 81)
    for name, protocol in (("tcp", TCP), ("udp", UDP), ("sctp", SCTP))
)


def pod(
    namespace: str,
    labels: dict[str, str],
    *,
    namespace_labels: dict[str, str] | None = None,
    ports: Iterable[tuple[str, int, int]] = (),
    cluster: str = "default",
) -> oracle.Party:
    """A pod as both the engine and the oracle see it."""
    found = {key: ("k8s", value) for key, value in labels.items()}
    found[oracle.NS] = ("k8s", namespace)
    found[oracle.CLUSTER] = ("k8s", cluster)
    for key, value in (namespace_labels or {}).items():
        found[oracle.NS_LABEL + key] = ("k8s", value)
    return oracle.Party(found, None, tuple(ports))


def reserved(*names: str) -> oracle.Party:
    """A node, or something else with reserved labels only."""
    return oracle.Party(dict.fromkeys(names, ("reserved", "")))


def outside(address: str) -> oracle.Party:
    """An address that is no part of the cluster, in a cluster with both families."""
    version = ipaddress.ip_address(address).version
    return oracle.Party({f"world-ipv{version}": ("reserved", "")}, address)


def label_set(party: oracle.Party) -> LabelSet:
    return LabelSet(Label(source, key, value) for key, (source, value) in party.labels.items())


class World:
    """Parties, policies and the engine that judges between them."""

    def __init__(
        self, parties: dict[str, oracle.Party], options: PolicyOptions | None = None
    ) -> None:
        self.parties: dict[str, oracle.Party] = {}
        self.engine = PolicyEngine(options)
        self.prefixes = PrefixIdentities(Families(), LocalIdentityAllocator())
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.maps: dict[str, dict[PolicyKey, PolicyEntry]] = {}
        self.enforced: dict[str, tuple[bool, bool]] = {}
        self._numbers: dict[LabelSet, int] = {}
        for name, party in parties.items():
            self.put(name, party)
        self.flush()

    def put(self, name: str, party: oracle.Party) -> None:
        """Add a party, or give it other labels; pods become endpoints too."""
        old = self.parties.get(name)
        self.parties[name] = party
        if party.address is not None:
            return
        labels = label_set(party)
        identity = self.identity(party)
        self.engine.upsert_identity(identity, labels)
        ports = frozenset(
            ContainerPort(port, Protocol(protocol), number)
            for port, protocol, number in party.ports
        )
        self.engine.set_named_ports(name, identity, ports)
        self.engine.upsert_endpoint(name, Subject(identity, labels, ports))
        if old is not None:
            self._drop_unused(label_set(old))

    def take(self, name: str) -> None:
        """Remove a party."""
        party = self.parties.pop(name)
        if party.address is None:
            self.engine.remove_endpoint(name)
            self.engine.remove_named_ports(name)
            self.maps.pop(name, None)
            self._drop_unused(label_set(party))

    def _drop_unused(self, labels: LabelSet) -> None:
        used = {label_set(party) for party in self.parties.values() if party.address is None}
        if labels not in used and labels in self._numbers:
            self.engine.delete_identity(self._numbers.pop(labels))

    def identity(self, party: oracle.Party) -> int:
        """The numeric identity by which the data plane knows a party."""
        if party.address is not None:
            return self.prefixes.identity_of(ipaddress.ip_address(party.address)).id
        names = {"host": 1, "health": 4, "init": 5, "remote-node": 6, "unmanaged": 3, "ingress": 8}
        for key, (source, _) in party.labels.items():
            if source == "reserved" and len(party.labels) == 1:
                return names[key]
        # Never a number that was used before: stale entries would show.
        labels = label_set(party)
        if labels not in self._numbers:
            self._count = getattr(self, "_count", 999) + 1
            self._numbers[labels] = self._count
        return self._numbers[labels]

    def apply(self, *objects: dict[str, Any]) -> None:
        """Create or change policies and CIDR groups, and update every map once."""
        for obj in objects:
            if obj["kind"] == "CiliumCIDRGroup":
                self.engine.upsert_cidr_group(obj)
                self.objects["CiliumCIDRGroup", "", obj["metadata"]["name"]] = obj
                continue
            policy = self.engine.parse(obj)
            self.objects[policy.ref] = obj
            self.engine.upsert_policy(policy)
        self._follow_prefixes()
        self.flush()

    def delete(self, obj: dict[str, Any]) -> None:
        """Delete a policy or CIDR group."""
        if obj["kind"] == "CiliumCIDRGroup":
            del self.objects["CiliumCIDRGroup", "", obj["metadata"]["name"]]
            self.engine.delete_cidr_group(obj["metadata"]["name"])
        else:
            ref = self.engine.parse(obj).ref
            del self.objects[ref]
            self.engine.delete_policy(*ref)
        self._follow_prefixes()
        self.flush()

    def _follow_prefixes(self) -> None:
        change = self.prefixes.reconcile(self.engine.required_prefixes())
        for prefix, identity in change.removed.items():
            if prefix.prefixlen:
                self.engine.delete_identity(identity.id)
        for identity in change.added.values():
            self.engine.upsert_identity(identity.id, identity.labels)

    def flush(self) -> int:
        """Carry the engine's updates out on the maps; returns how many there were."""
        updates = self.engine.flush()
        for update in updates:
            entries = {} if update.full else self.maps[update.endpoint]
            assert not update.delta.remove - entries.keys()
            entries.update(update.delta.add)
            for key in update.delta.remove:
                del entries[key]
            self.maps[update.endpoint] = entries
            self.enforced[update.endpoint] = update.ingress_enforced, update.egress_enforced
        return len(updates)

    def passes_at(self, subject: str, direction: str, peer: str, protocol: int, port: int) -> bool:
        """Whether one end's map lets a packet through, enforcement flags ignored."""
        found = look_up(
            self.maps[subject],
            Direction[direction.upper()],
            self.identity(self.parties[peer]),
            protocol,
            port,
        )
        return found is not None and not found[1].deny

    def reaches(self, source: str, destination: str, port: int, protocol: int = TCP) -> bool:
        """Whether a connection passes at every end that has a map."""
        sends = source not in self.maps or self.passes_at(
            source, "egress", destination, protocol, port
        )
        return sends and (
            destination not in self.maps
            or self.passes_at(destination, "ingress", source, protocol, port)
        )

    def fresh_policy(self, name: str) -> EndpointPolicy:
        """The policy of an endpoint resolved from scratch by an engine that knows nothing yet."""
        engine = PolicyEngine(self.engine.options)
        for number, labels in self.engine.selectors.identities.items():
            engine.upsert_identity(number, labels)
        for obj in self.objects.values():
            if obj["kind"] == "CiliumCIDRGroup":
                engine.upsert_cidr_group(obj)
        for policy in self.engine.repository:
            engine.upsert_policy(policy.source)
        for other, party in self.parties.items():
            if party.address is None:
                ports = (ContainerPort(n, Protocol(p), i) for n, p, i in party.ports)
                engine.set_named_ports(other, self.identity(party), ports)
        party = self.parties[name]
        named = frozenset(ContainerPort(n, Protocol(p), i) for n, p, i in party.ports)
        return engine.resolve(Subject(self.identity(party), label_set(party), named))

    def setting(self) -> oracle.Setting:
        """What the oracle has to know beside policies and packets."""
        return oracle.Setting(
            mode=self.engine.options.enforcement.value,
            local_host=self.engine.options.allow_localhost,
            pods=tuple(party for party in self.parties.values() if party.address is None),
        )


def conformance_parties() -> dict[str, oracle.Party]:
    """Pods a, b, c in namespaces x, y, z, each serving ports 80 and 81 under names."""
    return {
        f"{namespace}/{name}": pod(
            namespace,
            {"pod": name},
            namespace_labels={"ns": namespace, "kubernetes.io/metadata.name": namespace},
            ports=SERVED,
        )
        for namespace in "xyz"
        for name in "abc"
    }


def surroundings() -> dict[str, oracle.Party]:
    """The own host, another node, and some addresses outside."""
    return {
        "host": reserved("host"),
        "node": reserved("remote-node"),
        "198.51.100.7": outside("198.51.100.7"),
        "10.0.0.1": outside("10.0.0.1"),
        "10.96.0.1": outside("10.96.0.1"),
        "fd00::1": outside("fd00::1"),
        "2001:db8::1": outside("2001:db8::1"),
    }


def cnp(
    spec: dict[str, Any] | None = None,
    *,
    name: str = "policy",
    namespace: str = "x",
    **fields: Any,
) -> dict[str, Any]:
    """A CiliumNetworkPolicy; keyword fields are those of its rule."""
    rule = spec if spec is not None else {"endpointSelector": {}, **fields}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": rule,
    }


def ccnp(
    spec: dict[str, Any] | None = None, *, name: str = "policy", **fields: Any
) -> dict[str, Any]:
    """A CiliumClusterwideNetworkPolicy; keyword fields are those of its rule."""
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": name},
        "spec": spec if spec is not None else {"endpointSelector": {}, **fields},
    }


def cidr_group(name: str, *cidrs: str, **labels: str) -> dict[str, Any]:
    """A CiliumCIDRGroup; keyword arguments are its labels."""
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumCIDRGroup",
        "metadata": {"name": name, "labels": labels},
        "spec": {"externalCIDRs": list(cidrs)},
    }


def knp(name: str = "policy", namespace: str = "x", **spec: Any) -> dict[str, Any]:
    """A NetworkPolicy with the given spec."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }
