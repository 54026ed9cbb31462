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
    fqdn,
    look_up,
)
from cilium_core.policy.services import Services, read_service, read_slice

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


def node(name: str, labels: dict[str, str]) -> oracle.Party:
    """A node of the own cluster with labels, as nodes have them where policies select by them."""
    found = {key: ("node", value) for key, value in labels.items()}
    return oracle.Party({name: ("reserved", ""), oracle.CLUSTER: ("k8s", "default"), **found})


def outside(address: str, names: Iterable[str] = ()) -> oracle.Party:
    """An address that is no part of the cluster, in a cluster with both families."""
    version = ipaddress.ip_address(address).version
    world = {f"world-ipv{version}": ("reserved", "")}
    return oracle.Party(world, address, names=tuple(names))


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
        self.services: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.audited: tuple[str, ...] = ()
        self._numbers: dict[LabelSet, int] = {}
        self._learned: dict[Any, frozenset[Label]] = {}
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
            if source == "reserved" and (len(party.labels) == 1 or key == "host"):
                return names[key]
        # Never a number that was used before: stale entries would show.
        labels = label_set(party)
        if labels not in self._numbers:
            self._count = getattr(self, "_count", 999) + 1
            self._numbers[labels] = self._count
        return self._numbers[labels]

    def apply(self, *objects: dict[str, Any]) -> None:
        """Create or change policies, CIDR groups and services, and update every map once."""
        for obj in objects:
            if obj["kind"] == "CiliumCIDRGroup":
                self.engine.upsert_cidr_group(obj)
                self.objects["CiliumCIDRGroup", "", obj["metadata"]["name"]] = obj
                continue
            if obj["kind"] in ("Service", "EndpointSlice"):
                place = obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"]
                self.services[place] = obj
                self.engine.set_services(with_services(self.engine.bindings.services, obj))
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

    def audit_namespaces(self, *namespaces: str) -> None:
        """Have all policies of some namespaces only tell what they would refuse."""
        self.audited = namespaces
        self.engine.set_audited_namespaces(namespaces)
        self.flush()

    def _follow_prefixes(self) -> None:
        required = self.engine.required_prefixes()
        change = self.prefixes.change(
            required, self.prefixes.named - required, {**self._learned, **self._names()}
        )
        self._learned = dict.fromkeys(self._names(), frozenset[Label]())
        known = {identity.id for identity in self.prefixes.items().values()}
        for prefix, identity in change.removed.items():
            if prefix.prefixlen and identity.id not in known:
                self.engine.delete_identity(identity.id)
        for identity in change.added.values():
            self.engine.upsert_identity(identity.id, identity.labels)

    def _names(self) -> dict[Any, frozenset[Label]]:
        """The labels that addresses have of the names in force which they are known by."""
        selectors = self.engine.fqdn_selectors()
        return {
            ipaddress.ip_address(party.address): frozenset(
                selector.label
                for selector in selectors
                if any(fqdn.names_match(selector.text, name) for name in party.names)
            )
            for party in self.parties.values()
            if party.address is not None and party.names
        }

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
        for obj in self.services.values():
            engine.set_services(with_services(engine.bindings.services, obj))
        engine.set_audited_namespaces(self.audited)
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
            host_firewall=self.engine.options.host_firewall,
            services=tuple(self.services.values()),
            audited_namespaces=self.audited,
            pods=tuple(party for party in self.parties.values() if party.address is None),
        )


def with_services(services: Services, obj: dict[str, Any]) -> Services:
    """The services with an object of theirs, a Service or an EndpointSlice."""
    if obj["kind"] == "Service":
        return services.with_service(read_service(obj))
    return services.with_slice(*read_slice(obj))


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
