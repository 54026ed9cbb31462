"""Blocks of cluster pools: which are held by which node, and which is the next free one.

Pure bookkeeping. The records in the store are the truth; this is built from them by whoever
becomes leader.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilium_core.errors import ExhaustedError
from cilium_core.records import Network

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_WIDE = 4096  # blocks; networks over more are kept apart instead of being noted in each


class PoolExhaustedError(ExhaustedError):
    """No pool of a family has a free block."""


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """How full a pool is, in blocks."""

    cidr: Network
    mask_size: int
    total: int
    used: int


class _Pool:
    """One CIDR cut into equal blocks, and the networks that touch each block."""

    def __init__(self, cidr: Network, mask_size: int) -> None:
        self.cidr = cidr
        self.mask_size = mask_size
        self.total = 1 << (mask_size - cidr.prefixlen)
        self.held: dict[int, list[Network]] = {}
        self._lowest_free = 0
        self._shift = cidr.max_prefixlen - mask_size
        self._base = int(cidr.network_address)

    def block(self, index: int) -> Network:
        return type(self.cidr)((self._base + (index << self._shift), self.mask_size))

    def indices(self, network: Network) -> range:
        """Give the indices of the blocks that a network overlaps; none for the other family."""
        if network.version != self.cidr.version:
            return range(0)
        first = (int(network.network_address) - self._base) >> self._shift
        last = (int(network.broadcast_address) - self._base) >> self._shift
        return range(max(0, first), min(self.total - 1, last) + 1)

    def hold(self, network: Network) -> None:
        for index in self.indices(network):
            self.held.setdefault(index, []).append(network)

    def free(self, network: Network) -> None:
        for index in self.indices(network):
            self.held[index].remove(network)
            if not self.held[index]:
                del self.held[index]
                self._lowest_free = min(self._lowest_free, index)

    def first_free(self, wide: Iterable[Network]) -> int | None:
        """Give the index of the first block that nothing touches."""
        while self._lowest_free in self.held:
            self._lowest_free += 1
        index = self._lowest_free
        ranges = sorted((self.indices(network) for network in wide), key=lambda r: r.start)
        while index < self.total:
            if index in self.held:
                index += 1
            elif (beyond := max((r.stop for r in ranges if index in r), default=0)) > index:
                index = beyond
            else:
                return index
        return None


class Pools:
    """The pools of both families and the networks that nodes hold."""

    def __init__(self, pools: Iterable[tuple[Network, int]]) -> None:
        """Take pools as CIDR and prefix length of a block, in the order of use."""
        self._pools = [_Pool(cidr, size) for cidr, size in pools]
        self._holders: dict[Network, str] = {}
        self._wide: list[Network] = []

    def families(self) -> list[int]:
        """Give the IP versions that nodes are served with, in order."""
        return sorted({pool.cidr.version for pool in self._pools})

    def contains(self, network: Network) -> bool:
        """Whether a network lies within one of the pools."""
        return any(
            network.version == pool.cidr.version
            and network.prefixlen >= pool.cidr.prefixlen
            and network.network_address in pool.cidr
            for pool in self._pools
        )

    def claim(self, network: Network, node: str) -> str:
        """Note that `node` holds `network`, within the pools or not.

        Returns the name of another node that holds an overlapping network, in which case nothing
        is noted; else an empty text.
        """
        for held in self._near(network):
            if self._holders[held] != node and held.overlaps(network):
                return self._holders[held]
        if network not in self._holders:
            self._holders[network] = node
            if self._is_wide(network):
                self._wide.append(network)
            else:
                for pool in self._pools:
                    pool.hold(network)
        return ""

    def release(self, node: str) -> None:
        """Note that a node holds nothing any more."""
        for network in [held for held, holder in self._holders.items() if holder == node]:
            del self._holders[network]
            if self._is_wide(network):
                self._wide.remove(network)
            else:
                for pool in self._pools:
                    pool.free(network)

    def allocate(self, node: str, version: int) -> Network:
        """Give a node the first free block of a family. Raises PoolExhaustedError."""
        pools = [pool for pool in self._pools if pool.cidr.version == version]
        for pool in pools:
            if (index := pool.first_free(self._wide)) is not None:
                block = pool.block(index)
                self.claim(block, node)
                return block
        shown = ", ".join(f"{pool.cidr} (blocks of /{pool.mask_size})" for pool in pools)
        raise PoolExhaustedError(
            f"no free IPv{version} block in {shown}; add a pool to cluster-pool-ipv{version}-cidr"
        )

    def usage(self) -> list[PoolUsage]:
        """Tell how full each pool is."""
        return [
            PoolUsage(
                pool.cidr,
                pool.mask_size,
                pool.total,
                min(pool.total, len(pool.held) + sum(len(pool.indices(w)) for w in self._wide)),
            )
            for pool in self._pools
        ]

    def _is_wide(self, network: Network) -> bool:
        """Whether a network is noted apart: it spans many blocks, or lies outside of the pools."""
        if not self.contains(network):
            return True
        return any(len(pool.indices(network)) > _WIDE for pool in self._pools)

    def _near(self, network: Network) -> Iterator[Network]:
        """Give the networks of the family that could overlap, each at least once."""
        if self._is_wide(network):
            yield from (held for held in self._holders if held.version == network.version)
            return
        yield from (held for held in self._wide if held.version == network.version)
        for pool in self._pools:
            for index in pool.indices(network):
                yield from pool.held.get(index, ())
