"""What makes the spans of calls over grpc, at servers and at clients, blocking or not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from cilium_core import traces
from cilium_core.telemetry.spans import CANCELLED, UNKNOWN, Span, Spans

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

_TASKS: Final[set[asyncio.Task[None]]] = set()


class TracedServer(grpc.aio.ServerInterceptor):
    """Surrounds handlers with spans. Stands first, so that it sees how calls end."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of a call."""
        handler = await continuation(handler_call_details)
        method = _name(handler_call_details.method)
        if handler is None or not traces.is_told(method):
            return handler
        metadata = dict(handler_call_details.invocation_metadata)
        codecs = (handler.request_deserializer, handler.response_serializer)
        if handler.unary_unary:
            made = _one(handler.unary_unary, method, metadata)
            return grpc.unary_unary_rpc_method_handler(made, *codecs)
        if handler.stream_unary:
            made = _one(handler.stream_unary, method, metadata)
            return grpc.stream_unary_rpc_method_handler(made, *codecs)
        if handler.unary_stream:
            made = _many(handler.unary_stream, method, metadata)
            return grpc.unary_stream_rpc_method_handler(made, *codecs)
        made = _many(handler.stream_stream, method, metadata)
        return grpc.stream_stream_rpc_method_handler(made, *codecs)


def _one(behaviour: Any, method: str, metadata: Mapping[str, Any]) -> Any:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        with traces.serving(method, metadata) as span:
            try:
                return await behaviour(request, context)
            except grpc.aio.AbortError:
                _end(span, context)
                raise

    return call


def _many(behaviour: Any, method: str, metadata: Mapping[str, Any]) -> Any:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        with traces.serving(method, metadata) as span:
            try:
                async for message in behaviour(request, context):
                    yield message
            except grpc.aio.AbortError:
                _end(span, context)
                raise

    return call


def _end(span: Span | None, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    if span is not None:
        code: Any = context.code()
        # a number once the call was aborted
        span.end(code.value[0] if isinstance(code, grpc.StatusCode) else code, context.details())


def _name(method: str | bytes) -> str:
    text = method.decode() if isinstance(method, bytes) else method
    return text.removeprefix("/")


def _told(
    span: Span, sent: Sequence[tuple[str, str | bytes]] | grpc.aio.Metadata | None
) -> list[tuple[str, str | bytes]]:
    return [*(sent or ()), *span.headers().items()]


# ---- clients that wait on the event loop ----


class _AsyncCalls:
    def __init__(self, spans: Spans) -> None:
        self._spans = spans

    async def _call(
        self,
        continuation: Callable[..., Awaitable[Any]],
        details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        method = _name(details.method)
        if not traces.is_told(method):
            return await continuation(details, request)
        span = self._spans.call(method)
        told = grpc.aio.ClientCallDetails(
            details.method,
            details.timeout,
            grpc.aio.Metadata(*_told(span, details.metadata)),
            details.credentials,
            details.wait_for_ready,
        )
        try:
            call = await continuation(told, request)
        except asyncio.CancelledError:
            span.end(CANCELLED)
            raise
        except grpc.aio.AioRpcError as error:
            span.end(error.code().value[0], error.details() or "")
            raise
        call.add_done_callback(lambda _: _end_later(span, call))
        return call


def _end_later(span: Span, call: Any) -> None:
    """The code of a call that is done is there, but must be awaited."""

    async def end() -> None:
        code = await call.code()
        span.end(code.value[0], await call.details() or "")

    task = asyncio.ensure_future(end())
    _TASKS.add(task)
    task.add_done_callback(_TASKS.discard)


class _UnaryUnary(_AsyncCalls, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        return await self._call(continuation, client_call_details, request)


class _UnaryStream(_AsyncCalls, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        return await self._call(continuation, client_call_details, request)


class _StreamUnary(_AsyncCalls, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await self._call(continuation, client_call_details, request_iterator)


class _StreamStream(_AsyncCalls, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await self._call(continuation, client_call_details, request_iterator)


def client_interceptors(spans: Spans) -> tuple[grpc.aio.ClientInterceptor, ...]:
    """One for each kind of call: grpc.aio looks at classes."""
    return (_UnaryUnary(spans), _UnaryStream(spans), _StreamUnary(spans), _StreamStream(spans))


# ---- clients that block ----


class _Details(grpc.ClientCallDetails):
    def __init__(self, of: Any, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        self.method = of.method
        self.timeout = of.timeout
        self.metadata = tuple(metadata)
        self.credentials = of.credentials
        self.wait_for_ready = of.wait_for_ready
        self.compression = of.compression


class TracedCalls(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Makes a span of each call over a blocking channel."""

    def __init__(self, spans: Spans) -> None:
        self._spans = spans

    def _call(self, continuation: Any, details: Any, request: Any) -> Any:
        method = _name(details.method)
        if not traces.is_told(method):
            return continuation(details, request)
        span = self._spans.call(method)
        call = continuation(_Details(details, _told(span, details.metadata)), request)

        def end() -> None:
            code = call.code()
            span.end(code.value[0] if code else UNKNOWN, call.details() or "")

        if not call.add_callback(end):
            end()
        return call

    def intercept_unary_unary(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        """As grpc calls it."""
        return self._call(continuation, client_call_details, request)

    def intercept_unary_stream(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        """As grpc calls it."""
        return self._call(continuation, client_call_details, request)

    def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        """As grpc calls it."""
        return self._call(continuation, client_call_details, request_iterator)
