"""Metrics of flows: groups count what single flows would, and the syntax is Hubble's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from cilium_core import abi
from cilium_core.telemetry.metrics import Counter
from flow import flow_pb2
from hubble_server.metrics.configuring import MetricsFile, parse_dynamic, parse_static
from hubble_server.metrics.contexts import MetricsConfigError
from hubble_server.metrics.counting import Counted, FlowMetrics
from hubble_server.metrics.exposing import OPEN_METRICS, MetricsEndpoint
from hubble_server.metrics.plugins import PLUGINS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.hubble.loads import event, make, names, strange, strange_records, traffic
from tests.unit.hubble.pipelines import NODE, Pipeline

if TYPE_CHECKING:
    from pathlib import Path

CONTEXTS = (
    "",
    "sourceContext=pod|reserved-identity;destinationContext=dns|ip",
    "sourceEgressContext=workload;sourceIngressContext=app;destinationContext=identity|namespace",
    "labelsContext=source_ip,source_pod,destination_workload_kind,traffic_direction",
)


def counting(*texts: str, pipeline: Pipeline, **filters: list[flow_pb2.FlowFilter]) -> FlowMetrics:
    metrics = FlowMetrics(pipeline.directory, lambda: NODE)
    metrics.counted = tuple(Counted(one.make(), **filters) for one in parse_static(texts))
    pipeline.ingest._metrics = metrics
    return metrics


def series(metrics: FlowMetrics) -> dict[str, dict[tuple[str, ...], float]]:
    return {
        one.name: dict(one.series())
        for counted in metrics.counted
        for one in counted.plugin.instruments
        if isinstance(one, Counter)
    }


def test_chunks_of_sctp_count_where_they_begin_or_end_something() -> None:
    pipeline = Pipeline()
    metrics = counting("sctp", pipeline=pipeline)
    flags = abi.constants["EVENT_L3"] | abi.constants["EVENT_L4"]
    for chunk in (1, 1, 2, 0, 3, 14):  # INIT twice, INIT ACK, DATA, SACK, SHUTDOWN COMPLETE
        pipeline.feed(event(type=4, proto=132, tcp_flags=chunk, flags=flags))
    chunks = [flow.l4.SCTP.chunk_type for flow in pipeline.flows()]
    assert chunks == [flow_pb2.INIT, flow_pb2.INIT, flow_pb2.INIT_ACK, 0, 0,
                      flow_pb2.SHUTDOWN_COMPLETE]  # fmt: skip
    assert series(metrics) == {
        "hubble_sctp_chunk_types_total": {
            ("INIT", "IPv4"): 2,
            ("INIT_ACK", "IPv4"): 1,
            ("SHUTDOWN_COMPLETE", "IPv4"): 1,
        }
    }


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 1 << 30),
    name=st.sampled_from(sorted(PLUGINS)),
    context=st.sampled_from(CONTEXTS),
    wanted=st.sampled_from([[], [flow_pb2.FlowFilter(protocol=["tcp"], reply=[False])]]),
)
def test_groups_count_what_flows_count_one_by_one(
    seed: int, name: str, context: str, wanted: list[flow_pb2.FlowFilter]
) -> None:
    pipeline = Pipeline()
    extra = {"flows-to-world": ";port;any-drop", "dns": ";query"}.get(name, "")
    text = f"{name}:{context}{extra}"
    metrics = counting(text, pipeline=pipeline, include=wanted)
    pipeline.tell(*names(4))
    pipeline.feed(strange(60, seed))
    pipeline.tell(*strange_records(30, seed))
    pipeline.feed(strange(60, seed))

    alone = FlowMetrics(pipeline.directory, lambda: NODE)
    alone.counted = tuple(Counted(one.make(), include=wanted) for one in parse_static([text]))
    alone.count_records([flow.SerializeToString() for flow in pipeline.flows()])
    assert series(metrics) == series(alone)


def test_ports_of_clients_make_no_groups() -> None:
    pipeline = Pipeline(pods=2)
    metrics = counting("port-distribution", pipeline=pipeline)
    pipeline.feed(traffic(4000, 2))
    (counted,) = metrics.counted
    assert len(counted._groups) < 50


def test_every_flow_is_counted_once() -> None:
    pipeline = Pipeline()
    metrics = counting("flow", "drop", pipeline=pipeline)
    pipeline.feed(strange(500, 7))
    pipeline.tell(*strange_records(20, 7))

    counted = series(metrics)
    flows = pipeline.flows()
    assert sum(counted["hubble_flows_processed_total"].values()) == len(flows)
    dropped = sum(flow.verdict == flow_pb2.DROPPED for flow in flows)
    assert dropped
    assert sum(counted["hubble_drop_total"].values()) == dropped


def test_answers_count_under_the_client_in_the_second_version_of_http() -> None:
    pipeline = Pipeline()
    metrics = counting(
        "httpV2:exemplars=true;sourceContext=pod;destinationContext=pod", pipeline=pipeline
    )
    flow = flow_pb2.Flow(
        Type=flow_pb2.L7, is_reply={"value": True}, traffic_direction=flow_pb2.INGRESS
    )
    flow.event_type.type = 129
    flow.source.namespace, flow.source.pod_name = "shop", "server"
    flow.destination.namespace, flow.destination.pod_name = "shop", "client"
    flow.l7.type, flow.l7.latency_ns = flow_pb2.RESPONSE, 30_000_000
    flow.l7.http.method, flow.l7.http.code, flow.l7.http.protocol = "GET", 200, "HTTP/1.1"
    flow.trace_context.parent.trace_id = "ab" * 16
    metrics.count_records([flow.SerializeToString()])

    key = ("shop/client", "shop/server", "GET", "HTTP/1.1", "200", "server")
    assert series(metrics) == {"hubble_http_requests_total": {key: 1}}
    text = MetricsEndpoint(metrics, [], open_metrics=True).open_metrics()
    exemplar = '# {traceID="' + "ab" * 16 + '"}'
    assert [line.split(" # ")[0] for line in text.splitlines() if exemplar in line] == [
        (
            'hubble_http_requests_total{source="shop/client",destination="shop/server",method="GET",'
            'protocol="HTTP/1.1",status="200",reporter="server"} 1'
        ),
        (
            'hubble_http_request_duration_seconds_bucket{source="shop/client",'
            'destination="shop/server",method="GET",reporter="server",le="0.05"} 1'
        ),
    ]
    assert text.endswith("# EOF\n")


def test_series_of_a_pod_end_a_minute_after_it() -> None:
    now = 0.0
    pipeline = Pipeline()
    metrics = FlowMetrics(pipeline.directory, lambda: NODE, lambda: now)
    metrics.counted = tuple(Counted(one.make()) for one in parse_static(["flow:sourceContext=pod"]))
    pipeline.ingest._metrics = metrics
    pipeline.feed(strange(300, 3))
    before = series(metrics)["hubble_flows_processed_total"]
    assert any(values[0] == "ns0/pod-0" for values in before)
    (gone,) = [
        update.endpoint.id for update in pipeline.updates if update.endpoint.pod_name == "pod-0"
    ]
    pipeline.tell(make(endpoint_deleted=gone))
    now = 59.0
    pipeline.ingest.step()
    assert series(metrics)["hubble_flows_processed_total"] == before
    now = 60.0
    pipeline.ingest.step()
    after = series(metrics)["hubble_flows_processed_total"]
    assert after == {key: value for key, value in before.items() if key[0] != "ns0/pod-0"}


def test_unknown_metrics_are_left_out() -> None:
    assert [one.name for one in parse_static(["drop", "nothing:x=y", "tcp"])] == ["drop", "tcp"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("flow:sourceContext=colour", "metric flow: sourceContext: 'colour' is none of identity"),
        ("flow:labelsContext=source_ip,size", "metric flow: labelsContext: 'size' is none of"),
        ("drop:query", "metric drop: there is no option 'query'"),
        ("http httpV2", "exclude each other"),
        ("drop drop", "metric drop is named twice"),
    ],
)
def test_options_that_make_no_sense_are_named(text: str, says: str) -> None:
    with pytest.raises(MetricsConfigError) as raised:
        _ = [one.make() for one in parse_static(text.split())]
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("metrics: {}", "metrics: must be a list"),
        ("metrics: [{contextOptions: []}]", "metrics[0].name: is missing"),
        ("metrics: [{name: drop}, {name: drop}]", "metrics[1].name: drop is named twice"),
        ("metrics: [{name: drop, includeFilters: [{nothing: 1}]}]", "metrics[0].includeFilters"),
        ("metrics: [{name: drop, filters: []}]", "metrics[0].filters: there is no such field"),
        ("metrics: [", "not YAML"),
    ],
)
def test_a_file_that_makes_no_sense_says_where(text: str, says: str) -> None:
    with pytest.raises(MetricsConfigError) as raised:
        parse_dynamic(text)
    assert says in str(raised.value)


def test_metrics_follow_their_file_and_keep_what_they_counted(tmp_path: Path) -> None:
    pipeline, path = Pipeline(), tmp_path / "metrics.yaml"
    metrics = FlowMetrics(pipeline.directory, lambda: NODE)
    pipeline.ingest._metrics = metrics
    file = MetricsFile(path, metrics)

    with pytest.raises(MetricsConfigError, match="No such file"):
        file.look()
    assert not file.look()  # said once
    path.write_text("metrics: [{name: flow}, {name: drop}]")
    assert file.look()
    pipeline.feed(event(type=4))
    path.write_text(
        "metrics: [{name: flow, excludeFilters: [{verdict: [FORWARDED]}]}, {name: tcp}]"
    )
    assert file.look()
    pipeline.feed(event(type=4))

    counted = series(metrics)
    assert set(counted) == {"hubble_flows_processed_total", "hubble_tcp_flags_total"}
    assert sum(counted["hubble_flows_processed_total"].values()) == 1
    path.write_text(
        "metrics: [{name: flow, contextOptions: [{name: sourceContext, values: [pod]}]}]"
    )
    with pytest.raises(MetricsConfigError, match="cannot change while the server runs"):
        file.look()
    assert series(metrics) == counted


async def test_the_endpoint_serves_both_formats() -> None:
    pipeline = Pipeline()
    metrics = counting("flow", pipeline=pipeline)
    pipeline.feed(event(type=4))
    endpoint = MetricsEndpoint(metrics, [], open_metrics=True)
    port = await endpoint.http.listen_tcp("127.0.0.1:0")
    try:
        answers = []
        for accept in ("text/plain", "application/openmetrics-text; version=1.0.0"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                f"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            answers.append((await reader.read()).decode())
            writer.close()
            await writer.wait_closed()
    finally:
        await endpoint.http.stop()
    plain, opened = answers
    line = 'hubble_flows_processed_total{protocol="Unknown L4",type="Trace"'
    assert line in plain
    assert line in opened
    assert "# TYPE hubble_flows_processed_total counter" in plain
    assert f"Content-Type: {OPEN_METRICS}".lower() in opened.lower()
    assert 'hubble_metrics_http_handler_requests_total{code="200"} 1' in opened
