"""The nodes of the cluster: this one's record, and how to reach the others' pods.

This node's record stands in the store below a lease, with the labels of the Node object. Every
other record becomes rows of the address table (the node itself, its pod gateway, its pod CIDRs
behind the tunnel) and routes. Changes are noted on the event loop; the "nodes" controller carries
them out.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cilium_core.errors import InvalidError
from cilium_core.identities import Identity, NumericIdentity, ReservedIdentity
from cilium_core.kvstore import EventKind
from cilium_core.labels import LabelSet
from cilium_core.records import CILIUM_INTERNAL_IP, INTERNAL_IP, NODES, NodeAddress, NodeRecord
from cilium_core.telemetry import gauge, get_logger

from cilium_agent.datapath import EndpointInfo, RemoteNode
from cilium_agent.datapath.models import EndpointFlag
from cilium_agent.ipcaches import Entry, IPCache, Source, normalise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cilium_core.kvstore import Event
    from cilium_core.records import Network

    from cilium_agent.datapath import Datapath
    from cilium_agent.feeds import Feed
    from cilium_agent.nodeidentities import NodeIdentities
    from cilium_agent.planes import Plane
    from cilium_agent.policies import Policies

log = get_logger()

NODES_KNOWN = gauge("cilium_nodes", "Nodes of the cluster known to this one, itself included.")


def own_record(
    *,
    name: str,
    cluster: str,
    cluster_id: int,
    addresses: Iterable[str],
    routers: Iterable[str],
    pod_cidrs: Iterable[Network],
    labels: Mapping[str, str],
) -> NodeRecord:
    """Describe this node; empty addresses are left out."""
    listed = [(INTERNAL_IP, a) for a in addresses] + [(CILIUM_INTERNAL_IP, a) for a in routers]
    return NodeRecord(
        name=name,
        cluster=cluster,
        cluster_id=cluster_id,
        addresses=tuple(NodeAddress(kind, ipaddress.ip_address(a)) for kind, a in listed if a),
        pod_cidrs=tuple(pod_cidrs),
        labels=dict(labels),
    )


def claims(
    node: NodeRecord,
    identities: Mapping[NodeAddress, Identity] | None = None,
    *,
    tunnelled: bool = False,
) -> dict[str, Entry]:
    """What another node means for the address table.

    `identities` are those that it has at its addresses; without, it is a node like any other. When
    `tunnelled`, pods reach the node itself through the tunnel too, which tells it who they are.
    """
    tunnel = node.address(4)
    behind = str(tunnel) if tunnel else None
    host = str(tunnel or node.address(6) or "")
    found: dict[str, Entry] = {}
    for cidr in node.pod_cidrs:
        # Addresses that no record explains yet: in the cluster, but nobody's.
        found[str(cidr)] = Entry(int(ReservedIdentity.UNMANAGED), behind, host)
    for address in node.addresses:
        inside = tunnelled or address.kind == CILIUM_INTERNAL_IP
        identity = int(identities[address].id if identities else ReservedIdentity.REMOTE_NODE)
        found[normalise(str(address.ip))] = Entry(identity, behind if inside else None, host)
    return found


class Nodes:
    """The nodes as the store has them."""

    def __init__(
        self,
        *,
        cluster: str,
        name: str,
        ipcache: IPCache,
        plane: Plane,
        feed: Feed,
        policies: Policies,
        labels: Mapping[str, str],
        identities: NodeIdentities | None = None,
        tunnelled: bool = False,
    ) -> None:
        """Take the parts; `cluster`, `name` and `labels` are the own node's.

        With `identities` nodes have identities by what policies may tell them apart by. With
        `tunnelled`, traffic of pods to other nodes keeps its sender (see `claims`).
        """
        self.trigger: Callable[[], None] = lambda: None
        self.labels_changed: Callable[[], None] = lambda: None
        self.changed: Callable[[], None] = lambda: None
        self._policies = policies
        self._fixed_labels = dict(labels)
        self._object_labels: dict[str, str] = {}
        self._identities = identities
        self._tunnelled = tunnelled
        self._held: dict[str, list[Identity]] = {}
        self._idle: list[Identity] = []
        self._cluster = cluster
        self._name = name
        self._ipcache = ipcache
        self._plane = plane
        self._feed = feed
        self._records: dict[str, NodeRecord] = {}
        self._claims: dict[str, dict[str, Entry]] = {}
        self.own: NodeRecord | None = None
        self.synced = False

    def all(self) -> list[NodeRecord]:
        """The own node first, then the others by name."""
        others = [self._records[key] for key in sorted(self._records)]
        return [self.own, *others] if self.own else others

    @property
    def labels(self) -> Mapping[str, str]:
        """The labels of the own node."""
        return {**self._object_labels, **self._fixed_labels}

    def upsert_object(self, document: Mapping[str, Any]) -> None:
        """Note a Node object; the own one gives this node labels."""
        metadata = document.get("metadata")
        if not isinstance(metadata, Mapping) or metadata.get("name") != self._name:
            return
        labels = metadata.get("labels")
        self._relabel(labels if isinstance(labels, Mapping) else {})

    def delete_object(self, document: Mapping[str, Any]) -> None:
        """Note that a Node object is gone."""
        self.upsert_object({"metadata": {"name": document.get("metadata", {}).get("name")}})

    def _relabel(self, labels: Mapping[str, Any]) -> None:
        wanted = {str(key): str(value) for key, value in labels.items()}
        if wanted != self._object_labels:
            self._object_labels = wanted
            self.labels_changed()

    def handle(self, event: Event) -> None:
        """Note a change of a node's record."""
        if event.kind is EventKind.SYNCED:
            self.synced = True
            self.trigger()
            return
        key = event.key.removeprefix(NODES)
        if key == f"{self._cluster}/{self._name}":
            return
        if event.kind is EventKind.PUT:
            try:
                record = NodeRecord.from_json(event.value)
            except InvalidError as error:
                log.warning("node record ignored", key=event.key, error=str(error))
                return
            self._upsert(key, record)
        else:
            self._delete(key)
        NODES_KNOWN.set(len(self._records) + 1)
        self.trigger()
        self.changed()

    def set_own(self, record: NodeRecord) -> None:
        """Note what this node is."""
        self.own = record
        self.changed()
        addresses = [str(a.ip) for a in record.addresses if a.kind == INTERNAL_IP]
        shown = next(iter(addresses), "")
        for address in record.addresses:
            # An address among the pods does not say which node people mean.
            known = shown if address.kind == INTERNAL_IP else ""
            entry = Entry(int(ReservedIdentity.HOST), host_ip=known)
            self._ipcache.upsert(str(address.ip), Source.LOCAL, entry)
        if self._identities is not None:
            host = ReservedIdentity.HOST
            labels = LabelSet((*self._identities.addresses_of(record.addresses), host.label))
            self._policies.upsert_identity(host, labels)
            self._feed.identities([Identity(NumericIdentity(host), labels)])
        self._feed.local_node(record.name, record.cluster, addresses)
        self._feed.node(record.name, record.cluster, addresses)

    async def reconcile(self) -> None:
        """Bring routes and address table up to date."""
        if not self.synced:
            return
        remotes = [RemoteNode(key, node.pod_cidrs) for key, node in self._records.items()]
        await self._plane.run(_sync_routes, self._plane.datapath, remotes)
        await self._ipcache.flush()
        self._forget_idle()

    async def write_host_rows(self, record: NodeRecord) -> None:
        """Tell the data plane which addresses are the node's own, and which no longer."""
        rows = [_host_row(str(address.ip)) for address in record.addresses]
        await self._plane.run(_write_host_rows, self._plane.datapath, rows)

    def _upsert(self, key: str, record: NodeRecord) -> None:
        before = self._records.get(key)
        if before == record:
            return
        if before is None:
            log.info("node joined", peer=key, addresses=[str(a.ip) for a in record.addresses])
        self._records[key] = record
        if self._identities is None:
            self._claim(key, claims(record, tunnelled=self._tunnelled))
        else:
            found = {a: self._identities.acquire(record, a) for a in record.addresses}
            for identity in found.values():
                self._policies.upsert_identity(identity.id, identity.labels)
            self._feed.identities(list(found.values()))
            self._claim(key, claims(record, found, tunnelled=self._tunnelled))
            self._release(key)
            self._held[key] = list(found.values())
        addresses = [str(a.ip) for a in record.addresses if a.kind == INTERNAL_IP]
        self._feed.node(record.name, record.cluster, addresses)

    def _delete(self, key: str) -> None:
        record = self._records.pop(key, None)
        if record is None:
            return
        log.info("node left", peer=key)
        self._claim(key, {})
        self._release(key)
        self._feed.node_deleted(record.name, record.cluster)

    def _forget_idle(self) -> None:
        """Forget identities that neither a node nor the address table has any more."""
        if not self._idle:
            return
        used = {identity.id for held in self._held.values() for identity in held}
        used |= {NumericIdentity(entry.identity) for _, _, entry in self._ipcache.entries()}
        gone = [identity for identity in self._idle if identity.id not in used]
        self._idle = [identity for identity in self._idle if identity.id in used]
        for identity in gone:
            self._policies.delete_identity(identity.id)
        self._feed.identities((), [identity.id for identity in gone])

    def _release(self, key: str) -> None:
        """Give up the identities that a node had; they go once no address has them any more."""
        for identity in self._held.pop(key, ()):
            if self._identities is not None and self._identities.release(identity):
                self._idle.append(identity)

    def _claim(self, key: str, wanted: dict[str, Entry]) -> None:
        held = self._claims.pop(key, {})
        for prefix in held.keys() - wanted.keys():
            if self._ipcache.claimed(prefix, Source.KVSTORE) in (held[prefix], None):
                self._policies.delete_address(prefix, Source.KVSTORE)
        for prefix, entry in wanted.items():
            self._policies.upsert_address(prefix, Source.KVSTORE, entry)
        if wanted:
            self._claims[key] = wanted


def _sync_routes(datapath: Datapath, remotes: list[RemoteNode]) -> None:
    datapath.routes.sync(remotes)


def _host_row(address: str) -> EndpointInfo:
    parsed = ipaddress.ip_address(address)
    flags = int(EndpointFlag.ENDPOINT_HOST)
    identity = int(ReservedIdentity.HOST)
    if isinstance(parsed, ipaddress.IPv4Address):
        return EndpointInfo(id=0, identity=identity, ipv4=parsed, flags=flags)
    return EndpointInfo(id=0, identity=identity, ipv6=parsed, flags=flags)


def _write_host_rows(datapath: Datapath, rows: list[EndpointInfo]) -> None:
    wanted = {(row.ipv4, row.ipv6) for row in rows}
    for row in rows:
        datapath.endpoints.upsert(row)
    for row in datapath.endpoints.dump():
        if not row.id and (row.ipv4, row.ipv6) not in wanted:
            datapath.endpoints.delete(row)
