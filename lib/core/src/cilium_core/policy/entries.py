"""Entries of an endpoint's policy map, and the look-up that the data plane does over them.

The data plane asks a longest-prefix map twice, for the peer's identity and for identity 0 (any
peer), and lets the better of the two answers decide. See `columns` for how entries are made so that
this finds what the rules say.

Pure functions of values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from cilium_core.policy.ports import ANY_L4, L4Prefix

if TYPE_CHECKING:
    from cilium_core.policy.rules import Direction

_PROTOCOL_BITS: Final = 8
_L4_BITS: Final = 24


class PolicyKey(NamedTuple):
    """Key of a policy map entry.

    `identity` 0 is any peer. `prefixlen` counts the protocol and port bits, 0 to 24; `port` is in
    host order, and holds the type for ICMP.
    """

    direction: int
    identity: int
    proto: int
    port: int
    prefixlen: int


class PolicyEntry(NamedTuple):
    """Value of a policy map entry; see `rules.precedence` for the order of precedences.

    `redirect` names what a proxy has to enforce, see `redirects`; 0 is none. With `deny` and
    `audit`, traffic is reported as refused and goes on, through the proxy if there is a `redirect`.
    """

    precedence: int
    deny: bool
    redirect: int = 0
    audit: bool = False
    cookie: int = 0


Column = dict[L4Prefix, PolicyEntry]
"""All entries of one direction and one identity."""


def strongest_change(
    old: Mapping[L4Prefix, PolicyEntry], new: Mapping[L4Prefix, PolicyEntry]
) -> int:
    """The highest precedence that one column has and the other has not, -1 when they are alike.

    As the base of other columns, the two leave out the same of every contribution that has a higher
    precedence, or that allows with the same.
    """
    return max(
        (
            column[prefix].precedence
            for prefix in old.keys() | new.keys()
            for column in (old, new)
            if prefix in column
            and (prefix not in old or prefix not in new or old[prefix][:4] != new[prefix][:4])
        ),
        default=-1,
    )


def truncate(protocol: int, port: int, length: int) -> L4Prefix:
    """The prefix with `length` significant bits that a protocol and port fall into."""
    if length == 0:
        return ANY_L4
    shift = _L4_BITS - length
    return L4Prefix(protocol, port >> shift << shift, length)


_LENGTHS: Final = (*range(_L4_BITS, _PROTOCOL_BITS - 1, -1), 0)


def look_up(
    entries: Mapping[PolicyKey, PolicyEntry],
    direction: Direction,
    identity: int,
    protocol: int,
    port: int,
) -> tuple[PolicyKey, PolicyEntry] | None:
    """The entry that decides about a packet, found as the data plane finds it.

    `port` is the destination port (for ICMP: the type), 0 to 65535. None means that nothing
    matches, so the packet is dropped.
    """
    best: tuple[PolicyKey, PolicyEntry] | None = None
    for peer in (identity, 0):
        found = _longest(entries, direction, peer, protocol, port)
        if found is not None and (best is None or _rank(found) > _rank(best)):
            best = found
    return best


def _rank(found: tuple[PolicyKey, PolicyEntry]) -> tuple[int, int]:
    return found[1].precedence, found[0].prefixlen


def _longest(
    entries: Mapping[PolicyKey, PolicyEntry], direction: int, peer: int, protocol: int, port: int
) -> tuple[PolicyKey, PolicyEntry] | None:
    for length in _LENGTHS:
        prefix = truncate(protocol, port, length)
        key = PolicyKey(int(direction), peer, prefix.protocol, prefix.port, length)
        entry = entries.get(key)
        if entry is not None:
            return key, entry
    return None


@dataclass(frozen=True, slots=True)
class PolicyDelta:
    """How a policy map has to change: add (or overwrite) first, then remove."""

    add: Mapping[PolicyKey, PolicyEntry]
    remove: frozenset[PolicyKey]

    def __bool__(self) -> bool:
        return bool(self.add or self.remove)


NO_CHANGE: Final = PolicyDelta({}, frozenset())


class ColumnDifference(NamedTuple):
    """How one column becomes another."""

    removed: tuple[L4Prefix, ...]
    changed: tuple[tuple[L4Prefix, PolicyEntry], ...]
    added: tuple[tuple[L4Prefix, PolicyEntry], ...]


def difference(before: Column, after: Column) -> ColumnDifference:
    """How a column becomes another."""
    return ColumnDifference(
        tuple(prefix for prefix in before if prefix not in after),
        tuple(
            (prefix, entry)
            for prefix, entry in after.items()
            if prefix in before and before[prefix] != entry
        ),
        tuple((prefix, entry) for prefix, entry in after.items() if prefix not in before),
    )


class Changes:
    """Changes of a policy map while they are being collected, step by step.

    What comes and goes between the first step and the last leaves no trace.
    """

    __slots__ = ("_add", "_new", "_remove")

    def __init__(self) -> None:
        self._add: dict[PolicyKey, PolicyEntry] = {}
        self._remove: set[PolicyKey] = set()
        self._new: set[PolicyKey] = set()

    def __len__(self) -> int:
        return len(self._add) + len(self._remove)

    @property
    def adds(self) -> bool:
        """Whether there is an entry more, or another one."""
        return bool(self._add)

    def note(self, direction: int, identity: int, before: Column, after: Column) -> None:
        """Note that a column is another one now."""
        self.note_difference(direction, identity, difference(before, after))

    def note_difference(self, direction: int, identity: int, change: ColumnDifference) -> None:
        """Note how a column changes."""
        for prefix in change.removed:
            key = PolicyKey(direction, identity, *prefix)
            self._add.pop(key, None)
            if key in self._new:
                self._new.discard(key)
            else:
                self._remove.add(key)
        for prefix, entry in change.changed:
            self._add[PolicyKey(direction, identity, *prefix)] = entry
        for prefix, entry in change.added:
            key = PolicyKey(direction, identity, *prefix)
            self._add[key] = entry
            if key in self._remove:
                self._remove.discard(key)
            else:
                self._new.add(key)

    def copy(self) -> Changes:
        """The same changes, to be gone on with independently."""
        result = Changes()
        result._add.update(self._add)
        result._remove.update(self._remove)
        result._new.update(self._new)
        return result

    def delta(self) -> PolicyDelta:
        """All changes so far as one."""
        return PolicyDelta(dict(self._add), frozenset(self._remove))

    def __bool__(self) -> bool:
        return bool(self._add or self._remove)


@dataclass(frozen=True, slots=True)
class EndpointPolicy:
    """The whole policy of one endpoint in the data plane's form.

    A direction that is not enforced still has one entry that allows everything, so that entries may
    always be written before the enforcement flags.
    """

    ingress_enforced: bool
    egress_enforced: bool
    entries: Mapping[PolicyKey, PolicyEntry]
    revision: int = 0

    def diff(self, old: EndpointPolicy | None) -> PolicyDelta:
        """What turns the old policy's entries into these."""
        before = {} if old is None else old.entries
        add = {key: entry for key, entry in self.entries.items() if before.get(key) != entry}
        return PolicyDelta(add, frozenset(before.keys() - self.entries.keys()))

    def decide(
        self, direction: Direction, identity: int, protocol: int, port: int
    ) -> tuple[PolicyKey, PolicyEntry] | None:
        """The entry that decides about a packet, see `look_up`."""
        return look_up(self.entries, direction, identity, protocol, port)

    def allows(self, direction: Direction, identity: int, protocol: int, port: int) -> bool:
        """Whether a packet passes."""
        found = self.decide(direction, identity, protocol, port)
        return found is not None and not found[1].deny
