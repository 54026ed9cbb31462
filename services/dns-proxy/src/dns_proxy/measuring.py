"""The proxy's counters as metrics, refreshed when somebody scrapes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cilium_core.telemetry import counter, gauge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dns_proxy.app import DnsProxy

QUERIES = counter("cilium_dns_proxy_queries_total", "Messages from clients.")
REFUSED = counter("cilium_dns_proxy_refused_total", "Queries refused, by reason.", "reason")
FAILURES = counter(
    "cilium_dns_proxy_failures_total", "Allowed queries without an answer, by reason.", "reason"
)
DISBELIEVED = counter(
    "cilium_dns_proxy_disbelieved_total", "Responses thrown away, by reason.", "reason"
)
LOST = counter("cilium_dns_proxy_lost_total", "What was lost for want of room.", "what")
LATE = counter(
    "cilium_proxy_datapath_update_timeout_total", "Answers that did not wait for the data plane."
)
REJECTED = counter(
    "cilium_fqdn_semaphore_rejected_total", "Queries above the limit of those in flight."
)
IN_FLIGHT = gauge("cilium_dns_proxy_in_flight", "Queries that wait for an answer.")
PORTS = gauge("cilium_dns_proxy_ports", "Ports that are served.")
CONNECTIONS = gauge("cilium_dns_proxy_connections", "TCP connections of clients.")


def totals(proxy: DnsProxy) -> Iterator[tuple[str, str, int]]:
    """What the agent is told, for its own metrics: event, reason, total."""
    service = proxy.service
    yield "queries", "", service.queries
    for event, reasons in (
        ("refused", service.refused),
        ("failed", service.failures),
        ("disbelieved", service.disbelieved),
    ):
        for reason, number in reasons.items():
            yield event, reason, number
    yield "lost", "queries", proxy.datagrams.lost
    yield "lost", "connections", proxy.streams.turned_away
    yield "lost", "names", proxy.announcer.forgotten
    yield "late", "", proxy.announcer.late


def refresh(proxy: DnsProxy) -> None:
    """Bring the metrics up to date."""
    service = proxy.service
    QUERIES.set(service.queries)
    for reason, number in service.refused.items():
        REFUSED.set(number, reason)
    for reason, number in service.failures.items():
        FAILURES.set(number, reason)
    for reason, number in service.disbelieved.items():
        DISBELIEVED.set(number, reason)
    LOST.set(proxy.datagrams.lost, "queries")
    LOST.set(proxy.streams.turned_away, "connections")
    LOST.set(proxy.reporter.lost, "records")
    LOST.set(proxy.announcer.forgotten, "names")
    LATE.set(proxy.announcer.late)
    REJECTED.set(service.failures["concurrency limit"])
    IN_FLIGHT.set(service.in_flight)
    PORTS.set(len(proxy.ports))
    CONNECTIONS.set(proxy.streams.open)
