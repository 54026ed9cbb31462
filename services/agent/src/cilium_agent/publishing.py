"""What other nodes are told of this node's pods: one record per address, below the node's lease.

Desired records are changed at once; the "publish" controller carries them to the store and goes on
trying. Records that claim to be of this node but are not desired were left by an earlier run, and
are removed.
"""

from __future__ import annotations

import asyncio
import ipaddress
from typing import TYPE_CHECKING

from cilium_core.records import IPRecord

from cilium_agent.ipcaches import Entry, IPCache, Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from cilium_core.kvstore import Lease, Store

    from cilium_agent.endpoints.records import Endpoint


class Publisher:
    """Keeps records in the store equal to the desired ones."""

    def __init__(self) -> None:
        self.trigger: Callable[[], None] = lambda: None
        self._store: Store | None = None
        self._lease: Lease | None = None
        self._desired: dict[str, bytes] = {}
        self._applied: dict[str, bytes] = {}
        self._doubtful: set[str] = set()
        self._progress = asyncio.Condition()

    def connect(self, store: Store, lease: Lease) -> None:
        """Publish from now on."""
        self._store, self._lease = store, lease
        self.trigger()

    def want(self, key: str, value: bytes) -> None:
        """Want a record."""
        self._desired[key] = value
        self.trigger()

    def drop(self, key: str) -> None:
        """Want a record gone."""
        self._desired.pop(key, None)
        self._doubtful.add(key)
        self.trigger()

    def seen(self, key: str, value: bytes | None) -> None:
        """A record that should be ours is so in the store; None when it is gone."""
        if self._applied.get(key) is None and self._desired.get(key) is None and value is None:
            return
        if value != self._desired.get(key):
            self._applied.pop(key, None)
            self._doubtful.add(key)
            self.trigger()

    def guard(self, key: str) -> None:
        """A record is gone from the store or unreadable there; if it is ours, write it again."""
        if key in self._desired:
            self._applied.pop(key, None)
            self.trigger()

    async def published(self, keys: set[str], timeout_s: float) -> bool:
        """Wait until records are as wanted in the store; False after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s), self._progress:
                await self._progress.wait_for(
                    lambda: all(self._applied.get(k) == self._desired.get(k) for k in keys)
                )
        except TimeoutError:
            return False
        return True

    async def reconcile(self) -> None:
        """Bring the store to what is wanted."""
        if self._store is None:
            return
        due = [key for key, value in self._desired.items() if self._applied.get(key) != value]
        gone = [key for key in {*self._applied, *self._doubtful} if key not in self._desired]
        results = await asyncio.gather(
            *(self._put(key) for key in due),
            *(self._delete(key) for key in gone),
            return_exceptions=True,
        )
        async with self._progress:
            self._progress.notify_all()
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _put(self, key: str) -> None:
        value = self._desired.get(key)
        if self._store is None or value is None:
            return
        await self._store.put(key, value, self._lease)
        self._applied[key] = value
        self._doubtful.discard(key)

    async def _delete(self, key: str) -> None:
        if self._store is None:
            return
        await self._store.delete(key)
        self._applied.pop(key, None)
        self._doubtful.discard(key)


class EndpointAnnouncer:
    """An endpoint's addresses: in this node's table at once, at the other nodes soon."""

    def __init__(self, ipcache: IPCache, publisher: Publisher, host_ip: str) -> None:
        """Take the parts; `host_ip` is where other nodes send packets for the endpoint."""
        self._ipcache = ipcache
        self._publisher = publisher
        self._host_ip = host_ip

    async def announce(self, endpoint: Endpoint) -> None:
        """Say whose the addresses are; on return this node's kernel knows."""
        self.note(endpoint)
        await self._ipcache.flush()
        self.publish(endpoint)

    def note(self, endpoint: Endpoint) -> None:
        """Put the addresses into this node's table, to be flushed."""
        for address in endpoint.addresses:
            self._ipcache.upsert(
                address,
                Source.LOCAL,
                Entry(
                    identity=endpoint.identity,
                    host_ip=self._host_ip,
                    namespace=endpoint.namespace,
                    pod_name=endpoint.pod_name,
                ),
            )

    def publish(self, endpoint: Endpoint) -> None:
        """Have the other nodes told."""
        for address in endpoint.addresses:
            record = _record(endpoint, address, self._host_ip)
            self._publisher.want(record.key, record.to_json())

    async def published(self, endpoint: Endpoint, timeout_s: float) -> bool:
        """Wait until the other nodes can know; False after `timeout_s`."""
        keys = {_record(endpoint, a, self._host_ip).key for a in endpoint.addresses}
        return await self._publisher.published(keys, timeout_s)

    async def withdraw(self, endpoint: Endpoint) -> None:
        """Take it all back."""
        for address in endpoint.addresses:
            self._ipcache.delete(address, Source.LOCAL)
            self._publisher.drop(_record(endpoint, address, self._host_ip).key)
        await self._ipcache.flush()


def _record(endpoint: Endpoint, address: str, host_ip: str) -> IPRecord:
    return IPRecord(
        prefix=ipaddress.ip_network(address),
        identity=endpoint.identity,
        host_ip=ipaddress.ip_address(host_ip) if host_ip else None,
        namespace=endpoint.namespace,
        pod_name=endpoint.pod_name,
        named_ports=tuple((p.name, p.port, p.protocol) for p in endpoint.named_ports),
    )
