"""Redirects by number: what an entry of a policy map asks of a proxy.

A number is a hash of what it stands for, so that a restarted agent gives the same ones. The policy
knows nothing of proxies or their ports: the agent has a redirect realised, which gives a port, and
writes the port where the number stands.

One table per engine, used from one thread.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NewType

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cilium_core.policy.l7 import Redirect

RedirectID = NewType("RedirectID", int)
"""1 to 2^32-1; 0 stands for no redirect."""

_MASK = 0xFFFFFFFF


class RedirectTable:
    """Redirects and their numbers, both ways.

    A redirect out of use stays until the second `sweep` after that, as cookies do.
    """

    def __init__(self) -> None:
        self._numbers: dict[Redirect, RedirectID] = {}
        self._redirects: dict[RedirectID, Redirect] = {}
        self._idle: set[RedirectID] = set()

    def number(self, redirect: Redirect) -> RedirectID:
        """The number of a redirect, made if need be."""
        number = self._numbers.get(redirect)
        if number is None:
            number = self._free_number(redirect)
            self._numbers[redirect] = number
            self._redirects[number] = redirect
        return number

    def get(self, number: int) -> Redirect | None:
        """What a number stands for; None for 0 and for what is unknown."""
        return self._redirects.get(RedirectID(number))

    def sweep(self, used: Iterable[int]) -> int:
        """Forget redirects that neither this call nor the one before names; returns how many."""
        idle = self._redirects.keys() - set(used)
        gone = idle & self._idle
        for number in gone:
            del self._numbers[self._redirects.pop(number)]
        self._idle = idle - gone
        return len(gone)

    def items(self) -> Iterator[tuple[RedirectID, Redirect]]:
        """Every redirect with its number."""
        return iter(list(self._redirects.items()))

    def __len__(self) -> int:
        return len(self._redirects)

    def _free_number(self, redirect: Redirect) -> RedirectID:
        text = repr(redirect_key(redirect))
        digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
        number = int.from_bytes(digest, "big")
        while number == 0 or RedirectID(number) in self._redirects:
            number = (number + 1) & _MASK
        return RedirectID(number)


def redirect_key(redirect: Redirect) -> tuple[object, ...]:
    """A text form that is the same in every process; sets are put into order."""
    kafka = tuple(
        (sorted(rule.api_keys), rule.api_version, rule.client_id, rule.topic)
        for rule in redirect.kafka
    )
    return (
        redirect.ingress,
        redirect.kind.value,
        redirect.http,
        redirect.dns,
        kafka,
        sorted(redirect.server_names),
        redirect.terminating,
        redirect.originating,
        redirect.allow_all,
        redirect.audit,
    )
