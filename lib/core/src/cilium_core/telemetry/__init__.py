"""What a service tells about itself: logs, metrics, health.

`get_logger` is the only door to structlog, because importing structlog carelessly costs 0.2 s of
CPU in every process of a node.
"""

from __future__ import annotations

from cilium_core.telemetry.health import Health
from cilium_core.telemetry.logs import Logger, get_logger, setup_logging
from cilium_core.telemetry.metrics import (
    REGISTRY,
    Counter,
    Gauge,
    Histogram,
    Registry,
    counter,
    gauge,
    histogram,
)
from cilium_core.telemetry.otlp import pushing, pushing_metrics

__all__ = [
    "REGISTRY",
    "Counter",
    "Gauge",
    "Health",
    "Histogram",
    "Logger",
    "Registry",
    "counter",
    "gauge",
    "get_logger",
    "histogram",
    "pushing",
    "pushing_metrics",
    "setup_logging",
]
