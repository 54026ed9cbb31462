"""Which identity an address has: user space's table and its copy in the kernel.

Several sources may claim one prefix; the strongest wins, and when it lets go the next one shows.
The table is changed on the event loop. `flush` carries what changed to the kernel in one batch and
returns when it is there; a batch that fails is kept and tried again by the "ipcache" controller.
Listeners hear of effective changes once the kernel has them.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Source(IntEnum):
    """Where a claim comes from; a higher number wins."""

    RESTORED = 1
    GENERATED = 2
    KUBERNETES = 5
    CUSTOM_RESOURCE = 6
    KVSTORE = 7
    LOCAL = 8

    @property
    def label(self) -> str:
        """The name shown to people."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True, slots=True)
class Entry:
    """The identity of a prefix and how to get there.

    `tunnel_ipv4` is the node that hosts a remote prefix, None when no tunnel is needed;
    `host_ip` names the hosting node to people and is empty for the outside.
    """

    identity: int
    tunnel_ipv4: str | None = None
    host_ip: str = ""
    namespace: str = ""
    pod_name: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a prefix; `new` is None when nobody claims it any more."""

    prefix: str
    old: Entry | None
    new: Entry | None


class Kernel(Protocol):
    """The kernel's copy."""

    def __call__(self, upserts: Mapping[str, Entry], deletes: Iterable[str]) -> Awaitable[None]:
        """Write some prefixes and remove others."""


def normalise(prefix: str) -> str:
    """`10.0.0.1` and `10.0.0.1/8` as the prefix they stand for; `ValueError` on nonsense."""
    return str(ipaddress.ip_network(prefix, strict=False))


class IPCache:
    """The table."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._claims: dict[str, dict[Source, Entry]] = {}
        self._applied: dict[str, Entry] = {}
        self._dirty: set[str] = set()
        self._lengths: dict[int, Counter[int]] = {4: Counter(), 6: Counter()}
        self._flushing = asyncio.Lock()
        self._listeners: list[Callable[[list[Change]], None]] = []

    def listen(self, listener: Callable[[list[Change]], None]) -> None:
        """Call `listener` with the changes that reached the kernel."""
        self._listeners.append(listener)

    def restore(self, found: Mapping[str, Entry]) -> None:
        """Begin with what the kernel holds, as the weakest claims."""
        for prefix, entry in found.items():
            self._claims_of(prefix)[Source.RESTORED] = entry
            self._applied[prefix] = entry

    def drop_restored(self) -> None:
        """Let go of what only the kernel still claimed."""
        for prefix in [p for p, claims in self._claims.items() if Source.RESTORED in claims]:
            self.delete(prefix, Source.RESTORED)

    def upsert(self, prefix: str, source: Source, entry: Entry) -> None:
        """Claim a prefix."""
        prefix = normalise(prefix)
        claims = self._claims_of(prefix)
        if claims.get(source) != entry:
            claims[source] = entry
            self._dirty.add(prefix)

    def delete(self, prefix: str, source: Source) -> None:
        """Give up a claim; one that was never made is fine."""
        prefix = normalise(prefix)
        claims = self._claims.get(prefix)
        if claims is None or claims.pop(source, None) is None:
            return
        if not claims:
            del self._claims[prefix]
            self._count(prefix, -1)
        self._dirty.add(prefix)

    def get(self, prefix: str) -> Entry | None:
        """The entry in force for exactly this prefix."""
        claims = self._claims.get(normalise(prefix))
        return claims[max(claims)] if claims else None

    def lookup(self, address: Address) -> Entry | None:
        """The entry of the longest prefix around an address."""
        lengths = self._lengths[address.version]
        for length in sorted((n for n, count in lengths.items() if count), reverse=True):
            entry = self.get(f"{address}/{length}")
            if entry is not None:
                return entry
        return None

    def claimed(self, prefix: str, source: Source) -> Entry | None:
        """What one source says of a prefix."""
        return self._claims.get(normalise(prefix), {}).get(source)

    def entries(self) -> Iterator[tuple[str, Source, Entry]]:
        """All prefixes with the claim in force."""
        for prefix, claims in self._claims.items():
            source = max(claims)
            yield prefix, source, claims[source]

    async def flush(self) -> None:
        """Bring the kernel up to date; what fails stays to be done."""
        async with self._flushing:
            changes = self._take()
            if not changes:
                return
            upserts = {c.prefix: c.new for c in changes if c.new is not None}
            deletes = [c.prefix for c in changes if c.new is None]
            try:
                await self._kernel(upserts, deletes)
            except BaseException:
                self._dirty.update(change.prefix for change in changes)
                raise
            for change in changes:
                if change.new is None:
                    self._applied.pop(change.prefix, None)
                else:
                    self._applied[change.prefix] = change.new
        for listener in self._listeners:
            listener(changes)

    async def refresh(self) -> None:
        """Write every entry again, whatever the kernel is thought to hold."""
        self._dirty.update(self._claims, self._applied)
        self._applied.clear()
        await self.flush()

    def _claims_of(self, prefix: str) -> dict[Source, Entry]:
        claims = self._claims.get(prefix)
        if claims is None:
            claims = self._claims[prefix] = {}
            self._count(prefix, 1)
        return claims

    def _count(self, prefix: str, step: int) -> None:
        _address, _slash, length = prefix.partition("/")
        self._lengths[6 if ":" in prefix else 4][int(length)] += step

    def _take(self) -> list[Change]:
        dirty, self._dirty = self._dirty, set()
        changes = []
        for prefix in dirty:
            claims = self._claims.get(prefix)
            new = claims[max(claims)] if claims else None
            old = self._applied.get(prefix)
            if new != old:
                changes.append(Change(prefix=prefix, old=old, new=new))
        return changes
