"""What a flow costs, from the kernel's ring to the client: in time, CPU and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench import costs, measuring, queries, report, streams

if TYPE_CHECKING:
    from collections.abc import Iterator


def rows() -> Iterator[report.Row]:
    """Ingest, queries and streaming; needs root for the kernel's ring."""
    yield from _ingest()
    yield from _queries()
    yield from _streams()


def _ingest() -> Iterator[report.Row]:
    rate = measuring.ingest_rate() / 1e6
    yield report.absolute("ingest with names, one core", "M events/s", rate, ">=", 1.0)
    offered = measuring.offered_load()
    lost = offered.sent - offered.seen
    yield report.told("offered by the kernel", "events/s", offered.rate)
    yield report.absolute("lost of those", "events", lost, "<=", 0)
    yield report.absolute("share of a core at that rate", "", offered.cpu_share, "<=", 0.35)
    for name, spent in costs.us_per_flow().items():
        yield report.told(f"a flow {name}", "µs of CPU", spent)
    held = queries.bytes_per_flow()
    yield report.absolute("memory of a flow in a full ring", "bytes", held, "<=", 200)


def _queries() -> Iterator[report.Row]:
    bars = {"the last 20": 5, "a pod's": 20, "counts": 30, "HTTP": 60, "DNS": 60}
    for name, took in queries.times_ms().items():
        limit = next(limit for start, limit in bars.items() if name.startswith(start))
        yield report.absolute(f"full ring: {name}", "ms", took, "<=", limit)


def _streams() -> Iterator[report.Row]:
    found = streams.from_node()
    cases = {
        "one client": found.one,
        "20 clients": found.twenty,
        "one beside 20 that do not read": found.beside_stalled,
    }
    for name, cost in cases.items():
        yield report.told(f"flows to {name}", "flows/s", cost.flows_per_s)
        spent = cost.us_per_flow
        yield report.absolute(f"server's CPU for a flow to {name}", "µs", spent, "<=", 15)
    yield report.absolute("time beside those, to time alone", "x", found.slowed, "<=", 1.15)
    if found.real is not None:
        cost, client_us = found.real
        yield report.told("flows to Hubble's own client", "flows/s", cost.flows_per_s)
        yield report.absolute("server's CPU for a flow to it", "µs", cost.us_per_flow, "<=", 15)
        yield report.told("its own CPU for a flow", "µs", client_us)
    relay = streams.through_relay()
    yield report.told("flows of 10 nodes through a relay", "flows/s", relay.flows_per_s)
    yield report.absolute("relay's CPU for a flow", "µs", relay.us_per_flow, "<=", 15)
