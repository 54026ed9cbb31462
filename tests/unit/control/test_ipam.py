from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from cilium_core.errors import InvalidError, NotFoundError
from cilium_core.ipam import AddressesExhaustedError, AddressTakenError, NodeAddresses
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

V4, V6 = IPv4Network("10.0.1.0/28"), IPv6Network("fd00:0:0:1::/64")


def test_first_and_last_address_are_never_given() -> None:
    pool = NodeAddresses([IPv4Network("10.0.0.0/30")])
    given = [pool.allocate(f"ns/p{n}", 4) for n in range(2)]
    assert list(map(str, given)) == ["10.0.0.1", "10.0.0.2"]
    with pytest.raises(AddressesExhaustedError, match=r"all 2 IPv4 addresses of 10\.0\.0\.0/30"):
        pool.allocate("ns/p3", 4)


def test_a_freed_address_is_used_again_as_late_as_possible() -> None:
    pool = NodeAddresses([V4])
    first = pool.allocate("ns/a", 4)
    pool.release(first, "ns/a")
    others = [pool.allocate(f"ns/{n}", 4) for n in range(13)]
    assert first not in others
    assert pool.allocate("ns/last", 4) == first


def test_a_huge_ipv6_block_costs_nothing() -> None:
    pool = NodeAddresses([V6])
    assert str(pool.allocate("ns/a", 6)) == "fd00:0:0:1::1"
    assert pool.capacity(6) == 2**64 - 2


def test_a_second_block_serves_when_the_first_is_full() -> None:
    pool = NodeAddresses([IPv4Network("10.0.0.0/30"), IPv4Network("10.9.0.0/30")])
    assert str([pool.allocate("o", 4) for _ in range(3)][-1]) == "10.9.0.1"


def test_a_restored_address_is_not_given_again() -> None:
    pool = NodeAddresses([V4])
    pool.reserve(ip_address("10.0.1.1"), "ns/restored")
    assert str(pool.allocate("ns/new", 4)) == "10.0.1.2"
    with pytest.raises(AddressTakenError, match="belongs to ns/restored"):
        pool.reserve(ip_address("10.0.1.1"), "ns/other")
    pool.reserve(ip_address("10.0.1.1"), "ns/restored")


def test_an_address_restored_before_its_cidr_is_known_is_kept() -> None:
    pool = NodeAddresses()
    pool.reserve(ip_address("10.0.1.1"), "ns/restored")
    pool.set_pod_cidrs([V4])
    assert str(pool.allocate("ns/new", 4)) == "10.0.1.2"


def test_without_a_pod_cidr_the_remedy_is_the_operator() -> None:
    with pytest.raises(AddressesExhaustedError, match="the operator assigns them"):
        NodeAddresses([V4]).allocate("ns/a", 6)


def test_only_the_owner_frees_its_address() -> None:
    pool = NodeAddresses([V4])
    address = pool.allocate("ns/a", 4)
    with pytest.raises(AddressTakenError):
        pool.release(address, "ns/b")
    assert pool.release_owner("ns/a") == [address]
    with pytest.raises(NotFoundError):
        pool.release(address)


@pytest.mark.parametrize("cidrs", [["10.0.0.0/31"], ["10.0.0.0/24", "10.0.0.128/25"]])
def test_unusable_cidrs_are_refused(cidrs: list[str]) -> None:
    with pytest.raises(InvalidError):
        NodeAddresses(map(ip_network, cidrs))


class Addresses(RuleBasedStateMachine):
    """No address is ever owned twice, whatever the order of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = NodeAddresses([V4])
        self.model: dict[object, str] = {}

    @rule(owner=st.sampled_from("abc"))
    def allocate(self, owner: str) -> None:
        try:
            address = self.pool.allocate(owner, 4)
        except AddressesExhaustedError:
            assert len([a for a in self.model if a in V4]) == 14
            return
        assert address not in self.model
        assert address in V4
        self.model[address] = owner

    @rule(owner=st.sampled_from("abc"), offset=st.integers(0, 20))
    def reserve(self, owner: str, offset: int) -> None:
        address = IPv4Address("10.0.1.0") + offset
        try:
            self.pool.reserve(address, owner)
        except AddressTakenError:
            assert self.model[address] != owner
        except InvalidError:
            assert offset in (0, 15)
        else:
            assert self.model.setdefault(address, owner) == owner

    @rule(owner=st.sampled_from("abc"))
    def release(self, owner: str) -> None:
        for address in self.pool.release_owner(owner):
            assert self.model.pop(address) == owner

    @invariant()
    def the_owners_are_those_of_the_model(self) -> None:
        assert dict(self.pool.owners) == self.model


TestAddresses = Addresses.TestCase
