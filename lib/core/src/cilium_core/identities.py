"""Identities: the numbers that stand for label sets on the wire and in the maps.

Owns the numeric layout (reserved, well-known, cluster and node-local ranges), the reserved
identities with their labels, the labels of address prefixes, and the allocator of node-local
numbers. Cluster-wide numbers are handed out elsewhere, through the key-value store; this module
only says which range they come from.

`LocalIdentityAllocator` is a plain object without locks: one owner calls it. All else is pure.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Final, NewType

from cilium_core.errors import ExhaustedError
from cilium_core.labels import (
    SOURCE_CIDR,
    SOURCE_CIDR_GROUP,
    SOURCE_FQDN,
    SOURCE_RESERVED,
    Label,
    LabelSet,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

NumericIdentity = NewType("NumericIdentity", int)
"""32 bits: the top 8 are the scope, the low 24 travel on the wire."""

Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network

IDENTITY_UNKNOWN: Final = NumericIdentity(0)
"""No identity; as the peer of a policy map key it means any peer."""

_PREFIX_BITS: Final = re.compile(r"0|[1-9][0-9]{0,2}")

SCOPE_LOCAL: Final = 0x01000000
SCOPE_REMOTE_NODE: Final = 0x02000000
SCOPE_MASK: Final = 0xFF000000

LOCAL_MIN: Final = NumericIdentity(SCOPE_LOCAL + 1)
LOCAL_MAX: Final = NumericIdentity(SCOPE_LOCAL + 0xFFFFFF)

RESERVED_MAX: Final = 99
WELL_KNOWN_RANGE: Final = range(100, 116)
USER_RESERVED_RANGE: Final = range(128, 256)
CLUSTER_MIN: Final = 256
"""First number of cluster 0 that is handed out; the other clusters start at 0 of their block."""


class ReservedIdentity(IntEnum):
    """Identities with a fixed number; `label_name` is the key under source `reserved`."""

    HOST = 1
    WORLD = 2
    UNMANAGED = 3
    HEALTH = 4
    INIT = 5
    REMOTE_NODE = 6
    KUBE_APISERVER = 7
    INGRESS = 8
    WORLD_IPV4 = 9
    WORLD_IPV6 = 10
    OVERLAY_TO_ENCRYPT = 11

    @property
    def label_name(self) -> str:
        """The name users write, such as `remote-node`."""
        return self.name.lower().replace("_", "-")

    @property
    def label(self) -> Label:
        """The label `reserved:<name>`."""
        return Label(SOURCE_RESERVED, self.label_name)

    @property
    def labels(self) -> LabelSet:
        """Every label of the identity: a remote API server is also a remote node."""
        if self is ReservedIdentity.KUBE_APISERVER:
            return LabelSet((self.label, ReservedIdentity.REMOTE_NODE.label))
        return LabelSet((self.label,))


class IdentityType(Enum):
    """The kinds of numeric identity, under the names that the interfaces use."""

    UNKNOWN = "unknown"
    RESERVED = "reserved"
    WELL_KNOWN = "well_known"
    CLUSTER_LOCAL = "cluster_local"
    NODE_LOCAL = "node_local"
    REMOTE_NODE = "remote_node"


class Scope(Enum):
    """Who hands out the number of a label set."""

    CLUSTER = "cluster"
    LOCAL = "local"
    REMOTE_NODE = "remote_node"


@dataclass(frozen=True, slots=True)
class Identity:
    """A number and the labels that it stands for."""

    id: NumericIdentity
    labels: LabelSet


WORLD_LABELS: Final = (
    ReservedIdentity.WORLD.label,
    ReservedIdentity.WORLD_IPV4.label,
    ReservedIdentity.WORLD_IPV6.label,
)
RESERVED_IDENTITIES: Final[Mapping[NumericIdentity, Identity]] = {
    NumericIdentity(reserved.value): Identity(NumericIdentity(reserved.value), reserved.labels)
    for reserved in ReservedIdentity
}
_RESERVED_BY_LABELS: Final = {
    identity.labels: number for number, identity in RESERVED_IDENTITIES.items()
}
_LOCAL_SOURCES: Final = frozenset({SOURCE_CIDR, SOURCE_FQDN, SOURCE_CIDR_GROUP, SOURCE_RESERVED})


def identity_type(identity: int) -> IdentityType:
    """The kind of a numeric identity."""
    scope = identity & SCOPE_MASK
    if scope == SCOPE_LOCAL:
        return IdentityType.NODE_LOCAL
    if scope == SCOPE_REMOTE_NODE:
        return IdentityType.REMOTE_NODE
    if identity == IDENTITY_UNKNOWN:
        return IdentityType.UNKNOWN
    if identity in WELL_KNOWN_RANGE:
        return IdentityType.WELL_KNOWN
    return IdentityType.RESERVED if identity < CLUSTER_MIN else IdentityType.CLUSTER_LOCAL


def is_local(identity: int) -> bool:
    """Whether the number has a meaning on this node only and must never leave it."""
    return identity & SCOPE_MASK != 0


def is_world(labels: LabelSet) -> bool:
    """Whether a label set belongs to something outside the cluster."""
    return any(label in labels for label in WORLD_LABELS)


def reserved_identity(labels: LabelSet) -> NumericIdentity | None:
    """The fixed number of exactly this label set, if it has one."""
    return _RESERVED_BY_LABELS.get(labels)


def reserved_name(identity: int) -> str | None:
    """The name of a reserved identity (`host`, `world`, …), None for every other number."""
    if identity == IDENTITY_UNKNOWN:
        return "unknown"
    try:
        return ReservedIdentity(identity).label_name
    except ValueError:
        return None


def scope_of(labels: LabelSet) -> Scope:
    """Who must hand out the number of a label set."""
    if ReservedIdentity.REMOTE_NODE.label in labels:
        return Scope.REMOTE_NODE
    if ReservedIdentity.INGRESS.label in labels:
        return Scope.LOCAL
    return Scope.LOCAL if all(label.source in _LOCAL_SOURCES for label in labels) else Scope.CLUSTER


def cluster_range(cluster_id: int = 0, *, max_clusters: int = 255) -> range:
    """The numbers that a cluster may hand out through the key-value store.

    `cluster_id` is 0 to `max_clusters`, which is 255 or 511 (then each cluster has half as many).
    """
    if max_clusters not in {255, 511}:
        raise ValueError(f"max_clusters is {max_clusters}; it must be 255 or 511")
    if not 0 <= cluster_id <= max_clusters:
        raise ValueError(f"cluster id {cluster_id} is outside 0 to {max_clusters}")
    shift = 16 if max_clusters == 255 else 15
    first = cluster_id << shift
    return range(max(first, CLUSTER_MIN), first + (1 << shift))


@dataclass(frozen=True, slots=True)
class Families:
    """The address families that the cluster runs."""

    ipv4: bool = True
    ipv6: bool = True

    def world(self, version: int) -> ReservedIdentity:
        """The identity of an unknown outside address of IP version 4 or 6.

        A cluster with both families keeps them apart. In a cluster with one family, that family's
        outside is plain `world`, and the other one keeps its specific name.
        """
        specific = ReservedIdentity.WORLD_IPV4 if version == 4 else ReservedIdentity.WORLD_IPV6
        if self.ipv4 and self.ipv6:
            return specific
        enabled = self.ipv4 if version == 4 else self.ipv6
        return ReservedIdentity.WORLD if enabled else specific


def _bad_prefix(text: str) -> str:
    return f"{text[:80]!r} is not an address prefix; write it like 10.0.0.0/8 or fd00::/8"


def parse_prefix(text: str) -> Prefix:
    """Read `address/bits` or a bare address; bits of the host part are masked off.

    Net masks, scope ids and leading zeros are refused. Raises `ValueError` naming the text.
    """
    address, slash, bits = text.partition("/")
    # A scope id means something on one node only, and "10.0.0.0/255.0.0.0" has no prefix length.
    if "%" in text or (slash and not _PREFIX_BITS.fullmatch(bits)):
        raise ValueError(_bad_prefix(text))
    try:
        return ipaddress.ip_network(text if slash else address, strict=False)
    except ValueError as error:
        raise ValueError(_bad_prefix(text)) from error


def cidr_label(prefix: Prefix) -> Label:
    """The label that names a prefix: `cidr:10.0.0.0/8`, `cidr:fd00--0/8`.

    A colon separates the source of a label, so IPv6 addresses are written with dashes, and padded
    with `0` where they would begin or end with one.
    """
    address = str(prefix.network_address)
    if prefix.version == 6:
        address = address.replace(":", "-")
        address = f"0{address}" if address.startswith("-") else address
        address = f"{address}0" if address.endswith("-") else address
    return Label(SOURCE_CIDR, f"{address}/{prefix.prefixlen}")


def cidr_of_label(label: Label) -> Prefix | None:
    """The prefix that a `cidr` label names, None when the label is of another kind."""
    if label.source != SOURCE_CIDR:
        return None
    try:
        return parse_prefix(label.key.replace("-", ":"))
    except ValueError:
        return None


def cidr_of(labels: LabelSet) -> Prefix | None:
    """The prefix of an identity: its longest `cidr` label, None when it has none."""
    prefixes = [prefix for label in labels if (prefix := cidr_of_label(label)) is not None]
    return max(prefixes, key=lambda prefix: prefix.prefixlen, default=None)


def cidr_labels(prefix: Prefix, families: Families) -> LabelSet:
    """Every label of a prefix's identity: its `cidr` label and the world's.

    The whole address space (`0.0.0.0/0`, `::/0`) is the world itself and has no `cidr` label.
    """
    world = families.world(prefix.version).label
    return LabelSet((world,) if prefix.prefixlen == 0 else (cidr_label(prefix), world))


class LocalIdentityExhaustedError(ExhaustedError):
    """Every node-local number is in use."""


class LocalIdentityAllocator:
    """Hands out node-local numbers, one per label set, counted by use.

    A number goes back when its last user releases it; it is not reused before the whole range has
    been walked through, so that late events still mean what they meant. After a restart, `restore`
    keeps the numbers that the maps still hold until `finish_restoring`, by when everything that
    still needs them must have acquired them.
    """

    def __init__(self, first: int = LOCAL_MIN, last: int = LOCAL_MAX) -> None:
        """`first` to `last`, both inclusive, is the range to hand out."""
        self._first, self._last = first, last
        self._next = first
        self._by_labels: dict[LabelSet, NumericIdentity] = {}
        self._by_id: dict[NumericIdentity, LabelSet] = {}
        self._uses: dict[NumericIdentity, int] = {}
        self._restored: set[NumericIdentity] = set()

    def acquire(self, labels: LabelSet) -> tuple[NumericIdentity, bool]:
        """The number of a label set, with one more use, and whether it is new.

        Raises `LocalIdentityExhaustedError` when no number is free.
        """
        known = self._by_labels.get(labels)
        if known is not None:
            self._uses[known] += 1
            return known, False
        identity = self._free_number()
        self._insert(identity, labels, uses=1)
        return identity, True

    def release(self, identity: NumericIdentity) -> bool:
        """Give one use back; True when it was the last and the number is free again.

        Raises `KeyError` for a number that is not in use.
        """
        self._uses[identity] -= 1
        if self._uses[identity]:
            return False
        self._remove(identity)
        return True

    def restore(self, identities: Mapping[NumericIdentity, LabelSet]) -> None:
        """Keep the given numbers for their label sets, before anything has been acquired.

        A number outside the range, or one that clashes with a number or label set in use, is
        skipped: its user gets a new one.
        """
        for identity, labels in identities.items():
            in_range = self._first <= identity <= self._last
            if in_range and identity not in self._by_id and labels not in self._by_labels:
                self._insert(identity, labels, uses=1)
                self._restored.add(identity)
                self._next = max(self._next, identity + 1)

    def finish_restoring(self) -> list[Identity]:
        """Let go of what `restore` kept; returns the identities that nobody has acquired since."""
        freed = []
        for identity in sorted(self._restored):
            labels = self._by_id[identity]
            if self.release(identity):
                freed.append(Identity(identity, labels))
        self._restored.clear()
        return freed

    def find(self, labels: LabelSet) -> NumericIdentity | None:
        """The number of a label set, if it has one now."""
        return self._by_labels.get(labels)

    def labels(self, identity: NumericIdentity) -> LabelSet | None:
        """The labels behind a number, if it is in use."""
        return self._by_id.get(identity)

    def __iter__(self) -> Iterator[Identity]:
        return (Identity(number, labels) for number, labels in self._by_id.items())

    def __len__(self) -> int:
        return len(self._by_id)

    def _free_number(self) -> NumericIdentity:
        for candidate in self._candidates():
            if candidate not in self._by_id:
                self._next = candidate + 1
                return NumericIdentity(candidate)
        raise LocalIdentityExhaustedError(
            f"all {self._last - self._first + 1} node-local identities are in use; "
            "name fewer address prefixes in policies"
        )

    def _candidates(self) -> Iterable[int]:
        yield from range(self._next, self._last + 1)
        yield from range(self._first, min(self._next, self._last + 1))

    def _insert(self, identity: NumericIdentity, labels: LabelSet, uses: int) -> None:
        self._by_labels[labels] = identity
        self._by_id[identity] = labels
        self._uses[identity] = uses

    def _remove(self, identity: NumericIdentity) -> None:
        del self._by_labels[self._by_id.pop(identity)]
        del self._uses[identity]
