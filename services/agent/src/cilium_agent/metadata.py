"""What hubble-server is told: the state of the node as messages, a snapshot and every change.

Domain modules publish updates on the event loop in the order in which they applied them. Each
watcher gets the whole state as of its call and then the changes. A watcher that does not keep up
is cut off rather than allowed to grow without bound: it comes back and takes a fresh snapshot.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

from cilium.metadata.v1 import metadata_pb2

from cilium_agent.errors import SlowWatcherError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Hashable, Iterable

    from flow import flow_pb2

MAX_BACKLOG = 65_536
BATCH = 1_000
KEPT_EVENTS = 128


class MetadataHub:
    """The present state and its watchers."""

    def __init__(self) -> None:
        self._state: dict[tuple[str, Hashable], metadata_pb2.Update] = {}
        self._events: deque[metadata_pb2.Update] = deque(maxlen=KEPT_EVENTS)
        self._watchers: set[_Watcher] = set()

    @property
    def watchers(self) -> int:
        """How many are being served."""
        return len(self._watchers)

    def publish(self, updates: Iterable[metadata_pb2.Update]) -> None:
        """Apply updates to the state and pass them on; what changes nothing is left out."""
        news = [update for update in updates if self._apply(update)]
        if news:
            for watcher in self._watchers:
                watcher.add(news)

    def announce(self, event: flow_pb2.AgentEvent) -> None:
        """Publish something the agent did, as of now."""
        update = metadata_pb2.Update(agent_event=metadata_pb2.AgentEvent(event=event))
        update.agent_event.time.FromNanoseconds(time.time_ns())
        self.publish([update])

    async def watch(self) -> AsyncGenerator[metadata_pb2.WatchResponse, None]:
        """The snapshot in batches, then changes as they come, until cancelled.

        Raises `SlowWatcherError` when more than `MAX_BACKLOG` updates wait to be read.
        """
        watcher = _Watcher()
        snapshot = [*self._state.values(), *self._events]
        self._watchers.add(watcher)
        revision = 0
        try:
            for start in range(0, max(len(snapshot), 1), BATCH):
                revision += 1
                yield metadata_pb2.WatchResponse(
                    revision=revision,
                    updates=snapshot[start : start + BATCH],
                    snapshot_complete=start + BATCH >= len(snapshot),
                )
            while True:
                updates = await watcher.take()
                revision += 1
                yield metadata_pb2.WatchResponse(revision=revision, updates=updates)
        finally:
            self._watchers.discard(watcher)

    def _apply(self, update: metadata_pb2.Update) -> bool:
        kind = update.WhichOneof("update")
        if kind is None:
            return False
        if kind == "agent_event":
            self._events.append(update)
            return True
        if kind.endswith("_deleted"):
            return self._state.pop(_key(kind.removesuffix("_deleted"), update), None) is not None
        if kind == "l7":
            return True
        key = _key(kind, update)
        if kind == "names" and not update.names.names:
            return self._state.pop(key, None) is not None
        if self._state.get(key) == update:
            return False
        self._state[key] = update
        return True


def _key(kind: str, update: metadata_pb2.Update) -> tuple[str, Hashable]:
    deleted = (update.WhichOneof("update") or "").endswith("_deleted")
    match kind:
        case "local_node":
            return kind, ""
        case "node":
            node = update.node
            return kind, update.node_deleted if deleted else f"{node.cluster}/{node.name}"
        case "endpoint":
            return kind, update.endpoint_deleted if deleted else update.endpoint.id
        case "identity":
            return kind, update.identity_deleted if deleted else update.identity.id
        case "ip":
            return kind, update.ip_deleted if deleted else update.ip.prefix
        case "rules":
            return kind, update.rules_deleted if deleted else update.rules.cookie
        case "interface":
            return kind, update.interface_deleted if deleted else update.interface.index
        case "names":
            return kind, (update.names.endpoint, update.names.ip)
        case _:
            front = update.frontend_deleted if deleted else update.service.frontend
            return "service", (front.ip, front.port, front.protocol)


class _Watcher:
    def __init__(self) -> None:
        self._pending: list[metadata_pb2.Update] = []
        self._wake = asyncio.Event()
        self._overrun = False

    def add(self, updates: list[metadata_pb2.Update]) -> None:
        if len(self._pending) + len(updates) > MAX_BACKLOG:
            self._overrun = True
            self._pending.clear()
        if not self._overrun:
            self._pending.extend(updates)
        self._wake.set()

    async def take(self) -> list[metadata_pb2.Update]:
        await self._wake.wait()
        self._wake.clear()
        if self._overrun:
            raise SlowWatcherError(f"more than {MAX_BACKLOG} updates waited to be read")
        batch = self._pending[:BATCH]
        del self._pending[:BATCH]
        if self._pending:
            self._wake.set()
        return batch
