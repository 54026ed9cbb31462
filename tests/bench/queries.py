"""What questions to a full ring take, from the client's request to the end of the answer."""

from __future__ import annotations

import statistics
import time
import tracemalloc
from typing import TYPE_CHECKING

from cilium.flows.v1 import flows_pb2
from cilium_core.flow_dimensions import NAMES
from flow import flow_pb2
from observer import observer_pb2

from tests.bench.flowclients import AGGREGATE, GET_FLOWS, Client
from tests.bench.flowservers import FULL, PODS, served

if TYPE_CHECKING:
    from google.protobuf.message import Message

_REPEATS = 15
_Ask = observer_pb2.GetFlowsRequest


def _by(*names: str) -> flows_pb2.AggregateFlowsRequest:
    request = flows_pb2.AggregateFlowsRequest()
    request.by.extend(NAMES[name] for name in names)  # type: ignore[misc]
    return request


def _where(wanted: flow_pb2.FlowFilter) -> _Ask:
    return _Ask(whitelist=[wanted])


_SELECTIVE = _where(
    flow_pb2.FlowFilter(
        source_pod=["ns1/pod-7"], destination_port=["8080"], verdict=[flow_pb2.FORWARDED]
    )
)

QUESTIONS: dict[str, tuple[str, Message]] = {
    "the last 20": (GET_FLOWS, _Ask(number=20)),
    "a pod's to a port, all of them": (GET_FLOWS, _SELECTIVE),
    "counts by verdict, protocol, port": (AGGREGATE, _by("verdict", "protocol", "port")),
    "counts by namespaces and verdict": (
        AGGREGATE,
        _by("source-namespace", "destination-namespace", "verdict"),
    ),
    "counts by workloads, port, verdict": (
        AGGREGATE,
        _by("source-workload", "destination-workload", "port", "verdict"),
    ),
    "counts by pods, port, verdict (20 of 36,000)": (
        AGGREGATE,
        flows_pb2.AggregateFlowsRequest(
            by=_by("source", "destination", "port", "verdict").by, most=20
        ),
    ),
}
"""Put to a ring full of packets."""

OF_REQUESTS: dict[str, tuple[str, Message]] = {
    "HTTP requests by a regex of the path": (
        GET_FLOWS,
        _where(flow_pb2.FlowFilter(http_path=["^/api/v[12]/items/.*77[0-9]$"])),
    ),
    "DNS questions by a regex of the name": (
        GET_FLOWS,
        _where(flow_pb2.FlowFilter(dns_query=["host-12[0-9]\\..*"])),
    ),
}
"""Put to a ring full of what proxies saw."""


def times_ms() -> dict[str, float]:
    """Median time of each question."""
    found: dict[str, float] = {}
    for kind, questions in (("packets", QUESTIONS), ("requests", OF_REQUESTS)):
        with served(kind=kind) as server:
            client = Client(server.socket())
            for name, (method, request) in questions.items():
                found[name] = statistics.median(
                    _time_ms(client, method, request) for _ in range(_REPEATS)
                )
            client.close()
    return found


def _time_ms(client: Client, method: str, request: Message) -> float:
    started = time.perf_counter()
    count = client.answer(method, request)
    took = (time.perf_counter() - started) * 1000
    if not count:
        raise RuntimeError(f"nothing answers {method} {request}")
    return took


def bytes_per_flow() -> float:
    """Memory that a full ring takes, for each flow in it, with all that hangs on it."""
    from hubble_server.flows.store import FlowStore

    from tests.unit.hubble.loads import traffic
    from tests.unit.hubble.pipelines import Pipeline

    pipeline = Pipeline(capacity=1, pods=PODS)
    events = traffic(4096, PODS)
    pipeline.feed(events)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        store = FlowStore(FULL)
        pipeline.ingest._store = pipeline.store = store
        while store.head < store.slots:
            pipeline.feed(events)
        return (tracemalloc.get_traced_memory()[0] - before) / len(store)
    finally:
        tracemalloc.stop()
