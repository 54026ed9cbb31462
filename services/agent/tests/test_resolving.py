"""Whose an address is, for flows of proxies."""

import ipaddress

import pytest
from cilium_agent.endpoints.records import Attachment, Endpoint, EndpointID
from cilium_agent.endpoints.states import State
from cilium_agent.endpoints.tables import EndpointTable
from cilium_agent.ipcaches import Entry, IPCache, Source
from cilium_agent.resolving import Resolver
from cilium_core.identities import Families, NumericIdentity
from cilium_core.labels import LabelSet

WEB = LabelSet.parse(["k8s:app=web"])


class Bench:
    """A resolver over tables in memory."""

    def __init__(self):
        self.table = EndpointTable()
        self.ipcache = IPCache(self.nowhere)
        self.labels = {NumericIdentity(300): WEB}
        self.resolver = Resolver(
            self.table, self.ipcache, lambda: self.labels, cluster="default", families=Families()
        )

    async def nowhere(self, upserts, deletes):
        pass

    def endpoint(self):
        return Endpoint(
            id=EndpointID(7),
            attachment=Attachment("c", "/n", "eth0"),
            namespace="shop",
            pod_name="web",
            pod_uid="",
            ipv4="10.0.0.7",
            ipv6="fd00::7",
            state=State.RESTORING,
            identity=300,
            workloads=(("Deployment", "web"),),
        )


@pytest.fixture
def bench():
    return Bench()


def test_a_stranger_is_the_world(bench):
    found = bench.resolver.endpoint("192.0.2.1")
    assert (found.identity, found.cluster_name, found.pod_name) == (9, "", "")
    assert bench.resolver.identity("2001:db8::1") == 10


async def test_the_most_specific_prefix_around_an_address_decides(bench):
    bench.ipcache.upsert("192.0.0.0/8", Source.GENERATED, Entry(identity=1))
    bench.ipcache.upsert("192.0.2.0/24", Source.GENERATED, Entry(identity=2))
    bench.ipcache.upsert("192.0.2.1/32", Source.GENERATED, Entry(identity=3))
    assert [bench.resolver.identity(text) for text in ("192.0.2.1", "192.0.2.2", "192.9.9.9")] == [
        3,
        2,
        1,
    ]
    bench.ipcache.delete("192.0.2.0/24", Source.GENERATED)
    assert bench.ipcache.lookup(ipaddress.ip_address("192.0.2.2")).identity == 1
    bench.ipcache.delete("192.0.0.0/8", Source.GENERATED)
    assert bench.ipcache.lookup(ipaddress.ip_address("192.0.2.2")) is None


async def test_a_pod_of_this_node_is_shown_whole(bench):
    bench.table.add(bench.endpoint())
    bench.ipcache.upsert("10.0.0.7", Source.LOCAL, Entry(300, pod_name="web", namespace="shop"))
    found = bench.resolver.endpoint("10.0.0.7")
    assert (found.ID, found.identity, found.namespace, found.pod_name) == (7, 300, "shop", "web")
    assert (list(found.labels), found.cluster_name) == (["k8s:app=web"], "default")
    assert found.workloads[0].name == "web"


async def test_an_answer_is_kept_until_something_changes(bench):
    first = bench.resolver.endpoint("10.0.0.9")
    assert bench.resolver.endpoint("10.0.0.9") is first
    bench.ipcache.upsert("10.0.0.9", Source.KVSTORE, Entry(300, pod_name="db", namespace="shop"))
    await bench.ipcache.flush()
    assert bench.resolver.endpoint("10.0.0.9").pod_name == "db"
    bench.table.add(bench.endpoint())
    assert bench.resolver.endpoint("10.0.0.7").ID == 7
