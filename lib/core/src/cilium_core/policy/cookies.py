"""Cookies: the 32-bit numbers by which a map entry names the rules behind it.

A verdict event carries the cookie of the entry that decided, and hubble-server turns it back into
policy names. A cookie is a hash of what it stands for, so that a restarted agent gives the same
ones and the entries that are already in the maps need no rewriting.

One table per agent, used from one thread.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NewType

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cilium_core.policy.rules import Origin

Cookie = NewType("Cookie", int)
"""1 to 2^32-1; 0 stands for no rule."""

_MASK = 0xFFFFFFFF


class CookieTable:
    """Sets of rule origins and their cookies, both ways.

    A set that is no longer in use stays until the second `sweep` after that, so that the last
    events of a rule can still be explained.
    """

    def __init__(self) -> None:
        self._cookies: dict[frozenset[Origin], Cookie] = {}
        self._origins: dict[Cookie, frozenset[Origin]] = {}
        self._idle: set[Cookie] = set()
        self._changed: set[Cookie] = set()

    def cookie(self, origins: frozenset[Origin]) -> Cookie:
        """The cookie of a set of origins, made if need be; 0 for the empty set.

        Origins that differ in revision only are the same set; the latest revision is kept.
        """
        if not origins:
            return Cookie(0)
        cookie = self._cookies.get(origins)
        if cookie is None:
            cookie = self._free_number(origins)
            self._cookies[origins] = cookie
            self._origins[cookie] = origins
            self._changed.add(cookie)
        elif _revisions(self._origins[cookie]) < _revisions(origins):
            self._origins[cookie] = origins
            self._changed.add(cookie)
        return cookie

    def origins(self, cookie: int) -> frozenset[Origin]:
        """What a cookie stands for; empty when it is unknown."""
        return self._origins.get(Cookie(cookie), frozenset())

    def take_changes(self) -> dict[Cookie, frozenset[Origin]]:
        """What became of cookies since last asked: new, of another revision, or gone (empty)."""
        changes = {cookie: self.origins(cookie) for cookie in self._changed}
        self._changed.clear()
        return changes

    def sweep(self, used: Iterable[int]) -> int:
        """Forget cookies that neither this call nor the one before names; returns how many."""
        idle = self._origins.keys() - set(used)
        gone = idle & self._idle
        for cookie in gone:
            del self._cookies[self._origins.pop(cookie)]
            self._changed.add(cookie)
        self._idle = idle - gone
        return len(gone)

    def items(self) -> Iterator[tuple[Cookie, frozenset[Origin]]]:
        """Every cookie with what it stands for."""
        return iter(list(self._origins.items()))

    def __len__(self) -> int:
        return len(self._origins)

    def _free_number(self, origins: frozenset[Origin]) -> Cookie:
        parts = sorted(
            (origin.kind, origin.namespace, origin.name, *origin.labels, origin.log)
            for origin in origins
        )
        digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
        number = int.from_bytes(digest, "big")
        while number == 0 or Cookie(number) in self._origins:
            number = (number + 1) & _MASK
        return Cookie(number)


def _revisions(origins: frozenset[Origin]) -> list[int]:
    return sorted((origin.revision for origin in origins), reverse=True)
