"""Metrics reach an OpenTelemetry collector, here one that keeps what it is sent."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cilium_core.settings import TelemetrySettings
from cilium_core.telemetry import Registry, counter, gauge, histogram, pushing
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as messages
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as services

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass
class Collector(services.MetricsServiceServicer):  # type: ignore[misc]  # generated without types
    """Keeps every request."""

    requests: asyncio.Queue[Any]
    address: str = ""

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the method's name
        await self.requests.put(request)
        return messages.ExportMetricsServiceResponse()


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    made = Collector(asyncio.Queue())
    server = grpc.aio.server()
    services.add_MetricsServiceServicer_to_server(made, server)
    made.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield made
    await server.stop(None)


def settings(endpoint: str) -> TelemetrySettings:
    return replace(TelemetrySettings(), otlp_endpoint=endpoint, otlp_interval=0.1)


def filled() -> Registry:
    registry = Registry()
    drops = counter("cilium_drop_count_total", "Drops.", "reason", registry=registry)
    drops.add(3, "Policy denied")
    gauge("cilium_endpoint", "Endpoints.", registry=registry).set(7)
    histogram("delay_seconds", "Delays.", buckets=(0.1, 1.0), registry=registry).observe(0.5)
    return registry


async def test_counters_gauges_and_histograms_arrive_as_what_they_are(collector: Collector) -> None:
    received: list[Any] = []

    async def work() -> None:
        received.append(await asyncio.wait_for(collector.requests.get(), 10))

    await pushing(work(), settings(collector.address), service="x", node="node1", registry=filled())

    (resource,) = received[0].resource_metrics
    named = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert (named["service.name"], named["k8s.node.name"]) == ("x", "node1")
    drops, endpoints, delays = resource.scope_metrics[0].metrics
    (point,) = drops.sum.data_points
    assert drops.sum.is_monotonic
    assert (point.as_double, point.attributes[0].value.string_value) == (3, "Policy denied")
    assert endpoints.gauge.data_points[0].as_double == 7
    (delay,) = delays.histogram.data_points
    assert (delay.count, list(delay.bucket_counts), delay.sum) == (1, [0, 1, 0], 0.5)
    assert not delay.HasField("min")


async def test_what_happened_last_is_pushed_when_the_service_ends(collector: Collector) -> None:
    registry = Registry()
    ends = counter("ends_total", "Ends.", registry=registry)

    async def work() -> None:
        ends.add()

    slow = replace(settings(collector.address), otlp_interval=60.0)
    await pushing(work(), slow, service="x", registry=registry)

    request = collector.requests.get_nowait()
    metric = request.resource_metrics[0].scope_metrics[0].metrics[0]
    assert metric.sum.data_points[0].as_double == 1


async def test_without_an_endpoint_the_service_just_runs() -> None:
    ran = []

    async def work() -> None:
        ran.append(True)

    await pushing(work(), TelemetrySettings(), service="x", registry=filled())

    assert ran == [True]


async def test_the_service_s_own_failure_is_what_comes_out(collector: Collector) -> None:
    async def work() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await pushing(work(), settings(collector.address), service="x", registry=filled())
