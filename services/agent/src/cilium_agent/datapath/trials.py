"""Trials: packets that nobody sent, run through the loaded programs to see what they would do.

A trial is a dry run (`enum dry_run` in bpf/lib/abi.h): the program judges the packet as the first
of a new connection under the maps as they are, leaves no trace and sends nothing.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from cilium_core import abi
from cilium_core.policy import Protocol

from cilium_agent.datapath import syscalls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cilium_agent.datapath.devices import Devices

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_SEQUENCE: Final = 1
_SYN: Final = 0x02
_WINDOW: Final = 64240
_TTL: Final = 64
_SKB_SIZE: Final = 192
_SKB_MARK: Final = 8
_SKB_IFINDEX: Final = 40
_SKB_CB: Final = 48
_NO_MAC: Final = bytes(6)


class Outcome(IntEnum):
    """What became of the packet at one end; the numbers are those of `enum outcome`."""

    NOT_ASKED = 0
    """No policy is enforced there, the end is elsewhere, or the packet did not get that far."""

    ALLOWED = 1
    DENIED = 2
    REDIRECTED = 3
    AUDITED = 4
    """Would be denied, but is only reported."""


class Answer(NamedTuple):
    """The verdict at one end, and the cookie of the entry that gave it."""

    outcome: Outcome
    cookie: int


@dataclass(frozen=True, slots=True)
class Trial:
    """What the programs did.

    `reason` is the drop code, 0 when the packet would go on; `proxy_port` is 0 without a redirect.
    `frontend` and `backend` are the ids of the service that was asked and of who was chosen, 0
    without.
    """

    egress: Answer
    ingress: Answer
    reason: int
    proxy_port: int
    frontend: int = 0
    backend: int = 0


class Packet(NamedTuple):
    """The first packet of a connection; `port` is the destination's, or the ICMP type.

    `source_port` is the one it comes from, or the identifier of ICMP.
    """

    source: Address
    destination: Address
    protocol: int
    port: int
    source_port: int = 61234

    def encode(self, source_mac: bytes = _NO_MAC, destination_mac: bytes = _NO_MAC) -> bytes:
        """The frame. Checksums above IP are left out, as programs leave them to the receiver."""
        payload = _transport(self.protocol, self.port, self.source_port)
        if self.source.version == 4:
            kind = 0x0800
            header = struct.pack(
                "!BBHHHBBH4s4s",
                0x45,
                0,
                20 + len(payload),
                0,
                0x4000,
                _TTL,
                self.protocol,
                0,
                self.source.packed,
                self.destination.packed,
            )
            header = header[:10] + struct.pack("!H", _checksum(header)) + header[12:]
        else:
            kind = 0x86DD
            header = struct.pack(
                "!IHBB16s16s",
                6 << 28,
                len(payload),
                self.protocol,
                _TTL,
                self.source.packed,
                self.destination.packed,
            )
        return destination_mac + source_mac + struct.pack("!H", kind) + header + payload


class Trials:
    """Runs packets through the programs of this node."""

    def __init__(self, programs: Mapping[str, int], devices: Devices) -> None:
        """`programs` are descriptors by name."""
        self._programs = programs
        self._devices = devices

    def from_pod(self, packet: Packet, ifindex: int, mac: str, node_mac: str) -> Trial:
        """A pod of this node sends the packet; `ifindex` is its device on the node's side."""
        frame = packet.encode(_mac(mac), _mac(node_mac))
        return self._run("cil_from_container", frame, ifindex)

    def from_node(self, packet: Packet, identity: int) -> Trial:
        """A pod of another node, with this identity, sends the packet."""
        program = f"tail_from_overlay_ipv{packet.source.version}"
        return self._run(program, packet.encode(), self._devices.tunnel, identity)

    def from_network(self, packet: Packet) -> Trial:
        """The packet comes from outside the cluster."""
        ifindex = next(iter(self._devices.node.values()), 0)
        return self._run("cil_from_netdev", packet.encode(), ifindex)

    def from_host(self, packet: Packet, ifindex: int) -> Trial:
        """A process of this node sends the packet to a pod's device."""
        return self._run("cil_to_container", packet.encode(), ifindex)

    def _run(self, program: str, frame: bytes, ifindex: int, cb: int = 0) -> Trial:
        context = bytearray(_SKB_SIZE)
        struct.pack_into("=I", context, _SKB_MARK, abi.MARK_DRY_RUN)
        struct.pack_into("=I", context, _SKB_IFINDEX, ifindex)
        struct.pack_into("=I", context, _SKB_CB, cb)
        done = syscalls.run_packet(self._programs[program], frame, bytes(context))
        words = struct.unpack_from("=5I", done.context, _SKB_CB)
        outcomes, reason = words[abi.DRY_RUN_OUTCOMES], words[abi.DRY_RUN_REASON]
        egress, ingress = Outcome(outcomes & 0xFF), Outcome(outcomes >> 8 & 0xFF)
        redirected = Outcome.REDIRECTED in (egress, ingress) and Outcome.DENIED not in (
            egress,
            ingress,
        )
        return Trial(
            Answer(egress, words[abi.DRY_RUN_EGRESS_COOKIE]),
            Answer(ingress, words[abi.DRY_RUN_INGRESS_COOKIE]),
            reason=0 if redirected else reason,
            proxy_port=reason if redirected else 0,
            frontend=words[abi.DRY_RUN_MATCHES] >> 16,
            backend=outcomes >> 16,
        )


def _transport(protocol: int, port: int, source_port: int) -> bytes:
    match protocol:
        case Protocol.TCP:
            return struct.pack(
                "!HHIIBBHHH", source_port, port, _SEQUENCE, 0, 5 << 4, _SYN, _WINDOW, 0, 0
            )
        case Protocol.UDP:
            return struct.pack("!HHHH", source_port, port, 8, 0)
        case Protocol.SCTP:
            # an INIT chunk with one stream each way
            chunk = struct.pack("!BBHIIHHI", 1, 0, 20, _SEQUENCE, 65536, 1, 1, _SEQUENCE)
            return struct.pack("!HHII", source_port, port, 0, 0) + chunk
        case Protocol.ICMP | Protocol.ICMPV6:
            return struct.pack("!BBHHH", port, 0, 0, source_port, 1)
        case _:
            return b""


def _checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
