# SPDX-License-Identifier: Apache-2.0
"""Addresses with ports and protocols, as people write and read them. Pure."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, NamedTuple

from cilium_core.verdict_texts import PROTOCOLS, protocol_text

if TYPE_CHECKING:
    from cilium.agent.v1.agent_pb2 import ServiceAddress

_NUMBERS = {name: number for number, name in PROTOCOLS.items() if name in {"TCP", "UDP", "SCTP"}}
_HOST = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<four>[0-9.]+)):(?P<port>[0-9]{1,5})")
_PORT_MAX = 65535


class Endpoint(NamedTuple):
    """An address with its port."""

    ip: str
    port: int


def address_text(address: str, port: int) -> str:
    """Return `10.0.1.15:8080` or `[fd00::1]:8080`."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def service_address_text(at: ServiceAddress) -> str:
    """Return `10.96.4.20:80/TCP`, or the address as a whole with `:*`."""
    if not at.port:
        return address_text(at.ip, 0)[:-1] + "*"
    return f"{address_text(at.ip, at.port)}/{protocol_text(at.protocol)}"


def read_endpoint(text: str) -> Endpoint:
    """Read `10.96.4.20:80` or `[fd00::1]:80`. Raises ValueError with a text for people."""
    found = _HOST.fullmatch(text)
    try:
        if found is None or not 0 < int(found["port"]) <= _PORT_MAX:
            raise ValueError(text)
        address = ipaddress.ip_address(found["six"] or found["four"])
        if (address.version == 6) != bool(found["six"]):
            raise ValueError(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is no address with a port, such as 10.96.0.10:53 or [fd00::10]:53"
        ) from None
    return Endpoint(str(address), int(found["port"]))


def read_protocol(text: str) -> int:
    """Read the name of a protocol that has ports. Raises ValueError with a text for people."""
    number = _NUMBERS.get(text.upper())
    if number is None:
        raise ValueError(f"{text!r} is none of {', '.join(_NUMBERS)}")
    return number
