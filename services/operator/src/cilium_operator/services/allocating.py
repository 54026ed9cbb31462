"""Cluster addresses and node ports: which Service holds which, and what one should be given.

A `Ledger` is built from the Services as they are stored, oldest first, and asked about each that
changes. What a Service has in its spec is its own unless another came first; what it lacks it
gets. What it was given is remembered until it is gone, so that it gets the same again.

Pure bookkeeping: the objects are the truth, whoever becomes leader starts from them.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any, Final

from cilium_core.records import Address

from cilium_operator.services.reading import (
    EXTERNAL_NAME,
    FAMILIES,
    HEADLESS,
    LOAD_BALANCER,
    NODE_PORT,
    VERSIONS,
    Name,
    address,
    is_headless,
    is_local,
    mappings,
    name_of,
    number,
    protocol_of,
    spec_of,
    texts,
    type_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cilium_core.records import Network
    from cilium_core.resources.model import Object

_SINGLE: Final = "SingleStack"
_PREFER: Final = "PreferDualStack"
_REQUIRE: Final = "RequireDualStack"
_ALLOCATED: Final = ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that a Service does not get, or has and should not."""

    reason: str
    message: str


@dataclass(slots=True)
class _Holding:
    """What one Service holds."""

    addresses: dict[int, Address] = field(default_factory=dict)
    """By IP version."""
    ports: dict[tuple[str, int], int] = field(default_factory=dict)
    """Node ports by protocol and port."""
    health: int = 0


class Ledger:
    """Who holds which cluster address and node port."""

    def __init__(self, networks: Sequence[Network], ports: range) -> None:
        """Give addresses out of `networks`, at most one per family, and `ports`.

        The first network's family is that of Services that ask for none.
        """
        self._networks: dict[int, Network] = {network.version: network for network in networks}
        self._ports = ports
        # Those who choose a port themselves tend to take low ones: automatic ones begin later.
        self._automatic = min(max(16, len(ports) // 32), 128) if len(ports) > 16 else 0
        self._holdings: dict[Name, _Holding] = {}
        self._address_holders: dict[Address, Name] = {}
        self._port_holders: dict[int, Name] = {}

    def holder_of(self, wanted: Address | int) -> Name | None:
        """Who holds an address or a node port."""
        if isinstance(wanted, int):
            return self._port_holders.get(wanted)
        return self._address_holders.get(wanted)

    def holding(self, name: Name) -> frozenset[Address | int]:
        """What a Service holds."""
        held = self._holdings.get(name, _Holding())
        ports = {*held.ports.values(), held.health} - {0}
        return frozenset((*held.addresses.values(), *ports))

    def release(self, name: Name) -> None:
        """Note that a Service is gone."""
        self._keep(name, _Holding())

    def claim(self, item: Object) -> None:
        """Note what a Service has in its spec, as far as nobody else holds it; gives nothing."""
        self._settle(item, giving=False)

    def settle(self, item: Object) -> tuple[dict[str, Any], list[Problem]]:
        """Give the spec a Service should have, and what of it cannot be."""
        return self._settle(item, giving=True)

    def _settle(self, item: Object, *, giving: bool) -> tuple[dict[str, Any], list[Problem]]:
        name, spec = name_of(item), dict(spec_of(item))
        if type_of(spec) == EXTERNAL_NAME:
            self.release(name)
            return {key: value for key, value in spec.items() if key not in _ALLOCATED}, []
        problems: list[Problem] = []
        held = self._holdings.get(name, _Holding())
        kept = _Holding()
        self._settle_addresses(name, spec, held, kept, problems, giving=giving)
        self._settle_ports(name, spec, held, kept, problems, giving=giving)
        self._keep(name, kept)
        return spec, problems

    def _keep(self, name: Name, kept: _Holding) -> None:
        """Let a Service hold `kept` and nothing else."""
        held = self._holdings.pop(name, _Holding())
        for found in held.addresses.values():
            self._address_holders.pop(found, None)
        for port in {*held.ports.values(), held.health} - {0}:
            self._port_holders.pop(port, None)
        if kept.addresses or kept.ports or kept.health:
            self._holdings[name] = kept
        for found in kept.addresses.values():
            self._address_holders[found] = name
        for port in {*kept.ports.values(), kept.health} - {0}:
            self._port_holders[port] = name

    def _settle_addresses(
        self,
        name: Name,
        spec: dict[str, Any],
        held: _Holding,
        kept: _Holding,
        problems: list[Problem],
        *,
        giving: bool,
    ) -> None:
        written = texts(spec.get("clusterIPs")) or texts([spec.get("clusterIP")])
        headless = is_headless(spec)
        chosen = [] if headless else [found for text in written if (found := address(text))]
        if not headless and len(chosen) < len(written):
            problems.append(
                Problem("InvalidClusterIP", f"spec.clusterIPs: {written} are not all addresses")
            )
        families, policy = self._families(spec, chosen, problems)
        spec["ipFamilies"] = [FAMILIES[version] for version in families]
        spec["ipFamilyPolicy"] = policy
        if headless:
            spec |= {"clusterIP": HEADLESS, "clusterIPs": [HEADLESS]}
            return
        by_family: dict[int, Address] = {found.version: found for found in reversed(chosen)}
        given: list[Address] = []
        for version in families:
            found = by_family.get(version)
            if found is not None:
                problems += self._trouble_with(name, found)
                given.append(found)
            else:
                found = held.addresses.get(version)
                if found is None and giving:
                    found = self._free_address(name, version)
                if found is None:
                    problems.append(self._no_address(version))
                    break  # a first address that is missing leaves no place for a second
                given.append(found)
            if found is not None and self._address_holders.get(found, name) == name:
                kept.addresses[version] = found
        if given:
            spec |= {"clusterIP": str(given[0]), "clusterIPs": [str(one) for one in given]}

    def _families(
        self, spec: dict[str, Any], chosen: list[Address], problems: list[Problem]
    ) -> tuple[list[int], str]:
        """IP versions a Service is of, in order, and its policy about them."""
        written = [VERSIONS[text] for text in texts(spec.get("ipFamilies")) if text in VERSIONS]
        asked: list[int] = list(dict.fromkeys(written or [found.version for found in chosen]))
        policy = spec.get("ipFamilyPolicy")
        if policy not in (_SINGLE, _PREFER, _REQUIRE):
            both = len(asked) > 1 or (is_headless(spec) and not spec.get("selector"))
            policy = (_REQUIRE if len(asked) > 1 else _PREFER) if both else _SINGLE
        served = list(self._networks)
        if policy == _SINGLE:
            return (asked or served)[:1], policy
        families = asked + [version for version in served if version not in asked]
        if policy == _REQUIRE and len(families) < 2:
            problems.append(
                Problem(
                    "NoDualStack",
                    "spec.ipFamilyPolicy: RequireDualStack needs a network of each family in "
                    "service-cluster-ip-range",
                )
            )
        return families, policy

    def _trouble_with(self, name: Name, found: Address) -> list[Problem]:
        """What is wrong with an address that a Service has in its spec."""
        holder = self._address_holders.get(found, name)
        if holder != name:
            return [
                Problem(
                    "ClusterIPConflict",
                    f"spec.clusterIPs: {found} is held by the Service {'/'.join(holder)}; "
                    "choose another, or leave the field out",
                )
            ]
        network = self._networks.get(found.version)
        if network is None or found not in network:
            shown = network or f"no IPv{found.version} network"
            return [
                Problem(
                    "ClusterIPOutOfRange",
                    f"spec.clusterIPs: {found} lies outside of service-cluster-ip-range ({shown})",
                )
            ]
        return []

    def _free_address(self, name: Name, version: int) -> Address | None:
        """An address nobody holds."""
        network = self._networks.get(version)
        if network is None:
            return None
        make = IPv4Address if version == 4 else IPv6Address
        edge = 1 if network.num_addresses > 2 else 0  # network and broadcast addresses
        first, count = int(network.network_address) + edge, network.num_addresses - 2 * edge
        start = _spread(name, count)
        for step in range(min(count, len(self._address_holders) + 1)):
            found = make(first + (start + step) % count)
            if found not in self._address_holders:
                return found
        return None

    def _no_address(self, version: int) -> Problem:
        network = self._networks.get(version)
        if network is None:
            text = f"spec.ipFamilies: service-cluster-ip-range has no IPv{version} network"
            return Problem("NoClusterIP", text)
        return Problem(
            "NoClusterIP", f"every address of {network} is in use; widen service-cluster-ip-range"
        )

    def _settle_ports(
        self,
        name: Name,
        spec: dict[str, Any],
        held: _Holding,
        kept: _Holding,
        problems: list[Problem],
        *,
        giving: bool,
    ) -> None:
        kind = type_of(spec)
        if kind not in (NODE_PORT, LOAD_BALANCER):
            return
        ports = [dict(port) for port in mappings(spec.get("ports"))]
        wanted = kind == NODE_PORT or spec.get("allocateLoadBalancerNodePorts") is not False
        for at, port in enumerate(ports):
            key = protocol_of(port), number(port.get("port"))
            chosen = number(port.get("nodePort"))
            if chosen:
                problems += self._trouble_with_port(name, chosen, f"spec.ports[{at}].nodePort")
            elif wanted:
                chosen = self._port_again(name, port, ports, held)
                if not chosen and giving:
                    own = {number(one.get("nodePort")) for one in ports}
                    chosen = self._free_port(name, own | {held.health})
                if not chosen:
                    problems.append(self._no_port())
                    continue
                port["nodePort"] = chosen
            if chosen and self._port_holders.get(chosen, name) == name:
                kept.ports[key] = chosen
        if ports:
            spec["ports"] = ports
        if kind == LOAD_BALANCER and is_local(spec):
            self._settle_health(name, spec, held, kept, problems, giving=giving)

    def _port_again(self, name: Name, port: Object, ports: list[Object], held: _Holding) -> int:
        """The node port that a port had before, or that its twin of another protocol has; 0."""
        protocol = protocol_of(port)
        taken = {number(one.get("nodePort")) for one in ports if protocol_of(one) == protocol}
        twins = [
            number(one.get("nodePort")) for one in ports if one.get("port") == port.get("port")
        ]
        for found in (held.ports.get((protocol, number(port.get("port"))), 0), *twins):
            if found and found not in taken and self._port_holders.get(found, name) == name:
                return found
        return 0

    def _settle_health(
        self,
        name: Name,
        spec: dict[str, Any],
        held: _Holding,
        kept: _Holding,
        problems: list[Problem],
        *,
        giving: bool,
    ) -> None:
        """Settle the port at which nodes tell whether they have a backend."""
        chosen = number(spec.get("healthCheckNodePort"))
        own = set(kept.ports.values())
        if chosen:
            problems += self._trouble_with_port(name, chosen, "spec.healthCheckNodePort")
        else:
            chosen = held.health if held.health not in own else 0
            if not chosen and giving:
                chosen = self._free_port(name, own)
            if not chosen:
                problems.append(self._no_port())
                return
            spec["healthCheckNodePort"] = chosen
        if chosen and self._port_holders.get(chosen, name) == name:
            kept.health = chosen

    def _trouble_with_port(self, name: Name, chosen: int, path: str) -> list[Problem]:
        holder = self._port_holders.get(chosen, name)
        if holder != name:
            return [
                Problem(
                    "NodePortConflict",
                    f"{path}: {chosen} is held by the Service {'/'.join(holder)}; choose another, "
                    "or leave the field out",
                )
            ]
        if chosen not in self._ports:
            return [
                Problem(
                    "NodePortOutOfRange",
                    f"{path}: {chosen} lies outside of service-node-port-range "
                    f"({self._ports[0]}-{self._ports[-1]})",
                )
            ]
        return []

    def _free_port(self, name: Name, own: set[int]) -> int:
        """A node port that neither others nor the Service itself uses; 0 when there is none."""
        late = self._ports[self._automatic :]
        start = _spread(name, len(late))
        for ports in (late[start:], late[:start], self._ports[: self._automatic]):
            for port in ports:
                if port not in self._port_holders and port not in own:
                    return port
        return 0

    def _no_port(self) -> Problem:
        return Problem(
            "NoNodePort",
            f"every port of {self._ports[0]}-{self._ports[-1]} is in use; widen "
            "service-node-port-range",
        )


def _spread(name: Name, count: int) -> int:
    """Where to begin to look, so that what one has left is not at once another's."""
    return zlib.crc32("/".join(name).encode()) % count
