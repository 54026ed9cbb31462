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
    from cilium_core.policy import PolicyEngine

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
        used = {identity.id for identity in self.identities.items().values()}
        for identity in self._restored:
            if identity not in used:
                self._engine.delete_identity(identity)
        self._restored.clear()
        await self._flush()

    async def add(self, wanted: Iterable[Prefix]) -> None:
        """Give new prefixes identities that the maps treat as they treated the addresses before."""
        added = self.identities.add(wanted)
        if not added:
            return
        for identity in added.values():
            self._engine.upsert_identity(identity.id, identity.labels)
        await self._flush()
        for prefix, identity in added.items():
            self._ipcache.upsert(str(prefix), Source.GENERATED, Entry(identity=identity.id))
        await self._ipcache.flush()
        self._feed.identities(added.values())

    async def settle(self) -> None:
        """Bring the maps up to date, then let go of prefixes that no policy needs any more."""
        await self._flush()
        in_use = self.identities.items().keys()
        gone = self.identities.remove(in_use - self._engine.required_prefixes())
        gone = {prefix: identity for prefix, identity in gone.items() if prefix.prefixlen}
        if not gone:
            return
        for prefix in gone:
            self._ipcache.delete(str(prefix), Source.GENERATED)
        await self._ipcache.flush()
        unused = [identity for identity in gone.values() if _forgettable(identity)]
        for identity in unused:
            self._engine.delete_identity(identity.id)
        await self._flush()
        self._feed.identities((), [identity.id for identity in unused])


def _forgettable(identity: Identity) -> bool:
    return identity.id >= _FIRST_ALLOCATED
