"""Who an address is, in the form in which flows show it.

Proxies report addresses; flows show identities, labels and pods. Answers are cached until anything
they were made of changes. Event loop only.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from cilium_core.identities import IdentityType, NumericIdentity, identity_type
from flow import flow_pb2

from cilium_agent.errors import EndpointNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cilium_core.identities import Families
    from cilium_core.labels import LabelSet

    from cilium_agent.endpoints.tables import EndpointTable
    from cilium_agent.ipcaches import IPCache

CACHED = 8192
"""Most addresses that are remembered."""


class Resolver:
    """Looks addresses up among the node's endpoints and in the address table."""

    def __init__(
        self,
        table: EndpointTable,
        ipcache: IPCache,
        labels: Callable[[], Mapping[NumericIdentity, LabelSet]],
        *,
        cluster: str,
        families: Families,
    ) -> None:
        """`labels` tells those of every identity."""
        self._table = table
        self._ipcache = ipcache
        self._labels = labels
        self._cluster = cluster
        self._families = families
        self._known: dict[str, flow_pb2.Endpoint] = {}
        table.listen(lambda _: self._known.clear())
        ipcache.listen(lambda _: self._known.clear())

    def identity(self, address: str) -> int:
        """The identity of an address; the world's where no prefix says otherwise."""
        parsed = ipaddress.ip_address(address)
        entry = self._ipcache.lookup(parsed)
        return int(self._families.world(parsed.version)) if entry is None else entry.identity

    def endpoint(self, address: str) -> flow_pb2.Endpoint:
        """What flows show of the owner of an address; do not change it."""
        known = self._known.get(address)
        if known is None:
            if len(self._known) >= CACHED:
                self._known.clear()
            known = self._known[address] = self._make(address)
        return known

    def _make(self, address: str) -> flow_pb2.Endpoint:
        identity = NumericIdentity(self.identity(address))
        labels = self._labels().get(identity)
        message = flow_pb2.Endpoint(
            identity=identity, labels=labels.texts() if labels is not None else ()
        )
        if identity_type(identity) is IdentityType.CLUSTER_LOCAL:
            message.cluster_name = self._cluster
        entry = self._ipcache.lookup(ipaddress.ip_address(address))
        if entry is not None and entry.pod_name:
            message.namespace, message.pod_name = entry.namespace, entry.pod_name
        try:
            local = self._table.by_ip(address)
        except EndpointNotFoundError:
            return message
        message.ID = local.id
        message.namespace, message.pod_name = local.namespace, local.pod_name
        message.workloads.extend(
            flow_pb2.Workload(kind=kind, name=name) for kind, name in local.workloads
        )
        return message
