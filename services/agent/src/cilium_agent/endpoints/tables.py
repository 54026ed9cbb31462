"""The endpoints of the node, found by id, container, pod or address. Event loop only."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from cilium_core.errors import ExhaustedError

from cilium_agent.endpoints.records import MAX_ID, MIN_ID, Attachment, Endpoint, EndpointID
from cilium_agent.errors import EndpointNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class EndpointTable:
    """Endpoints by id; ids are handed out going round, so that a freed one rests longest."""

    def __init__(self) -> None:
        self._by_id: dict[EndpointID, Endpoint] = {}
        self._by_attachment: dict[tuple[str, str], Endpoint] = {}
        self._by_address: dict[str, Endpoint] = {}
        self._reserved: set[EndpointID] = set()
        self._last = random.randint(MIN_ID, MAX_ID)  # noqa: S311 - spreads ids, hides nothing
        self._listeners: list[Callable[[Endpoint], None]] = []

    def listen(self, listener: Callable[[Endpoint], None]) -> None:
        """Call `listener` with each endpoint that changed; one no longer in the table is gone."""
        self._listeners.append(listener)

    def changed(self, endpoint: Endpoint) -> None:
        """Tell the listeners."""
        for listener in self._listeners:
            listener(endpoint)

    def __iter__(self) -> Iterator[Endpoint]:
        """Endpoints by rising id."""
        return iter([self._by_id[endpoint_id] for endpoint_id in sorted(self._by_id)])

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, endpoint: Endpoint) -> bool:
        return self._by_id.get(endpoint.id) is endpoint

    def new_id(self) -> EndpointID:
        """Reserve an id nobody has; `ExhaustedError` when all are used."""
        for step in range(1, MAX_ID + 1):
            candidate = EndpointID((self._last + step - MIN_ID) % MAX_ID + MIN_ID)
            if candidate not in self._by_id and candidate not in self._reserved:
                self._last = candidate
                self._reserved.add(candidate)
                return candidate
        raise ExhaustedError(f"all {MAX_ID} endpoint ids of this node are in use; delete pods")

    def reserve_id(self, endpoint_id: EndpointID) -> None:
        """Keep an id from being handed out."""
        self._reserved.add(endpoint_id)

    def free_id(self, endpoint_id: EndpointID) -> None:
        """Let an id be handed out again."""
        self._reserved.discard(endpoint_id)

    def add(self, endpoint: Endpoint) -> None:
        """Add an endpoint."""
        self._reserved.discard(endpoint.id)
        self._by_id[endpoint.id] = endpoint
        self._by_attachment[_key(endpoint.attachment)] = endpoint
        self._by_address.update(dict.fromkeys(endpoint.addresses, endpoint))
        self.changed(endpoint)

    def remove(self, endpoint: Endpoint) -> None:
        """Take an endpoint out; its id stays reserved until `free_id`."""
        if self._by_id.pop(endpoint.id, None) is None:
            return
        self._reserved.add(endpoint.id)
        if self._by_attachment.get(_key(endpoint.attachment)) is endpoint:
            del self._by_attachment[_key(endpoint.attachment)]
        for address in endpoint.addresses:
            if self._by_address.get(address) is endpoint:
                del self._by_address[address]
        self.changed(endpoint)

    def find(self, attachment: Attachment) -> Endpoint | None:
        """The endpoint of a container's interface, if there is one."""
        return self._by_attachment.get(_key(attachment))

    def get(self, endpoint_id: int) -> Endpoint:
        """The endpoint with an id; raises `EndpointNotFoundError`."""
        endpoint = self._by_id.get(EndpointID(endpoint_id))
        if endpoint is None:
            raise EndpointNotFoundError(f"no endpoint {endpoint_id} on this node")
        return endpoint

    def by_ip(self, address: str) -> Endpoint:
        """The endpoint with an address; raises `EndpointNotFoundError`."""
        endpoint = self._by_address.get(address)
        if endpoint is None:
            raise EndpointNotFoundError(f"no endpoint with the address {address} on this node")
        return endpoint

    def owner(self, address: str) -> int | None:
        """The id of the endpoint with an address, if there is one."""
        endpoint = self._by_address.get(address)
        return None if endpoint is None else endpoint.id

    def by_pod(self, namespace: str, name: str) -> Endpoint:
        """The endpoint of a pod; raises `EndpointNotFoundError`."""
        for endpoint in self._by_id.values():
            if (endpoint.namespace, endpoint.pod_name) == (namespace, name):
                return endpoint
        raise EndpointNotFoundError(f"pod {namespace}/{name} has no endpoint on this node")


def _key(attachment: Attachment) -> tuple[str, str]:
    return attachment.container_id, attachment.ifname
