"""Identities of nodes that policies tell apart.

Where `enable-node-selector-labels` is on, other nodes have their labels in their identities; where
`policy-cidr-match-mode` is `nodes`, they have their addresses: another node is then
an identity in each family, so that a network of one says nothing about the other; this node, which
is one identity, has all of them. One with neither is known by what it is alone.

The numbers mean something on this node only. They are kept on disk, so that after a restart the
numbers that the kernel still uses mean what they meant. Event loop only.
"""

from __future__ import annotations

import ipaddress
import json
from typing import TYPE_CHECKING

from cilium_core.files import write_atomic
from cilium_core.identities import (
    SCOPE_REMOTE_NODE,
    Identity,
    LocalIdentityAllocator,
    NumericIdentity,
    ReservedIdentity,
    cidr_label,
)
from cilium_core.labels import (
    KEY_CLUSTER,
    SOURCE_K8S,
    SOURCE_NODE,
    Label,
    LabelError,
    LabelSet,
)
from cilium_core.records import INTERNAL_IP
from cilium_core.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from cilium_core.records import NodeAddress, NodeRecord

log = get_logger()

_FIRST = SCOPE_REMOTE_NODE + 1
_LAST = SCOPE_REMOTE_NODE + 0xFFFFFF


def address_labels(addresses: Iterable[NodeAddress]) -> list[Label]:
    """The `cidr` labels of a node's own addresses, not of those that it has among its pods."""
    return [cidr_label(ipaddress.ip_network(a.ip)) for a in addresses if a.kind == INTERNAL_IP]


class NodeIdentities:
    """The numbers, by labels."""

    def __init__(self, file: Path, *, by_labels: bool, by_address: bool) -> None:
        """`file` is where the numbers are kept; the others say what makes an identity."""
        self._file = file
        self._by_labels = by_labels
        self._by_address = by_address
        self._allocator = LocalIdentityAllocator(_FIRST, _LAST)

    @property
    def distinct(self) -> bool:
        """Whether other nodes have identities of their own at all."""
        return self._by_labels or self._by_address

    def labels_of(self, node: NodeRecord, address: NodeAddress) -> LabelSet:
        """The labels of the identity of a remote node at one of its addresses.

        The addresses of one family have one identity, so that a rule for IPv4 says nothing about
        IPv6. That among the node's pods is one of them: from there a node speaks to others' pods.
        """
        found = []  # the last label of a key stays: no node label replaces what marks a node
        if self._by_labels:
            found += [Label(SOURCE_NODE, key, value) for key, value in node.labels.items()]
        version = address.ip.version
        found += self.addresses_of(one for one in node.addresses if one.ip.version == version)
        cluster = Label(SOURCE_K8S, KEY_CLUSTER, node.cluster)
        return LabelSet((*found, ReservedIdentity.REMOTE_NODE.label, cluster))

    def addresses_of(self, addresses: Iterable[NodeAddress]) -> list[Label]:
        """The labels that a node has for some of its addresses, if any."""
        return address_labels(addresses) if self._by_address else []

    def restore(self) -> dict[int, LabelSet]:
        """Keep the numbers of an earlier run for their labels, and tell them."""
        known = self._read()
        self._allocator.restore({NumericIdentity(n): labels for n, labels in known.items()})
        return dict(known)

    def finish_restoring(self) -> list[int]:
        """Let go of numbers of an earlier run that no node has; tells which."""
        freed = [int(identity.id) for identity in self._allocator.finish_restoring()]
        self._save()
        return freed

    def acquire(self, node: NodeRecord, address: NodeAddress) -> Identity:
        """The identity of a node at one of its addresses, with one more use."""
        labels = self.labels_of(node, address)
        number, new = self._allocator.acquire(labels)
        if new:
            self._save()
        return Identity(number, labels)

    def release(self, identity: Identity) -> bool:
        """One use less; whether it was the last."""
        last = self._allocator.release(identity.id)
        if last:
            self._save()
        return last

    def _save(self) -> None:
        document = {str(identity.id): identity.labels.texts() for identity in self._allocator}
        write_atomic(self._file, json.dumps(document).encode())

    def _read(self) -> Mapping[int, LabelSet]:
        try:
            document = json.loads(self._file.read_bytes())
            return {int(number): LabelSet.parse(texts) for number, texts in document.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError, LabelError) as error:
            log.warning("node identities ignored", file=str(self._file), error=str(error))
            return {}
