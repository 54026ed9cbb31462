"""The pods of this node as services know them: Pod objects, with addresses from the endpoints.

Where no kubelet writes `status.podIPs`, a pod's addresses are those that this agent has given it.
Event loop only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from cilium_core.services import ServiceTable

    from cilium_agent.endpoints.records import Endpoint
    from cilium_agent.endpoints.tables import EndpointTable

Document = Mapping[str, Any]
Key = tuple[str, str]


class LocalPods:
    """Feeds a table of services."""

    def __init__(
        self, table: ServiceTable, endpoints: EndpointTable, changed: Callable[[], None]
    ) -> None:
        """`changed` is called after the table was told of something."""
        self._services = table
        self._endpoints = endpoints
        self._changed = changed
        self._documents: dict[Key, Document] = {}
        self._addresses: dict[Key, tuple[str, ...]] = {}

    def upsert(self, document: Document) -> None:
        """Note a Pod object as it is now."""
        spec = document.get("spec")
        here = isinstance(spec, Mapping) and spec.get("nodeName") == self._services.node.name
        key = _key(document)
        if here:
            self._documents[key] = document
            self._tell(key)
        elif self._documents.pop(key, None) is not None:
            self._forget(document)

    def delete(self, document: Document) -> None:
        """Note that a Pod object is gone."""
        if self._documents.pop(_key(document), None) is not None:
            self._forget(document)

    def endpoint_changed(self, endpoint: Endpoint) -> None:
        """Note an endpoint as it is now; one that is no longer in its table is gone."""
        key = (endpoint.namespace, endpoint.pod_name)
        addresses: tuple[str, ...] = ()
        if endpoint in self._endpoints and endpoint.alive:
            addresses = endpoint.addresses
        if self._addresses.get(key, ()) == addresses:
            return
        if addresses:
            self._addresses[key] = addresses
        else:
            self._addresses.pop(key, None)
        self._tell(key)

    def _tell(self, key: Key) -> None:
        document = self._documents.get(key)
        if document is None:
            return
        status = document.get("status")
        fields = dict(status) if isinstance(status, Mapping) else {}
        if not fields.get("podIPs") and not fields.get("podIP"):
            fields["podIPs"] = [{"ip": address} for address in self._addresses.get(key, ())]
        self._services.upsert_pod({**document, "status": fields})
        self._changed()

    def _forget(self, document: Document) -> None:
        self._services.delete_pod(document)
        self._changed()


def _key(document: Document) -> Key:
    metadata = document.get("metadata")
    fields = metadata if isinstance(metadata, Mapping) else {}
    return str(fields.get("namespace") or "default"), str(fields.get("name") or "")
