"""Addresses for the pods of one node, from the pod CIDRs that the operator assigned.

Pure bookkeeping in memory, owned by the agent, which restores it from its endpoints at start:
first `reserve` every address in use, then `allocate`. An address is owned by a name
(`<namespace>/<pod>`, `router`, `health`) and never given to a second one. A freed address is used
again as late as possible, so that peers have time to forget whom it meant.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cilium_core.errors import ConflictError, ExhaustedError, InvalidError, NotFoundError
from cilium_core.records import Address, Network

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class AddressesExhaustedError(ExhaustedError):
    """Every address of a family is in use, or the node has no pod CIDR of it."""


class AddressTakenError(ConflictError):
    """The address belongs to another owner."""


@dataclass(slots=True)
class _Block:
    """A pod CIDR; its first and last address are never given out."""

    network: Network
    next_offset: int = 1
    used: set[int] = field(default_factory=set)

    @property
    def capacity(self) -> int:
        return self.network.num_addresses - 2

    def take(self) -> Address | None:
        """Give the next free address after the last one given."""
        if len(self.used) >= self.capacity:
            return None
        offset = self.next_offset
        while offset in self.used:
            offset = offset + 1 if offset < self.capacity else 1
        self.used.add(offset)
        self.next_offset = offset + 1 if offset < self.capacity else 1
        return self.network[offset]

    def offset_of(self, address: Address) -> int:
        return int(address) - int(self.network.network_address)


class NodeAddresses:
    """The addresses of a node. Not thread-safe: one event loop uses it."""

    def __init__(self, pod_cidrs: Iterable[Network] = ()) -> None:
        self._blocks: dict[Network, _Block] = {}
        self._owners: dict[Address, str] = {}
        self.set_pod_cidrs(pod_cidrs)

    @property
    def owners(self) -> Mapping[Address, str]:
        """Give each address in use with its owner."""
        return self._owners

    @property
    def pod_cidrs(self) -> tuple[Network, ...]:
        """Give the CIDRs that addresses are taken from."""
        return tuple(self._blocks)

    def set_pod_cidrs(self, pod_cidrs: Iterable[Network]) -> None:
        """Replace the CIDRs; addresses in use stay owned, also outside of the new ones.

        Raises InvalidError for a CIDR with fewer than four addresses or one that overlaps
        another.
        """
        wanted = list(dict.fromkeys(pod_cidrs))
        for at, network in enumerate(wanted):
            if network.num_addresses < 4:
                raise InvalidError(f"the pod CIDR {network} is too small; use /30, /126 or larger")
            for other in wanted[:at]:
                if other.version == network.version and other.overlaps(network):
                    raise InvalidError(f"the pod CIDRs {other} and {network} overlap")
        self._blocks = {network: self._blocks.get(network) or _Block(network) for network in wanted}
        for block in self._blocks.values():
            block.used = {
                block.offset_of(address)
                for address in self._owners
                if address.version == block.network.version and address in block.network
            }

    def allocate(self, owner: str, version: int) -> Address:
        """Give `owner` a free address of IP version 4 or 6. Raises AddressesExhaustedError."""
        blocks = [block for block in self._blocks.values() if block.network.version == version]
        for block in blocks:
            if (address := block.take()) is not None:
                self._owners[address] = owner
                return address
        if not blocks:
            raise AddressesExhaustedError(
                f"this node has no IPv{version} pod CIDR yet; the operator assigns them, "
                "check that one is running and leads"
            )
        shown = ", ".join(str(block.network) for block in blocks)
        raise AddressesExhaustedError(
            f"all {self.capacity(version)} IPv{version} addresses of {shown} are in use; "
            "delete pods or give the node a larger pod CIDR"
        )

    def reserve(self, address: Address, owner: str) -> None:
        """Mark an address as owned, also outside of the pod CIDRs. Idempotent per owner.

        Raises AddressTakenError when another owner has it, InvalidError for the first and last
        address of a pod CIDR.
        """
        holder = self._owners.get(address)
        if holder is not None and holder != owner:
            raise AddressTakenError(f"the address {address} belongs to {holder}, not to {owner}")
        if (block := self._block_of(address)) is not None:
            offset = block.offset_of(address)
            if not 1 <= offset <= block.capacity:
                raise InvalidError(
                    f"the address {address} is the first or last of {block.network}; "
                    "these are not given to pods"
                )
            block.used.add(offset)
        self._owners[address] = owner

    def release(self, address: Address, owner: str | None = None) -> None:
        """Free an address; with `owner`, only if it is the one that has it.

        Raises NotFoundError when nobody has it, AddressTakenError when another owner has.
        """
        holder = self._owners.get(address)
        if holder is None:
            raise NotFoundError(f"the address {address} is not in use")
        if owner is not None and holder != owner:
            raise AddressTakenError(f"the address {address} belongs to {holder}, not to {owner}")
        del self._owners[address]
        if (block := self._block_of(address)) is not None:
            block.used.discard(block.offset_of(address))

    def release_owner(self, owner: str) -> list[Address]:
        """Free all addresses of an owner and give them."""
        addresses = [address for address, holder in self._owners.items() if holder == owner]
        for address in addresses:
            self.release(address)
        return addresses

    def capacity(self, version: int) -> int:
        """Count the addresses that the CIDRs of an IP version hold, used or not."""
        blocks = self._blocks.values()
        return sum(block.capacity for block in blocks if block.network.version == version)

    def used(self, version: int) -> int:
        """Count the addresses of an IP version in use."""
        return sum(address.version == version for address in self._owners)

    def _block_of(self, address: Address) -> _Block | None:
        for block in self._blocks.values():
            if block.network.version == address.version and address in block.network:
                return block
        return None
