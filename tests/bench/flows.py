"""What a flow costs in hubble-server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench import measuring, report

if TYPE_CHECKING:
    from collections.abc import Iterator


def rows() -> Iterator[report.Row]:
    """Ingest, query and streaming; needs root for the kernel's ring."""
    rate = measuring.ingest_rate() / 1e6
    yield report.absolute("ingest with names, one core", "M events/s", rate, ">=", 1.0)
    offered = measuring.offered_load()
    lost = offered.sent - offered.seen
    yield report.told("offered by the kernel", "events/s", offered.rate)
    yield report.absolute("lost of those", "events", lost, "<=", 0)
    yield report.absolute("share of a core at that rate", "", offered.cpu_share, "<=", 0.35)
    yield report.absolute("--last 1000, selective, full ring", "ms", measuring.query_ms(), "<=", 20)
    stream = measuring.stream_cost()
    yield report.told("flows out of GetFlows", "flows/s", stream.flows_per_s)
    yield report.absolute("server CPU for a flow sent", "µs", stream.server_us_per_flow, "<=", 15)
