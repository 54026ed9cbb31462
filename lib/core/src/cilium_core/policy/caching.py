"""The selector cache: which identities each selector in use selects, kept up to date.

A new identity is tried against the few selectors that share an anchor with it (see `selectors`), a
new selector against the few identities that share one with it; nothing is ever matched each against
each.

One cache per engine, used from one thread. Selectors are counted by use and forgotten with the
last.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from cilium_core.identities import NumericIdentity
from cilium_core.policy.anchors import anchors_of, is_prefix_anchor

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping

    from cilium_core.labels import LabelSet
    from cilium_core.policy.selectors import PeerSelector


class CachedSelector:
    """A selector in use. `selections` is owned by the cache: read it, never change or keep it."""

    __slots__ = ("selections", "selector", "uses")

    def __init__(self, selector: PeerSelector) -> None:
        self.selector = selector
        self.selections: set[NumericIdentity] = set()
        self.uses = 0

    def __repr__(self) -> str:
        return f"CachedSelector({self.selector}, {len(self.selections)} identities)"


class SelectorCache:
    """Identities and the selectors in use, and who selects whom."""

    def __init__(self) -> None:
        self._identities: dict[NumericIdentity, LabelSet] = {}
        self._by_label: defaultdict[Hashable, set[NumericIdentity]] = defaultdict(set)
        self._selectors: dict[PeerSelector, CachedSelector] = {}
        self._anchored: defaultdict[Hashable, set[CachedSelector]] = defaultdict(set)
        self._unanchored: set[CachedSelector] = set()

    @property
    def identities(self) -> Mapping[NumericIdentity, LabelSet]:
        """Every known identity with its labels."""
        return self._identities

    def upsert_identity(self, identity: int, labels: LabelSet) -> bool:
        """Make an identity known, or give it other labels; True when that changed anything."""
        number = NumericIdentity(identity)
        old = self._identities.get(number)
        if old == labels:
            return False
        if old is not None:
            self.delete_identity(number)
        self._identities[number] = labels
        for label in labels:
            self._by_label[label.key, label.value].add(number)
            self._by_label[label.key, None].add(number)
        for cached in self.matching(labels):
            cached.selections.add(number)
        return True

    def delete_identity(self, identity: int) -> bool:
        """Forget an identity; True when it was known."""
        number = NumericIdentity(identity)
        labels = self._identities.pop(number, None)
        if labels is None:
            return False
        for cached in self.matching(labels):
            cached.selections.discard(number)
        for label in labels:
            for key in ((label.key, label.value), (label.key, None)):
                self._by_label[key].discard(number)
                if not self._by_label[key]:
                    del self._by_label[key]
        return True

    def matching(self, labels: LabelSet) -> list[CachedSelector]:
        """The selectors in use that match a label set."""
        candidates = set(self._unanchored)
        for anchor in anchors_of(labels):
            found = self._anchored.get(anchor)
            if found:
                candidates |= found
        return [cached for cached in candidates if cached.selector.matches(labels)]

    def matching_identity(self, identity: int) -> list[CachedSelector]:
        """The selectors in use that select an identity; none when it is unknown."""
        labels = self._identities.get(NumericIdentity(identity))
        return [] if labels is None else self.matching(labels)

    def find(self, selector: PeerSelector) -> CachedSelector | None:
        """A selector in use, without using it once more."""
        return self._selectors.get(selector)

    def acquire(self, selector: PeerSelector) -> CachedSelector:
        """Use a selector, once more; equal selectors are one."""
        cached = self._selectors.get(selector)
        if cached is None:
            cached = CachedSelector(selector)
            self._selectors[selector] = cached
            anchors = selector.anchors()
            if anchors is None:
                self._unanchored.add(cached)
            else:
                for anchor in anchors:
                    self._anchored[anchor].add(cached)
            cached.selections.update(
                number
                for number in self._candidates(selector)
                if selector.matches(self._identities[number])
            )
        cached.uses += 1
        return cached

    def release(self, cached: CachedSelector) -> None:
        """Give one use of a selector back."""
        cached.uses -= 1
        if cached.uses:
            return
        del self._selectors[cached.selector]
        self._unanchored.discard(cached)
        for anchor in cached.selector.anchors() or ():
            self._anchored[anchor].discard(cached)
            if not self._anchored[anchor]:
                del self._anchored[anchor]

    def __iter__(self) -> Iterator[CachedSelector]:
        return iter(list(self._selectors.values()))

    def __len__(self) -> int:
        return len(self._selectors)

    def _candidates(self, selector: PeerSelector) -> Iterable[NumericIdentity]:
        """Identities that a selector may match; a superset."""
        anchors = selector.anchors()
        # Prefix anchors stand for containment; they are not kept by identity, since every address
        # prefix would be listed under all that contain it.
        if anchors is None or any(is_prefix_anchor(anchor) for anchor in anchors):
            return list(self._identities)
        found: set[NumericIdentity] = set()
        for anchor in anchors:
            found |= self._by_label.get(anchor, set())
        return found
