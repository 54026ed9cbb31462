"""CIDR groups: named, labelled lists of address prefixes that policies refer to.

A policy names a group, or selects groups by their labels, and says no more about it: what its rules
then match depends on the groups that exist. `CidrGroups.bind` writes the members into a policy's
selectors, and is asked again whenever a group comes, changes or goes; a group that does not exist
has no members.

Every address carries the labels of all groups around it, as if they were its own. Where two groups
give one key different values, the group with the longest prefix around the address has its way.

Immutable values; no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field, StrictStr

from cilium_core.identities import Prefix, parse_prefix
from cilium_core.labels import OWN_KEYS_PREFIX, SOURCE_CIDR_GROUP, Label, LabelSet
from cilium_core.policy.models_values import Metadata, Model
from cilium_core.policy.selectors import (
    GROUP_NAME_PREFIX,
    CidrGroupSelector,
    GroupMember,
    LabelSelector,
    Operator,
    Requirement,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cilium_core.policy.rules import Policy, Rule
    from cilium_core.policy.selectors import PeerSelector

KIND: Final = "CiliumCIDRGroup"


class CidrGroupMetadata(Metadata):
    """The metadata of a group; its labels are what selectors read."""

    labels: dict[StrictStr, StrictStr] | None = None


class CidrGroupSpec(Model):
    """The prefixes of a group; an entry that is none is left out with a warning."""

    external_cidrs: list[StrictStr] = Field(alias="externalCIDRs")


class CidrGroupObject(Model):
    """CiliumCIDRGroup as users write it."""

    api_version: Literal["cilium.io/v2", "cilium.io/v2alpha1"]
    kind: Literal["CiliumCIDRGroup"]
    metadata: CidrGroupMetadata
    spec: CidrGroupSpec
    status: Any = None


@dataclass(frozen=True, slots=True)
class CidrGroup:
    """A group in normal form; `labels` have the source `cidrgroup` and include its name."""

    name: str
    prefixes: frozenset[Prefix]
    labels: LabelSet
    warnings: tuple[str, ...] = field(default=(), compare=False)


def translate(model: CidrGroupObject) -> CidrGroup:
    """Bring a checked object into normal form."""
    prefixes = set()
    warnings = []
    for index, text in enumerate(model.spec.external_cidrs):
        try:
            prefix = parse_prefix(text)
            if "/" not in text:
                raise ValueError(f"{text!r} has no prefix length; write {prefix}")
        except ValueError as error:
            warnings.append(f"spec.externalCIDRs[{index}]: left out, since {error}")
        else:
            prefixes.add(prefix)
    labels = [
        Label(SOURCE_CIDR_GROUP, key, value)
        for key, value in (model.metadata.labels or {}).items()
        if not key.startswith(OWN_KEYS_PREFIX)
    ]
    name = model.metadata.name
    own = Label(SOURCE_CIDR_GROUP, GROUP_NAME_PREFIX + name)
    return CidrGroup(name, frozenset(prefixes), LabelSet((*labels, own)), tuple(warnings))


def named(name: str) -> LabelSelector:
    """The selector of the group with a name."""
    key = GROUP_NAME_PREFIX + name
    return LabelSelector((Requirement(SOURCE_CIDR_GROUP, key, Operator.EXISTS),))


class CidrGroups:
    """All groups by name."""

    def __init__(self, groups: Mapping[str, CidrGroup] | None = None) -> None:
        self._groups = dict(groups or {})

    def with_group(self, group: CidrGroup) -> CidrGroups:
        """The groups with one added or replaced."""
        return CidrGroups({**self._groups, group.name: group})

    def without(self, name: str) -> CidrGroups:
        """The groups without one."""
        return CidrGroups({key: group for key, group in self._groups.items() if key != name})

    def get(self, name: str) -> CidrGroup | None:
        """The group with a name."""
        return self._groups.get(name)

    def bind(self, policy: Policy) -> Policy:
        """The policy with the members that its group selectors have now.

        Rules in which nothing changes stay the same objects, and so does the policy.
        """
        rules = tuple(self._bind_rule(rule) for rule in policy.rules)
        unchanged = all(new is old for new, old in zip(rules, policy.rules, strict=True))
        return policy if unchanged else replace(policy, rules=rules)

    def __iter__(self) -> Iterator[CidrGroup]:
        return iter(self._groups.values())

    def __len__(self) -> int:
        return len(self._groups)

    def _bind_rule(self, rule: Rule) -> Rule:
        if not any(isinstance(peer, CidrGroupSelector) for peer in rule.peers or ()):
            return rule
        peers = tuple(self._bind_peer(peer) for peer in rule.peers or ())
        return rule if peers == rule.peers else replace(rule, peers=peers)

    def _bind_peer(self, peer: PeerSelector) -> PeerSelector:
        if not isinstance(peer, CidrGroupSelector):
            return peer
        return replace(peer, members=self._members(peer.groups))

    def _members(self, selector: LabelSelector) -> frozenset[GroupMember]:
        """What a selector has to know of the groups: only the labels that it asks about.

        A group without any of these counts only if it would be selected all the same.
        """
        keys = {requirement.key for requirement in selector.requirements}
        needs_none = selector.matches(LabelSet())
        members = []
        for group in self._groups.values():
            labels = LabelSet(label for label in group.labels if label.key in keys)
            if labels or needs_none:
                members += [GroupMember(prefix, group.name, labels) for prefix in group.prefixes]
        return frozenset(members)
