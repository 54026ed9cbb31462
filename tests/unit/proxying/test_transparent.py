"""Addresses of packets that were meant for somebody else."""

from __future__ import annotations

import socket
import struct

import pytest
from cilium_core.proxying import transparent


def test_the_original_destination_is_read_from_ancillary_data():
    v4 = struct.pack("=H", socket.AF_INET) + b"\x00\x35" + socket.inet_aton("10.96.0.10") + bytes(8)
    address = socket.inet_pton(socket.AF_INET6, "fd00::a")
    v6 = struct.pack("=H", socket.AF_INET6) + b"\x00\x35" + bytes(4) + address + bytes(4)
    read = transparent.original_destination

    assert read([(socket.IPPROTO_IP, transparent.IP_ORIGDSTADDR, v4)]) == ("10.96.0.10", 53)
    assert read([(socket.IPPROTO_IPV6, transparent.IPV6_ORIGDSTADDR, v6)]) == ("fd00::a", 53)
    assert read([(socket.IPPROTO_IP, transparent.IP_ORIGDSTADDR, v4[:4])]) is None
    assert read([(socket.SOL_SOCKET, 1, b"")]) is None


@pytest.mark.parametrize(
    ("text", "size"),
    [("10.0.0.1", 4), ("fd00::1", 16), ("::ffff:10.0.0.1", 4), ("fe80::1%eth0", 16)],
)
def test_addresses_are_packed(text, size):
    assert len(transparent.packed(text)) == size


def test_marks_tell_the_direction():
    assert transparent.mark_of(ingress=True) == 0x0A00
    assert transparent.mark_of(ingress=False) == 0x0B00
