"""Traces of the calls between the programs, where a collector is named for them.

A call makes a span at the client and one at the server, joined by the W3C header `traceparent` in
gRPC's metadata. This module is what servers and clients use: it imports nothing and costs a look at
one variable until `begin` was called; OpenTelemetry is in `telemetry.spans`, grpc in
`telemetry.interceptors`.

Health checks and reflection make no spans. A stream's span ends when the stream does.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    import grpc
    import grpc.aio

    from cilium_core.settings import TelemetrySettings
    from cilium_core.telemetry.spans import Span, Spans

_UNTOLD: Final = ("grpc.health.", "grpc.reflection.")
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PATIENCE_S: Final = 1.0
"""How long a command line waits for its collector at the end."""
_NOTHING: Final = nullcontext()

_spans: Spans | None = None


def begin(settings: TelemetrySettings, *, service: str, node: str = "") -> None:
    """Make spans from now on if settings want them. Raises InvalidError for files of TLS."""
    global _spans  # noqa: PLW0603 - one process has one tracer
    if not settings.otlp_endpoint or not settings.otlp_trace_ratio:
        return
    from cilium_core.telemetry.collectors import Collector
    from cilium_core.telemetry.spans import Spans

    _spans = Spans(
        Collector.of(settings), service=service, node=node, ratio=settings.otlp_trace_ratio
    )


def end(within_s: float = 5.0) -> None:
    """Send what waits, for `within_s` at most, and make no more spans."""
    global _spans
    spans, _spans = _spans, None
    if spans is not None:
        spans.close(within_s)


@asynccontextmanager
async def tracing(
    settings: TelemetrySettings, *, service: str, node: str = ""
) -> AsyncIterator[None]:
    """Make spans while a service runs, if settings want them. Raises as `begin`."""
    import asyncio  # too slow for command lines that make no spans

    begin(settings, service=service, node=node)
    try:
        yield
    finally:
        await asyncio.to_thread(end)


@contextmanager
def command(service: str, name: str) -> Iterator[None]:
    """A span around a command line's work, where the environment names a collector.

    The variables are OpenTelemetry's: OTEL_EXPORTER_OTLP_ENDPOINT, and TRACEPARENT for a trace that
    the command is to be part of.
    """
    global _spans  # noqa: PLW0603 - as above
    endpoint = next(filter(None, map(os.environ.get, _ENDPOINTS)), "")
    if not endpoint:
        yield
        return
    from cilium_core.telemetry.collectors import Collector
    from cilium_core.telemetry.spans import Spans

    _spans = Spans(Collector(endpoint, quiet=True), service=service, node="", ratio=1.0)
    try:
        with _spans.command(name, {"traceparent": os.environ.get("TRACEPARENT", "")}):
            yield
    finally:
        end(_PATIENCE_S)


def is_told(method: str) -> bool:
    """Whether calls of a method (`package.Service/Method`) make spans."""
    return _spans is not None and not method.startswith(_UNTOLD)


def serving(method: str, metadata: Mapping[str, Any]) -> AbstractContextManager[Span | None]:
    """Surround the handling of a call, within the task that is the call's own."""
    if _spans is None or not is_told(method):
        return _NOTHING
    return _spans.serving(method, metadata)


@contextmanager
def calling(method: str) -> Iterator[dict[str, str]]:
    """Surround a call to another program; yields the metadata to send along."""
    if _spans is None or not is_told(method):
        yield {}
        return
    with _spans.calling(method) as span:
        yield span.headers()


def server_interceptors() -> Sequence[grpc.aio.ServerInterceptor]:
    """For a grpc.aio server, ahead of those that turn errors into statuses."""
    if _spans is None:
        return ()
    from cilium_core.telemetry.interceptors import TracedServer

    return (TracedServer(),)


def client_interceptors() -> Sequence[grpc.aio.ClientInterceptor]:
    """For a grpc.aio channel."""
    if _spans is None:
        return ()
    from cilium_core.telemetry.interceptors import client_interceptors

    return client_interceptors(_spans)


def traced(channel: grpc.Channel) -> grpc.Channel:
    """A blocking channel whose calls make spans."""
    if _spans is None:
        return channel
    import grpc

    from cilium_core.telemetry.interceptors import TracedCalls

    return grpc.intercept_channel(channel, TracedCalls(_spans))
