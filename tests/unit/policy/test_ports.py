"""Ports: numbers, names, ICMP types, and ranges as prefixes."""

from __future__ import annotations

import pytest
from cilium_core.policy.ports import L4Prefix, PortRange, Protocol, icmp_range, parse_port
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("first", "last", "blocks"),
    [
        (80, 80, [(80, 24)]),
        (80, 95, [(80, 20)]),
        (4096, 8191, [(4096, 12)]),
        (0, 65535, [(0, 8)]),
        (0, 0, [(0, 24)]),
    ],
)
def test_a_range_becomes_aligned_blocks(first, last, blocks):
    prefixes = PortRange(Protocol.TCP, first, last).prefixes()

    assert [(prefix.port, prefix.length) for prefix in prefixes] == blocks


@pytest.mark.parametrize(("first", "last", "count"), [(80, 444, 9), (1, 65535, 16)])
def test_a_range_takes_the_least_number_of_blocks(first, last, count):
    assert len(PortRange(Protocol.TCP, first, last).prefixes()) == count


@given(st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 65535))
def test_the_blocks_of_a_range_cover_it_exactly_and_once(one, other, port):
    first, last = sorted((one, other))

    covering = [
        prefix
        for prefix in PortRange(Protocol.UDP, first, last).prefixes()
        if prefix.covers(17, port)
    ]

    assert len(covering) == (first <= port <= last)


def test_a_prefix_of_no_bits_covers_every_protocol():
    assert L4Prefix(0, 0, 0).covers(47, 0)
    assert not L4Prefix(6, 0, 8).covers(17, 80)


@pytest.mark.parametrize(
    ("text", "port"),
    [("80", 80), ("0", 0), ("65535", 65535), ("HTTP-alt", "http-alt"), ("0x10", "0x10")],
)
def test_a_port_is_a_number_or_a_service_name(text, port):
    assert parse_port(text) == port


@pytest.mark.parametrize(
    "text",
    [
        "65536",
        "99999",
        "080",
        "-1",
        "",
        "a--b",
        "-a",
        "a-",
        "sixteen-letters-x",
        "1-2",
        "a_b",
        "٣",
        "9" * 5000,
    ],
)
def test_a_port_that_is_neither_is_refused(text):
    with pytest.raises(ValueError, match="port"):
        parse_port(text)


@pytest.mark.parametrize(
    ("family", "written", "protocol", "number"),
    [
        ("IPv4", "Echo", 1, 8),
        ("IPv4", "EchoRequest", 1, 8),
        ("IPv4", 0, 1, 0),
        ("IPv4", "8", 1, 8),
        ("IPv4", "ExtendedEcho Reply", 1, 43),
        ("IPv6", "EchoRequest", 58, 128),
        ("IPv6", "PacketTooBig", 58, 2),
        ("IPv6", 255, 58, 255),
    ],
)
def test_an_icmp_type_is_one_exact_number(family, written, protocol, number):
    assert icmp_range(family, written).prefixes() == (L4Prefix(protocol, number, 24),)


@pytest.mark.parametrize(
    ("family", "written"),
    [
        ("IPv4", "PacketTooBig"),
        ("IPv6", "Echo"),
        ("IPv4", 256),
        ("IPv4", -1),
        ("IPv6", "echo"),
        ("IPv4", "999"),
    ],
)
def test_an_icmp_type_of_the_other_family_or_out_of_range_is_refused(family, written):
    with pytest.raises(ValueError, match="ICMP type"):
        icmp_range(family, written)
