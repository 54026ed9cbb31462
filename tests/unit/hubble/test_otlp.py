"""Flows reach an OpenTelemetry collector as log records and counts, and what is lost is counted."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cilium_core.errors import InvalidError
from cilium_core.settings import TelemetrySettings
from cilium_core.telemetry import Registry, pushing_metrics
from cilium_core.telemetry import collectors as core
from cilium_core.telemetry.collectors import LOST, SENT
from cilium_core.telemetry.otlp import Pusher
from flow import flow_pb2
from google.protobuf import any_pb2, struct_pb2, wrappers_pb2
from hubble_server.exporting.exporters import Export, Exporter, Feed
from hubble_server.exporting.log_records import request_of
from hubble_server.exporting.otlp import LogRecords
from hubble_server.metrics.configuring import parse_static
from hubble_server.metrics.counting import Counted, FlowMetrics
from hubble_server.metrics.exposing import FlowRegistry
from hubble_server.servicers.streaming import NewEvents
from hubble_server.settings import ServerSettings
from observer import observer_pb2

from tests.certificates import Authority
from tests.unit.collecting import LIMIT_S, attributes, collecting
from tests.unit.hubble.loads import event, strange
from tests.unit.hubble.pipelines import NODE, Pipeline

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "_WAIT_S", 0.05)


@asynccontextmanager
async def exporting(
    pipeline: Pipeline,
    address: str | core.Collector,
    export: Export | None = None,
    *,
    limit: int = 10_000,
) -> AsyncIterator[Exporter]:
    feed = Feed(pipeline.store, pipeline.directory, lambda: NODE, NewEvents(pipeline.store))
    where = core.Collector(address) if isinstance(address, str) else address
    target = LogRecords(where, lambda: NODE, limit=limit)
    exporter = Exporter(export or Export("otlp", where.endpoint), feed, target)
    task = asyncio.create_task(exporter.run())
    await asyncio.sleep(0)
    try:
        yield exporter
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def lost(reason: str) -> float:
    return LOST.value("flows", reason)


async def until_lost(reason: str, count: float) -> None:
    async with asyncio.timeout(LIMIT_S):
        while lost(reason) < count:  # noqa: ASYNC110  counted by a thread
            await asyncio.sleep(0.01)


def a_flow(**fields: Any) -> observer_pb2.ExportEvent:
    made = observer_pb2.ExportEvent(node_name="default/n", flow=flow_pb2.Flow(**fields))
    made.time.FromNanoseconds(7_000_000_001)
    return made


def record_of(event: observer_pb2.ExportEvent, observed_ns: int = 0) -> Any:
    request = request_of([event], observed_ns, {})
    return request.resource_logs[0].scope_logs[0].log_records[0]


def test_a_record_has_what_one_searches_by_and_the_whole_flow_as_its_body() -> None:
    made = a_flow(
        uuid="u",
        verdict=flow_pb2.DROPPED,
        drop_reason_desc=flow_pb2.POLICY_DENIED,
        IP=flow_pb2.IP(source="10.0.0.1", destination="10.0.0.2", ipVersion=flow_pb2.IPv4),
        l4=flow_pb2.Layer4(TCP=flow_pb2.TCP(source_port=5, destination_port=80)),
        source=flow_pb2.Endpoint(
            identity=9, namespace="shop", pod_name="cart", labels=["k8s:a=b"],
            workloads=[flow_pb2.Workload(name="carts", kind="Deployment")],
        ),
        is_reply=wrappers_pb2.BoolValue(value=False),
        socket_cookie=(1 << 64) - 1,
    )  # fmt: skip
    made.flow.time.FromNanoseconds(7_000_000_001)

    record = record_of(made, 8)

    assert (record.time_unix_nano, record.observed_time_unix_nano) == (7_000_000_001, 8)
    assert (record.event_name, record.severity_text) == ("hubble.flow", "WARN")
    assert attributes(record.attributes) == {
        "cilium.flow.uuid": "u",
        "cilium.flow.verdict": "DROPPED",
        "cilium.flow.drop_reason": "POLICY_DENIED",
        "cilium.flow.is_reply": False,
        "source.address": "10.0.0.1",
        "destination.address": "10.0.0.2",
        "network.type": "ipv4",
        "network.transport": "tcp",
        "source.port": 5,
        "destination.port": 80,
        "cilium.source.identity": 9,
        "cilium.source.namespace": "shop",
        "cilium.source.pod": "cart",
        "cilium.source.workload": "carts",
        "cilium.node.name": "default/n",
    }
    body = attributes(record.body.kvlist_value.values)
    assert body["time"] == "1970-01-01T00:00:07.000000001Z"
    assert body["verdict"] == "DROPPED"
    assert body["is_reply"] is False
    assert body["socket_cookie"] == str((1 << 64) - 1)  # too large for a number there
    source = attributes(body["source"].values)
    assert [one.string_value for one in source["labels"].values] == ["k8s:a=b"]


def test_a_request_belongs_to_the_trace_that_it_carried() -> None:
    http = flow_pb2.HTTP(method="GET", url="http://cart/1", code=200)
    made = a_flow(verdict=flow_pb2.FORWARDED, l7=flow_pb2.Layer7(http=http))
    made.flow.trace_context.parent.trace_id = "0af7651916cd43dd8448eb211c80319c"
    record = record_of(made, 0)
    assert record.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert record.severity_text == "INFO"
    found = attributes(record.attributes)
    assert (found["http.request.method"], found["http.response.status_code"]) == ("GET", 200)
    made.flow.trace_context.parent.trace_id = "?" * 32
    assert record_of(made, 0).trace_id == b""


def test_extensions_are_shown_where_their_type_is_known_and_kept_where_not() -> None:
    known, unknown, free = a_flow(), a_flow(), a_flow()
    struct = struct_pb2.Struct()
    struct.update({"bytes": 7, "names": ["a", None], "more": {"yes": True}})
    free.flow.extensions.Pack(struct)
    known.flow.extensions.Pack(flow_pb2.IP(source="10.0.0.1"))
    unknown.flow.extensions.CopyFrom(any_pb2.Any(type_url="x.org/No", value=b"\1"))
    bodies = [
        attributes(record_of(one, 0).body.kvlist_value.values) for one in (known, unknown, free)
    ]
    assert attributes(bodies[0]["extensions"].values)["source"] == "10.0.0.1"
    assert attributes(bodies[1]["extensions"].values) == {"type_url": "x.org/No", "value": b"\1"}
    told = attributes(bodies[2]["extensions"].values)
    assert told["bytes"] == 7
    assert told["names"].values[0].string_value == "a"
    assert attributes(told["more"].values) == {"yes": True}


async def test_flows_and_losses_become_log_records_of_the_node() -> None:
    pipeline = Pipeline()
    async with collecting() as collector, exporting(pipeline, collector.address):
        pipeline.feed(strange(60, 1), lost={0: 7})
        expected = pipeline.flows()
        request = await asyncio.wait_for(collector.logs.get(), LIMIT_S)

    (resource,) = request.resource_logs
    described = attributes(resource.resource.attributes)
    assert described["k8s.node.name"] == NODE.name
    records = resource.scope_logs[0].log_records
    flows = [one for one in records if one.event_name == "hubble.flow"]
    uuids = [attributes(one.attributes)["cilium.flow.uuid"] for one in flows]
    assert uuids == [flow.uuid for flow in expected]
    (loss,) = [one for one in records if one.event_name == "hubble.lost_events"]
    assert attributes(loss.body.kvlist_value.values)["num_events_lost"] == 7


async def test_filters_and_masks_choose_what_a_collector_gets() -> None:
    pipeline = Pipeline()
    export = Export(
        "otlp",
        "",
        allow=(flow_pb2.FlowFilter(verdict=[flow_pb2.DROPPED]),),
        field_mask=("verdict", "source.pod_name"),
    )
    async with collecting() as collector, exporting(pipeline, collector.address, export):
        pipeline.feed(strange(200, 2), lost={0: 7})
        dropped = [flow for flow in pipeline.flows() if flow.verdict == flow_pb2.DROPPED]
        records = await collector.log_records(len(dropped))
    assert len(records) == len(dropped)
    for record in records:
        body = attributes(record.body.kvlist_value.values)
        assert body["verdict"] == "DROPPED"
        assert set(body) <= {"verdict", "source"}


async def test_flows_wait_for_a_collector_that_is_away() -> None:
    pipeline = Pipeline()
    async with collecting() as collector:
        address = collector.address
    async with exporting(pipeline, address):
        pipeline.feed(strange(50, 3))
        count = len(pipeline.flows())
        async with collecting(address) as back:
            back.refuse_with = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED]
            records = await back.log_records(count)
    assert len(records) == count


async def test_what_has_no_room_and_what_is_refused_is_counted() -> None:
    pipeline = Pipeline()
    full, refused = lost("queue full"), lost("refused")
    async with collecting() as collector, exporting(pipeline, collector.address, limit=40):
        pipeline.feed(strange(100, 4))
        count = len(pipeline.flows())
        assert len(await collector.log_records(40)) == 40
        await until_lost("queue full", full + count - 40)
        collector.reject = 1
        pipeline.feed(event(type=4))
        await until_lost("refused", refused + 1)
        collector.refuse_with = [grpc.StatusCode.INVALID_ARGUMENT]
        pipeline.feed(event(type=4))
        await until_lost("refused", refused + 2)


async def test_what_the_ring_loses_while_the_collector_is_slow_is_told_to_it() -> None:
    pipeline = Pipeline(capacity=127)
    full = lost("queue full")
    async with collecting() as collector, exporting(pipeline, collector.address, limit=40):
        pipeline.feed(strange(100, 6))
        await collector.log_records(40)
        await until_lost("queue full", full + 1)
        for seed in range(6):  # while the exporter waits for room
            pipeline.feed(strange(1000, seed))
        told: list[Any] = []
        async with asyncio.timeout(LIMIT_S):
            while not told:
                records = await collector.log_records(1)
                told = [one for one in records if one.event_name == "hubble.lost_events"]
    body = attributes(told[0].body.kvlist_value.values)
    assert body["source"] == "HUBBLE_RING_BUFFER"
    assert body["num_events_lost"] > 0


async def test_all_that_was_seen_is_sent_or_counted_when_the_server_ends() -> None:
    pipeline = Pipeline()
    sent, left = SENT.value("flows"), lost("left at the end")
    async with collecting() as collector:
        async with exporting(pipeline, collector.address) as exporter:
            pipeline.feed(strange(700, 5))
            count = len(pipeline.flows())
            async with asyncio.timeout(LIMIT_S):
                while exporter.taken < count:  # noqa: ASYNC110  counted after a thread's work
                    await asyncio.sleep(0.01)
        assert SENT.value("flows") == sent + count
    assert lost("left at the end") == left


async def test_counts_of_flows_arrive_with_their_labels(tmp_path: Path) -> None:
    (tmp_path / "headers").write_text("Authorization: secret:1\n\n")
    pipeline = Pipeline()
    metrics = FlowMetrics(pipeline.directory, lambda: NODE)
    metrics.counted = tuple(Counted(one.make()) for one in parse_static(["drop"]))
    drops = metrics.counted[0].plugin.instruments[0]
    assert hasattr(drops, "add")
    drops.add(3, "POLICY_DENIED", "TCP")
    async with collecting() as collector:
        settings = replace(
            TelemetrySettings(),
            otlp_endpoint=collector.address,
            otlp_interval=0.1,
            otlp_headers_file=tmp_path / "headers",
        )
        pushed = pushing_metrics(
            settings, service="flows", node="n", registry=FlowRegistry(metrics, [])
        )
        task = asyncio.create_task(pushed)
        request = await asyncio.wait_for(collector.metrics.get(), LIMIT_S)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert collector.headers["authorization"] == "secret:1"
    (metric,) = request.resource_metrics[0].scope_metrics[0].metrics
    assert metric.name == "hubble_drop_total"
    (point,) = metric.sum.data_points
    assert (point.as_double, attributes(point.attributes)) == (
        3,
        {"reason": "POLICY_DENIED", "protocol": "TCP"},
    )


def test_a_collector_is_found_by_address_and_by_url() -> None:
    assert core.Collector("h:1").target == "h:1"
    assert core.Collector("http://h:1/").target == "h:1"
    assert core.Collector("http://h:1").credentials() is None
    assert core.Collector("https://h:1").credentials() is not None


def test_headers_are_read_from_a_file_and_a_bad_line_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "headers"
    path.write_text("a: b\nsecret")
    settings = replace(TelemetrySettings(), otlp_endpoint="h:1", otlp_headers_file=path)
    with pytest.raises(InvalidError, match=f"{path}: header 2 is no 'name: value'"):
        core.Collector.of(settings)
    path.unlink()
    with pytest.raises(InvalidError, match="cannot be read"):
        core.Collector.of(settings)


async def test_counts_of_requests_name_a_trace() -> None:
    pipeline = Pipeline()
    metrics = FlowMetrics(pipeline.directory, lambda: NODE)
    plugins = parse_static(["http:exemplars=true"])
    metrics.counted = tuple(Counted(one.make()) for one in plugins)
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    for trace, method in ((trace_id, "GET"), ("no trace", "PUT")):
        http = flow_pb2.HTTP(method=method, code=200, protocol="HTTP/1.1")
        l7 = flow_pb2.Layer7(type=flow_pb2.RESPONSE, http=http, latency_ns=3_000_000)
        flow = flow_pb2.Flow(l7=l7)
        flow.trace_context.parent.trace_id = trace
        metrics.count_records([flow.SerializeToString()])
    async with collecting() as collector:
        settings = replace(TelemetrySettings(), otlp_endpoint=collector.address, otlp_interval=0.1)
        registry = FlowRegistry(metrics, [])
        pushed = pushing_metrics(settings, service="flows", node="n", registry=registry)
        task = asyncio.create_task(pushed)
        request = await asyncio.wait_for(collector.metrics.get(), LIMIT_S)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    found = {one.name: one for one in request.resource_metrics[0].scope_metrics[0].metrics}
    duration = found["hubble_http_request_duration_seconds"].histogram.data_points
    responses = found["hubble_http_responses_total"].sum.data_points
    for points in (duration, responses):
        traces = {
            attributes(point.attributes)["method"]: [one.trace_id.hex() for one in point.exemplars]
            for point in points
        }
        assert traces == {"GET": [trace_id], "PUT": []}


async def test_a_collector_may_want_tls_and_a_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("collector")
    shown, shown_key = authority.issue("hubble-server")
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())],
        root_certificates=authority.certificate.read_bytes(),
        require_client_auth=True,
    )
    pipeline = Pipeline()
    async with collecting(credentials=credentials) as collector:
        address = core.Collector(collector.address, authority.certificate, shown, shown_key)
        async with exporting(pipeline, address):
            pipeline.feed(event(type=4))
            assert len(await collector.log_records(1)) == 1
        settings = replace(
            TelemetrySettings(),
            otlp_endpoint=collector.address,
            otlp_ca_file=authority.certificate,
            otlp_cert_file=shown,
            otlp_key_file=shown_key,
        )
        pusher = Pusher(core.Collector.of(settings), service="x", node="", registry=Registry())
        assert await pusher.push()
        await asyncio.to_thread(pusher.close)


@pytest.mark.parametrize(
    ("changes", "key", "says"),
    [
        ({"hubble_otlp_flows": True}, "hubble-otlp-flows", "needs otlp-endpoint"),
        ({"hubble_otlp_metrics": True}, "hubble-otlp-metrics", "needs otlp-endpoint"),
        (
            {"hubble_otlp_flows": True, "otlp_endpoint": "h:1", "hubble_otlp_denylist": "{"},
            "hubble-otlp-flows",
            "hubble-otlp-denylist",
        ),
        (
            {"hubble_drop_events": True, "hubble_drop_events_reasons": ("colour",)},
            "hubble-drop-events-reasons",
            "'colour' is no reason",
        ),
    ],
)
def test_settings_that_make_no_sense_say_what_is_missing(
    changes: dict[str, Any], key: str, says: str
) -> None:
    (problem,) = replace(ServerSettings(), **changes).check()
    assert problem.key == key
    assert says in str(problem)
