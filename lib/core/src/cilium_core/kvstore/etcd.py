"""EtcdStore: the Store over etcd version 3."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
from etcd import rpc_pb2

from cilium_core.errors import InvalidError
from cilium_core.kvstore.base import BaseStore, LeaseGoneError
from cilium_core.kvstore.etcd_client import EtcdClient, EtcdTls, pause
from cilium_core.kvstore.etcd_watching import CompactedError, StreamBrokenError, WatchStream
from cilium_core.kvstore.model import (
    Compare,
    Delete,
    Event,
    EventKind,
    KeyValue,
    Listing,
    Put,
    StoreError,
    StoreStatus,
    StoreUnavailableError,
    Target,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence

    from cilium_core.settings import KvstoreSettings

__all__ = ["EtcdStore", "EtcdTls"]

_PAGE = 1000
_KEEPALIVE_LIMIT_S = 3.0
_MOST_OPERATIONS = 100  # etcd refuses more than --max-txn-ops (128) in one transaction

_TARGETS = {
    Target.CREATE_REVISION: ("create_revision", rpc_pb2.Compare.CREATE),
    Target.MOD_REVISION: ("mod_revision", rpc_pb2.Compare.MOD),
    Target.VALUE: ("value", rpc_pb2.Compare.VALUE),
}


class EtcdStore(BaseStore):
    """A client of an etcd cluster. Make and use it within one event loop.

    Nothing is contacted until the first call; etcd may come up later, calls and watches wait.
    """

    def __init__(self, endpoints: Sequence[str], tls: EtcdTls | None = None) -> None:
        """Take addresses as host:port. Raises InvalidError for a malformed one."""
        super().__init__()
        self._client = EtcdClient(endpoints, tls)
        self._stream = WatchStream(self._client)
        self._keepers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="etcd-lease")
        self._term = 0

    @classmethod
    def from_settings(cls, settings: KvstoreSettings) -> EtcdStore:
        """Make the store that the settings describe. Raises InvalidError."""
        files = {
            "etcd-ca-file": settings.etcd_ca_file,
            "etcd-cert-file": settings.etcd_cert_file,
            "etcd-key-file": settings.etcd_key_file,
        }
        for key, path in files.items():
            if path is not None and not path.is_file():
                raise InvalidError(f"{key}: {path} is not a file")
        if (settings.etcd_cert_file is None) != (settings.etcd_key_file is None):
            raise InvalidError("etcd-cert-file and etcd-key-file go together; give both or none")
        if settings.etcd_cert_file is not None and settings.etcd_ca_file is None:
            raise InvalidError("etcd-cert-file needs etcd-ca-file, which turns TLS on")
        tls = None
        if settings.etcd_ca_file is not None:
            tls = EtcdTls(settings.etcd_ca_file, settings.etcd_cert_file, settings.etcd_key_file)
        return cls(settings.etcd_addresses(), tls)

    def status(self) -> StoreStatus:
        """See Store."""
        client = self._client
        return StoreStatus(client.connected, client.endpoint, client.error)

    async def get(self, key: str) -> KeyValue | None:
        """See Store."""
        answer = await self._read(rpc_pb2.RangeRequest(key=_encode(key)))
        return _key_value(answer.kvs[0]) if answer.kvs else None

    async def list_prefix(self, prefix: str) -> Listing:
        """See Store; reads in pages at one revision."""
        start, end = _encode(prefix), _range_end(prefix)
        items: list[KeyValue] = []
        revision = 0
        while True:
            request = rpc_pb2.RangeRequest(key=start, range_end=end, limit=_PAGE, revision=revision)
            answer = await self._read(request)
            items += map(_key_value, answer.kvs)
            revision = revision or answer.header.revision
            if not answer.more:
                return Listing(tuple(items), revision)
            start = answer.kvs[-1].key + b"\0"

    async def apply(
        self,
        conditions: Sequence[Compare],
        operations: Sequence[Put | Delete],
        *,
        repeatable: bool = False,
    ) -> bool:
        """See BaseStore. Raises StoreError for more than 100 operations."""
        if len(operations) > _MOST_OPERATIONS:
            raise StoreError(f"{len(operations)} operations in one transaction, at most 100 fit")
        request = rpc_pb2.TxnRequest(
            compare=map(_compare, conditions), success=map(_operation, operations)
        )
        answer = await self._client.call("kvstub", "Txn", request, repeatable=repeatable)
        return bool(answer.succeeded)

    async def grant_lease(self, ttl_s: int) -> int:
        """See BaseStore."""
        request = rpc_pb2.LeaseGrantRequest(TTL=ttl_s)
        answer = await self._client.call("leasestub", "LeaseGrant", request, repeatable=True)
        return int(answer.ID)

    async def refresh_lease(self, lease_id: int) -> bool:
        """See BaseStore."""
        endpoint, connection = self._client.endpoint, self._client.connection()
        request = rpc_pb2.LeaseKeepAliveRequest(ID=lease_id)

        def exchange() -> Any:
            call = connection.leasestub.LeaseKeepAlive(iter([request]), _KEEPALIVE_LIMIT_S)
            answer = next(iter(call), None)
            call.cancel()
            return answer

        loop = asyncio.get_running_loop()
        try:
            answer = await loop.run_in_executor(self._keepers, exchange)
        except grpc.RpcError as failure:
            self._client.failed(endpoint, failure.details() or failure.code().name)
            raise StoreUnavailableError(f"{endpoint} does not refresh leases") from failure
        if answer is None:
            raise StoreUnavailableError(f"{endpoint} does not refresh leases")
        self._client.answered()
        return bool(answer.TTL > 0)

    async def revoke_lease(self, lease_id: int) -> None:
        """See BaseStore."""
        request = rpc_pb2.LeaseRevokeRequest(ID=lease_id)
        try:
            await self._client.call("leasestub", "LeaseRevoke", request, repeatable=True)
        except LeaseGoneError:
            return

    async def watch(self, prefix: str) -> AsyncGenerator[Event, None]:
        """See Store."""
        known: dict[str, int] = {}
        revision, synced, attempt = 0, False, 0
        while not self._closed:
            try:
                if revision == 0:
                    listing = await self.list_prefix(prefix)
                    for event in _differences(known, listing):
                        yield event
                    known = {item.key: item.mod_revision for item in listing.items}
                    revision = listing.revision
                    if not synced:
                        yield Event(EventKind.SYNCED)
                        synced = True
                with self._stream.subscription(
                    _encode(prefix), _range_end(prefix), revision + 1, self._term
                ) as subscription:
                    while True:
                        answer = await subscription.next()
                        attempt = 0
                        self._term = max(self._term, answer.header.raft_term)
                        for item in answer.events:
                            event = _event(item)
                            revision = max(revision, event.revision)
                            if event.kind is EventKind.DELETE:
                                known.pop(event.key, None)
                            else:
                                known[event.key] = event.revision
                            yield event
            except CompactedError:
                revision = 0
            except (StreamBrokenError, StoreUnavailableError):
                attempt += 1
                await pause(attempt)

    async def abandon(self) -> None:
        """See BaseStore."""
        await super().abandon()
        await self._stream.close()
        self._keepers.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    async def _read(self, request: Any) -> Any:
        answer = await self._client.call("kvstub", "Range", request, repeatable=True)
        self._term = max(self._term, answer.header.raft_term)
        return answer


def _differences(known: dict[str, int], listing: Listing) -> Iterator[Event]:
    """Events that lead from what a watch has reported to what is there now."""
    present = {item.key for item in listing.items}
    for key in known.keys() - present:
        yield Event(EventKind.DELETE, key, revision=listing.revision)
    for item in listing.items:
        if known.get(item.key) != item.mod_revision:
            yield Event(EventKind.PUT, item.key, item.value, item.mod_revision)


def _encode(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def _decode(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")


def _range_end(prefix: str) -> bytes:
    """First key after all that begin with `prefix`."""
    raw = _encode(prefix).rstrip(b"\xff")
    return raw[:-1] + bytes([raw[-1] + 1]) if raw else b"\0"


def _key_value(item: Any) -> KeyValue:
    return KeyValue(
        _decode(item.key), item.value, item.create_revision, item.mod_revision, item.lease
    )


def _event(item: Any) -> Event:
    deleted = item.type == 1  # mvccpb.Event.DELETE
    kind = EventKind.DELETE if deleted else EventKind.PUT
    return Event(kind, _decode(item.kv.key), item.kv.value, item.kv.mod_revision)


def _compare(condition: Compare) -> Any:
    field, target = _TARGETS[condition.target]
    result = rpc_pb2.Compare.EQUAL if condition.equal else rpc_pb2.Compare.NOT_EQUAL
    message = rpc_pb2.Compare(result=result, target=target, key=_encode(condition.key))
    setattr(message, field, condition.operand)
    if condition.prefix:
        message.range_end = _range_end(condition.key)
    return message


def _operation(operation: Put | Delete) -> Any:
    if isinstance(operation, Put):
        put = rpc_pb2.PutRequest(
            key=_encode(operation.key),
            value=operation.value,
            lease=operation.lease.id if operation.lease else 0,
        )
        return rpc_pb2.RequestOp(request_put=put)
    delete = rpc_pb2.DeleteRangeRequest(key=_encode(operation.key))
    if operation.prefix:
        delete.range_end = _range_end(operation.key)
    return rpc_pb2.RequestOp(request_delete_range=delete)
