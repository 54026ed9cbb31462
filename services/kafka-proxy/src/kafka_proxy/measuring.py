"""The proxy's counters as metrics, refreshed when somebody scrapes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cilium_core.telemetry import counter, gauge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kafka_proxy.app import KafkaProxy

REQUESTS = counter(
    "cilium_kafka_proxy_requests_total", "Requests of clients, by what became of them.", "verdict"
)
GARBAGE = counter(
    "cilium_kafka_proxy_garbage_total",
    "Connections with bytes that are not the protocol's, by who sent them.",
    "sender",
)
UNREACHABLE = counter(
    "cilium_kafka_proxy_unreachable_total", "Connections whose broker could not be reached."
)
LOST = counter("cilium_kafka_proxy_lost_total", "What was lost for want of room.", "what")
PORTS = gauge("cilium_kafka_proxy_ports", "Ports that are served.")
CONNECTIONS = gauge("cilium_kafka_proxy_connections", "Connections of clients.")


def totals(proxy: KafkaProxy) -> Iterator[tuple[str, str, int]]:
    """What the agent is told, for its own metrics: event, reason, total."""
    counters = proxy.ports.counters
    for verdict, number in counters.requests.items():
        yield "requests", verdict, number
    for sender, number in counters.garbage.items():
        yield "garbage", sender, number
    yield "unreachable", "", counters.unreachable
    yield "lost", "connections", proxy.ports.turned_away


def refresh(proxy: KafkaProxy) -> None:
    """Bring the metrics up to date."""
    counters = proxy.ports.counters
    for verdict, number in counters.requests.items():
        REQUESTS.set(number, verdict)
    for sender, number in counters.garbage.items():
        GARBAGE.set(number, sender)
    UNREACHABLE.set(counters.unreachable)
    LOST.set(proxy.ports.turned_away, "connections")
    LOST.set(proxy.reporter.lost, "records")
    PORTS.set(len(proxy.ports))
    CONNECTIONS.set(proxy.ports.connections)
