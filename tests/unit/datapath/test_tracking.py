"""Tracked connections are told from their initiator, and collected once expired."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest
from cilium_agent.datapath import maps, specs
from cilium_agent.datapath.tracking import Nat, Tracking, connection_key
from cilium_core import abi

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cilium_agent.datapath.models import Address

NOW = 10_000
_NAMES = ("CT_TCP4", "CT_ANY4", "CT_TCP6", "CT_ANY6", "SNAT4", "SNAT6", "LB_REVERSE_NAT")
POD = ipaddress.ip_address("10.0.0.9")
PEER = ipaddress.ip_address("10.0.0.200")
NODE = ipaddress.ip_address("172.30.0.11")
POD6 = ipaddress.ip_address("fd00::9")
PEER6 = ipaddress.ip_address("fd00::2:0:1")


@pytest.fixture
def opened(root: None) -> Iterator[maps.Maps]:
    listed = specs.read_maps(specs.bpf_folder())
    sizes = {listed[name].pin: 256 for name in _NAMES}
    listed = specs.read_maps(specs.bpf_folder(), sizes)
    made = maps.open_maps({name: listed[name] for name in _NAMES}, None)
    yield made
    made.close()


@pytest.fixture
def tracking(opened: maps.Maps) -> Tracking:
    return Tracking(opened)


def _track(
    opened: maps.Maps, name: str, ends: tuple[Address, int, Address, int], **entry: int
) -> bytes:
    proto = 6 if "TCP" in name else 17
    key = connection_key(proto, *ends)
    opened[name].set(key, abi.pack("ct_entry", **entry))
    return key


@pytest.mark.parametrize(
    ("pod", "peer", "name"), [(POD, PEER, "CT_TCP4"), (POD6, PEER6, "CT_TCP6")]
)
@pytest.mark.parametrize("pod_speaks_first", [True, False])
def test_a_connection_is_told_from_the_end_that_spoke_first(
    opened: maps.Maps,
    tracking: Tracking,
    pod: Address,
    peer: Address,
    name: str,
    pod_speaks_first: bool,
) -> None:
    flags = 0 if pod_speaks_first else abi.CT_INITIATOR_HIGH
    _track(opened, name, (pod, 40000, peer, 80), lifetime=NOW, flags=flags, src_identity=1)

    (found,) = tracking.dump()

    ends = (found.source, found.source_port, found.destination, found.destination_port)
    expected = (pod, 40000, peer, 80) if pod_speaks_first else (peer, 80, pod, 40000)
    assert ends == expected
    assert (found.proto, found.expires_s, found.source_identity) == (6, NOW, 1)


def test_both_directions_have_one_key() -> None:
    there = connection_key(6, POD, 1, PEER, 2)
    back = connection_key(6, PEER, 2, POD, 1)

    assert there == back


def test_ends_of_one_address_are_ordered_by_port() -> None:
    assert connection_key(6, POD, 9, POD, 5) == connection_key(6, POD, 5, POD, 9)


def test_only_what_expired_is_collected(opened: maps.Maps, tracking: Tracking) -> None:
    for port, lifetime in ((1, NOW - 100), (2, NOW - 3), (3, NOW - 1), (4, NOW + 100)):
        for name, pod, peer in (("CT_TCP4", POD, PEER), ("CT_ANY6", POD6, PEER6)):
            _track(opened, name, (pod, port, peer, 80), lifetime=lifetime)

    result = tracking.gc(NOW)

    assert (result.scanned, result.deleted) == (8, 4)
    assert sorted(each.source_port for each in tracking.dump()) == [3, 3, 4, 4]
    assert result.fill == pytest.approx(2 / 256, rel=0.5)


def test_forgetting_a_pod_leaves_others_alone(opened: maps.Maps, tracking: Tracking) -> None:
    other = ipaddress.ip_address("10.0.0.77")
    _track(opened, "CT_TCP4", (POD, 1, PEER, 80), lifetime=NOW)
    _track(opened, "CT_ANY4", (other, 1, POD, 53), lifetime=NOW)
    _track(opened, "CT_TCP4", (other, 1, PEER, 80), lifetime=NOW)
    _track(opened, "CT_TCP6", (POD6, 1, PEER6, 80), lifetime=NOW)

    assert tracking.delete_for([POD, POD6]) == 3
    assert [each.source for each in tracking.dump()] == [other]


def _masquerade(opened: maps.Maps, pod_port: int, created_s: int) -> None:
    def raw(address: Address) -> int:
        return int.from_bytes(address.packed, "little")

    def be(port: int) -> int:
        return int.from_bytes(port.to_bytes(2, "big"), "little")

    created = created_s * 1_000_000_000
    out = {"saddr": raw(POD), "daddr": raw(PEER), "sport": be(pod_port), "dport": be(80)}
    back = {"saddr": raw(PEER), "daddr": raw(NODE), "sport": be(80), "dport": be(pod_port + 1)}
    opened["SNAT4"].set(
        abi.pack("nat_key4", **out, proto=6, direction=abi.NAT_OUT),
        abi.pack("nat_entry4", created_ns=created, addr=raw(NODE), port=be(pod_port + 1)),
    )
    opened["SNAT4"].set(
        abi.pack("nat_key4", **back, proto=6, direction=abi.NAT_IN),
        abi.pack("nat_entry4", created_ns=created, addr=raw(POD), port=be(pod_port)),
    )


def test_a_mapping_lives_as_long_as_its_connection(opened: maps.Maps, tracking: Tracking) -> None:
    _track(opened, "CT_TCP4", (POD, 1000, PEER, 80), lifetime=NOW + 100)
    _masquerade(opened, 1000, NOW - 60)
    _masquerade(opened, 2000, NOW - 60)
    _masquerade(opened, 3000, NOW - 1)  # its connection may not be tracked yet

    result = tracking.gc(NOW)

    assert result.nat_deleted == 2
    ports = {each.source_port for each in Nat(opened).dump() if each.direction == abi.NAT_OUT}
    assert ports == {1000, 3000}


def test_a_mapping_is_told_with_both_of_its_ends(opened: maps.Maps) -> None:
    _masquerade(opened, 1000, 5)

    by_direction = {each.direction: each for each in Nat(opened).dump()}

    out, back = by_direction[abi.NAT_OUT], by_direction[abi.NAT_IN]
    assert (out.source, out.to_address, out.to_port) == (POD, NODE, 1001)
    assert (back.destination_port, back.to_address, back.to_port) == (1001, POD, 1000)
