"""The key-value store's side of the agent: what is watched there.

Records of nodes and addresses are read here; objects go to the handler of their kind, see
`watching`.

Watches never end by themselves: they outlive every outage of the store. A watch that fails because
of a bug is logged and begun anew; that loses nothing, since it reports everything again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from cilium_core.errors import CiliumError, InvalidError
from cilium_core.identities import IDENTITY_UNKNOWN
from cilium_core.kvstore import EventKind
from cilium_core.records import IPS, NODES, IPRecord, NodeRecord, prefix_of_ip_key
from cilium_core.resources.keys import kind_of
from cilium_core.resources.model import Change, Object
from cilium_core.telemetry import get_logger

from cilium_agent.endpoints.records import NamedPort
from cilium_agent.ipcaches import Entry, Source

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from cilium_core.kvstore import Event, Store
    from cilium_core.resources.keys import Kind
    from cilium_core.resources.model import ObjectEvent
    from cilium_core.resources.model import Source as ResourceSource

    from cilium_agent.nodes import Nodes
    from cilium_agent.policies import Policies
    from cilium_agent.publishing import Publisher

T = TypeVar("T")

log = get_logger()

RETRY_S = 1.0


def _ignore(_item: Object, _error: str = "") -> None:
    """What nobody needs to know."""


@dataclass(frozen=True)
class Handler:
    """What is done with the objects of a kind.

    `doubt` gets objects that exist but are unreadable, with what is wrong; `synced` is called once
    all that existed has been reported.
    """

    upsert: Callable[[Object], None]
    delete: Callable[[Object], None]
    doubt: Callable[[Object, str], None] = _ignore
    synced: Callable[[], None] = lambda: None


async def persist(what: str, attempt: Callable[[], Awaitable[T]]) -> T:
    """Repeat `attempt` until the store lets it succeed."""
    while True:
        try:
            return await attempt()
        except CiliumError as error:
            log.warning("waiting for the key-value store", what=what, error=str(error))
            await asyncio.sleep(RETRY_S)


class Watches:
    """The agent's watches; `synced` is reached when each has reported all there was."""

    def __init__(
        self,
        store: Store,
        resources: ResourceSource,
        *,
        nodes: Nodes,
        policies: Policies,
        publisher: Publisher,
        host_ip: str,
        handlers: Mapping[str, Handler],
    ) -> None:
        """Take the parts; `host_ip` tells this node's own records from the others'.

        `handlers` names the kinds of objects that are watched.
        """
        self._store = store
        self._resources = resources
        self._nodes = nodes
        self._policies = policies
        self._publisher = publisher
        self._host_ip = host_ip
        self._handlers = handlers
        self._waiting: dict[str, asyncio.Event] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._named: dict[str, tuple[str, str]] = {}

    def start(self) -> None:
        """Begin all watches."""
        self._spawn("nodes", self._watch_nodes)
        self._spawn("addresses", self._watch_addresses)
        for name, handler in self._handlers.items():
            self._spawn(name, partial(self._watch_objects, kind_of(name), handler))

    async def synced(self) -> None:
        """Return when everything that existed has been reported."""
        await asyncio.gather(*(event.wait() for event in self._waiting.values()))

    def missing(self) -> list[str]:
        """What has not been reported in full yet."""
        return [name for name, event in self._waiting.items() if not event.is_set()]

    async def stop(self) -> None:
        """End all watches."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, name: str, watch: Callable[[], Awaitable[None]]) -> None:
        self._waiting[name] = asyncio.Event()
        self._tasks.append(asyncio.create_task(_for_ever(name, watch), name=f"watch {name}"))

    async def _watch_nodes(self) -> None:
        async with aclosing(self._store.watch(NODES)) as events:
            async for event in events:
                self._nodes.handle(event)
                if event.kind is EventKind.DELETE or not _is_node_record(event):
                    self._publisher.guard(event.key)
                if event.kind is EventKind.SYNCED:
                    self._waiting["nodes"].set()

    async def _watch_addresses(self) -> None:
        async with aclosing(self._store.watch(IPS)) as events:
            async for event in events:
                if event.kind is EventKind.SYNCED:
                    self._waiting["addresses"].set()
                else:
                    self._address(event)

    def _address(self, event: Event) -> None:
        try:
            prefix = str(prefix_of_ip_key(event.key))
            record = IPRecord.from_json(event.value) if event.kind is EventKind.PUT else None
            if record is not None and str(record.prefix) != prefix:
                raise InvalidError(f"the record at {event.key} is about {record.prefix}")
        except InvalidError as error:
            log.warning("address record ignored", key=event.key, error=str(error))
            self._publisher.guard(event.key)
            return
        if record is None:
            self._policies.delete_address(prefix, Source.KVSTORE)
            self._publisher.seen(event.key, None)
            self._forget_ports(prefix)
            return
        host_ip = str(record.host_ip or "")
        if host_ip == self._host_ip:
            # Our own record comes back: the local claim says it all, what is stale is removed.
            self._policies.delete_address(prefix, Source.KVSTORE)
            self._publisher.seen(event.key, event.value)
        elif record.identity == IDENTITY_UNKNOWN:
            log.warning("address record without an identity ignored", key=event.key)
        else:
            entry = Entry(
                record.identity,
                host_ip if host_ip and ":" not in host_ip else None,
                host_ip,
                record.namespace,
                record.pod_name,
            )
            self._policies.upsert_address(prefix, Source.KVSTORE, entry)
        self._learn_ports(prefix, record)

    def _learn_ports(self, prefix: str, record: IPRecord) -> None:
        if record.named_ports and record.pod_name:
            pod = (record.namespace, record.pod_name)
            self._named[prefix] = pod
            ports = [NamedPort(*port) for port in record.named_ports]
            self._policies.set_named_ports(pod, record.identity, ports)
        else:
            self._forget_ports(prefix)

    def _forget_ports(self, prefix: str) -> None:
        pod = self._named.pop(prefix, None)
        if pod is not None and pod not in self._named.values():
            self._policies.remove_named_ports(pod)

    async def _watch_objects(self, kind: Kind, handler: Handler) -> None:
        event: ObjectEvent
        async with aclosing(self._resources.watch(kind)) as events:
            async for event in events:
                if event.change is Change.SYNCED:
                    handler.synced()
                    self._waiting[kind.name].set()
                elif event.change is Change.UPSERT:
                    handler.upsert(event.object)
                elif event.change is Change.UNREADABLE:
                    handler.doubt(event.object, event.error)
                else:
                    handler.delete(event.object)


async def _for_ever(name: str, watch: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await watch()
        except Exception:  # whatever it is, a node without this watch would be blind
            log.exception("watch failed, beginning anew", watch=name)
        await asyncio.sleep(RETRY_S)


def _is_node_record(event: Event) -> bool:
    try:
        return event.kind is not EventKind.PUT or bool(NodeRecord.from_json(event.value))
    except InvalidError:
        return False
