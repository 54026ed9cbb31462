"""The metrics endpoint: Prometheus' text, and OpenMetrics with exemplars where that is enabled."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from cilium_core.serving.http_server import HttpServer, Request, Response
from cilium_core.telemetry.metrics import CONTENT_TYPE, Counter, Histogram, Registry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from cilium_core.telemetry.metrics import Exemplar

    from hubble_server.metrics.counting import FlowMetrics

OPEN_METRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class FlowRegistry(Registry):
    """The instruments of the metrics at work, whichever these are by then, and some `others`."""

    def __init__(self, metrics: FlowMetrics, others: Iterable[Counter | Histogram]) -> None:
        super().__init__()
        self._metrics = metrics
        self._others = tuple(others)

    def collect(self) -> list[Counter | Histogram]:
        """Every instrument, as of now."""
        flows = (one for counted in self._metrics.counted for one in counted.plugin.instruments)
        return [*flows, *self._others]

    def exemplars(self) -> dict[tuple[Counter | Histogram, tuple[str, ...]], Exemplar]:
        """The latest flow with a trace that each series counted."""
        # the ingest thread goes on counting
        return {
            key: exemplar
            for counted in self._metrics.counted
            for key, exemplar in counted.exemplars.copy().items()
        }


class MetricsEndpoint:
    """Serves `/metrics`: the flow metrics, what is `always` shown, and its own requests."""

    def __init__(
        self, metrics: FlowMetrics, always: Iterable[Counter], *, open_metrics: bool
    ) -> None:
        self._metrics = metrics
        self._open_metrics = open_metrics
        self._requests = Counter(
            "hubble_metrics_http_handler_requests_total", "Requests for metrics.", ("code",)
        )
        self._durations = Histogram(
            "hubble_metrics_http_handler_request_duration_seconds",
            "Seconds requests for metrics took.",
            ("code",),
            (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )
        self._registry = FlowRegistry(metrics, (*always, self._requests, self._durations))
        self.http = HttpServer()
        self.http.route("GET", "/metrics", self._answer)

    async def _answer(self, request: Request) -> Response:
        started = time.perf_counter()
        accepts = "application/openmetrics-text" in request.headers.get("accept", "")
        if self._open_metrics and accepts:
            response = Response(200, self.open_metrics().encode(), OPEN_METRICS)
        else:
            response = Response(200, self.text().encode(), CONTENT_TYPE)
        self._requests.add(1, "200")
        self._durations.observe(time.perf_counter() - started, "200")
        return response

    def text(self) -> str:
        """Prometheus' text."""
        return self._registry.exposition()

    def open_metrics(self) -> str:
        """The same in OpenMetrics."""
        exemplars = self._registry.exemplars()
        lines: list[str] = []
        for instrument in self._registry.collect():
            family = instrument.name
            if isinstance(instrument, Counter):
                family = family.removesuffix("_total")
            lines += (
                f"# TYPE {family} {instrument.kind}",
                f"# HELP {family} {instrument.help_text}",
            )
            if isinstance(instrument, Counter):
                lines += (
                    sample + _exemplar(exemplars.get((instrument, values)))
                    for (values, _), sample in zip(
                        instrument.series(), instrument.samples(), strict=False
                    )
                )
            else:
                lines += _buckets(instrument, exemplars)
        return "\n".join((*lines, "# EOF", ""))


def _exemplar(exemplar: Exemplar | None) -> str:
    if exemplar is None:
        return ""
    return f' # {{traceID="{exemplar.trace_id}"}} {exemplar.value:g} {exemplar.at_s:.3f}'


def _buckets(
    histogram: Histogram, exemplars: Mapping[tuple[Counter | Histogram, tuple[str, ...]], Exemplar]
) -> Iterator[str]:
    """Samples of a histogram; an exemplar stands at the first bucket that it fell into."""
    size = len(histogram.buckets) + 3
    keys = [values for values, _, _ in histogram.series()]
    for at, sample in enumerate(histogram.samples()):
        values = keys[at // size] if at // size < len(keys) else ()
        exemplar = exemplars.get((histogram, values))
        place = at % size
        bounds = (float("-inf"), *histogram.buckets, float("inf"))
        here = (
            exemplar is not None
            and place <= len(histogram.buckets)
            and bounds[place] < exemplar.value <= bounds[place + 1]
        )
        yield sample + _exemplar(exemplar if here else None)
