"""Redirects of policies and the ports on which proxies enforce them.

The engine names a redirect by number, the kernel by the port of a proxy. `ports` asks the proxies
for what a pass is about to write; `sweep` gives back what no policy uses any more. Used by
`installing` within its passes, but for `moved`, which only notes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from cilium_agent.datapath import NO_PORT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from cilium_core.policy import PolicyEngine, PolicyEntry, PolicyKey
    from cilium_core.policy.l7 import Redirect

    Entries = Mapping[PolicyKey, PolicyEntry]


class Proxies(Protocol):
    """Who enforces redirects."""

    async def realise(self, redirects: Collection[Redirect]) -> Mapping[Redirect, int]:
        """Have redirects enforced; the ports of those that can be."""

    def release(self, redirects: Iterable[Redirect]) -> None:
        """No policy uses these any more."""


class NoProxies:
    """Nobody: traffic that a policy redirects is dropped."""

    async def realise(self, redirects: Collection[Redirect]) -> Mapping[Redirect, int]:
        """No ports."""
        del redirects
        return {}

    def release(self, redirects: Iterable[Redirect]) -> None:
        """Nothing to do."""


class Redirections:
    """The redirects in use, by endpoint."""

    def __init__(self, engine: PolicyEngine, proxies: Proxies) -> None:
        self._engine = engine
        self._proxies = proxies
        self._by_endpoint: dict[int, frozenset[int]] = {}
        self._realised: set[Redirect] = set()
        self._ports: dict[int, tuple[Redirect, int]] = {}
        self._moved: set[Redirect] = set()

    def note(self, endpoint_id: int, numbers: frozenset[int]) -> None:
        """Say which redirects an endpoint's policy names."""
        if numbers:
            self._by_endpoint[endpoint_id] = numbers
        else:
            self._by_endpoint.pop(endpoint_id, None)

    def users(self) -> dict[Redirect, list[int]]:
        """The endpoints whose policies name each redirect."""
        found: dict[Redirect, list[int]] = {}
        for endpoint_id, numbers in self._by_endpoint.items():
            for number in numbers:
                redirect = self._engine.redirects.get(number)
                if redirect is not None:
                    found.setdefault(redirect, []).append(endpoint_id)
        return found

    def moved(self, redirects: Iterable[Redirect]) -> None:
        """Note that redirects have got another port."""
        self._moved.update(redirects)

    def take_moved(self) -> set[int]:
        """Endpoints whose policies name redirects that moved since last asked."""
        moved, self._moved = self._moved, set()
        if not moved:
            return set()
        get = self._engine.redirects.get
        for number in [number for number in self._ports if get(number) in moved]:
            del self._ports[number]
        return {
            endpoint_id
            for endpoint_id, numbers in self._by_endpoint.items()
            if any(get(number) in moved for number in numbers)
        }

    async def ports(self, endpoint_ids: Iterable[int]) -> dict[int, int]:
        """The ports of all redirects of these endpoints; of those without one, `NO_PORT`."""
        get = self._engine.redirects.get
        numbers = {number for one in endpoint_ids for number in self._by_endpoint.get(one, ())}
        known = {number: get(number) for number in numbers}
        wanted = {
            redirect
            for number, redirect in known.items()
            if redirect is not None and self._held(number, redirect) is None
        }
        if wanted:
            self._realised |= wanted
            answer = await self._proxies.realise(wanted)
            for number, redirect in known.items():
                if redirect in wanted and (port := answer.get(redirect)):
                    self._ports[number] = redirect, port
        return {
            number: (self._held(number, redirect) or NO_PORT) if redirect is not None else NO_PORT
            for number, redirect in known.items()
        }

    def _held(self, number: int, redirect: Redirect) -> int | None:
        """The port of a redirect as last heard, if the number still stands for it."""
        held = self._ports.get(number)
        return None if held is None or held[0] is not redirect else held[1]

    def sweep(self) -> None:
        """Give back what no endpoint's policy in the kernel uses any more."""
        get = self._engine.redirects.get
        numbers = {number for used in self._by_endpoint.values() for number in used}
        self._ports = {number: held for number, held in self._ports.items() if number in numbers}
        used = {get(number) for number in numbers}
        if unused := self._realised - used:
            self._realised -= unused
            self._proxies.release(unused)


def with_ports(entries: Entries, ports: Mapping[int, int]) -> Entries:
    """The entries with the ports of their redirects in place of the numbers."""
    if not any(entry.redirect for entry in entries.values()):
        return entries
    return {
        key: entry._replace(redirect=ports.get(entry.redirect, NO_PORT))
        if entry.redirect
        else entry
        for key, entry in entries.items()
    }
