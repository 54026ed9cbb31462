"""The door to the `etcd3` package, and calls to whichever etcd member answers.

etcd3 0.12 brings stubs made for a protobuf of long ago; ours, generated from proto/etcd, are put
in their place before it is imported. Of etcd3 we use the connection (TLS, credentials, stubs);
its blocking calls and its watcher are not used: gRPC futures serve an event loop without threads,
and its watcher neither resumes nor waits between attempts.
"""

from __future__ import annotations

import asyncio
import importlib
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import grpc
from etcd import rpc_pb2, rpc_pb2_grpc

from cilium_core.errors import InvalidError
from cilium_core.kvstore.base import LeaseGoneError
from cilium_core.kvstore.model import StoreError, StoreUnavailableError
from cilium_core.serving.sockets import split_address
from cilium_core.telemetry import counter, get_logger, histogram

if TYPE_CHECKING:
    from collections.abc import Sequence


def _import_etcd3() -> ModuleType:
    stubs = ModuleType("etcd3.etcdrpc")
    for module in (rpc_pb2, rpc_pb2_grpc):
        names = [name for name in vars(module) if not name.startswith("_")]
        vars(stubs).update({name: getattr(module, name) for name in names})
    sys.modules["etcd3.etcdrpc"] = stubs
    return importlib.import_module("etcd3")


etcd3 = _import_etcd3()
log = get_logger()

DURATION = histogram(
    "cilium_kvstore_operations_duration_seconds",
    "Time of calls to etcd, until the last attempt ended.",
    "action",
    "outcome",
)
FAILURES = counter(
    "cilium_kvstore_quorum_errors_total", "Calls to etcd that no member answered.", "error"
)

_CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", -1),
)
_ATTEMPT_LIMIT_S = 3.0
_CALL_LIMIT_S = 10.0
_FIRST_DELAY_S = 0.05
_LAST_DELAY_S = 1.0

_NOT_ANSWERED = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
    }
)


@dataclass(frozen=True, slots=True)
class EtcdTls:
    """Files for TLS towards etcd; certificate and key go together."""

    ca: Path
    certificate: Path | None = None
    key: Path | None = None


def backoff_s(attempt: int) -> float:
    """Seconds to wait before attempt 1, 2, …: doubling, with jitter, at most one second."""
    limit = min(_LAST_DELAY_S, _FIRST_DELAY_S * 2 ** min(attempt, 10))
    return random.uniform(limit / 2, limit)  # noqa: S311 - jitter, no secret


async def pause(attempt: int) -> None:
    """Wait before the given attempt."""
    await asyncio.sleep(backoff_s(attempt))


class EtcdClient:
    """Connections to the members of one etcd cluster, one used at a time.

    A member that does not answer is left for the next one. Owned by one event loop.
    """

    def __init__(self, endpoints: Sequence[str], tls: EtcdTls | None = None) -> None:
        if not endpoints:
            raise InvalidError("etcd-endpoints is empty; give at least one host:port")
        self._endpoints = tuple(endpoints)
        for endpoint in self._endpoints:
            try:
                split_address(endpoint)
            except InvalidError as error:
                raise InvalidError(f"etcd-endpoints: {error}") from None
        self._tls = tls
        self._at = 0
        self._connections: dict[str, Any] = {}
        self.connected = False
        self.error = "not tried yet"
        self._closed = False

    @property
    def endpoint(self) -> str:
        """Member in use."""
        return self._endpoints[self._at]

    def connection(self) -> Any:
        """Give the etcd3 client of the member in use; connects when first called upon.

        Raises StoreUnavailableError after `close`.
        """
        if self._closed:
            raise StoreUnavailableError("the store is closed")
        endpoint = self.endpoint
        if endpoint not in self._connections:
            host, port = split_address(endpoint)
            tls = self._tls
            self._connections[endpoint] = etcd3.client(
                host=f"[{host}]" if ":" in host else host,
                port=port,
                ca_cert=str(tls.ca) if tls else None,
                cert_cert=str(tls.certificate) if tls and tls.certificate else None,
                cert_key=str(tls.key) if tls and tls.key else None,
                grpc_options=_CHANNEL_OPTIONS,
            )
        return self._connections[endpoint]

    def failed(self, endpoint: str, error: str) -> None:
        """Note that a member did not answer, and turn to the next one."""
        if self.connected:
            log.warning("etcd does not answer", endpoint=endpoint, error=error)
        self.connected, self.error = False, f"{endpoint}: {error}"
        if endpoint == self.endpoint:
            self._at = (self._at + 1) % len(self._endpoints)

    def answered(self) -> None:
        """Note that the member in use answered."""
        if not self.connected:
            log.info("etcd answers", endpoint=self.endpoint)
        self.connected, self.error = True, ""

    async def call(self, stub: str, method: str, request: Any, *, repeatable: bool) -> Any:
        """Call `stub.method` (`kvstub`, `Range`).

        Waits while no member answers. A request that is not `repeatable` is sent only once, to a
        member just seen to answer. Raises StoreUnavailableError, StoreError, LeaseGoneError.
        """
        started = time.monotonic()
        try:
            answer = await self._call(stub, method, request, repeatable, started + _CALL_LIMIT_S)
        except (StoreUnavailableError, StoreError) as error:
            DURATION.observe(time.monotonic() - started, method, "error")
            if isinstance(error, StoreUnavailableError):
                FAILURES.add(1, "no answer")
            raise
        DURATION.observe(time.monotonic() - started, method, "success")
        return answer

    async def _call(
        self, stub: str, method: str, request: Any, repeatable: bool, deadline: float
    ) -> Any:
        attempt = 0
        while True:
            if not repeatable and not self.connected:
                probe = rpc_pb2.RangeRequest(key=b"\0", limit=1, keys_only=True)
                await self._call("kvstub", "Range", probe, True, deadline)
            endpoint, connection = self.endpoint, self.connection()
            callee = getattr(getattr(connection, stub), method)
            limit_s = min(_ATTEMPT_LIMIT_S, max(0.1, deadline - time.monotonic()))
            try:
                answer = await _finish(callee.future(request, limit_s))
            except grpc.RpcError as failure:
                code, text = failure.code(), failure.details() or ""
                if code is grpc.StatusCode.NOT_FOUND and "lease" in text:
                    raise LeaseGoneError(text) from failure
                if code not in _NOT_ANSWERED:
                    raise StoreError(f"etcd at {endpoint} refuses {method}: {text}") from failure
                self.failed(endpoint, text or code.name)
                attempt += 1
                delay_s = backoff_s(attempt)
                if not repeatable or time.monotonic() + delay_s > deadline:
                    raise StoreUnavailableError(
                        f"etcd does not answer {method} ({self.error}); "
                        f"check that it runs at {', '.join(self._endpoints)}"
                    ) from failure
                await asyncio.sleep(delay_s)
                continue
            self.answered()
            return answer

    def close(self) -> None:
        """Close the connections; later calls raise StoreUnavailableError."""
        self._closed = True
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()


async def _finish(call: Any) -> Any:
    """Await a gRPC future without a thread; cancels the call when cancelled."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def finish() -> None:
        if not done.done():
            done.set_result(None)

    def wake(_call: Any) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(finish)

    call.add_done_callback(wake)
    try:
        await done
    except asyncio.CancelledError:
        call.cancel()
        raise
    return call.result()
