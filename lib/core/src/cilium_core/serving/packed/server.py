"""The packed server: services, listeners, error codes, life cycle.

Domain errors become statuses here and nowhere else, by the class of the error. What is not in the
table is a bug: it is logged with its traceback, and the client sees INTERNAL without details.
Owned by one event loop. Add services before the first `listen`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpclib.const import Cardinality, Handler
from grpclib.encoding.base import CodecBase
from grpclib.events import SendInitialMetadata, listen
from grpclib.exceptions import StreamTerminatedError
from h2.exceptions import ProtocolError

from cilium_core import errors, traces
from cilium_core.errors import UnavailableError
from cilium_core.serving.packed import health, reflection
from cilium_core.serving.packed.calls import Call, CallError, Method, Status
from cilium_core.serving.packed.connections import Listener
from cilium_core.serving.packed.quotas import Calls, Quotas, Requests
from cilium_core.serving.sockets import claim_unix_path, file_mode, split_address
from cilium_core.serving.status_text import fitting
from cilium_core.telemetry.logs import get_logger

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Mapping

    Guard = Callable[[str, Call, Callable[[Call], Awaitable[None]]], Awaitable[None]]

log = get_logger()

STATUSES: Mapping[type[Exception], Status] = {
    errors.InvalidError: Status.INVALID_ARGUMENT,
    errors.NotFoundError: Status.NOT_FOUND,
    errors.ConflictError: Status.ALREADY_EXISTS,
    errors.NotReadyError: Status.FAILED_PRECONDITION,
    errors.ExhaustedError: Status.RESOURCE_EXHAUSTED,
    errors.ForbiddenError: Status.PERMISSION_DENIED,
    errors.UnavailableError: Status.UNAVAILABLE,
}


_GOODBYE_S = 0.2
"""For how long connections may take to close."""


class _Bytes(CodecBase):
    """Leaves messages alone: calls encode and decode for themselves."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        return data


class _Methods(dict[str, Handler]):
    """Handlers by path. A path that nobody serves has one too, which says so.

    grpclib's own answer lacks a content type, and Go clients take that for a broken server.
    """

    def get(self, path: str, default: Any = None) -> Any:
        found = super().get(path, default)
        return found or Handler(self._unknown(path), Cardinality.STREAM_STREAM, None, None)

    def _unknown(self, path: str) -> Any:
        service, _, method = path.lstrip("/").partition("/")
        known = any(one.startswith(f"/{service}/") for one in self)

        async def handle(_stream: Any) -> None:
            missing = f"method {method} for service {service}" if known else f"service {service}"
            raise CallError(Status.UNIMPLEMENTED, fitting(f"unknown {missing}"))

        return handle


class PackedServer:
    """Services on any number of listeners.

    `metadata` goes out as initial metadata of every call. `statuses` adds to, or overrides, the
    codes of domain errors. `guard` runs every call: it gets "service/method", the call and the
    function that handles it, and raises a domain error instead of calling that to refuse. `quotas`
    say what clients may take.
    """

    def __init__(
        self,
        *,
        metadata: Mapping[str, str] | None = None,
        statuses: Mapping[type[Exception], Status] | None = None,
        guard: Guard | None = None,
        quotas: Quotas | None = None,
    ) -> None:
        self._guard = guard
        self._quotas = quotas or Quotas()
        self._calls = Calls(self._quotas)
        self._requests = Requests(self._quotas.request_bytes)
        self._metadata = dict(metadata or {})
        self._statuses = {**STATUSES, **(statuses or {})}
        self._handlers: dict[str, Handler] = {}
        self._names: list[str] = []
        self._servers: list[Listener] = []
        self._sockets: list[Path] = []
        self._complete = False
        self.health = health.HealthService()

    def add(self, service: str, methods: Mapping[str, Method]) -> None:
        """Serve a service, given its full name and its methods by name."""
        self._names.append(service)
        for name, method in methods.items():
            self._handlers[f"/{service}/{name}"] = Handler(
                self._guarded(f"{service}/{name}", method),
                Cardinality.STREAM_STREAM,
                None,
                None,
            )

    def _guarded(self, name: str, method: Method) -> Any:
        """Wrap a handler: errors become statuses, and calls spans where these are wanted."""

        async def handle(stream: Any) -> None:
            with traces.serving(name, stream.metadata or {}):
                await answer(stream)

        async def answer(stream: Any) -> None:
            try:
                call = Call(stream, self._requests, self._calls)
                with self._calls.one(call.client):
                    if self._guard is None:
                        await method.handle(call)
                    else:
                        await self._guard(name, call, method.handle)
            except (StreamTerminatedError, asyncio.CancelledError, TimeoutError):
                raise
            except CallError as error:
                raise CallError(error.status, fitting(error.message or "")) from error
            except ProtocolError as error:
                # The client closed the stream while something was being sent to it.
                raise CallError(Status.CANCELLED, "the client is gone") from error
            except Exception as error:
                for kind in type(error).__mro__:
                    status = self._statuses.get(kind)
                    if status is not None:
                        raise CallError(status, fitting(str(error))) from error
                log.error("grpc handler failed", method=name, exc_info=error)
                raise CallError(Status.INTERNAL, "internal error; see the server's log") from error

        return handle

    def _complete_services(self) -> None:
        if self._complete:
            return
        self._complete = True
        self.add(health.NAME, self.health.methods())
        names = [*self._names, *reflection.NAMES]
        service = reflection.ReflectionService(names)
        for name in reflection.NAMES:
            self.add(name, service.methods())

    def _server(self) -> Listener:
        self._complete_services()
        server = Listener(self._quotas, _Bytes())
        server._mapping = _Methods(self._handlers)
        listen(server, SendInitialMetadata, self._add_metadata)
        self._servers.append(server)
        return server

    async def _add_metadata(self, event: SendInitialMetadata) -> None:
        event.metadata.update(self._metadata)

    async def listen_unix(self, path: Path, mode: int = 0o660) -> None:
        """Listen on a unix socket, replacing a stale one. Raises as `claim_unix_path`."""
        claim_unix_path(path)
        with file_mode(mode):
            await self._server().start(path=str(path))
        self._sockets.append(path)

    async def listen_tcp(self, address: str, tls: ssl.SSLContext | None = None) -> int:
        """Listen on `host:port`, or `:port` for all addresses, and return the port.

        Raises InvalidError for a bad address, UnavailableError when it cannot be bound.
        """
        host, port = split_address(address)
        server = self._server()
        try:
            sockets = await server.start_tcp(host or None, port, tls)
        except OSError as error:
            self._servers.remove(server)
            raise UnavailableError(f"cannot listen on {address}: {error}") from error
        return int(sockets[0].getsockname()[1])

    async def listen(self, address: str, tls: ssl.SSLContext | None = None) -> None:
        """Listen on `unix:///path` or on `host:port`, as the address says."""
        if address.startswith("unix:"):
            await self.listen_unix(Path("/" + address.removeprefix("unix:").lstrip("/")))
        else:
            await self.listen_tcp(address, tls)

    async def stop(self, grace_s: float = 2.0) -> None:
        """Refuse new calls, end running ones, wait for them up to `grace_s`, remove sockets."""
        self.health.stop()
        for server in self._servers:
            server.close()
        waiting = [asyncio.ensure_future(server.wait_closed()) for server in self._servers]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=grace_s)
            for each in late:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.gather(*(server.hang_up(_GOODBYE_S) for server in self._servers))
        for path in self._sockets:
            path.unlink(missing_ok=True)
