"""A collector for OpenTelemetry that keeps what it is sent."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

LIMIT_S = 10.0


@dataclass
class Collector:
    """Keeps requests by signal; refuses as it is told."""

    address: str = ""
    logs: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    metrics: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    traces: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    refuse_with: list[grpc.StatusCode] = field(default_factory=list)
    """Codes of the next answers."""
    reject: int = 0
    """How many records of each request are not taken."""
    headers: dict[str, str] = field(default_factory=dict)
    """Of the latest request."""

    async def take(self, queue: asyncio.Queue[Any], request: Any, context: Any) -> None:
        """Keep a request, or refuse it."""
        self.headers = dict(context.invocation_metadata())
        if self.refuse_with:
            await context.abort(self.refuse_with.pop(0), "not now")
        await queue.put(request)

    async def log_records(self, count: int) -> list[Any]:
        """The next records, `count` of them."""
        found: list[Any] = []
        async with asyncio.timeout(LIMIT_S):
            while len(found) < count:
                request = await self.logs.get()
                for resource in request.resource_logs:
                    found += [one for scope in resource.scope_logs for one in scope.log_records]
        return found

    async def spans(self, count: int) -> list[tuple[str, Any]]:
        """The next spans, each with the name of its service."""
        found: list[tuple[str, Any]] = []
        async with asyncio.timeout(LIMIT_S):
            while len(found) < count:
                request = await self.traces.get()
                for resource in request.resource_spans:
                    name = attributes(resource.resource.attributes)["service.name"]
                    found += [
                        (name, span) for scope in resource.scope_spans for span in scope.spans
                    ]
        return found


def attributes(pairs: Any) -> dict[str, Any]:
    """Attributes as what they are."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in pairs}


@contextmanager
def collecting_beside(address: str) -> Iterator[tuple[Collector, Callable[..., Any]]]:
    """A collector on a thread of its own, and what runs its coroutines there."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(2 * LIMIT_S)

    collector = collecting(address)
    try:
        yield run(collector.__aenter__()), run
    finally:
        run(collector.__aexit__(None, None, None))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@asynccontextmanager
async def collecting(
    address: str = "127.0.0.1:0", credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[Collector]:
    """A collector that listens; `address` is the one of another that is away by now."""
    made = Collector()

    class Logs(logs_service_pb2_grpc.LogsServiceServicer):
        async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
            await made.take(made.logs, request, context)
            response = logs_service_pb2.ExportLogsServiceResponse()
            response.partial_success.rejected_log_records = made.reject
            return response

    class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
        async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
            await made.take(made.metrics, request, context)
            return metrics_service_pb2.ExportMetricsServiceResponse()

    class Traces(trace_service_pb2_grpc.TraceServiceServicer):
        async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
            await made.take(made.traces, request, context)
            return trace_service_pb2.ExportTraceServiceResponse()

    server = grpc.aio.server()
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(Logs(), server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), server)
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    made.address = address if address.startswith("unix:") else f"127.0.0.1:{port}"
    await server.start()
    try:
        yield made
    finally:
        await server.stop(None)
