"""A policy change is seen whole by every packet, however it is made."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest
from cilium_agent.datapath import maps, policies, specs
from cilium_agent.datapath.endpoints import Endpoints
from cilium_agent.datapath.models import NO_PORT, EndpointInfo, PolicyChange, PolicyOverflow
from cilium_agent.datapath.policies import Policies, decode, encode_entry, encode_key
from cilium_core import abi
from cilium_core.policy import PolicyEntry, PolicyKey
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

INGRESS, EGRESS = 1, 2

# ---- the model: two look-ups, each finding the longest prefix; the higher precedence wins ----


def _masked(proto: int, port: int, length: int) -> int:
    bits = (proto << 16) | port
    return bits >> (24 - length) if length else 0


def _find(
    rows: Mapping[bytes, bytes], direction: int, identity: int, packet: tuple[int, int]
) -> tuple[PolicyKey, PolicyEntry] | None:
    best: tuple[PolicyKey, PolicyEntry] | None = None
    for raw_key, raw_entry in rows.items():
        key, entry = decode(raw_key, raw_entry)
        same = _masked(key.proto, key.port, key.prefixlen) == _masked(*packet, key.prefixlen)
        matches = same and (key.direction, key.identity) == (direction, identity)
        if matches and (best is None or key.prefixlen > best[0].prefixlen):
            best = (key, entry)
    return best


def _verdict(
    rows: Mapping[bytes, bytes], direction: int, identity: int, packet: tuple[int, int]
) -> object:
    found = [_find(rows, direction, who, packet) for who in (identity, 0)]
    candidates = [each for each in found if each is not None]
    if not candidates:
        return None
    _, entry = max(candidates, key=lambda each: (each[1].precedence, each[0].prefixlen))
    # what only names who closes the direction drops as if it were not there
    names_only = entry.deny and not (entry.audit or entry.redirect or entry.precedence & 0xFF)
    return None if names_only else entry


def _difference(
    before: Mapping[bytes, bytes], after: Mapping[bytes, bytes]
) -> tuple[dict[bytes, bytes], list[bytes]]:
    added = {key: value for key, value in after.items() if before.get(key) != value}
    return added, [key for key in before if key not in after]


_keys = st.builds(
    lambda direction, identity, proto, port, length: PolicyKey(
        direction, identity, proto if length else 0, port if length == 24 else 0, length
    ),
    st.sampled_from([INGRESS, EGRESS]),
    st.sampled_from([0, 1000, 1001]),
    st.sampled_from([6, 17]),
    st.sampled_from([80, 81]),
    st.sampled_from([0, 8, 24]),
)
_entries = st.builds(
    PolicyEntry,
    st.integers(0, 5),
    st.booleans(),
    st.sampled_from([0, NO_PORT, 10000]),
    st.booleans(),
    st.integers(0, 3),
)
_contents = st.dictionaries(_keys, _entries, max_size=8).map(
    lambda rows: {encode_key(key): encode_entry(key, entry) for key, entry in rows.items()}
)


@given(_contents, _contents)
@settings(max_examples=400, deadline=None)
def test_no_step_of_a_change_in_place_is_half_of_it(
    before: dict[bytes, bytes], after: dict[bytes, bytes]
) -> None:
    order = policies.order_in_place(*_difference(before, after), before)
    if order is None:
        return
    added, removed = order
    packets = [
        (direction, identity, (proto, port))
        for direction in (INGRESS, EGRESS)
        for identity in (1000, 1001, 1002)
        for proto in (6, 17)
        for port in (80, 81, 82)
    ]
    allowed = {packet: (_verdict(before, *packet), _verdict(after, *packet)) for packet in packets}

    rows = dict(before)
    for step in [*added.items(), *((key, None) for key in removed)]:
        key, value = step
        if value is None:
            del rows[key]
        else:
            rows[key] = value
        for packet in packets:
            assert _verdict(rows, *packet) in allowed[packet]

    assert rows == after


def test_a_change_of_both_lookups_is_not_made_in_place() -> None:
    exact = {encode_key(PolicyKey(INGRESS, 7, 0, 0, 0)): bytes(12)}
    anyone = {encode_key(PolicyKey(INGRESS, 0, 0, 0, 0)): bytes(12)}

    assert policies.order_in_place(*_difference(exact, anyone), exact) is None


def test_who_closes_a_direction_is_told_in_place() -> None:
    default = PolicyKey(INGRESS, 0, 0, 0, 0)
    closed = {cookie: PolicyEntry(256, deny=True, cookie=cookie) for cookie in (1, 2)}
    allowed = {encode_key(PolicyKey(INGRESS, 7, 0, 0, 0)): bytes(12)}
    before = {encode_key(default): encode_entry(default, closed[1])}
    after = {encode_key(default): encode_entry(default, closed[2]), **allowed}

    order = policies.order_in_place(*_difference(before, after), before)

    assert order is not None
    assert order[0] == after


@given(_keys, _entries)
def test_keys_and_entries_read_back(key: PolicyKey, entry: PolicyEntry) -> None:
    assert decode(encode_key(key), encode_entry(key, entry)) == (key, entry)


# ---- in the kernel ----


@pytest.fixture
def opened(root: None) -> Iterator[maps.Maps]:
    listed = specs.read_maps(specs.bpf_folder(), {"cilium_policy": 64})
    wanted = {name: listed[name] for name in ("LXC", "DEVICES", "POLICY")}
    made = maps.open_maps(wanted, None)
    yield made
    made.close()


@pytest.fixture
def endpoints(opened: maps.Maps) -> Endpoints:
    made = Endpoints(opened)
    for number in (5, 6):
        address = ipaddress.IPv4Address(f"10.0.0.{number}")
        made.upsert(EndpointInfo(id=number, identity=100, ifindex=number, ipv4=address))
    return made


@pytest.fixture
def policy(opened: maps.Maps, endpoints: Endpoints) -> Iterator[Policies]:
    made = Policies(opened, endpoints)
    yield made
    made.close()


def _allow(identity: int, port: int = 80) -> dict[PolicyKey, PolicyEntry]:
    return {PolicyKey(INGRESS, identity, 6, port, 24): PolicyEntry(1, deny=False, cookie=9)}


def _many(count: int) -> dict[PolicyKey, PolicyEntry]:
    return {key: entry for number in range(count) for key, entry in _allow(number + 1).items()}


def test_what_was_written_is_what_the_kernel_has(policy: Policies) -> None:
    policy.replace(5, _allow(1))
    policy.update(5, _allow(2), _allow(1))

    assert policy.dump(5) == _allow(2)
    assert policy.endpoints() == [5]


def _revision(endpoints: Endpoints, number: int) -> int:
    info = endpoints.get(number)
    assert info is not None
    return info.policy_rev


def test_a_change_raises_the_revision_of_its_endpoint_alone(
    policy: Policies, endpoints: Endpoints
) -> None:
    before = {info.id: info for info in endpoints.dump()}

    policy.replace(5, _allow(1))
    policy.replace(5, _allow(1))  # nothing new

    after = {info.id: info for info in endpoints.dump()}
    assert after[5].policy_rev == before[5].policy_rev + 1
    assert after[6] == before[6]


def test_of_too_many_entries_those_are_in_force_that_open_nothing(
    policy: Policies, endpoints: Endpoints
) -> None:
    policy.replace(5, {**_allow(1), **_allow(70)})
    revision = _revision(endpoints, 5)
    denied = {key: PolicyEntry(9, deny=True, cookie=8) for key in _allow(70)}

    overflows = policy.apply(
        {6: PolicyChange(add=_allow(1)), 5: PolicyChange(add=_many(64) | denied)}
    )

    assert overflows == [PolicyOverflow(5, 65, 64, frozenset({9}), closed=False)]
    assert "bpf-policy-map-max" in str(overflows[0])
    assert policy.dump(6) == _allow(1)
    held = policy.dump(5)
    assert held.items() >= {**_allow(1), **denied}.items()
    assert len(held) == 64
    assert held.items() <= (_many(64) | denied).items()
    assert _revision(endpoints, 5) == revision + 1


def test_an_overflow_that_is_still_there_changes_nothing_more(
    policy: Policies, endpoints: Endpoints
) -> None:
    change = PolicyChange(add=_many(65), replace=True)
    policy.apply({5: change})
    held, revision = policy.dump(5), _revision(endpoints, 5)

    assert policy.apply({5: change})

    assert (held, revision) == (policy.dump(5), _revision(endpoints, 5))


def test_an_overflow_of_refusals_closes_the_endpoint(policy: Policies) -> None:
    policy.replace(5, _allow(1))
    refusals = {key: PolicyEntry(9, deny=True) for key in _many(65)}

    (overflow,) = policy.apply({5: PolicyChange(add=refusals, replace=True)})

    assert overflow.closed
    assert policy.dump(5) == {}


@given(_contents, _contents, st.integers(0, 8))
def test_what_fits_of_a_policy_allows_no_more_than_the_whole(
    held: dict[bytes, bytes], wanted: dict[bytes, bytes], capacity: int
) -> None:
    rows = policies.fitting(held, wanted, capacity)

    assert len(rows) <= capacity
    assert rows.items() <= wanted.items()
    strict = {
        key
        for key, value in wanted.items()
        if (entry := decode(key, value)[1]).redirect or (entry.deny and not entry.audit)
    }
    assert not rows or strict <= rows.keys()


def test_a_full_map_can_be_replaced_by_another_full_one(policy: Policies) -> None:
    policy.replace(5, _many(64))
    other = {key._replace(port=81): entry for key, entry in _many(64).items()}

    policy.replace(5, other)

    assert policy.dump(5) == other


def test_small_changes_keep_the_map_and_mixed_ones_swap_it(
    policy: Policies, opened: maps.Maps
) -> None:
    def held() -> bytes | None:
        return opened["POLICY"].get((5).to_bytes(4, "little"))

    policy.replace(5, _allow(1))
    first = held()
    policy.update(5, _allow(2))
    second = held()
    policy.update(5, {**_allow(3), **_allow(0)})
    third = held()

    assert first == second
    assert second != third
    assert policy.dump(5) == {**_allow(0), **_allow(1), **_allow(2), **_allow(3)}


@pytest.mark.parametrize("flags", [abi.ENDPOINT_NOT_READY, 0])
def test_a_prepared_map_takes_the_first_policy_of_a_closed_endpoint_as_it_is(
    policy: Policies, endpoints: Endpoints, opened: maps.Maps, flags: int
) -> None:
    def held() -> bytes | None:
        return opened["POLICY"].get((7).to_bytes(4, "little"))

    mixed = {**_allow(3), **_allow(0)}
    address = ipaddress.IPv4Address("10.0.0.7")
    endpoints.upsert(EndpointInfo(id=7, identity=100, ifindex=7, ipv4=address, flags=flags))

    policy.prepare(7)
    prepared = held()
    policy.prepare(7)
    assert held() == prepared is not None
    policy.replace(7, mixed)

    assert policy.dump(7) == mixed
    assert (held() == prepared) == bool(flags)


def test_a_restarted_agent_goes_on_from_the_kernels_contents(
    policy: Policies, opened: maps.Maps, endpoints: Endpoints
) -> None:
    policy.replace(5, _allow(1))

    again = Policies(opened, endpoints)
    again.update(5, _allow(2))

    assert again.dump(5) == {**_allow(1), **_allow(2)}
    again.close()


def test_a_deleted_policy_is_gone(policy: Policies) -> None:
    policy.replace(5, _allow(1))

    assert policy.delete(5)
    assert not policy.delete(5)
    assert policy.dump(5) == {}
    policy.replace(5, _allow(2))
    assert policy.dump(5) == _allow(2)
