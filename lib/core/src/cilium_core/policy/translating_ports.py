"""`toPorts` and `icmps`, from model to normal form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from cilium_core.policy.findings import Findings
from cilium_core.policy.l7 import L7Kind, L7Match
from cilium_core.policy.models_ports import PortRule
from cilium_core.policy.options import PolicyOptions
from cilium_core.policy.ports import (
    EXTENDED_PROTOCOLS,
    PORT_MAX,
    PROTOCOL_NAMES,
    NamedPort,
    PortMatch,
    PortRange,
    Protocol,
    parse_port,
)
from cilium_core.policy.translating_l7 import L7Reader

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cilium_core.policy.models_peers import PeerItem
    from cilium_core.policy.models_ports import PortProtocol

_CARRIERS: Final = {
    L7Kind.DNS: frozenset((Protocol.TCP, Protocol.UDP)),
    L7Kind.HTTP: frozenset((Protocol.TCP,)),
    L7Kind.KAFKA: frozenset((Protocol.TCP,)),
    L7Kind.TLS: frozenset((Protocol.TCP,)),
}
"""The protocols that a proxy of each kind can read; ANY means these beside such rules."""


class PortList(NamedTuple):
    """The ports of one rule; None is every port. `path` is empty for the item as a whole."""

    ports: tuple[PortMatch, ...] | None
    l7: L7Match | None = None
    path: str = ""


@dataclass(frozen=True, slots=True)
class PortReader:
    """Reads the ports of the list items of one direction."""

    options: PolicyOptions
    findings: Findings
    l7: L7Reader

    def read(self, item: PeerItem, path: str) -> list[PortList]:
        """One list of ports for each rule that the item becomes."""
        if item.icmps:
            if not self.options.icmp_rules:
                self.findings.problem(f"{path}.icmps", "needs the option enable-icmp-rules")
            types = (field.to_range() for rule in item.icmps for field in rule.fields or ())
            return [PortList(tuple(types))]
        if not item.to_ports:
            return [PortList(None)]
        lists = []
        for index, rule in enumerate(item.to_ports):
            place = f"{path}.toPorts[{index}]"
            l7 = self.l7.read(rule, place) if isinstance(rule, PortRule) else None
            ports = [
                port
                for position, written in enumerate(rule.ports or ())
                for port in self._ports(written, f"{place}.ports[{position}]")
            ]
            lists.append(PortList(_carried(ports, l7), l7, place))
        return lists

    def _ports(self, written: PortProtocol, path: str) -> Sequence[PortMatch]:
        protocols = PROTOCOL_NAMES[written.protocol]
        extended = self.options.extended_protocols
        portless = not EXTENDED_PROTOCOLS.isdisjoint(protocols)
        if portless and not extended:
            self.findings.problem(
                f"{path}.protocol", "needs the option enable-extended-ip-protocols"
            )
        if written.port is None:
            if not extended:
                self.findings.problem(f"{path}.port", "is required")
            return [PortRange(protocol) for protocol in protocols]
        port = parse_port(written.port)
        if port != 0 and portless:
            self.findings.problem(
                f"{path}.port", f"{written.protocol} has no ports; leave port out"
            )
        if isinstance(port, str):
            if written.end_port:
                self.findings.warn(f"{path}.endPort", "has no effect on a named port")
            return [NamedPort(protocol, port) for protocol in protocols]
        if port == 0:
            return [PortRange(protocol) for protocol in protocols]
        last = max(port, written.end_port or 0)
        return [PortRange(protocol, port, min(last, PORT_MAX)) for protocol in protocols]


def _carried(ports: Iterable[PortMatch], l7: L7Match | None) -> tuple[PortMatch, ...]:
    """The ports that the rules can be enforced on; on the others of ANY nothing is allowed."""
    if l7 is None:
        return tuple(ports)
    return tuple(port for port in ports if port.protocol in _CARRIERS[l7.kind])
