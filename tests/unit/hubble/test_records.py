"""What proxies saw becomes flows: completed, named, redacted, limited, and found again."""

from __future__ import annotations

import pytest
from cilium.metadata.v1 import metadata_pb2
from flow import flow_pb2
from hubble_server import ingest
from hubble_server.encoding.masks import parse_mask
from hubble_server.flows.querying import Cursor, Query
from hubble_server.flows.store import FlowStore
from hubble_server.ingest import Ingest, Snapshot
from hubble_server.metadata import names as name_tables
from hubble_server.metadata.directory import Directory
from hubble_server.records.correlating import Requests, trace_of
from hubble_server.records.redacting import REDACTED, Redaction
from hubble_server.records.summaries import summary
from hubble_server.settings import ServerSettings

from tests.unit.hubble.loads import address_of, event, join, names, record, snapshot
from tests.unit.hubble.pipelines import NODE, Pipeline, Script

Layer7, Filter = flow_pb2.Layer7, flow_pb2.FlowFilter
REQUEST, RESPONSE = flow_pb2.REQUEST, flow_pb2.RESPONSE
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def http(kind: int = REQUEST, url: str = "http://web/x", **fields: object) -> flow_pb2.Layer7:
    headers = fields.pop("headers", {})
    assert isinstance(headers, dict)
    l7 = Layer7(
        type=kind,  # type: ignore[arg-type]
        http=flow_pb2.HTTP(method="GET", url=url, protocol="HTTP/1.1"),
        latency_ns=fields.pop("latency_ns", 0),  # type: ignore[arg-type]
    )
    l7.http.code = fields.pop("code", 0)  # type: ignore[assignment]
    for key, value in headers.items():
        l7.http.headers.add(key=key, value=value)
    assert not fields
    return l7


def test_a_record_becomes_a_flow_of_this_node_between_the_others() -> None:
    pipeline = Pipeline()
    pipeline.feed(event(type=4, saddr=address_of(0), daddr=address_of(1)))
    pipeline.tell(record(http()))
    pipeline.feed(event(type=4, saddr=address_of(0), daddr=address_of(1)))
    _, flow, _ = found = pipeline.flows()
    times = [each.time.ToNanoseconds() for each in found]
    assert sorted(set(times)) == times
    assert (flow.Type, flow.event_type.type, flow.node_name) == (flow_pb2.L7, 129, "node1")
    assert (flow.emitter.name, list(flow.node_labels)) == ("Hubble", ["os=linux"])
    assert flow.HasField("is_reply")
    assert not flow.is_reply.value
    assert (flow.source.pod_name, flow.destination.pod_name) == ("pod-0", "pod-1")
    assert flow.Summary == "HTTP/1.1 GET http://web/x"
    assert len({each.uuid for each in found}) == 3


def test_the_answer_repeats_time_and_node_of_the_flow_also_under_a_mask() -> None:
    pipeline = Pipeline()
    pipeline.tell(record(http()))
    for paths in ((), ("time", "node_name", "l7.http.url", "source.pod_name")):
        (response,) = pipeline.responses(mask=parse_mask(paths))
        assert (response.time, response.node_name) == (response.flow.time, "node1")
        assert response.flow.l7.http.url == "http://web/x"
        assert response.flow.source.pod_name == "pod-0"
        assert (response.flow.Summary == "") == bool(paths)


@pytest.mark.parametrize(
    ("l7", "text"),
    [
        (
            Layer7(type=REQUEST, dns=flow_pb2.DNS(query="example.com.", qtypes=["A", "AAAA"])),
            "DNS Query example.com. A,AAAA",
        ),
        (
            Layer7(
                type=RESPONSE,
                dns=flow_pb2.DNS(
                    query="e.test.", qtypes=["A"], ttl=9, observation_source="proxy",
                    ips=["192.0.2.1", "192.0.2.2"], cnames=["a.test.", "b.test."],
                ),
            ),
            'DNS Answer "192.0.2.1,192.0.2.2" CNAMEs: "a.test.,b.test." TTL: 9 (Proxy e.test. A)',
        ),
        (
            Layer7(
                type=RESPONSE,
                dns=flow_pb2.DNS(query="no.test.", qtypes=["A"], rcode=3, ttl=4294967295),
            ),
            "DNS Answer RCode: Non-Existent Domain TTL: 4294967295 (Query no.test. A)",
        ),
        (
            http(RESPONSE, code=200, latency_ns=4_999_999),
            "HTTP/1.1 200 4ms (GET http://web/x)",
        ),
        (
            Layer7(
                type=REQUEST,
                kafka=flow_pb2.Kafka(api_key="produce", correlation_id=9, topic="orders"),
            ),
            "Kafka request produce correlation id 9 topic 'orders'",
        ),
        (
            Layer7(
                type=RESPONSE,
                kafka=flow_pb2.Kafka(
                    api_key="produce", correlation_id=9, topic="orders", error_code=29
                ),
            ),
            "Kafka response produce correlation id 9 topic 'orders' return code 29",
        ),
        (Layer7(type=REQUEST), ""),
    ],
)  # fmt: skip
def test_a_summary_tells_the_record_in_one_line(l7: flow_pb2.Layer7, text: str) -> None:
    assert text == summary(l7)


def test_a_response_is_a_reply_and_shares_trace_and_latency_with_its_request() -> None:
    pipeline = Pipeline()
    asked = {"X-Request-Id": "r1", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    pipeline.tell(
        record(http(headers=asked), time_ns=10_000_000),
        record(
            http(RESPONSE, code=200, headers={"x-request-id": "r1"}),
            address_of(1),
            address_of(0),
            ports=(80, 40000),
            time_ns=17_000_000,
        ),
    )
    request, response = pipeline.flows()
    assert [request.is_reply.value, response.is_reply.value] == [False, True]
    assert (response.l7.latency_ns, request.l7.latency_ns) == (7_000_000, 0)
    assert {TRACE} == {each.trace_context.parent.trace_id for each in (request, response)}
    found = pipeline.flows(Query(filters=pipeline.filters([Filter(trace_id=[TRACE])])))
    assert [request, response] == found


def test_latency_that_a_proxy_measured_stays() -> None:
    pipeline = Pipeline()
    pipeline.tell(
        record(http(headers={"X-Request-Id": "r1"}), time_ns=1),
        record(http(RESPONSE, latency_ns=5, headers={"X-Request-Id": "r1"}), time_ns=1000),
    )
    assert [flow.l7.latency_ns for flow in pipeline.flows()] == [0, 5]


@pytest.mark.parametrize(
    "header",
    ["", "00", f"00-{'0' * 32}-00f067aa0ba902b7-01", f"ff-{TRACE}-00f067aa0ba902b7-01",
     f"00-{TRACE.upper()}-00f067aa0ba902b7-01", f"00-{TRACE}-00f067aa0ba902b7"],
)  # fmt: skip
def test_a_header_that_is_no_trace_parent_names_no_trace(header: str) -> None:
    assert trace_of(header) == ""


def test_only_so_many_requests_are_remembered() -> None:
    requests = Requests(limit=2)
    for number in range(5):
        told = record(http(headers={"X-Request-Id": str(number)}), time_ns=1).l7
        requests.complete(told)
    latencies = []
    for number in range(5):
        response = http(RESPONSE, headers={"X-Request-Id": str(number)})
        told = record(response, time_ns=3).l7
        requests.complete(told)
        latencies.append(told.flow.l7.latency_ns)
    assert latencies == [0, 0, 0, 2, 2]


@pytest.mark.parametrize(
    ("redaction", "url", "shown"),
    [
        (Redaction(), "http://joe:secret@web/x?a=1#f", f"http://joe:{REDACTED}@web/x?a=1#f"),
        (Redaction(), "http://joe@web/x", "http://joe@web/x"),
        (Redaction(), "http://a:b@c:d@web/x", f"http://a:{REDACTED}@web/x"),
        (Redaction(), "/path?u=http://a:b@c", "/path?u=http://a:b@c"),
        (Redaction(user_info=False), "http://joe:secret@web/", "http://joe:secret@web/"),
        (Redaction(url_query=True), "http://web/x?a=1#f", "http://web/x"),
        (Redaction(url_query=True), "http://web/x#f?a", "http://web/x"),
    ],
)
def test_urls_are_redacted_as_configured(redaction: Redaction, url: str, shown: str) -> None:
    assert shown == redaction.url(url)


@pytest.mark.parametrize(
    ("redaction", "hidden"),
    [
        (Redaction(), {"Host", "Authorization"}),
        (Redaction(headers_allowed=frozenset({"host"})), {"Authorization"}),
        (Redaction(headers_denied=frozenset({"authorization"})), {"Authorization"}),
    ],
)
def test_headers_are_redacted_by_one_list_or_all(redaction: Redaction, hidden: set[str]) -> None:
    l7 = http(headers={"Host": "web", "Authorization": "Bearer x"})
    redaction.apply(l7)
    assert hidden == {each.key for each in l7.http.headers if each.value == REDACTED}


def test_what_is_redacted_is_neither_kept_nor_searched_but_a_trace_is_still_found() -> None:
    source, directory, store = Script(), Directory(), FlowStore()
    redaction = Redaction(url_query=True, kafka_api_key=True)
    pipeline = Pipeline()
    pipeline.store, pipeline.directory, pipeline.source = store, directory, source
    pipeline.ingest = Ingest(source, store, directory, lambda: NODE, redaction=redaction)
    headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "Authorization": "Bearer x"}
    pipeline.tell(
        Snapshot(snapshot(4)),
        record(http(url="http://joe:pw@web/x?token=secret", headers=headers)),
        record(Layer7(type=REQUEST, kafka=flow_pb2.Kafka(api_key="fetch"))),
    )
    web, kafka = pipeline.flows()
    assert web.l7.http.url == f"http://joe:{REDACTED}@web/x"
    assert web.Summary == f"HTTP/1.1 GET http://joe:{REDACTED}@web/x"
    assert kafka.l7.kafka.api_key == REDACTED
    for number in range(2):
        kept = store.attached(number)
        assert isinstance(kept, bytes)
        for secret in (b"token", b"Bearer", b"pw@", b"fetch"):
            assert secret not in kept
    found = pipeline.flows(Query(filters=pipeline.filters([Filter(trace_id=[TRACE])])))
    assert [web] == found


def test_dns_names_are_those_that_the_other_end_resolved() -> None:
    pipeline = Pipeline()
    pipeline.tell(*names(2))
    outward = event(type=4, saddr=address_of(1), daddr="10.244.0.200")
    inward = event(type=4, saddr="10.244.0.200", daddr=address_of(1))
    other = event(type=4, saddr=address_of(0), daddr="10.244.0.200")
    pipeline.feed(join([outward, inward, other]))
    pipeline.tell(record(http(), address_of(1), "10.244.0.200"))
    known = ["api.example.com", "alias1.test"]
    told = [(list(f.source_names), list(f.destination_names)) for f in pipeline.flows()]
    assert [([], known), (known, []), ([], []), ([], known)] == told
    wanted = pipeline.filters([Filter(destination_fqdn=["*.example.com."])])
    assert len(pipeline.flows(Query(filters=wanted))) == 2


def test_names_that_an_endpoint_lost_stay_in_its_past_flows_only() -> None:
    pipeline = Pipeline()
    pipeline.tell(*names(2))
    outward = event(type=4, saddr=address_of(1), daddr="10.244.0.200")
    pipeline.feed(outward)
    pipeline.tell(metadata_pb2.Update(names=metadata_pb2.Names(endpoint=2, ip="10.244.0.200")))
    pipeline.feed(outward)
    assert [len(flow.destination_names) for flow in pipeline.flows()] == [2, 0]


def test_a_snapshot_without_names_forgets_them() -> None:
    pipeline = Pipeline()
    pipeline.tell(*names(2))
    pipeline.tell(Snapshot(snapshot(4)))
    assert len(pipeline.directory.names) == 0


def test_ever_new_names_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_tables, "ROWS_LIMIT", 8)
    pipeline = Pipeline(capacity=7)
    pipeline.tell(*names(2))
    outward = event(type=4, saddr=address_of(1), daddr="10.244.0.200")
    for number in range(40):
        told = metadata_pb2.Names(endpoint=1, ip="192.0.2.1", names=[f"n{number}.test"])
        pipeline.tell(metadata_pb2.Update(names=told))
        pipeline.feed(join([outward] * 1000))
    assert len(pipeline.directory.names.rows) < 30
    flow = pipeline.flows()[-1]
    assert list(flow.destination_names) == ["api.example.com", "alias1.test"]
    wanted = pipeline.filters([Filter(destination_fqdn=["alias1.test"])])
    assert len(pipeline.flows(Query(filters=wanted))) == 7


def test_services_of_records_are_named() -> None:
    pipeline = Pipeline()
    frontend = metadata_pb2.Frontend(ip="10.96.0.10", port=80, protocol=6)
    service = metadata_pb2.Service(frontend=frontend, namespace="ns0", name="web")
    pipeline.tell(metadata_pb2.Update(service=service))
    pipeline.tell(record(http(), destination="10.96.0.10"))
    (flow,) = pipeline.flows()
    assert (flow.destination_service.namespace, flow.destination_service.name) == ("ns0", "web")
    wanted = pipeline.filters([Filter(destination_service=["ns0/web"])])
    assert [flow] == pipeline.flows(Query(filters=wanted))


def test_namespaces_of_records_are_listed() -> None:
    pipeline = Pipeline()
    assert pipeline.directory.namespaces() == set()
    pipeline.tell(record(http()))
    assert pipeline.directory.namespaces() == {"ns0", "ns1"}


def large(number: int) -> metadata_pb2.Update:
    return record(http(url=f"http://web/{number}/" + "x" * 10_000))


def test_large_records_shorten_the_ring_instead_of_filling_the_memory() -> None:
    pipeline = Pipeline()
    pipeline.store = FlowStore(4095, record_bytes=100_000)
    pipeline.ingest = Ingest(pipeline.source, pipeline.store, pipeline.directory, lambda: NODE)
    for number in range(50):
        pipeline.tell(large(number))
        pipeline.feed(event(type=4, saddr=address_of(0)))
    flows = pipeline.flows()
    assert 7 < len(flows) < 11
    assert len(pipeline.store) == len(flows)
    assert flows[-2].l7.http.url.startswith("http://web/49/")
    assert flows[0].event_type.type == 4


def test_a_reader_overtaken_by_large_records_is_told_how_many_events_it_missed() -> None:
    pipeline = Pipeline()
    pipeline.store = FlowStore(4095, record_bytes=100_000)
    pipeline.ingest = Ingest(pipeline.source, pipeline.store, pipeline.directory, lambda: NODE)
    pipeline.tell(large(0))
    cursor = Cursor(pipeline.store, Query(follow=True))
    assert len(cursor.read().runs) == 1
    for number in range(30):
        pipeline.tell(large(number))
    found = cursor.read()
    assert found.lost + len(found.runs) == 30
    assert found.lost == 26


def test_a_single_record_beyond_the_limit_leaves_an_empty_ring() -> None:
    pipeline = Pipeline()
    pipeline.store = FlowStore(7, record_bytes=5_000)
    pipeline.ingest = Ingest(pipeline.source, pipeline.store, pipeline.directory, lambda: NODE)
    pipeline.tell(large(0))
    assert (pipeline.flows(), len(pipeline.store)) == ([], 0)


def test_records_that_nobody_takes_in_are_lost_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ingest, "RECORDS_LIMIT", 3)
    pipeline = Pipeline()
    for _ in range(5):
        pipeline.ingest.tell(record(http()))
    pipeline.ingest.step()
    (lost,) = [each.lost_events for each in pipeline.responses() if each.HasField("lost_events")]
    assert (lost.source, lost.num_events_lost) == (flow_pb2.OBSERVER_EVENTS_QUEUE, 2)
    assert lost.HasField("cpu")
    pipeline.tell(record(http()))
    assert len(pipeline.flows()) == 4


def test_records_do_not_delay_the_names_of_new_pods() -> None:
    pipeline = Pipeline(pods=2)
    added = [update for update in snapshot(3) if update not in snapshot(2)]
    for update in (record(http()), *added):
        pipeline.ingest.tell(update)
    pipeline.feed(event(type=4, saddr=address_of(2)))
    assert {"pod-2", "pod-0"} == {flow.source.pod_name for flow in pipeline.flows()}


def test_headers_are_either_listed_as_shown_or_as_hidden() -> None:
    both = ServerSettings(
        hubble_redact_enabled=True,
        hubble_redact_http_headers_allow=("Host",),
        hubble_redact_http_headers_deny=("Cookie",),
    )
    assert [problem.key for problem in both.check()] == ["hubble-redact-http-headers-deny"]
    one = ServerSettings(hubble_redact_enabled=True, hubble_redact_http_headers_allow=("Host",))
    assert list(one.check()) == []
    assert Redaction(headers_allowed=frozenset({"host"})) == one.redaction
    assert ServerSettings().redaction is None
