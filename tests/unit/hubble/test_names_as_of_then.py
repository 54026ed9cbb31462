"""Flows carry the names that were right when they happened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cilium.metadata.v1 import metadata_pb2
from flow import flow_pb2
from hubble_server.ingest import Snapshot
from hubble_server.metadata import directory as directories

from tests.unit.hubble.loads import address_of, event, identity_of, snapshot
from tests.unit.hubble.pipelines import Pipeline

if TYPE_CHECKING:
    import pytest

make = metadata_pb2.Update


def trace(**fields: object) -> object:
    return event(type=4, **fields)


def pod(pipeline: Pipeline) -> list[str]:
    return [flow.source.pod_name for flow in pipeline.flows()]


def test_an_address_that_is_used_again_does_not_rewrite_the_past() -> None:
    pipeline = Pipeline()
    pipeline.feed(trace(saddr=address_of(0)))
    pipeline.tell(
        make(endpoint_deleted=1),
        make(endpoint=metadata_pb2.Endpoint(id=9, pod_name="new", ips=[address_of(0)])),
    )
    pipeline.feed(trace(saddr=address_of(0)))
    assert pod(pipeline) == ["pod-0", "new"]


def test_events_that_were_waiting_when_a_pod_went_still_have_its_name() -> None:
    pipeline = Pipeline()
    pipeline.ingest.tell(make(endpoint_deleted=1))
    pipeline.feed(trace(saddr=address_of(0)))
    pipeline.feed(trace(saddr=address_of(0)))
    assert pod(pipeline) == ["pod-0", ""]


def test_a_pod_told_of_together_with_its_first_events_has_its_name_in_them() -> None:
    pipeline = Pipeline()
    pipeline.ingest.tell(
        make(endpoint=metadata_pb2.Endpoint(id=9, pod_name="new", ips=["10.244.0.99"]))
    )
    pipeline.feed(trace(saddr="10.244.0.99"))
    assert pod(pipeline) == ["new"]


def test_labels_that_come_late_are_in_later_flows_only() -> None:
    pipeline = Pipeline()
    pipeline.feed(trace(saddr="192.0.2.1", src_identity=5000))
    pipeline.tell(make(identity=metadata_pb2.Identity(id=5000, labels=["k8s:b=2", "k8s:a=1"])))
    pipeline.feed(trace(saddr="192.0.2.1", src_identity=5000))
    before, after = pipeline.flows()
    assert before.source.labels == []
    assert after.source.labels == ["k8s:a=1", "k8s:b=2"]


def test_an_event_without_an_identity_gets_that_of_the_longest_prefix() -> None:
    pipeline = Pipeline()
    for prefix, identity in (("0.0.0.0/0", 2), ("192.0.2.0/24", 3000), ("2001:db8::/32", 3001)):
        pipeline.tell(make(ip=metadata_pb2.IPEntry(prefix=prefix, identity=identity)))
    for address in ("192.0.2.9", "198.51.100.1", "2001:db8::5", "2001:db9::5"):
        pipeline.feed(trace(saddr=address))
    assert [flow.source.identity for flow in pipeline.flows()] == [3000, 2, 3001, 0]
    pipeline.tell(make(ip_deleted="192.0.2.0/24"))
    pipeline.feed(trace(saddr="192.0.2.9"))
    assert pipeline.flows()[-1].source.identity == 2


def test_a_remote_pod_has_a_name_but_neither_id_nor_workload() -> None:
    pipeline = Pipeline()
    entry = metadata_pb2.IPEntry(
        prefix="10.244.1.5/32", identity=identity_of(1), namespace="ns1", pod_name="far"
    )
    pipeline.tell(make(ip=entry))
    pipeline.feed(trace(saddr="10.244.1.5"))
    (flow,) = pipeline.flows()
    assert (0, identity_of(1), "ns1", "far") == (
        flow.source.ID,
        flow.source.identity,
        flow.source.namespace,
        flow.source.pod_name,
    )
    assert flow.source.cluster_name == "default"
    assert not flow.source.workloads


def test_reserved_identities_have_labels_without_being_told() -> None:
    pipeline = Pipeline()
    pipeline.feed(trace(saddr="192.0.2.1", src_identity=2, daddr="192.0.2.2", dst_identity=7))
    (flow,) = pipeline.flows()
    assert (
        list(flow.source.labels),
        list(flow.destination.labels),
    ) == (["reserved:world"], ["reserved:kube-apiserver"])


def test_a_local_identity_shows_its_longest_prefix_only() -> None:
    pipeline = Pipeline()
    labels = ["cidr:10.0.0.0/8", "cidr:10.1.0.0/16", "reserved:world"]
    pipeline.tell(make(identity=metadata_pb2.Identity(id=0x01000005, labels=labels)))
    pipeline.feed(trace(saddr="10.1.2.3", src_identity=0x01000005))
    (flow,) = pipeline.flows()
    assert flow.source.labels == ["cidr:10.1.0.0/16", "reserved:world"]


def test_a_service_is_named_at_its_frontend_alone() -> None:
    pipeline = Pipeline()
    frontend = metadata_pb2.Frontend(ip="172.20.0.1", port=80, protocol=6)
    service = metadata_pb2.Service(frontend=frontend, namespace="ns0", name="web")
    pipeline.tell(make(service=service))
    for port in (80, 81):
        pipeline.feed(trace(daddr="172.20.0.1", proto=6, sport=1, dport=port))
    named, other = pipeline.flows()
    assert (named.destination_service.namespace, named.destination_service.name) == ("ns0", "web")
    assert not other.HasField("destination_service")
    pipeline.tell(make(frontend_deleted=frontend))
    pipeline.feed(trace(daddr="172.20.0.1", proto=6, sport=1, dport=80))
    assert not pipeline.flows()[-1].HasField("destination_service")


def test_a_snapshot_that_changes_nothing_makes_no_new_rows() -> None:
    pipeline = Pipeline()
    pipeline.feed(trace(saddr=address_of(0), daddr=address_of(1)))
    rows = pipeline.directory.rows.stop
    pipeline.tell(Snapshot(pipeline.updates))
    pipeline.feed(trace(saddr=address_of(0), daddr=address_of(1)))
    assert rows == pipeline.directory.rows.stop


def test_a_snapshot_forgets_what_it_does_not_hold() -> None:
    pipeline = Pipeline(pods=4)
    pipeline.tell(Snapshot(snapshot(2)))
    for number in range(4):
        pipeline.feed(trace(saddr=address_of(number)))
    assert pod(pipeline) == ["pod-0", "pod-1", "", ""]


def test_malformed_addresses_are_ignored() -> None:
    pipeline = Pipeline()
    pipeline.tell(
        make(ip=metadata_pb2.IPEntry(prefix="nonsense", identity=5)),
        make(ip_deleted="nonsense"),
        make(endpoint=metadata_pb2.Endpoint(id=5, ips=["", "10.244.0.77"], pod_name="p")),
    )
    pipeline.feed(trace(saddr="10.244.0.77"))
    assert pod(pipeline) == ["p"]


def test_rows_of_pods_long_gone_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "ROWS_LIMIT", 50)
    pipeline = Pipeline(capacity=15)
    for number in range(400):
        name = f"churn-{number}"
        endpoint = metadata_pb2.Endpoint(id=7, pod_name=name, namespace="gone", ips=["10.9.9.9"])
        pipeline.tell(make(endpoint=endpoint))
        pipeline.feed(trace(saddr="10.9.9.9", daddr=address_of(0)))
        assert name == pipeline.flows()[-1].source.pod_name
        if number % 20 == 0:
            # A ring's worth of other flows, so that nothing refers to old rows any more.
            pipeline.feed(trace(saddr=address_of(1)).repeat(2 * pipeline.store.slots))  # type: ignore[attr-defined]
    assert len(pipeline.directory.rows) < 120
    assert {"ns0", "ns1", "gone"} == pipeline.directory.namespaces()
    assert pod(pipeline)[-1:] == ["churn-399"]


def test_agent_events_are_kept_beside_flows() -> None:
    pipeline = Pipeline()
    event_ = flow_pb2.AgentEvent(type=flow_pb2.ENDPOINT_CREATED)
    pipeline.tell(make(agent_event=metadata_pb2.AgentEvent(event=event_)))
    assert len(pipeline.store) == 1
    assert event_ == pipeline.store.attached(0)
