from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING

import pytest
from cilium_operator.pools import PoolExhaustedError, Pools

if TYPE_CHECKING:
    from cilium_core.records import Network

POOLS: list[tuple[Network, int]] = [
    (IPv4Network("10.1.0.0/22"), 24),
    (IPv4Network("10.2.0.0/23"), 24),
    (IPv6Network("fd00::/8"), 64),
]


def blocks(pools: Pools, count: int, version: int = 4) -> list[str]:
    return [str(pools.allocate(f"n{n}", version)) for n in range(count)]


def test_the_first_free_block_of_the_first_pool_is_given() -> None:
    pools = Pools(POOLS)
    assert blocks(pools, 5) == [
        "10.1.0.0/24",
        "10.1.1.0/24",
        "10.1.2.0/24",
        "10.1.3.0/24",
        "10.2.0.0/24",
    ]
    pools.release("n1")
    assert str(pools.allocate("n5", 4)) == "10.1.1.0/24"


def test_a_pool_of_2_to_the_56_blocks_is_no_burden() -> None:
    assert blocks(Pools(POOLS), 2, 6) == ["fd00::/64", "fd00:0:0:1::/64"]


@pytest.mark.parametrize("held", ["10.1.0.128/25", "10.1.0.0/24", "10.1.0.0/32", "10.0.0.0/15"])
def test_what_nodes_hold_already_is_never_given_to_others(held: str) -> None:
    pools = Pools(POOLS)
    assert pools.claim(ip_network(held), "old") == ""
    given = pools.allocate("new", 4)
    assert not given.overlaps(IPv4Network(held))


def test_a_claim_of_a_whole_huge_pool_is_no_burden() -> None:
    pools = Pools(POOLS)
    assert pools.claim(IPv6Network("fd00::/9"), "old") == ""
    assert str(pools.allocate("new", 6)) == "fd80::/64"


def test_a_claim_that_overlaps_names_the_holder() -> None:
    pools = Pools(POOLS)
    pools.claim(IPv4Network("10.1.0.0/25"), "a")
    assert pools.claim(IPv4Network("10.1.0.0/24"), "b") == "a"
    assert pools.claim(IPv4Network("10.1.0.128/25"), "b") == ""
    assert pools.claim(IPv4Network("10.0.0.0/8"), "c") in ("a", "b")
    assert pools.claim(IPv4Network("192.168.0.0/24"), "c") == ""
    assert pools.claim(IPv4Network("192.168.0.0/16"), "d") == "c"
    assert pools.claim(IPv4Network("10.1.0.0/25"), "a") == ""


def test_exhaustion_names_the_pools_and_the_setting() -> None:
    pools = Pools(POOLS[1:2])
    blocks(pools, 2)
    with pytest.raises(PoolExhaustedError, match=r"10\.2\.0\.0/23.*cluster-pool-ipv4-cidr"):
        pools.allocate("n9", 4)
    assert [(u.total, u.used) for u in pools.usage()] == [(2, 2)]


def test_thousands_of_nodes_are_quick() -> None:
    pools = Pools([(IPv4Network("10.0.0.0/8"), 24)])
    given = {pools.allocate(f"n{n}", 4) for n in range(5000)}
    assert len(given) == 5000
