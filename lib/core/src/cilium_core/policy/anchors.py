"""Anchors: what a label set must have for a selector to match it at all.

They let the selector cache find the few selectors that may match a new identity, and the few
identities that may match a new selector, without trying each against each. An anchor is a key with
its value, a key alone, or an address prefix, which stands for everything inside it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from cilium_core.identities import Prefix, cidr_of_label
from cilium_core.labels import SOURCE_CIDR

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from cilium_core.labels import LabelSet

cidr_of_cached: Final = lru_cache(maxsize=65536)(cidr_of_label)
"""The prefix of a `cidr` label; reading the same few labels again and again is what matching
does."""


def prefix_contains(outer: Prefix, inner: Prefix) -> bool:
    """Whether `inner` is `outer` or a part of it."""
    return (
        outer.version == inner.version
        and outer.prefixlen <= inner.prefixlen
        and int(inner.network_address) >> (inner.max_prefixlen - outer.prefixlen)
        == int(outer.network_address) >> (outer.max_prefixlen - outer.prefixlen)
    )


PrefixAnchor = tuple[int, int, int]
"""IP version, length, and as many bits of the address."""


def prefix_anchor(prefix: Prefix) -> PrefixAnchor:
    """The anchor of a prefix."""
    bits = int(prefix.network_address) >> (prefix.max_prefixlen - prefix.prefixlen)
    return prefix.version, prefix.prefixlen, bits


def enclosing_anchors(prefix: Prefix) -> Iterator[PrefixAnchor]:
    """The anchor of a prefix and of all around it, the whole address space excluded."""
    _, _, bits = prefix_anchor(prefix)
    for length in range(prefix.prefixlen, 0, -1):
        yield prefix.version, length, bits
        bits >>= 1


def is_prefix_anchor(anchor: Hashable) -> bool:
    """Whether an anchor stands for containment in a prefix, not for a label."""
    return isinstance(anchor, tuple) and len(anchor) == 3


def anchors_of(labels: LabelSet) -> Iterator[Hashable]:
    """Every anchor that a label set offers."""
    for label in labels:
        yield label.key, label.value
        yield label.key, None
        prefix = cidr_of_cached(label) if label.source == SOURCE_CIDR else None
        if prefix is not None:
            yield from enclosing_anchors(prefix)
