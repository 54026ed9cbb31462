"""Who asks a service: a process of the node, a pod of it, or somebody elsewhere."""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from cilium_core.policy.ports import Protocol
from cilium_core.services.explaining import Place

from cilium_agent.errors import EndpointNotFoundError, PodNotFoundError, RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cilium_core.records import NodeRecord

    from cilium_agent.datapath.models import Address, ServiceConfig
    from cilium_agent.endpoints.records import Endpoint
    from cilium_agent.endpoints.tables import EndpointTable
    from cilium_agent.ipcaches import IPCache
    from cilium_agent.pods import PodTable

_AT_SOCKETS = (Protocol.TCP, Protocol.UDP)


class Asker(NamedTuple):
    """A client of services.

    `place` is where its backend is chosen. `address` is None where it has none of the family that
    was asked for; `endpoint` is set for pods of this node, and `node` is the name of another node
    that it is on. `unserved` says why nothing is chosen for it, empty for those that are served.
    """

    name: str
    place: Place
    address: Address | None = None
    endpoint: Endpoint | None = None
    node: str = ""
    unserved: str = ""


class Askers:
    """Finds out who a client is, from what the node knows."""

    def __init__(
        self,
        table: EndpointTable,
        ipcache: IPCache,
        pods: PodTable,
        own: NodeRecord | None,
        nodes: Sequence[NodeRecord],
        config: ServiceConfig,
    ) -> None:
        """`own` is the record of this node, None while it has none; `nodes` are all."""
        self._table = table
        self._ipcache = ipcache
        self._pods = pods
        self._node = own
        self._nodes = nodes
        self._config = config

    def find(self, text: str, version: int, protocol: int) -> Asker:
        """Who a text names: a pod, an address, or with an empty one a process of this node.

        Raises `RequestError` for what names nobody, `PodNotFoundError` for an unknown pod.
        """
        text = text.strip()
        if not text:
            return self._process(version, protocol)
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return self._pod(text, version, protocol)
        if address.version != version:
            raise RequestError(
                f"client: {address} cannot ask an address of IPv{version}; name one of that family"
            )
        return self._address(address, protocol)

    def _process(self, version: int, protocol: int) -> Asker:
        address = next((one for one in self._own() if one.version == version), None)
        place, unserved = self._place(protocol, pod=False), ""
        if place is not Place.SOCKET:
            why = "its protocol has none" if self._config.sockets else "bpf-lb-sock is off"
            unserved = f"processes of a node are served at sockets alone, and {why}"
        return Asker("a process of the node", place, address, unserved=unserved)

    def _pod(self, text: str, version: int, protocol: int) -> Asker:
        namespace, slash, name = text.partition("/")
        if not slash:
            namespace, name = "default", namespace
        if not namespace or not name or "/" in name:
            raise RequestError(
                f"client: {text[:80]!r} names nobody; write namespace/pod or an address"
            )
        pod = self._pods.get(namespace, name)
        with suppress(EndpointNotFoundError):
            return self._endpoint(self._table.by_pod(namespace, name), version, protocol)
        if pod is None:
            raise PodNotFoundError(f"there is no pod {namespace}/{name}")
        here = self._node is not None and pod.node == self._node.name
        if pod.host_network and here:
            return self._process(version, protocol)._replace(name=f"pod {namespace}/{name}")
        place = self._place(protocol, pod=not pod.host_network)
        return Asker(f"pod {namespace}/{name}", place, None, None, "" if here else pod.node)

    def _address(self, address: Address, protocol: int) -> Asker:
        with suppress(EndpointNotFoundError):
            endpoint = self._table.by_ip(str(address))
            return self._endpoint(endpoint, address.version, protocol)
        if address in self._own() or address.is_loopback:
            return self._process(address.version, protocol)._replace(address=address)
        for record in self._nodes:
            if any(known.ip == address for known in record.addresses):
                place = self._place(protocol, pod=False)
                return Asker(f"a process of {record.name}", place, address, None, record.name)
        for prefix, _, entry in self._ipcache.entries():
            if entry.pod_name and prefix.partition("/")[0] == str(address):
                who = f"pod {entry.namespace}/{entry.pod_name}"
                node = self._node_at(entry.host_ip)
                return Asker(who, self._place(protocol, pod=True), address, None, node)
        return Asker(f"{address}, from outside", Place.DEVICE, address)

    def _endpoint(self, endpoint: Endpoint, version: int, protocol: int) -> Asker:
        addresses = (ipaddress.ip_address(text) for text in endpoint.addresses)
        address = next((one for one in addresses if one.version == version), None)
        name = f"pod {endpoint.namespace}/{endpoint.pod_name}"
        return Asker(name, self._place(protocol, pod=True), address, endpoint)

    def _place(self, protocol: int, *, pod: bool) -> Place:
        config = self._config
        at_socket = config.sockets and protocol in _AT_SOCKETS
        if at_socket and not (pod and config.sockets_of_host_only):
            return Place.SOCKET
        return Place.POD

    def _own(self) -> list[Address]:
        return [] if self._node is None else [known.ip for known in self._node.addresses]

    def _node_at(self, address: str) -> str:
        for record in self._nodes:
            if any(str(known.ip) == address for known in record.addresses):
                return record.name
        return ""
