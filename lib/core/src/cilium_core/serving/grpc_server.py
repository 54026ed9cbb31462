"""A grpc.aio server with what every service has: health, reflection, error codes, graceful stop.

Domain errors become gRPC status codes here and nowhere else: servicers raise, an interceptor
looks the class up in one table. What is not in the table is a bug: it is logged with its
traceback and the caller sees INTERNAL without details.

Owned by one event loop; add services and listeners before `start`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cilium_core import errors, traces
from cilium_core.errors import UnavailableError
from cilium_core.serving.sockets import claim_unix_path, file_mode
from cilium_core.serving.status_text import fitting
from cilium_core.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

log = get_logger()

STATUS_CODES: Mapping[type[Exception], grpc.StatusCode] = {
    errors.InvalidError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.ConflictError: grpc.StatusCode.ALREADY_EXISTS,
    errors.NotReadyError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.ForbiddenError: grpc.StatusCode.PERMISSION_DENIED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
}

_DEFAULT_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5000),
)


@dataclass(frozen=True, slots=True)
class ServerTls:
    """Files of a TLS listener; `client_ca` makes client certificates mandatory (mutual TLS)."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Read the files. Raises OSError."""
        return grpc.ssl_server_credentials(
            [(self.key.read_bytes(), self.certificate.read_bytes())],
            root_certificates=self.client_ca.read_bytes() if self.client_ca else None,
            require_client_auth=self.client_ca is not None,
        )


class GrpcServer:
    """Builder and life cycle of a grpc.aio server."""

    def __init__(
        self,
        *,
        status_codes: Mapping[type[Exception], grpc.StatusCode] | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        codes = {**STATUS_CODES, **(status_codes or {})}
        self.server = grpc.aio.server(
            interceptors=[*traces.server_interceptors(), _ErrorInterceptor(codes), *interceptors],
            options=[*_DEFAULT_OPTIONS, *options],
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        self._names = [health.SERVICE_NAME, reflection.SERVICE_NAME]
        self._sockets: list[Path] = []

    def add(self, name: str, register: Callable[[Any, Any], None], servicer: object) -> None:
        """Serve `servicer`.

        `name` is the full service name (`cilium.agent.v1.AgentService`), `register` the generated
        `add_…Servicer_to_server`.
        """
        register(servicer, self.server)
        self._names.append(name)

    def listen_unix(self, path: Path, mode: int = 0o660) -> None:
        """Listen on a unix socket, replacing a stale one. Raises as `claim_unix_path`."""
        claim_unix_path(path)
        with file_mode(mode):
            self._bind(f"unix:{path}", None)
        self._sockets.append(path)

    def listen_tcp(self, address: str, tls: ServerTls | None = None) -> int:
        """Listen on `host:port` (`:port` for all addresses) and return the port.

        Raises UnavailableError when it cannot be bound, OSError when a TLS file cannot be read.
        """
        full = f"[::]{address}" if address.startswith(":") else address
        return self._bind(full, tls.credentials() if tls else None)

    def listen(self, address: str, tls: ServerTls | None = None) -> None:
        """Listen on `unix:///path` or on `host:port`, as the address says."""
        if address.startswith("unix:"):
            self.listen_unix(Path("/" + address.removeprefix("unix:").lstrip("/")))
        else:
            self.listen_tcp(address, tls)

    def _bind(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        try:
            if credentials is None:
                return self.server.add_insecure_port(address)
            return self.server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise UnavailableError(f"cannot listen on {address}: {error}") from error

    async def start(self) -> None:
        """Start serving; health says SERVING for every service added."""
        reflection.enable_server_reflection(self._names, self.server)
        for name in self._names:
            await self.set_serving(name, serving=True)
        await self.server.start()

    async def set_serving(self, service: str = "", *, serving: bool) -> None:
        """Tell clients of the health service whether `service` (empty: the whole) works."""
        states = health_pb2.HealthCheckResponse
        await self._health.set(service, states.SERVING if serving else states.NOT_SERVING)

    async def stop(self, grace_s: float = 2.0) -> None:
        """Refuse new calls, let running ones end for `grace_s`, cut the rest, remove sockets."""
        await self._health.enter_graceful_shutdown()
        await self.server.stop(grace_s)
        for path in self._sockets:
            path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Malformed:
    """Stands for a request that could not be decoded, which grpc would answer with UNKNOWN."""

    error: str


class _MalformedRequestError(Exception):
    pass


def _decoder(decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    def read(data: bytes) -> Any:
        try:
            return decode(data) if decode else data
        except DecodeError as error:
            return _Malformed(str(error))

    return read


def _check(request: Any) -> Any:
    if isinstance(request, _Malformed):
        raise _MalformedRequestError(f"the request is malformed: {request.error}")
    return _checked_stream(request) if hasattr(request, "__aiter__") else request


async def _checked_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _check(request)


class _ErrorInterceptor(grpc.aio.ServerInterceptor):
    def __init__(self, codes: Mapping[type[Exception], grpc.StatusCode]) -> None:
        self._codes = codes

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        arguments = (_decoder(handler.request_deserializer), handler.response_serializer)
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                self._one(handler.unary_unary, method), *arguments
            )
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(
                self._one(handler.stream_unary, method), *arguments
            )
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(
                self._many(handler.unary_stream, method), *arguments
            )
        return grpc.stream_stream_rpc_method_handler(
            self._many(handler.stream_stream, method), *arguments
        )

    def _one(self, behaviour: Any, method: str) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                return await behaviour(_check(request), context)
            except Exception as error:
                await self._abort(error, method, context)

        return call

    def _many(self, behaviour: Any, method: str) -> Any:
        async def call(
            request: Any, context: grpc.aio.ServicerContext[Any, Any]
        ) -> AsyncIterator[Any]:
            try:
                result = behaviour(_check(request), context)
                if hasattr(result, "__aiter__"):
                    async for message in result:
                        yield message
                else:  # the servicer writes to the context itself
                    await result
            except Exception as error:
                await self._abort(error, method, context)

        return call

    async def _abort(
        self, error: Exception, method: str, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        if isinstance(error, grpc.aio.AbortError):
            raise error
        if isinstance(error, _MalformedRequestError):  # the code that other servers answer with
            await context.abort(grpc.StatusCode.INTERNAL, fitting(str(error)))
        if isinstance(error, NotImplementedError) and (
            context.code() == grpc.StatusCode.UNIMPLEMENTED  # as generated servicers do
        ):
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "method not implemented")
        for kind in type(error).__mro__:
            if (code := self._codes.get(kind)) is not None:
                await context.abort(code, fitting(str(error)))
        log.error("grpc handler failed", method=method, exc_info=error)
        await context.abort(grpc.StatusCode.INTERNAL, "internal error; see the server's log")
