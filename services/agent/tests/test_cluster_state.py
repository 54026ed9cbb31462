"""Pods, nodes and published records."""

import asyncio
import ipaddress

import pytest
from cilium_agent.errors import PodNotFoundError
from cilium_agent.nodes import claims, own_record
from cilium_agent.pods import PodTable, parse_pod
from cilium_agent.publishing import Publisher
from cilium_core.kvstore import StoreUnavailableError
from cilium_core.kvstore.memory import MemoryCluster, MemoryStore
from cilium_core.labels import LabelFilter


def pod(name="cart", **labels):
    return {
        "metadata": {"namespace": "shop", "name": name, "labels": labels},
        "spec": {
            "serviceAccountName": "sa",
            "containers": [{"ports": [{"name": "web", "containerPort": 80}]}],
        },
    }


async def test_waiting_for_a_pod_ends_when_its_object_comes():
    table = PodTable("default", LabelFilter())
    waiting = [asyncio.create_task(table.wait_for("shop", "cart", 5)) for _ in range(2)]
    await asyncio.sleep(0)
    table.upsert_pod(pod(app="cart"))
    assert [found.name for found in await asyncio.gather(*waiting)] == ["cart", "cart"]


async def test_waiting_for_a_pod_that_never_comes_says_what_to_do():
    table = PodTable("default", LabelFilter())
    with pytest.raises(PodNotFoundError, match=r"shop/cart .* apply it"):
        await table.wait_for("shop", "cart", 0.01)


def test_identity_labels_follow_pod_namespace_and_service_account():
    table = PodTable("default", LabelFilter())
    heard = []
    table.listen(heard.extend)
    table.upsert_pod(pod(app="cart", **{"pod-template-hash": "x"}))
    table.upsert_namespace({"metadata": {"name": "shop", "labels": {"team": "red"}}})
    texts = table.identity_labels(table.get("shop", "cart")).texts()
    assert texts == [
        "k8s:app=cart",
        "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop",
        "k8s:io.cilium.k8s.namespace.labels.team=red",
        "k8s:io.cilium.k8s.policy.cluster=default",
        "k8s:io.cilium.k8s.policy.serviceaccount=sa",
        "k8s:io.kubernetes.pod.namespace=shop",
    ]
    assert heard == [("shop", "cart")] * 2


def test_an_unchanged_pod_notifies_nobody():
    table = PodTable("default", LabelFilter())
    heard = []
    table.listen(heard.extend)
    table.upsert_pod(pod())
    table.upsert_pod(pod())
    assert len(heard) == 1


@pytest.mark.parametrize("spec", [None, [], {"containers": 5}, {"containers": [{"ports": [3]}]}])
def test_a_misshapen_pod_is_read_as_far_as_it_goes(spec):
    assert parse_pod({"metadata": {"name": "x", "labels": 3}, "spec": spec}).named_ports == ()


def test_a_replica_set_is_shown_as_its_deployment():
    owner = {"kind": "ReplicaSet", "name": "cart-5f7", "controller": True}
    document = pod(**{"pod-template-hash": "5f7"})
    document["metadata"]["ownerReferences"] = [owner]
    assert parse_pod(document).workloads == (("Deployment", "cart"),)


def test_another_node_is_reached_directly_unless_it_must_know_the_sender():
    record = own_record(
        name="n2",
        cluster="default",
        cluster_id=0,
        addresses=("172.30.0.12", "fd00:30::12"),
        routers=("10.244.1.1", ""),
        pod_cidrs=(ipaddress.ip_network("10.244.1.0/24"),),
        labels={},
    )
    found = {prefix: (e.identity, e.tunnel_ipv4) for prefix, e in claims(record).items()}
    assert found == {
        "10.244.1.0/24": (3, "172.30.0.12"),
        "172.30.0.12/32": (6, None),
        "fd00:30::12/128": (6, None),
        "10.244.1.1/32": (6, "172.30.0.12"),
    }
    tunnelled = claims(record, tunnelled=True)
    assert {entry.tunnel_ipv4 for entry in tunnelled.values()} == {"172.30.0.12"}


async def test_records_reach_the_store_after_an_outage():
    cluster = MemoryCluster()
    store = MemoryStore(cluster)
    publisher = Publisher()
    publisher.connect(store, await store.lease(60))
    publisher.want("k", b"v")
    cluster.up.clear()
    with pytest.raises(StoreUnavailableError):
        await publisher.reconcile()
    assert not await publisher.published({"k"}, 0.01)
    cluster.up.set()
    await publisher.reconcile()
    assert await publisher.published({"k"}, 0.01)
    assert (await store.get("k")).value == b"v"
    await store.close()


async def test_a_record_left_by_an_earlier_run_is_removed_and_a_lost_one_written_again():
    store = MemoryStore(MemoryCluster())
    publisher = Publisher()
    publisher.connect(store, await store.lease(60))
    await store.put("stale", b"old")
    publisher.seen("stale", b"old")
    publisher.want("k", b"v")
    await publisher.reconcile()
    await store.delete("k")
    publisher.seen("k", None)
    await publisher.reconcile()
    assert (await store.get("stale"), (await store.get("k")).value) == (None, b"v")
    await store.close()


async def test_a_record_of_ours_that_became_unreadable_is_written_again_and_no_other():
    store = MemoryStore(MemoryCluster())
    publisher = Publisher()
    publisher.connect(store, await store.lease(60))
    publisher.want("ours", b"v")
    await publisher.reconcile()
    for key in ("ours", "theirs"):
        await store.put(key, b"{bad")
        publisher.guard(key)
    await publisher.reconcile()
    assert ((await store.get("ours")).value, (await store.get("theirs")).value) == (b"v", b"{bad")
    await store.close()


def test_an_unreadable_pod_or_namespace_is_doubtful_until_it_is_readable_or_gone():
    table = PodTable("default", LabelFilter())
    heard = []
    table.listen(heard.extend)
    table.upsert_pod(pod())
    table.doubt_namespace("shop")
    assert table.is_doubtful("shop", "cart")
    table.upsert_namespace({"metadata": {"name": "shop"}})
    assert not table.is_doubtful("shop", "cart")
    table.doubt_pod("shop", "cart")
    assert (table.get("shop", "cart") is not None, table.is_doubtful("shop", "cart")) == (
        True,
        True,
    )
    table.delete_pod("shop", "cart")
    assert not table.is_doubtful("shop", "cart")
    assert heard == [("shop", "cart")] * 3
