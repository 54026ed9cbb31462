"""Prefixes of policies in the kernel: their identities, in the order that opens no hole.

A new identity reaches the policy maps under the old rules before the address table points at it,
and leaves them only after the address table has ceased to. Used by `policies` within its passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cilium_core.policy import PrefixIdentities

from cilium_agent.ipcaches import Entry, IPCache, Source

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from cilium_core.identities import (
        Families,
        Identity,
        LocalIdentityAllocator,
        Prefix,
    )
    from cilium_core.labels import LabelSet
    from cilium_core.policy import PolicyEngine, PrefixChange
    from cilium_core.policy.prefixes import Names

    from cilium_agent.feeds import Feed

_FIRST_ALLOCATED = 256
"""Lower identities are fixed and never forgotten."""


class Prefixes:
    """The prefixes in use and those that an earlier run used."""

    def __init__(
        self,
        engine: PolicyEngine,
        families: Families,
        *,
        ipcache: IPCache,
        allocator: LocalIdentityAllocator,
        feed: Feed,
        flush: Callable[[], Awaitable[None]],
    ) -> None:
        """Take the parts; `flush` brings the maps up to date with the engine."""
        self.identities = PrefixIdentities(families, allocator)
        self._engine = engine
        self._ipcache = ipcache
        self._allocator = allocator
        self._feed = feed
        self._flush = flush
        self._restored: dict[int, LabelSet] = {}
        self._due: dict[Prefix, Identity | None] = {}
        self._unused: set[int] = set()
        for version in (4, 6):
            if families.ipv4 if version == 4 else families.ipv6:
                everywhere = "0.0.0.0/0" if version == 4 else "::/0"
                world = Entry(identity=int(families.world(version)))
                ipcache.upsert(everywhere, Source.GENERATED, world)

    def restore(self, identities: Mapping[int, LabelSet]) -> None:
        """Keep identities that the kernel still uses until `finish_restoring`."""
        for identity, labels in identities.items():
            self._restored[identity] = labels
            self._engine.upsert_identity(identity, labels)

    async def finish_restoring(self) -> None:
        """Let go of what an earlier run used and no policy needs."""
        self._allocator.finish_restoring()
        self._ipcache.drop_restored()
        await self._ipcache.flush()
        used = {int(identity.id) for identity in self.identities.items().values()}
        # Identities of nodes are restored as well, and are in use where the address table says so.
        used |= {entry.identity for _prefix, _source, entry in self._ipcache.entries()}
        for identity in self._restored:
            if identity not in used:
                self._engine.delete_identity(identity)
        self._restored.clear()
        await self._flush()

    async def add(self, wanted: Iterable[Prefix]) -> None:
        """Give new prefixes identities that the maps treat as they treated the addresses before."""
        await self._carry_out(self.identities.change(add=wanted))

    async def settle(self) -> None:
        """Bring the maps up to date, then let go of prefixes that no policy needs any more."""
        await self._flush()
        idle = self.identities.named - self._engine.required_prefixes()
        await self._carry_out(self.identities.change(remove=idle))

    async def apply_names(self, names: Names) -> None:
        """Give addresses the labels of their names; returns when the kernel has them."""
        await self._carry_out(self.identities.change(names=names))

    async def _carry_out(self, change: PrefixChange) -> None:
        """New identities to the maps, then the address table, then old identities away.

        What fails is carried out by the next change, be it an empty one.
        """
        self._due.update(change.added)
        self._due.update(dict.fromkeys(change.removed))
        self._unused |= {identity.id for identity in change.unused if _forgettable(identity)}
        added = {prefix: identity for prefix, identity in self._due.items() if identity}
        self._unused -= {identity.id for identity in added.values()}
        if not self._due and not self._unused:
            return
        for identity in added.values():
            self._engine.upsert_identity(identity.id, identity.labels)
        await self._flush()
        for prefix in self._due:
            if (new := added.get(prefix)) is not None:
                self._ipcache.upsert(str(prefix), Source.GENERATED, Entry(identity=new.id))
            elif prefix.prefixlen:  # the world itself is always there
                self._ipcache.delete(str(prefix), Source.GENERATED)
        await self._ipcache.flush()
        for number in self._unused:
            self._engine.delete_identity(number)
        if self._unused:
            await self._flush()
        self._feed.identities(added.values(), self._unused)
        self._due.clear()
        self._unused.clear()


def _forgettable(identity: Identity) -> bool:
    return identity.id >= _FIRST_ALLOCATED
