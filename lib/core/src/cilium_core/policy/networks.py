"""Networks: address prefixes that mean pods and nodes inside them as well.

Those of tiered policies do, and the `ipBlock` of a NetworkPolicy where an option says so.

Policy is enforced by identity, and an identity stands for all pods with the same labels, in both
address families. A network selects an identity exactly when all its addresses lie inside. Where
only some do, the map cannot tell them apart, and the selector leans to the closed side: a rule that
denies selects the whole identity, any other none of it. `Networks.split` names those identities.

Until a selector is bound to the addresses that exist, it selects outside addresses only.

Immutable values; no I/O.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cilium_core.identities import Prefix
from cilium_core.labels import LabelSet
from cilium_core.policy.anchors import prefix_contains
from cilium_core.policy.selectors import CidrSelector

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator

    from cilium_core.policy.rules import Policy, Rule
    from cilium_core.policy.selectors import PeerSelector


@dataclass(frozen=True, slots=True)
class NetworkSelector:
    """Everything with an address in one of some prefixes, in or outside the cluster.

    The prefixes of one rule are taken together, so that a pod with addresses of both families can
    be wholly inside. `closed` says that the rule denies. `inside` are the label sets in the cluster
    that count as inside, by the addresses that the selector was last bound to.
    """

    networks: tuple[CidrSelector, ...]
    closed: bool
    inside: frozenset[LabelSet] = frozenset()

    def matches(self, labels: LabelSet) -> bool:
        """Whether an identity with these labels is selected."""
        return labels in self.inside or any(one.matches(labels) for one in self.networks)

    def anchors(self) -> tuple[Hashable, ...] | None:
        """Those of the prefixes; None when something in the cluster is inside."""
        if self.inside:
            return None
        return tuple(anchor for one in self.networks for anchor in one.anchors() or ())

    def prefixes(self) -> Iterable[Prefix]:
        """The prefixes and their excepts."""
        return tuple(prefix for one in self.networks for prefix in one.prefixes())

    def __str__(self) -> str:
        return "network:" + ",".join(str(one).removeprefix("cidr:") for one in self.networks)


@dataclass(frozen=True, slots=True)
class Networks:
    """The addresses of everything in the cluster, by label set."""

    addresses: Mapping[LabelSet, frozenset[Prefix]] = field(default_factory=dict)

    def bind(self, policy: Policy) -> Policy:
        """The policy with what is inside its networks now.

        Rules in which nothing changes stay the same objects, and so does the policy.
        """
        rules = tuple(self._bind_rule(rule) for rule in policy.rules)
        unchanged = all(new is old for new, old in zip(rules, policy.rules, strict=True))
        return policy if unchanged else replace(policy, rules=rules)

    def split(self, policy: Policy) -> frozenset[LabelSet]:
        """The label sets of which some addresses are inside a network and others outside."""
        selectors = (
            peer
            for rule in policy.rules
            for peer in rule.peers or ()
            if isinstance(peer, NetworkSelector)
        )
        return frozenset(
            labels
            for selector in selectors
            for labels, addresses in self.addresses.items()
            if len({_is_inside(selector, address) for address in addresses}) > 1
        )

    def _bind_rule(self, rule: Rule) -> Rule:
        if not any(isinstance(peer, NetworkSelector) for peer in rule.peers or ()):
            return rule
        peers = tuple(self._bind_peer(peer) for peer in rule.peers or ())
        return rule if peers == rule.peers else replace(rule, peers=peers)

    def _bind_peer(self, peer: PeerSelector) -> PeerSelector:
        if not isinstance(peer, NetworkSelector):
            return peer
        return replace(peer, inside=frozenset(self._inside(peer)))

    def _inside(self, selector: NetworkSelector) -> Iterator[LabelSet]:
        counts = any if selector.closed else all
        for labels, addresses in self.addresses.items():
            if addresses and counts(_is_inside(selector, address) for address in addresses):
                yield labels


def _is_inside(selector: NetworkSelector, address: Prefix) -> bool:
    return any(
        prefix_contains(one.prefix, address)
        and not any(prefix_contains(part, address) for part in one.excepts)
        for one in selector.networks
    )


def addresses_of(
    known: Iterable[tuple[Prefix, LabelSet]],
) -> Mapping[LabelSet, frozenset[Prefix]]:
    """Addresses in the cluster, each with the labels of whose it is, by those labels."""
    found: defaultdict[LabelSet, set[Prefix]] = defaultdict(set)
    for address, labels in known:
        found[labels].add(address)
    return {labels: frozenset(addresses) for labels, addresses in found.items()}
