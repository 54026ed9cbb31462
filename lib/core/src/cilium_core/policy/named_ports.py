"""Named ports: what the names of container ports mean.

An ingress rule reads its subject's own ports. An egress rule reads this table, which the agent
fills with the ports of every pod in the cluster. CiliumNetworkPolicy looks a name up in the whole
cluster and gets nothing when it stands for two numbers; NetworkPolicy looks it up at each peer.

One table per engine, used from one thread.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from cilium_core.policy.ports import ContainerPort

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable


class NamedPorts:
    """The named ports of all pods, by name and by identity."""

    def __init__(self) -> None:
        self._pods: dict[Hashable, tuple[int, frozenset[ContainerPort]]] = {}
        self._cluster: Counter[ContainerPort] = Counter()
        self._by_name: defaultdict[tuple[str, int], set[int]] = defaultdict(set)
        self._peers: Counter[tuple[int, ContainerPort]] = Counter()
        self._by_peer: defaultdict[tuple[str, int], defaultdict[int, set[int]]] = defaultdict(
            lambda: defaultdict(set)
        )

    def update(
        self, pod: Hashable, identity: int, ports: Iterable[ContainerPort]
    ) -> frozenset[str]:
        """Set a pod's ports (`pod` is any name for it); returns the names whose meaning changed."""
        new = (identity, frozenset(ports))
        old = self._pods.get(pod)
        if new == old:
            return frozenset()
        changed = self._take_out(pod)
        if new[1]:
            self._pods[pod] = new
            for port in new[1]:
                name = (port.name, int(port.protocol))
                self._cluster[port] += 1
                self._by_name[name].add(port.port)
                self._peers[identity, port] += 1
                if self._peers[identity, port] == 1:
                    self._by_peer[name][identity].add(port.port)
                    # A replaced pod that offers the same again has changed nothing.
                    changed ^= {(identity, port)}
        return frozenset(port.name for _, port in changed)

    def remove(self, pod: Hashable) -> frozenset[str]:
        """Forget a pod; returns the names whose meaning changed."""
        return frozenset(port.name for _, port in self._take_out(pod))

    def in_cluster(self, name: str, protocol: int) -> int | None:
        """The one number of a name in the whole cluster; None when there is none, or several."""
        ports = self._by_name.get((name, protocol), set())
        return next(iter(ports)) if len(ports) == 1 else None

    def is_ambiguous(self, name: str, protocol: int) -> bool:
        """Whether pods use the name for different numbers."""
        return len(self._by_name.get((name, protocol), ())) > 1

    def of_peer(self, identity: int, name: str, protocol: int) -> frozenset[int]:
        """The numbers that pods of an identity give a name."""
        peers = self._by_peer.get((name, protocol))
        return frozenset(peers.get(identity, ())) if peers else frozenset()

    def peers(self, name: str, protocol: int) -> frozenset[int]:
        """The identities of which some pod gives a port the name."""
        return frozenset(self._by_peer.get((name, protocol), ()))

    def _take_out(self, pod: Hashable) -> set[tuple[int, ContainerPort]]:
        identity, ports = self._pods.pop(pod, (0, frozenset[ContainerPort]()))
        changed = set()
        for port in ports:
            name = (port.name, int(port.protocol))
            self._cluster[port] -= 1
            if not self._cluster[port]:
                del self._cluster[port]
                self._by_name[name].discard(port.port)
            self._peers[identity, port] -= 1
            if not self._peers[identity, port]:
                del self._peers[identity, port]
                self._by_peer[name][identity].discard(port.port)
                if not self._by_peer[name][identity]:
                    del self._by_peer[name][identity]
                changed.add((identity, port))
        return changed
