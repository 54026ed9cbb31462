"""Ports, protocols and ICMP types: their names, and how ranges become prefixes.

Everything is a pure function of values. A range is kept whole in a rule and split into aligned
blocks only for the policy map, where protocol and port form a prefix of up to 24 bits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

PORT_MAX: Final = 65535


class Protocol(IntEnum):
    """IP protocol numbers that a policy can name."""

    ICMP = 1
    IGMP = 2
    TCP = 6
    UDP = 17
    ICMPV6 = 58
    VRRP = 112
    SCTP = 132


ANY_PROTOCOLS: Final = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)
"""What `ANY` stands for; never ICMP."""

EXTENDED_PROTOCOLS: Final = frozenset({Protocol.VRRP, Protocol.IGMP})
"""Protocols without ports, behind an option of their own."""

PROTOCOL_NAMES: Final[Mapping[str, tuple[Protocol, ...]]] = {
    "ANY": ANY_PROTOCOLS,
    **{name: (Protocol[name],) for name in ("TCP", "UDP", "SCTP", "VRRP", "IGMP")},
}


class L4Prefix(NamedTuple):
    """The protocol and port part of a policy map key.

    `length` counts the significant bits: 0 is every protocol, 8 every port of one protocol, 24 one
    port. `port` is in host order with the insignificant bits zero; for ICMP it holds the type.
    """

    protocol: int
    port: int
    length: int

    def covers(self, protocol: int, port: int) -> bool:
        """Whether a packet's protocol and destination port (ICMP: type) fall into the prefix."""
        if self.length == 0:
            return True
        shift = 24 - self.length
        return self.protocol == protocol and self.port >> shift == port >> shift


ANY_L4: Final = L4Prefix(0, 0, 0)


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports `first` to `last`, both inclusive, of one protocol; 0 to 65535 is every port.

    For ICMP both are the type, so that type 0 is one type and not all of them.
    """

    protocol: Protocol
    first: int = 0
    last: int = PORT_MAX

    def prefixes(self) -> tuple[L4Prefix, ...]:
        """The least number of aligned blocks that cover the range exactly."""
        blocks = []
        first = self.first
        while first <= self.last:
            size = (first & -first) or PORT_MAX + 1
            while first + size - 1 > self.last:
                size >>= 1
            blocks.append(L4Prefix(int(self.protocol), first, 25 - size.bit_length()))
            first += size
        return tuple(blocks)


@dataclass(frozen=True, slots=True)
class NamedPort:
    """A port given by the name that a container gives it; `name` is in lower case."""

    protocol: Protocol
    name: str


PortMatch = PortRange | NamedPort


class ContainerPort(NamedTuple):
    """A port that a pod serves under a name."""

    name: str
    protocol: Protocol
    port: int


_NUMBER: Final = re.compile(r"[0-9]+", re.ASCII)
_SERVICE_NAME: Final = re.compile(r"(?=[a-z0-9-]{1,15}\Z)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")


def parse_port(text: str) -> int | str:
    """Read a port number (0 to 65535) or a service name, which is returned in lower case.

    Raises `ValueError` for anything else. A leading zero is refused, since it would be read as
    octal by some and as decimal by others.
    """
    if _NUMBER.fullmatch(text):
        if len(text) > 5 or int(text) > PORT_MAX or (len(text) > 1 and text[0] == "0"):
            raise ValueError(
                f"port {text[:20]!r} must be a number from 0 to {PORT_MAX} without leading zeros"
            )
        return int(text)
    name = text.lower()
    if not _SERVICE_NAME.fullmatch(name):
        raise ValueError(
            f"port {text[:40]!r} is neither a number nor a service name (at most 15 letters, "
            "digits and single dashes, with at least one letter)"
        )
    return name


_ICMP4_TYPES: Final = {
    "EchoReply": 0,
    "DestinationUnreachable": 3,
    "Redirect": 5,
    "Echo": 8,
    "EchoRequest": 8,
    "RouterAdvertisement": 9,
    "RouterSelection": 10,
    "TimeExceeded": 11,
    "ParameterProblem": 12,
    "Timestamp": 13,
    "TimestampReply": 14,
    "Photuris": 40,
    "ExtendedEchoRequest": 42,
    "ExtendedEchoReply": 43,
}
_ICMP6_TYPES: Final = {
    "DestinationUnreachable": 1,
    "PacketTooBig": 2,
    "TimeExceeded": 3,
    "ParameterProblem": 4,
    "EchoRequest": 128,
    "EchoReply": 129,
    "MulticastListenerQuery": 130,
    "MulticastListenerReport": 131,
    "MulticastListenerDone": 132,
    "RouterSolicitation": 133,
    "RouterAdvertisement": 134,
    "NeighborSolicitation": 135,
    "NeighborAdvertisement": 136,
    "RedirectMessage": 137,
    "RouterRenumbering": 138,
    "ICMPNodeInformationQuery": 139,
    "ICMPNodeInformationResponse": 140,
    "InverseNeighborDiscoverySolicitation": 141,
    "InverseNeighborDiscoveryAdvertisement": 142,
    "HomeAgentAddressDiscoveryRequest": 144,
    "HomeAgentAddressDiscoveryReply": 145,
    "MobilePrefixSolicitation": 146,
    "MobilePrefixAdvertisement": 147,
    "DuplicateAddressRequestCodeSuffix": 157,
    "DuplicateAddressConfirmationCodeSuffix": 158,
    "ExtendedEchoRequest": 160,
    "ExtendedEchoReply": 161,
}
_ICMP_FAMILIES: Final[Mapping[str, tuple[Protocol, Mapping[str, int]]]] = {
    "IPv4": (Protocol.ICMP, _ICMP4_TYPES),
    "IPv6": (Protocol.ICMPV6, _ICMP6_TYPES),
}
ICMP_NAMES: Final = tuple(dict.fromkeys((*_ICMP4_TYPES, *_ICMP6_TYPES)))
"""The names of ICMP types, of either family."""


def icmp_range(family: str, icmp_type: int | str) -> PortRange:
    """One ICMP type, by number (0 to 255) or name, of family `IPv4` or `IPv6`.

    Raises `ValueError` for an unknown name, or one that belongs to the other family only.
    """
    protocol, names = _ICMP_FAMILIES[family]
    if isinstance(icmp_type, str):
        # The real schema spells one name with a blank inside.
        name = icmp_type.replace(" ", "")
        if name in names:
            icmp_type = names[name]
        elif _NUMBER.fullmatch(name) and len(name) <= 3:
            icmp_type = int(name)
        else:
            raise ValueError(f"{icmp_type[:60]!r} is not an {family} ICMP type")
    if not 0 <= icmp_type <= 255:
        raise ValueError("an ICMP type is a number from 0 to 255 or a name")
    return PortRange(protocol, icmp_type, icmp_type)
