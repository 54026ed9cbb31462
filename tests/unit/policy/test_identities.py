"""Identities: the numeric layout, reserved ones, address prefixes, and node-local numbers."""

from __future__ import annotations

import ipaddress

import pytest
from cilium_core.identities import (
    LOCAL_MAX,
    LOCAL_MIN,
    Families,
    IdentityType,
    LocalIdentityAllocator,
    LocalIdentityExhaustedError,
    NumericIdentity,
    ReservedIdentity,
    Scope,
    cidr_label,
    cidr_labels,
    cidr_of,
    cidr_of_label,
    cluster_range,
    identity_type,
    is_local,
    parse_prefix,
    reserved_identity,
    reserved_name,
    scope_of,
)
from cilium_core.labels import Label, LabelSet
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule


@pytest.mark.parametrize(
    ("number", "name", "labels"),
    [
        (1, "host", ["reserved:host"]),
        (2, "world", ["reserved:world"]),
        (3, "unmanaged", ["reserved:unmanaged"]),
        (4, "health", ["reserved:health"]),
        (5, "init", ["reserved:init"]),
        (6, "remote-node", ["reserved:remote-node"]),
        (7, "kube-apiserver", ["reserved:kube-apiserver", "reserved:remote-node"]),
        (8, "ingress", ["reserved:ingress"]),
        (9, "world-ipv4", ["reserved:world-ipv4"]),
        (10, "world-ipv6", ["reserved:world-ipv6"]),
    ],
)
def test_reserved_identities_have_fixed_numbers_names_and_labels(number, name, labels):
    assert reserved_name(number) == name
    assert ReservedIdentity(number).labels.texts() == labels
    assert reserved_identity(LabelSet.parse(labels)) == number


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, IdentityType.UNKNOWN),
        (1, IdentityType.RESERVED),
        (102, IdentityType.WELL_KNOWN),
        (128, IdentityType.RESERVED),
        (255, IdentityType.RESERVED),
        (256, IdentityType.CLUSTER_LOCAL),
        (0x00FFFFFF, IdentityType.CLUSTER_LOCAL),
        (0x01000001, IdentityType.NODE_LOCAL),
        (0x02000001, IdentityType.REMOTE_NODE),
    ],
)
def test_the_range_of_a_number_tells_its_kind(number, expected):
    assert identity_type(number) == expected
    assert is_local(number) == (expected in {IdentityType.NODE_LOCAL, IdentityType.REMOTE_NODE})


@pytest.mark.parametrize(
    ("cluster", "clusters", "expected"),
    [
        (0, 255, range(256, 65536)),
        (1, 255, range(65536, 131072)),
        (255, 255, range(255 << 16, 256 << 16)),
        (0, 511, range(256, 32768)),
        (511, 511, range(511 << 15, 512 << 15)),
    ],
)
def test_each_cluster_hands_out_numbers_of_its_own(cluster, clusters, expected):
    assert cluster_range(cluster, max_clusters=clusters) == expected


@pytest.mark.parametrize(("cluster", "clusters"), [(256, 255), (-1, 255), (512, 511), (0, 100)])
def test_a_cluster_that_cannot_be_is_refused(cluster, clusters):
    with pytest.raises(ValueError, match="cluster"):
        cluster_range(cluster, max_clusters=clusters)


@pytest.mark.parametrize(
    ("labels", "scope"),
    [
        (["k8s:app=web"], Scope.CLUSTER),
        (["k8s:app=web", "cidr:10.0.0.0/8"], Scope.CLUSTER),
        (["cidr:10.0.0.0/8", "reserved:world"], Scope.LOCAL),
        (["fqdn:*.io", "reserved:world-ipv4"], Scope.LOCAL),
        (["reserved:remote-node", "k8s:zone=a"], Scope.REMOTE_NODE),
        (["reserved:ingress", "k8s:app=proxy"], Scope.LOCAL),
    ],
)
def test_labels_decide_who_hands_out_the_number(labels, scope):
    assert scope_of(LabelSet.parse(labels)) == scope


@pytest.mark.parametrize(
    ("families", "version", "world"),
    [
        (Families(), 4, "world-ipv4"),
        (Families(), 6, "world-ipv6"),
        (Families(ipv6=False), 4, "world"),
        (Families(ipv6=False), 6, "world-ipv6"),
        (Families(ipv4=False), 6, "world"),
        (Families(ipv4=False), 4, "world-ipv4"),
    ],
)
def test_the_world_is_split_by_family_in_a_dual_stack_cluster_only(families, version, world):
    assert families.world(version).label_name == world


@pytest.mark.parametrize(
    ("prefix", "key"),
    [
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("192.0.2.1", "192.0.2.1/32"),
        ("::1/128", "0--1/128"),
        ("fd00::/8", "fd00--0/8"),
        ("2001:db8::1", "2001-db8--1/128"),
    ],
)
def test_a_prefix_label_masks_host_bits_and_has_no_colon(prefix, key):
    label = cidr_label(parse_prefix(prefix))

    assert label == Label("cidr", key)
    assert cidr_of_label(label) == parse_prefix(prefix)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "10.0.0.0/33",
        "10.0.0.0/255.0.0.0",
        "10.0.0.0/08",
        "fe80::1%eth0",
        "10.0.0.0/",
        "/8",
        "010.0.0.1",
        "10.0.0",
        "::/129",
        "10.0.0.0/-1",
        "10.0.0.0/" + "9" * 5000,
        "10.0.0.0/٣",
    ],
)
def test_a_text_that_is_no_prefix_is_refused(text):
    with pytest.raises(ValueError, match="not an address prefix"):
        parse_prefix(text)


def test_the_identity_of_a_prefix_is_part_of_the_world():
    labels = cidr_labels(parse_prefix("10.0.0.0/8"), Families())

    assert labels.texts() == ["cidr:10.0.0.0/8", "reserved:world-ipv4"]
    assert cidr_of(labels) == ipaddress.ip_network("10.0.0.0/8")


def test_the_whole_address_space_is_the_world_itself():
    assert cidr_labels(parse_prefix("::/0"), Families()).texts() == ["reserved:world-ipv6"]


def numbered(count: int) -> list[LabelSet]:
    return [LabelSet([Label("cidr", f"10.0.0.{number}/32")]) for number in range(count)]


def test_node_local_numbers_start_above_the_scope():
    first, new = LocalIdentityAllocator().acquire(numbered(1)[0])

    assert (first, new) == (0x01000001, True)


def test_a_freed_number_is_the_last_to_be_used_again():
    a, b, c = numbered(3)
    allocator = LocalIdentityAllocator(LOCAL_MIN, LOCAL_MIN + 1)
    number, _ = allocator.acquire(a)
    allocator.release(number)

    assert allocator.acquire(b)[0] == number + 1
    assert allocator.acquire(c)[0] == number


def test_running_out_of_numbers_is_an_error_that_says_so():
    a, b = numbered(2)
    allocator = LocalIdentityAllocator(LOCAL_MAX, LOCAL_MAX)
    allocator.acquire(a)

    with pytest.raises(LocalIdentityExhaustedError, match="all 1 node-local"):
        allocator.acquire(b)


def test_restored_numbers_stay_with_their_labels():
    a, b, c = numbered(3)
    allocator = LocalIdentityAllocator()
    allocator.restore({NumericIdentity(LOCAL_MIN + 7): a, NumericIdentity(LOCAL_MIN + 9): b})

    assert allocator.acquire(a) == (LOCAL_MIN + 7, False)
    assert allocator.acquire(c)[0] not in {LOCAL_MIN + 7, LOCAL_MIN + 9}
    assert [freed.id for freed in allocator.finish_restoring()] == [LOCAL_MIN + 9]
    assert allocator.find(a) == LOCAL_MIN + 7
    assert allocator.find(b) is None


def test_a_number_that_cannot_be_restored_is_left_to_its_owner():
    a, b = numbered(2)
    allocator = LocalIdentityAllocator()
    taken, _ = allocator.acquire(a)

    allocator.restore({taken: b, NumericIdentity(5): b, NumericIdentity(LOCAL_MAX): a})

    assert [(identity.id, identity.labels) for identity in allocator] == [(taken, a)]


class Allocation(RuleBasedStateMachine):
    """No number ever stands for two label sets, and uses are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = LocalIdentityAllocator(LOCAL_MIN, LOCAL_MIN + 5)
        self.held: dict[LabelSet, list[NumericIdentity]] = {}

    @rule(labels=st.sampled_from(numbered(8)))
    def acquire(self, labels: LabelSet) -> None:
        full = len(self.held) == 6 and labels not in self.held
        if full:
            with pytest.raises(LocalIdentityExhaustedError):
                self.allocator.acquire(labels)
        else:
            number, new = self.allocator.acquire(labels)
            assert new == (labels not in self.held)
            self.held.setdefault(labels, []).append(number)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        labels = data.draw(st.sampled_from(sorted(self.held, key=str)))
        number = self.held[labels].pop()
        if not self.held[labels]:
            del self.held[labels]
        assert self.allocator.release(number) == (labels not in self.held)

    @invariant()
    def numbers_and_labels_match_one_to_one(self) -> None:
        held = {labels: set(numbers) for labels, numbers in self.held.items()}
        assert {identity.labels: {identity.id} for identity in self.allocator} == held
        assert len(set().union(*held.values())) == len(held)


TestAllocation = Allocation.TestCase
