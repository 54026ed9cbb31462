"""Keeps the EndpointSlices of Services: the leader's event-driven job.

Follows Services, Pods, nodes and slices. What changes makes the Services that it matters to be
worked out anew; only slices that differ are written, under the leader's fence. Slices that others
manage are left alone, those of Services that are gone are deleted. What is written comes back as a
change and is looked at once more, so that slices somebody else touched become right again.

Any failure of the store ends `run`; the caller begins anew from what the store then says.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from cilium_core.errors import InvalidError
from cilium_core.kvstore import Delete, EventKind, Put
from cilium_core.records import NODES, NodeRecord
from cilium_core.resources.etcd import EtcdSource
from cilium_core.resources.keys import kind_of
from cilium_core.resources.model import Change
from cilium_core.telemetry import counter, gauge, get_logger

from cilium_operator.services import slicing
from cilium_operator.services.conditions import present
from cilium_operator.services.reading import Name, mapping, name_of, spec_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from cilium_core.kvstore import Compare, Store
    from cilium_core.resources.keys import Kind
    from cilium_core.resources.model import Object

log = get_logger()

SLICES = gauge("cilium_operator_endpoint_slices", "EndpointSlices kept.")
WRITES = counter(
    "cilium_operator_endpoint_slice_writes_total", "EndpointSlices written.", "operation"
)

_SERVICE: Final = kind_of("Service")
_POD: Final = kind_of("Pod")
_SLICE: Final = kind_of("EndpointSlice")
_ZONE_LABEL: Final = "topology.kubernetes.io/zone"
_AT_ONCE: Final = 64
"""Services under way at a time."""
_MOST_WRITES: Final = 64  # operations of one transaction; etcd allows 128


class SlicePublisher:
    """Knows all Services, Pods and slices for the time of one leadership."""

    def __init__(
        self,
        store: Store,
        *,
        fence: Callable[[], list[Compare]] = list,
        on_pass: Callable[[], None] = lambda: None,
    ) -> None:
        """`fence` gives the conditions under which this process may write.

        `on_pass` is called whenever all that is known is published.
        """
        self._store = store
        self._source = EtcdSource(store)
        self._fence = fence
        self._on_pass = on_pass
        self._services: dict[str, dict[str, Object]] = {}
        self._pods: dict[str, dict[str, Object]] = {}
        self._slices: dict[Name, dict[str, Object]] = {}
        """Those kept here, by their Service and their own name."""
        self._owners: dict[Name, Name] = {}
        self._zones: dict[str, str] = {}
        self._dirty: set[Name] = set()
        self._unsynced = {"nodes", *(kind.name for kind in (_SERVICE, _POD, _SLICE))}
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Publish what is stored and what changes, for ever. Raises what the store does."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow(_SERVICE, self._observe_service))
                group.create_task(self._follow(_POD, self._observe_pod))
                group.create_task(self._follow(_SLICE, self._observe_slice))
                group.create_task(self._follow_nodes())
                group.create_task(self._publish_always())
        except* Exception as errors:
            raise errors.exceptions[0] from None

    async def _follow(self, kind: Kind, observe: Callable[[Object, bool], None]) -> None:
        async with aclosing(self._source.watch(kind)) as events:
            async for event in events:
                if event.change is Change.SYNCED:
                    self._synced(kind.name)
                elif event.change is not Change.UNREADABLE:
                    observe(event.object, event.change is Change.DELETE)
                    self._stir()

    async def _follow_nodes(self) -> None:
        async with aclosing(self._store.watch(NODES)) as events:
            async for event in events:
                if event.kind is EventKind.SYNCED:
                    self._synced("nodes")
                    continue
                node, zone = event.key.rpartition("/")[2], ""
                if event.kind is EventKind.PUT:
                    try:
                        zone = NodeRecord.from_json(event.value).labels.get(_ZONE_LABEL, "")
                    except InvalidError as error:
                        log.warning("unreadable node record", key=event.key, error=str(error))
                else:
                    continue  # a node whose agent is away is still where it was
                if self._zones.get(node, "") != zone:
                    self._zones[node] = zone
                    for namespace, pods in self._pods.items():
                        if any(spec_of(pod).get("nodeName") == node for pod in pods.values()):
                            self._dirty |= {
                                (namespace, n) for n in self._services.get(namespace, ())
                            }
                    self._stir()

    def _synced(self, what: str) -> None:
        self._unsynced.discard(what)
        self._stir()

    def _stir(self) -> None:
        if not self._unsynced:
            self._wake.set()

    def _observe_service(self, item: Object, gone: bool) -> None:
        namespace, name = name_of(item)
        services = self._services.setdefault(namespace, {})
        before = services.pop(name, None)
        if not gone:
            services[name] = item
            if before is not None and _essence(before) == _essence(item):
                return  # its status only
        self._dirty.add((namespace, name))

    def _observe_pod(self, item: Object, gone: bool) -> None:
        namespace, name = name_of(item)
        pods = self._pods.setdefault(namespace, {})
        versions = [pods.pop(name, None), None if gone else item]
        if not gone:
            pods[name] = item
        for of, service in self._services.get(namespace, {}).items():
            if slicing.wants_slices(service) and any(
                pod is not None and slicing.is_selected(service, pod) for pod in versions
            ):
                self._dirty.add((namespace, of))

    def _observe_slice(self, item: Object, gone: bool) -> None:
        name = name_of(item)
        before = self._owners.pop(name, None)
        if before is not None:
            self._slices[before].pop(name[1], None)
        owner = None if gone else slicing.service_of(item)
        if owner is not None:
            self._owners[name] = owner
            self._slices.setdefault(owner, {})[name[1]] = item
        self._dirty |= {one for one in (before, owner) if one is not None}
        SLICES.set(len(self._owners))

    async def _publish_always(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._dirty:
                some = [self._dirty.pop() for _ in range(min(_AT_ONCE, len(self._dirty)))]
                await asyncio.gather(*map(self._publish, some))
            self._on_pass()

    async def _publish(self, name: Name) -> None:
        """Write those slices of a Service that are not as they should be."""
        service = self._services.get(name[0], {}).get(name[1])
        stored = self._slices.get(name, {})
        wanted: list[Object] = []
        if service is not None:
            pods = [
                pod
                for pod in self._pods.get(name[0], {}).values()
                if slicing.is_selected(service, pod)
            ]
            wanted = slicing.slices(service, pods, list(stored.values()), self._zones)
        operations: list[Put | Delete] = []
        for item in wanted:
            old = stored.get(item["metadata"]["name"])
            if old is None or not slicing.is_same(item, old):
                key = _SLICE.key(*name_of(item))
                operations.append(Put(key, _encode(item, old)))
        gone = set(stored) - {item["metadata"]["name"] for item in wanted}
        operations += [Delete(_SLICE.key(name[0], one)) for one in sorted(gone)]
        if service is None and not stored:
            self._slices.pop(name, None)
        for at in range(0, len(operations), _MOST_WRITES):
            batch = operations[at : at + _MOST_WRITES]
            if not await self._store.transaction(self._fence(), batch):
                log.warning("endpoint slices not written", service="/".join(name))
                return
        WRITES.add(len(operations) - len(gone), "put")
        WRITES.add(len(gone), "delete")
        log.debug("endpoint slices written", service="/".join(name), count=len(operations))


def _essence(service: Object) -> Any:
    metadata = service["metadata"]
    return service.get("spec"), mapping(metadata.get("labels")), metadata.get("uid")


def _encode(item: Object, old: Object | None) -> bytes:
    """A slice as it is stored, with what the server side owns."""
    known = old["metadata"] if old else {}
    metadata = {
        **item["metadata"],
        "uid": known.get("uid") or str(uuid.uuid4()),
        "creationTimestamp": known.get("creationTimestamp") or present(),
        "generation": int(known.get("generation") or 0) + 1,
    }
    return json.dumps({**item, "metadata": metadata}, separators=(",", ":")).encode()
