"""What one endpoint learned: names, their addresses, and addresses that outlive their names.

An entry expires when its answer does. What has expired is collected from time to time; an address
that goes so, or has to make room, becomes a zombie: nobody learns it any more, but it is treated as
before while a connection to it lives, and a while longer.

Pure values and arithmetic: times are seconds of the wall clock and passed in; names are in lower
case with a final dot.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

ZOMBIE_LIFE_S: Final = 120.0
"""For how long a zombie is kept after a connection to it was seen."""

ZOMBIE_MIN_S: Final = 30.0
"""For how long it is kept at least: a client may be about to connect."""

MAX_NAMES: Final = 20_000
"""Names of one endpoint; the one learned longest ago makes room."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """That a name had an address."""

    name: str
    address: Address
    ttl_s: int
    looked_up_s: float
    expires_s: float


@dataclass(slots=True)
class Zombie:
    """An address whose names are no longer learned."""

    address: Address
    names: set[str]
    died_s: float
    kept_until_s: float
    connected: bool = False


@dataclass(slots=True)
class EndpointNames:
    """The names of one endpoint.

    What changes which names an address has is returned by each function: the addresses concerned.
    """

    lookups: dict[str, dict[Address, Lookup]] = field(default_factory=dict)
    zombies: dict[Address, Zombie] = field(default_factory=dict)
    names: dict[Address, set[str]] = field(default_factory=dict)
    """The names of every address, those of zombies included."""
    prolonged: bool = False
    """Whether some expiry moved since this was set to False."""

    def learn(self, lookup: Lookup, max_addresses: int, max_zombies: int) -> set[Address]:
        """Take up what was looked up."""
        addresses = self.lookups.setdefault(lookup.name, {})
        known = addresses.get(lookup.address)
        if known is not None:
            if lookup.expires_s > known.expires_s:
                addresses[lookup.address] = lookup
                self.prolonged = True
            return set()
        addresses[lookup.address] = lookup
        self._revive(lookup)
        names = self.names.setdefault(lookup.address, set())
        changed = set() if lookup.name in names else {lookup.address}
        names.add(lookup.name)
        now = lookup.looked_up_s
        if len(addresses) > max_addresses:
            self._bury(min(addresses.values(), key=lambda one: one.expires_s), now)
        if len(self.lookups) > MAX_NAMES:
            for one in list(self.lookups[next(iter(self.lookups))].values()):
                self._bury(one, now)
        return changed | self._limit(max_zombies)

    def expire(self, now: float, max_zombies: int) -> tuple[int, set[Address]]:
        """Turn what has expired into zombies; tells how much that was, too."""
        return self.clean(lambda one: one.expires_s <= now, now, max_zombies)

    def clean(
        self, chosen: Callable[[Lookup], bool], now: float, max_zombies: int
    ) -> tuple[int, set[Address]]:
        """Do as if some lookups had expired; tells how many, too."""
        expired = [one for one in self if chosen(one)]
        for one in expired:
            self._bury(one, now)
        return len(expired), self._limit(max_zombies)

    def collect(
        self, connected: Container[Address], seen_s: float, now: float, grace_s: float
    ) -> set[Address]:
        """Let zombies go that nobody is connected to.

        `connected` is as of `seen_s`; a zombie that died within `grace_s` before that is kept.
        """
        gone = []
        for zombie in self.zombies.values():
            zombie.connected = zombie.address in connected
            if zombie.connected:
                zombie.kept_until_s = now + ZOMBIE_LIFE_S
            elif zombie.died_s <= seen_s - grace_s and zombie.kept_until_s <= now:
                gone.append(zombie)
        return {self._forget(zombie) for zombie in gone}

    def __iter__(self) -> Iterator[Lookup]:
        return (one for addresses in self.lookups.values() for one in addresses.values())

    def _revive(self, lookup: Lookup) -> None:
        """A name that is learned again needs no zombie."""
        zombie = self.zombies.get(lookup.address)
        if zombie is not None:
            zombie.names.discard(lookup.name)
            if not zombie.names:
                del self.zombies[lookup.address]

    def _bury(self, lookup: Lookup, now: float) -> None:
        addresses = self.lookups[lookup.name]
        del addresses[lookup.address]
        if not addresses:
            del self.lookups[lookup.name]
        kept = now + ZOMBIE_MIN_S
        zombie = self.zombies.get(lookup.address)
        if zombie is None:
            self.zombies[lookup.address] = Zombie(lookup.address, {lookup.name}, now, kept)
        else:
            zombie.names.add(lookup.name)
            zombie.died_s, zombie.kept_until_s = now, max(zombie.kept_until_s, kept)

    def _forget(self, zombie: Zombie) -> Address:
        del self.zombies[zombie.address]
        names = self.names[zombie.address]
        names -= zombie.names
        if not names:
            del self.names[zombie.address]
        return zombie.address

    def _limit(self, max_zombies: int) -> set[Address]:
        """Above the limit, those go first that nobody is connected to, and died first."""
        surplus = len(self.zombies) - max_zombies
        if surplus <= 0:
            return set()
        order = sorted(self.zombies.values(), key=lambda one: (one.connected, one.died_s))
        return {self._forget(zombie) for zombie in order[:surplus]}
