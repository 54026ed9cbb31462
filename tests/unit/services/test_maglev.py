"""Maglev tables, and the hashes behind them."""

from __future__ import annotations

import ipaddress

import numpy as np
import pytest
from cilium_core.errors import InvalidError
from cilium_core.policy.ports import Protocol
from cilium_core.services import Backend, L4Address
from cilium_core.services.hashing import (
    DEFAULT_SEED,
    Seeds,
    flow_hash,
    jhash2,
    murmur3_128,
    read_seed,
)
from cilium_core.services.maglev import TABLE_SIZES, check_size, entry_of_flow, table
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.services.cluster import at

SIZE = 16381


def backends(count, weights=()):
    first = ipaddress.ip_address("10.1.0.1")
    return [
        Backend(
            L4Address(first + number, 8080, Protocol.TCP),
            weight=weights[number] if weights else 1,
        )
        for number in range(count)
    ]


def chosen(some, size=SIZE, seed=DEFAULT_SEED):
    """Address of the backend by entry."""
    names = np.asarray([int(one.at.address) for one in some])
    return names[table(some, size, seed)]


def plain(some, size):
    """The same by the book: turn by turn, entry by entry."""
    order = sorted(range(len(some)), key=lambda index: f"[{some[index].at},State:active]")
    hashes = [
        murmur3_128(f"[{some[index].at},State:active]".encode(), read_seed(DEFAULT_SEED).backends)
        for index in order
    ]
    position, filled = [0] * len(some), [-1] * size
    for turn in range(size):
        who = turn % len(some)
        first, second = hashes[who]
        while True:
            place = (first % size + position[who] * (second % (size - 1) + 1)) % size
            position[who] += 1
            if filled[place] < 0:
                filled[place] = order[who]
                break
    return filled


@pytest.mark.parametrize(("count", "size"), [(1, 251), (3, 251), (17, 1021), (300, 251)])
def test_tables_are_those_of_the_book(count, size):
    some = backends(count)

    assert plain(some, size) == table(some, size, DEFAULT_SEED).tolist()


def test_nobody_else_gets_more_than_two_in_a_hundred_flows_when_one_of_a_hundred_goes():
    some = backends(100)
    before = chosen(some)

    moved = []
    for gone in range(0, 100, 5):
        after = chosen(some[:gone] + some[gone + 1 :])
        others = before != int(some[gone].at.address)
        moved.append((before != after)[others].mean())

    assert max(moved) <= 0.02


def test_all_backends_get_equally_many_entries():
    counts = np.bincount(table(backends(100), SIZE, DEFAULT_SEED))

    assert counts.max() - counts.min() <= 1


def test_entries_are_in_proportion_to_weights():
    counts = np.bincount(table(backends(4, weights=[1, 2, 3, 4]), SIZE, DEFAULT_SEED))

    assert counts / SIZE == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.001)


def test_no_backends_make_no_table():
    assert table([], SIZE, DEFAULT_SEED).size == 0


def test_another_seed_makes_another_table():
    some = backends(10)

    assert (chosen(some) != chosen(some, seed="AAAAAAAAAAAAAAAA")).mean() > 0.5


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(12)), st.sampled_from([251, 509, 1021]), st.booleans())
def test_the_choice_does_not_depend_on_the_order_of_backends(order, size, weighted):
    some = backends(12, weights=list(range(1, 13)) if weighted else ())

    assert (chosen([some[index] for index in order], size) == chosen(some, size)).all()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_every_entry_leads_to_somebody_in_proportion(weights):
    found = np.bincount(
        table(backends(len(weights), weights), 1021, DEFAULT_SEED), minlength=len(weights)
    )

    share = np.asarray(weights) / sum(weights) * 1021
    assert found.sum() == 1021
    assert np.abs(found - share).max() <= len(weights) + 1


def test_sizes_are_primes_of_a_list():
    assert check_size(TABLE_SIZES[0]) == 251
    with pytest.raises(InvalidError, match="bpf-lb-maglev-table-size is 1000; it must be one of"):
        check_size(1000)


def test_a_seed_is_three_numbers():
    assert read_seed(DEFAULT_SEED) == Seeds(616034178, 1910299206, 2454738568)


@pytest.mark.parametrize("text", ["", "abc", "JLfvgnHc2kaSUFaIAAAA", "JLfvgnHc2kaSUF?I"])
def test_a_seed_of_another_length_is_refused(text):
    with pytest.raises(InvalidError, match="bpf-lb-maglev-hash-seed"):
        read_seed(text)


def test_murmur_is_that_of_its_author():
    one, two = murmur3_128(b"The quick brown fox jumps over the lazy dog", 0)

    assert f"{one:016x}{two:016x}" == "e34bbc7bbc071b6c7a433ca9c49a9347"


@pytest.mark.parametrize(("words", "expected"), [(3, 4130669048), (9, 1251088545)])
def test_jhash_is_that_of_the_kernel(words, expected):
    """The values are what linux/jhash.h gives when it is compiled."""
    numbers = tuple((0x01020304 * (i + 1) + 7) & 0xFFFFFFFF for i in range(words))

    assert jhash2(numbers, 1910299206 + 6) == expected


def test_with_affinity_the_port_of_a_client_plays_no_role():
    front = at("203.0.113.1:80")
    one, other = at("198.51.100.1:1000"), at("198.51.100.1:2000")

    assert flow_hash(one, front, 7) != flow_hash(other, front, 7)
    assert flow_hash(one, front, 7, affinity=True) == flow_hash(other, front, 7, affinity=True)


def test_flows_spread_evenly_over_the_table():
    front = at("[fd00::1]:443")
    entries = [
        entry_of_flow(at(f"[fd00:2::9]:{1024 + i}"), front, 251, DEFAULT_SEED, affinity=False)
        for i in range(5020)
    ]

    counts = np.bincount(entries, minlength=251)
    assert counts.min() > 0
    assert counts.max() < 60
