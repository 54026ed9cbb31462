"""Identities of prefixes and of addresses that names stand for."""

from __future__ import annotations

import ipaddress

from cilium_core.identities import Families, LocalIdentityAllocator, NumericIdentity
from cilium_core.labels import Label, LabelSet
from cilium_core.policy import PrefixIdentities
from hypothesis import given, settings
from hypothesis import strategies as st

ADDRESS = ipaddress.ip_address("192.0.2.7")
HOST = ipaddress.ip_network("192.0.2.7/32")
AROUND = ipaddress.ip_network("192.0.2.0/24")
NAME, OTHER = Label("fqdn", "a.example.com"), Label("fqdn", "*.example.com")


def texts(prefixes: PrefixIdentities, address=ADDRESS) -> list[str]:
    return prefixes.identity_of(address).labels.texts()


def test_an_address_with_a_name_has_the_labels_of_the_world_and_of_the_name():
    prefixes = PrefixIdentities(Families())
    change = prefixes.change(names={ADDRESS: frozenset({NAME, OTHER})})

    assert list(change.added) == [HOST]
    assert texts(prefixes) == ["fqdn:*.example.com", "fqdn:a.example.com", "reserved:world-ipv4"]


def test_a_named_address_keeps_the_prefix_that_a_policy_put_around_it():
    prefixes = PrefixIdentities(Families())
    prefixes.add([AROUND, ipaddress.ip_network("192.0.0.0/16")])
    prefixes.change(names={ADDRESS: frozenset({NAME})})

    assert texts(prefixes) == ["cidr:192.0.2.0/24", "fqdn:a.example.com", "reserved:world-ipv4"]


def test_a_prefix_that_comes_around_a_named_address_changes_its_identity_and_frees_the_old():
    prefixes = PrefixIdentities(Families())
    old = prefixes.change(names={ADDRESS: frozenset({NAME})}).added[HOST]

    change = prefixes.change(add=[AROUND])

    assert set(change.added) == {AROUND, HOST}
    assert change.unused == (old,)
    assert change.removed == {}
    assert "cidr:192.0.2.0/24" in texts(prefixes)


def test_a_prefix_that_goes_leaves_the_named_address_to_the_next_one():
    prefixes = PrefixIdentities(Families())
    prefixes.add([AROUND, ipaddress.ip_network("192.0.0.0/16")])
    prefixes.change(names={ADDRESS: frozenset({NAME})})

    change = prefixes.change(remove=[AROUND])

    assert set(change.removed) == {AROUND}
    assert set(change.added) == {HOST}
    assert "cidr:192.0.0.0/16" in texts(prefixes)


def test_a_prefix_stays_while_a_policy_or_a_name_needs_it():
    prefixes = PrefixIdentities(Families())
    prefixes.add([HOST])
    prefixes.change(names={ADDRESS: frozenset({NAME})})

    assert not prefixes.change(remove=[HOST]).removed
    assert texts(prefixes) == ["fqdn:a.example.com", "reserved:world-ipv4"]
    gone = prefixes.change(names={ADDRESS: frozenset()})
    assert set(gone.removed) == {HOST}
    assert prefixes.items() == {}


def test_addresses_with_the_same_names_share_an_identity_until_the_last_goes():
    prefixes = PrefixIdentities(Families())
    second = ipaddress.ip_address("192.0.2.8")
    change = prefixes.change(names={ADDRESS: frozenset({NAME}), second: frozenset({NAME})})
    assert len({identity.id for identity in change.added.values()}) == 1

    assert prefixes.change(names={ADDRESS: frozenset()}).unused == ()
    assert len(prefixes.change(names={second: frozenset()}).unused) == 1


def test_a_restored_number_is_used_for_the_same_names_again():
    labels = LabelSet((NAME, Label("reserved", "world-ipv4")))
    allocator = LocalIdentityAllocator()
    allocator.restore({NumericIdentity(0x01000007): labels})
    prefixes = PrefixIdentities(Families(), allocator)

    change = prefixes.change(names={ADDRESS: frozenset({NAME})})

    assert change.added[HOST].id == 0x01000007


prefix_sets = st.sets(
    st.builds(
        lambda number, length: ipaddress.ip_network((number << 24, length), strict=False),
        st.integers(0, 3),
        st.sampled_from([0, 6, 8, 30, 31, 32]),
    ),
    max_size=5,
)
name_sets = st.dictionaries(
    st.integers(0, 3).map(lambda number: ipaddress.ip_address(number << 24)),
    st.frozensets(st.sampled_from([NAME, OTHER])),
    max_size=4,
)


@settings(deadline=None)
@given(st.lists(st.tuples(prefix_sets, prefix_sets, name_sets), max_size=6))
def test_any_order_of_changes_leads_to_what_a_fresh_start_has(changes):
    allocator = LocalIdentityAllocator()
    prefixes = PrefixIdentities(Families(), allocator)
    table: dict = {}
    for add, remove, names in changes:
        change = prefixes.change(add, remove, names)
        table |= change.added
        for prefix in change.removed:
            del table[prefix]
    fresh = PrefixIdentities(Families())
    fresh.change(names={prefix[0]: labels for prefix, labels in prefixes.names.items()})
    fresh.add(prefixes.named)

    assert table == prefixes.items()
    assert {p: i.labels for p, i in fresh.items().items()} == {
        p: i.labels for p, i in table.items()
    }
    numbered = {identity.id for prefix, identity in table.items() if prefix.prefixlen}
    assert len(allocator) == len(numbered)
