"""Spans of calls, made by OpenTelemetry's SDK and sent through the queue of `collectors`.

Spans become the current one by setting a context variable that is never set back: every call has a
task of its own, on both kinds of servers, and a generator that is closed elsewhere could not set
it back anyway.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cilium_core.telemetry.collectors import Sender, Signal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan

    from cilium_core.telemetry.collectors import Collector

TRACES: Final = Signal(
    "traces",
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    ExportTraceServiceResponse,
    "rejected_spans",
)
_WAITING: Final = 4096
"""Spans that wait at the most; each takes about 2 kB."""

OK: Final = 0
CANCELLED: Final = 1
UNKNOWN: Final = 2
_FAULTS: Final = frozenset({2, 4, 12, 13, 14, 15})
"""Codes that are the server's fault: Unknown, DeadlineExceeded, Unimplemented, Internal,
Unavailable, DataLoss (OpenTelemetry's conventions for gRPC)."""


class _Offering(SpanProcessor):
    """Hands spans that are sampled to the sender when they end."""

    def __init__(self, sender: Sender[ReadableSpan]) -> None:
        self._sender = sender

    def on_end(self, span: ReadableSpan) -> None:
        context = span.context
        if context is not None and context.trace_flags.sampled:
            self._sender.offer([span])


class Span:
    """The span of one call. `end` may be called from any thread; the first call counts."""

    def __init__(self, span: trace.Span, *, at_server: bool) -> None:
        self._span = span
        self._at_server = at_server
        self._ended = False

    def make_current(self) -> None:
        """Let what this task and the tasks it starts call from now on belong to this span."""
        contexts.attach(trace.set_span_in_context(self._span))

    def headers(self) -> dict[str, str]:
        """What tells the server of the span."""
        found: dict[str, str] = {}
        _PROPAGATOR.inject(found, trace.set_span_in_context(self._span))
        return found

    def end(self, code: int, reason: str = "") -> None:
        """End with gRPC's code."""
        if self._ended:
            return
        self._ended = True
        self._span.set_attribute("rpc.grpc.status_code", code)
        if code != OK and (not self._at_server or code in _FAULTS):
            self._span.set_status(trace.StatusCode.ERROR, reason or None)
        self._span.end()


class Spans:
    """Makes the spans of a process."""

    def __init__(self, collector: Collector, *, service: str, node: str, ratio: float) -> None:
        """Begin. `ratio` (0 to 1) is the share of calls that begin a trace."""
        attributes = {"service.name": service} | ({"k8s.node.name": node} if node else {})
        self._sender: Sender[ReadableSpan] = Sender(collector, TRACES, encode_spans, limit=_WAITING)
        provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)),
            resource=Resource.create(attributes),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(_Offering(self._sender))
        self._tracer = provider.get_tracer("cilium-py")

    def close(self, within_s: float) -> None:
        """Send what waits, for `within_s` at most."""
        self._sender.close(within_s)

    def call(self, method: str) -> Span:
        """Begin the span of a call to `package.Service/Method`, below the current span."""
        return self._begin(method, trace.SpanKind.CLIENT, None)

    @contextmanager
    def calling(self, method: str) -> Iterator[Span]:
        """A span around a call."""
        span = self.call(method)
        with _ending(span):
            yield span

    @contextmanager
    def serving(self, method: str, metadata: Mapping[str, Any]) -> Iterator[Span]:
        """A span around the handling of a call, below the one the caller tells of."""
        parent = _PROPAGATOR.extract({name: metadata[name] for name in _TOLD if name in metadata})
        span = self._begin(method, trace.SpanKind.SERVER, parent)
        span.make_current()
        with _ending(span):
            yield span

    @contextmanager
    def command(self, name: str, carrier: Mapping[str, str]) -> Iterator[None]:
        """A span around what a process does."""
        parent = _PROPAGATOR.extract(carrier)
        with self._tracer.start_as_current_span(name, parent):
            yield

    def _begin(self, method: str, kind: trace.SpanKind, parent: Context | None) -> Span:
        service, _, name = method.rpartition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        span = self._tracer.start_span(method, parent, kind, attributes)
        return Span(span, at_server=kind is trace.SpanKind.SERVER)


_PROPAGATOR: Final = TraceContextTextMapPropagator()
_TOLD: Final = ("traceparent", "tracestate")


@contextmanager
def _ending(span: Span) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        code, reason = _code_of(error)
        span.end(code, reason)
        raise
    span.end(OK)


def _code_of(error: BaseException) -> tuple[int, str]:
    """GRPC's code of what a handler raised, and its text."""
    if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
        return CANCELLED, ""
    status = getattr(error, "status", None)  # errors of grpclib
    code = getattr(status, "value", None)
    return (code if isinstance(code, int) else UNKNOWN), str(error)
