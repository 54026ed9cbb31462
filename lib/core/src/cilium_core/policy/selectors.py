"""Selectors: what a policy picks its subjects and peers by.

Every kind of peer selector offers the same three things: `matches(labels)`, the prefixes that must
have identities of their own for it to work, and its *anchors*. An anchor is something that a label
set must have for the selector to match it at all; anchors let the selector cache find the few
selectors that may match a new identity, and the few identities that may match a new selector,
without trying each against each.

Selectors are immutable values: equal selectors, from whatever policies, are one selector to the
cache.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from cilium_core.identities import Families, Prefix, ReservedIdentity
from cilium_core.labels import (
    KEY_CLUSTER,
    KEY_NAMESPACE,
    KEY_NAMESPACE_LABELS_PREFIX,
    SOURCE_ANY,
    SOURCE_CIDR,
    SOURCE_FQDN,
    SOURCE_K8S,
    SOURCE_RESERVED,
    Label,
    LabelSet,
)
from cilium_core.policy.anchors import (
    PrefixAnchor,
    cidr_of_cached,
    enclosing_anchors,
    prefix_anchor,
    prefix_contains,
)
from cilium_core.policy.fqdn import compile_name

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable


_NODES: Final = (ReservedIdentity.HOST.label, ReservedIdentity.REMOTE_NODE.label)
"""What marks the identities of nodes."""


class PeerSelector(Protocol):
    """What every kind of peer selector offers. Implementations are hashable values."""

    def matches(self, labels: LabelSet) -> bool:
        """Whether an identity with these labels is selected."""

    def anchors(self) -> tuple[Hashable, ...] | None:
        """Anchors of which a label set must have one to match; None when there is no such list."""

    def prefixes(self) -> Iterable[Prefix]:
        """The address prefixes that need identities for the selector to tell them apart."""


class Operator(Enum):
    """How the values of a requirement count."""

    IN = "in"
    NOT_IN = "notin"
    EXISTS = "exists"
    NOT_EXISTS = "!"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on the labels: a key, of one source or `any`, and how its value must be."""

    source: str
    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def matches(self, labels: LabelSet) -> bool:
        """Whether a label set meets the condition; an absent key never equals the empty value."""
        if self.source == SOURCE_CIDR:
            return self._contains_cidr(labels) == (self.operator in {Operator.IN, Operator.EXISTS})
        label = labels.get(self.key, self.source)
        match self.operator:
            case Operator.IN:
                return label is not None and label.value in self.values
            case Operator.NOT_IN:
                return label is None or label.value not in self.values
            case Operator.EXISTS:
                return label is not None
            case Operator.NOT_EXISTS:
                return label is None

    def _contains_cidr(self, labels: LabelSet) -> bool:
        """Two `cidr` labels compare by containment, not by text."""
        outer = cidr_of_cached(Label(SOURCE_CIDR, self.key))
        if outer is None:
            return False
        inner = (cidr_of_cached(label) for label in labels.from_source(SOURCE_CIDR))
        return any(prefix is not None and prefix_contains(outer, prefix) for prefix in inner)

    def __str__(self) -> str:
        key = f"{self.source}:{self.key}"
        values = sorted(self.values)
        match self.operator:
            case Operator.IN if len(values) == 1:
                return f"{key}={values[0]}"
            case Operator.IN | Operator.NOT_IN:
                return f"{key} {self.operator.value} ({','.join(values)})"
            case Operator.EXISTS:
                return key
            case Operator.NOT_EXISTS:
                return f"!{key}"


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """Requirements that must all hold; none at all matches every label set."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: LabelSet) -> bool:
        """Whether an identity with these labels is selected."""
        return all(requirement.matches(labels) for requirement in self.requirements)

    def anchors(self) -> tuple[Hashable, ...] | None:
        """The key and value of the requirement that promises to exclude most."""
        best = min(
            (
                requirement
                for requirement in self.requirements
                if requirement.operator in {Operator.IN, Operator.EXISTS}
                and requirement.source != SOURCE_CIDR
            ),
            key=_breadth,
            default=None,
        )
        if best is None:
            return None
        if best.operator is Operator.EXISTS:
            return ((best.key, None),)
        return tuple((best.key, value) for value in best.values)

    def prefixes(self) -> Iterable[Prefix]:
        """The prefixes of hand-written `cidr` keys."""
        prefixes = (
            cidr_of_cached(Label(SOURCE_CIDR, requirement.key))
            for requirement in self.requirements
            if requirement.source == SOURCE_CIDR
        )
        return tuple(prefix for prefix in prefixes if prefix is not None)

    def mentions(self, key: str, *, sources: frozenset[str] | None = None) -> bool:
        """Whether some requirement is about a key (of one of the sources, if given)."""
        return any(
            requirement.key == key and (sources is None or requirement.source in sources)
            for requirement in self.requirements
        )

    def mentions_namespace_labels(self) -> bool:
        """Whether some requirement is about the labels of the namespace."""
        return any(
            requirement.key.startswith(KEY_NAMESPACE_LABELS_PREFIX)
            for requirement in self.requirements
        )

    def mentions_reserved(self) -> bool:
        """Whether some requirement is about a reserved label."""
        return any(requirement.source == SOURCE_RESERVED for requirement in self.requirements)

    def require(self, *requirements: Requirement) -> LabelSelector:
        """The selector with more requirements."""
        return LabelSelector(self.requirements + requirements)

    def __str__(self) -> str:
        return ", ".join(str(requirement) for requirement in self.requirements) or "{}"


def _breadth(requirement: Requirement) -> tuple[bool, bool, int]:
    """Sort key: requirements that many identities meet come last."""
    everywhere = requirement.key in {KEY_NAMESPACE, KEY_CLUSTER}
    return everywhere, requirement.operator is Operator.EXISTS, len(requirement.values)


@dataclass(frozen=True, slots=True)
class EntitySelector:
    """A named group of identities: those that carry one of some labels."""

    name: str
    labels: frozenset[Label]

    def matches(self, labels: LabelSet) -> bool:
        """Whether an identity with these labels is selected."""
        return any(label in labels for label in self.labels)

    def anchors(self) -> tuple[Hashable, ...] | None:
        """Every label of the entity."""
        return tuple((label.key, label.value) for label in self.labels)

    def prefixes(self) -> Iterable[Prefix]:
        """None."""
        return ()

    def __str__(self) -> str:
        return f"entity:{self.name}"


@dataclass(frozen=True, slots=True)
class CidrSelector:
    """Addresses inside a prefix and outside its excepts.

    Identities have addresses as `cidr` labels: outside ones always, nodes where the option
    `policy-cidr-match-mode` says so, pods never. One of several addresses is enough. `world` is the
    label that the outside of the prefix's family carries: the whole address space is selected by
    it, since the world's own identity has no `cidr` label.
    """

    prefix: Prefix
    excepts: tuple[Prefix, ...]
    world: Label

    def matches(self, labels: LabelSet) -> bool:
        """Whether an identity with these labels is selected."""
        prefixes = _prefixes_of(labels)
        if self.prefix.prefixlen == 0:
            if self.world in labels and not prefixes:
                return True
            if not any(label in labels for label in (self.world, *_NODES)):
                return False
        return any(
            prefix_contains(self.prefix, prefix)
            and not any(prefix_contains(part, prefix) for part in self.excepts)
            for prefix in prefixes
        )

    def anchors(self) -> tuple[Hashable, ...] | None:
        """The prefix, or the labels of the world and of nodes for the whole address space."""
        if self.prefix.prefixlen == 0:
            return _everywhere(self.world)
        return (prefix_anchor(self.prefix),)

    def prefixes(self) -> Iterable[Prefix]:
        """The prefix and its excepts."""
        return (self.prefix, *self.excepts)

    def __str__(self) -> str:
        excepts = ",".join(str(prefix) for prefix in self.excepts)
        return f"cidr:{self.prefix}" + (f" except {excepts}" if excepts else "")


def _prefixes_of(labels: LabelSet) -> list[Prefix]:
    """The prefix of an outside identity, or the addresses of a node; the world itself has none."""
    prefixes = (cidr_of_cached(label) for label in labels.from_source(SOURCE_CIDR))
    return [prefix for prefix in prefixes if prefix is not None]


def _everywhere(*worlds: Label) -> tuple[Hashable, ...]:
    """The anchors of whole address spaces, with their worlds' labels."""
    return tuple((label.key, label.value) for label in (*worlds, *_NODES))


@dataclass(frozen=True, slots=True)
class FqdnSelector:
    """Outside addresses that a DNS name stands for, by name or by pattern, as written.

    Which addresses these are is learned from answers; an address then carries the selector's label.
    """

    name: str = ""
    pattern: str = ""

    @property
    def text(self) -> str:
        """The name or pattern as written."""
        return self.name or self.pattern

    @property
    def label(self) -> Label:
        """The label of the addresses whose names the selector means."""
        return Label(SOURCE_FQDN, self.text)

    def matches_name(self, name: str) -> bool:
        """Whether the selector means a DNS name."""
        return compile_name(name=self.name, pattern=self.pattern).matches(name)

    def matches(self, labels: LabelSet) -> bool:
        """Whether an identity with these labels is selected."""
        return self.label in labels

    def anchors(self) -> tuple[Hashable, ...] | None:
        """The label."""
        return ((self.text, ""),)

    def prefixes(self) -> Iterable[Prefix]:
        """None: addresses come and go with the answers."""
        return ()

    def __str__(self) -> str:
        return str(self.label)


GROUP_NAME_PREFIX: Final = "io.cilium.policy.cidrgroupname/"
"""Key of the label that names a group, followed by its name."""


class GroupMember(NamedTuple):
    """A prefix of a CIDR group with the labels of the group that a selector asks about."""

    prefix: Prefix
    group: str
    labels: LabelSet


@dataclass(frozen=True, slots=True)
class CidrGroupSelector:
    """Addresses in CIDR groups that a selector selects, and outside its excepts.

    `groups` is judged by the labels that all groups around an address give it together; an address
    in no group is never selected. `members` are those of all groups that bear on that; until the
    selector is bound to the groups that exist, there are none. `worlds` are the labels of the
    outside world, IPv4's and IPv6's.
    """

    groups: LabelSelector
    excepts: tuple[Prefix, ...]
    worlds: tuple[Label, Label]
    members: frozenset[GroupMember] = frozenset()
    _by_anchor: dict[PrefixAnchor, list[GroupMember]] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        found: defaultdict[PrefixAnchor, list[GroupMember]] = defaultdict(list)
        for member in sorted(self.members, key=lambda member: member.group):
            found[prefix_anchor(member.prefix)].append(member)
        object.__setattr__(self, "_by_anchor", dict(found))

    def matches(self, labels: LabelSet) -> bool:
        """Whether an identity with these labels is selected; one of its addresses is enough."""
        prefixes = _prefixes_of(labels)
        if not prefixes:
            worlds = zip((4, 6), self.worlds, strict=True)
            version = next((version for version, world in worlds if world in labels), None)
            return version is not None and self._in_groups([(version, 0, 0)])
        return any(
            self._in_groups([*enclosing_anchors(prefix), (prefix.version, 0, 0)])
            for prefix in prefixes
            if not any(prefix_contains(part, prefix) for part in self.excepts)
        )

    def _in_groups(self, anchors: list[PrefixAnchor]) -> bool:
        """Whether the groups around an address, given by all anchors around it, are meant."""
        around = [
            member for anchor in reversed(anchors) for member in self._by_anchor.get(anchor, ())
        ]  # that of the longest prefix last
        return bool(around) and self.groups.matches(
            LabelSet(label for member in around for label in member.labels)
        )

    def anchors(self) -> tuple[Hashable, ...] | None:
        """Every member; the labels of the world and of nodes for the whole address space."""
        found: list[Hashable] = [anchor for anchor in self._by_anchor if anchor[1]]
        whole = [
            world
            for version, world in zip((4, 6), self.worlds, strict=True)
            if (version, 0, 0) in self._by_anchor
        ]
        return (*found, *_everywhere(*whole)) if whole else tuple(found)

    def prefixes(self) -> Iterable[Prefix]:
        """The members, and the excepts if there are members to except from."""
        members = {member.prefix for member in self.members}
        return members.union(self.excepts) if members else ()

    def __str__(self) -> str:
        excepts = ",".join(str(prefix) for prefix in self.excepts)
        return f"{self._named()}{f' except {excepts}' if excepts else ''}"

    def _named(self) -> str:
        """`cidrgroup:NAME`, or the selector of groups by label."""
        match self.groups.requirements:
            case (Requirement(key=key, operator=Operator.EXISTS),) if key.startswith(
                GROUP_NAME_PREFIX
            ):
                return f"cidrgroup:{key.removeprefix(GROUP_NAME_PREFIX)}"
        return f"cidrgroups:[{self.groups}]"


def equals(key: str, value: str, source: str = SOURCE_K8S) -> Requirement:
    """The requirement that a label has one value."""
    return Requirement(source, key, Operator.IN, frozenset((value,)))


def exists(key: str, source: str = SOURCE_K8S) -> Requirement:
    """The requirement that a label is there."""
    return Requirement(source, key, Operator.EXISTS)


def parse_key(text: str) -> tuple[str, str]:
    """Split a selector key as written in YAML into source and key; without a source it is `any`."""
    label = Label.parse(text, SOURCE_ANY)
    return label.source, label.key


def cidr_selector(prefix: Prefix, excepts: Iterable[Prefix], families: Families) -> CidrSelector:
    """A prefix without some parts, in a cluster with the given address families."""
    return CidrSelector(prefix, _ordered(excepts), families.world(prefix.version).label)


def cidr_group_selector(
    groups: LabelSelector, excepts: Iterable[Prefix], families: Families
) -> CidrGroupSelector:
    """The groups with some labels without some prefixes, not bound to any groups yet."""
    worlds = families.world(4).label, families.world(6).label
    return CidrGroupSelector(groups, _ordered(excepts), worlds)


def _ordered(excepts: Iterable[Prefix]) -> tuple[Prefix, ...]:
    """The order of excepts has no meaning, and equal selectors should be one."""
    return tuple(
        sorted(set(excepts), key=lambda part: (part.version, part.prefixlen, int(part[0])))
    )
