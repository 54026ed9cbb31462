"""Pushes a process's metrics to an OpenTelemetry collector, when one is configured.

The instruments stay the plain ones of `metrics`. At each interval they are read on the event loop,
where their callbacks may look at the service's state, and turned into the SDK's data points, which
its exporter sends from a worker thread. A collector that is away costs a warning, never the
service; totals are cumulative, so nothing is lost by a push that failed.

The SDK is imported only here and only when it is used: it costs 0.2 s of CPU.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from cilium_core.telemetry.logs import get_logger
from cilium_core.telemetry.metrics import REGISTRY, Counter, Histogram, Registry

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from opentelemetry.sdk.metrics import Exemplar as SdkExemplar
    from opentelemetry.sdk.metrics.export import Metric, MetricsData

    from cilium_core.settings import TelemetrySettings
    from cilium_core.telemetry.collectors import Collector
    from cilium_core.telemetry.metrics import Exemplar

log = get_logger()


async def pushing(
    work: Coroutine[Any, Any, None],
    settings: TelemetrySettings,
    *,
    service: str,
    node: str = "",
    registry: Registry = REGISTRY,
) -> None:
    """Run a service, pushing its metrics meanwhile if `otlp-endpoint` says where to.

    The last push happens when the service has ended. Raises what the service raises.
    """
    if not settings.otlp_endpoint:
        await work
        return
    pushed = pushing_metrics(settings, service=service, node=node, registry=registry)
    task = asyncio.create_task(pushed)
    await asyncio.sleep(0)  # a task that is cancelled before it began never ends its work
    try:
        await work
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def pushing_metrics(
    settings: TelemetrySettings, *, service: str, node: str, registry: Registry
) -> None:
    """Push the instruments of a registry until cancelled, and once more then."""
    from cilium_core.telemetry.collectors import Collector

    pusher = Pusher(Collector.of(settings), service=service, node=node, registry=registry)
    try:
        await pusher.run(settings.otlp_interval)
    finally:
        await pusher.push()
        await asyncio.to_thread(pusher.close)


class Pusher:
    """Sends the instruments of a registry to one collector over OTLP/gRPC."""

    def __init__(
        self, collector: Collector, *, service: str, node: str, registry: Registry
    ) -> None:
        """Make the exporter; nothing is sent yet. Raises InvalidError for files of TLS."""
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.resources import Resource

        attributes = {"service.name": service} | ({"k8s.node.name": node} if node else {})
        self._resource = Resource.create(attributes)
        credentials = collector.credentials()
        self._exporter = OTLPMetricExporter(
            endpoint=collector.target,
            insecure=credentials is None,
            credentials=credentials,
            headers=collector.headers,
            timeout=5,
        )
        self._registry = registry
        self._endpoint = collector.endpoint
        self._started_ns = time.time_ns()
        self._failing = False

    async def run(self, interval_s: float) -> None:
        """Push for ever."""
        while True:
            await asyncio.sleep(interval_s)
            await self.push()

    async def push(self) -> bool:
        """Push once; returns whether the collector took it."""
        from opentelemetry.sdk.metrics.export import MetricExportResult

        data = self._data()
        result = await asyncio.to_thread(self._exporter.export, data)
        failed = result is not MetricExportResult.SUCCESS
        if failed != self._failing:
            self._failing = failed
            if failed:
                log.warning("collector does not take metrics", endpoint=self._endpoint)
            else:
                log.info("collector takes metrics again", endpoint=self._endpoint)
        return not failed

    def close(self) -> None:
        """Close the connection."""
        self._exporter.shutdown()

    def _data(self) -> MetricsData:
        from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        found, exemplars = self._registry.collect(), self._registry.exemplars()
        metrics = [self._metric(instrument, exemplars) for instrument in found]
        scope = ScopeMetrics(InstrumentationScope("cilium-py"), metrics, "")
        return MetricsData([ResourceMetrics(self._resource, [scope], "")])

    def _metric(
        self,
        instrument: Counter | Histogram,
        exemplars: dict[tuple[Counter | Histogram, tuple[str, ...]], Exemplar],
    ) -> Metric:
        from opentelemetry.sdk.metrics import export

        def of(values: tuple[str, ...]) -> list[SdkExemplar]:
            return _exemplars(exemplars.get((instrument, values)))

        began, now = self._started_ns, time.time_ns()
        cumulative = export.AggregationTemporality.CUMULATIVE
        data: export.Histogram | export.Sum | export.Gauge
        if isinstance(instrument, Histogram):
            data = export.Histogram(
                [
                    export.HistogramDataPoint(
                        attributes=dict(zip(instrument.labels, values, strict=True)),
                        start_time_unix_nano=began,
                        time_unix_nano=now,
                        count=sum(counts),
                        sum=total,
                        bucket_counts=counts,
                        explicit_bounds=instrument.buckets,
                        # not kept; the encoder leaves out what is None
                        min=None,  # type: ignore[arg-type]
                        max=None,  # type: ignore[arg-type]
                        exemplars=of(values),
                    )
                    for values, counts, total in instrument.series()
                ],
                cumulative,
            )
        else:
            points = [
                export.NumberDataPoint(
                    attributes=dict(zip(instrument.labels, values, strict=True)),
                    start_time_unix_nano=began,
                    time_unix_nano=now,
                    value=float(value),
                    exemplars=of(values),
                )
                for values, value in instrument.series()
            ]
            if instrument.kind == "gauge":
                data = export.Gauge(points)
            else:
                data = export.Sum(points, cumulative, is_monotonic=True)
        return export.Metric(instrument.name, instrument.help_text, "", data)


def _exemplars(exemplar: Exemplar | None) -> list[SdkExemplar]:
    from opentelemetry.sdk.metrics import Exemplar as SdkExemplar

    if exemplar is None:
        return []
    try:
        trace_id = int(exemplar.trace_id, 16)
    except ValueError:
        return []  # clients may write anything into the header
    if not 0 < trace_id < 1 << 128:
        return []
    return [SdkExemplar({}, exemplar.value, int(exemplar.at_s * 1e9), 0, trace_id)]
