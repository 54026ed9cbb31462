"""Watches over one etcd stream, which end in a way that tells how to go on.

A `WatchStream` carries all watches of a store. gRPC's reader blocks, so one thread reads the
stream and hands each answer to the event loop. When the stream breaks every subscription learns
it and is opened again by its owner from the revision it had reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
from etcd import rpc_pb2

from cilium_core.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cilium_core.kvstore.etcd_client import EtcdClient

log = get_logger()

_NEEDS_LEADER = (("hasleader", "true"),)


class StreamBrokenError(Exception):
    """The connection is gone; open again and resume."""


class CompactedError(Exception):
    """The revision asked for is forgotten, or the store lost its data; list again."""


@dataclass(slots=True)
class Subscription:
    """One watch on the stream; answers or the error that ended it."""

    watch_id: int
    start_revision: int
    term: int
    answers: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)

    async def next(self) -> Any:
        """Wait for the next answer with events.

        Raises StreamBrokenError or CompactedError.
        """
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer


class _Stream:
    """One gRPC stream and its reading thread."""

    def __init__(self, client: EtcdClient, owner: WatchStream) -> None:
        self.endpoint = client.endpoint
        self.requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.subscriptions: dict[int, Subscription] = {}
        connection = client.connection()
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._call = connection.watcher._watch_stub.Watch(
            iter(self.requests.get, None), metadata=_NEEDS_LEADER
        )
        self._thread = threading.Thread(target=self._read, name="etcd-watch", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        error = "the member ended the stream"
        try:
            for answer in self._call:
                self._hand_over(self._owner.received, self, answer)
        except grpc.RpcError as failure:
            error = failure.details() or failure.code().name
        self.requests.put(None)
        self._hand_over(self._owner.ended, self, error)

    def _hand_over(self, callback: Any, *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(callback, *arguments)

    def cancel(self) -> None:
        """End the stream; `ended` follows."""
        self._call.cancel()
        self.requests.put(None)

    def join(self) -> None:
        """Wait for the reading thread."""
        self._thread.join(timeout=2.0)


class WatchStream:
    """Opens subscriptions, on a new stream when there is none. Owned by one event loop."""

    def __init__(self, client: EtcdClient) -> None:
        self._client = client
        self._stream: _Stream | None = None
        self._next_id = 1

    @contextlib.contextmanager
    def subscription(
        self, key: bytes, range_end: bytes, start_revision: int, term: int
    ) -> Iterator[Subscription]:
        """Watch a range from a revision on; `term` is the highest raft term seen so far."""
        stream = self._stream
        if stream is None:
            stream = self._stream = _Stream(self._client, self)
        subscription = Subscription(self._next_id, start_revision, term)
        self._next_id += 1
        stream.subscriptions[subscription.watch_id] = subscription
        create = rpc_pb2.WatchCreateRequest(
            key=key,
            range_end=range_end,
            start_revision=start_revision,
            watch_id=subscription.watch_id,
        )
        stream.requests.put(rpc_pb2.WatchRequest(create_request=create))
        try:
            yield subscription
        finally:
            if stream.subscriptions.pop(subscription.watch_id, None) is not None:
                cancel = rpc_pb2.WatchCancelRequest(watch_id=subscription.watch_id)
                stream.requests.put(rpc_pb2.WatchRequest(cancel_request=cancel))

    def received(self, stream: _Stream, answer: Any) -> None:
        """Hand an answer to its subscription."""
        self._client.answered()
        subscription = stream.subscriptions.get(answer.watch_id)
        if subscription is None:
            return
        header = answer.header
        lost_data = answer.created and (
            header.revision + 1 < subscription.start_revision
            or header.raft_term < subscription.term
        )
        if answer.compact_revision or lost_data:
            subscription.answers.put_nowait(CompactedError())
        elif answer.canceled:
            subscription.answers.put_nowait(StreamBrokenError(answer.cancel_reason))
        else:
            subscription.answers.put_nowait(answer)
            return
        del stream.subscriptions[answer.watch_id]

    def ended(self, stream: _Stream, error: str) -> None:
        """Tell the subscriptions of a stream that it is over."""
        if self._stream is stream:
            self._stream = None
            self._client.failed(stream.endpoint, error)
        for subscription in stream.subscriptions.values():
            subscription.answers.put_nowait(StreamBrokenError(error))
        stream.subscriptions.clear()

    async def close(self) -> None:
        """End the stream and its thread."""
        if (stream := self._stream) is not None:
            self._stream = None
            stream.cancel()
            await asyncio.to_thread(stream.join)
