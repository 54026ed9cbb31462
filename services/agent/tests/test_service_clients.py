"""Who asks a service, and where its backend is chosen."""

from dataclasses import replace
from ipaddress import ip_address

import pytest
from cilium_agent.datapath.models import ServiceConfig
from cilium_agent.endpoints.records import Attachment, Endpoint, EndpointID
from cilium_agent.endpoints.states import State
from cilium_agent.endpoints.tables import EndpointTable
from cilium_agent.errors import PodNotFoundError, RequestError
from cilium_agent.feeds import Feed
from cilium_agent.ipcaches import Entry, IPCache, Source
from cilium_agent.metadata import MetadataHub
from cilium_agent.pods import PodTable
from cilium_agent.servicers.service_clients import Askers
from cilium_core.labels import LabelFilter
from cilium_core.policy.ports import Protocol
from cilium_core.records import NodeAddress, NodeRecord
from cilium_core.services.explaining import Place
from cilium_core.services.models import Frontend, FrontendKind, L4Address, Scope, ServiceName

CONFIG = ServiceConfig(sockets=True)
NODES = [
    NodeRecord(name, addresses=(NodeAddress("InternalIP", ip_address(address)),))
    for name, address in (("node1", "172.30.0.11"), ("node2", "172.30.0.12"))
]


async def nothing(upserts, deletes):
    del upserts, deletes


def pod(name, node, **spec):
    return {"metadata": {"namespace": "shop", "name": name}, "spec": {"nodeName": node, **spec}}


@pytest.fixture
def asker():
    table, pods, ipcache = EndpointTable(), PodTable("default", LabelFilter()), IPCache(nothing)
    for document in (
        pod("web", "node1"),
        pod("far", "node2"),
        pod("exporter", "node1", hostNetwork=True),
        pod("far-exporter", "node2", hostNetwork=True),
    ):
        pods.upsert_pod(document)
    table.add(
        Endpoint(
            id=EndpointID(7),
            attachment=Attachment("c7", "/n", "eth0"),
            namespace="shop",
            pod_name="web",
            pod_uid="",
            ipv4="10.0.0.7",
            ipv6="fd00::7",
            state=State.READY,
        )
    )
    far = Entry(301, host_ip="172.30.0.12", namespace="shop", pod_name="far")
    ipcache.upsert("10.0.1.8/32", Source.KVSTORE, far)

    def find(text, version=4, protocol=Protocol.TCP, config=CONFIG):
        askers = Askers(table, ipcache, pods, NODES[0], NODES, config)
        return askers.find(text, version, int(protocol))

    return find


def test_nobody_in_particular_is_a_process_of_the_node(asker):
    found = asker("")
    assert (found.place, found.address) == (Place.SOCKET, ip_address("172.30.0.11"))
    assert asker("shop/exporter").name == "pod shop/exporter"
    assert asker("shop/exporter").place is Place.SOCKET


@pytest.mark.parametrize(
    ("text", "version", "address"),
    [("shop/web", 4, "10.0.0.7"), ("10.0.0.7", 4, "10.0.0.7"), ("fd00::7", 6, "fd00::7")],
)
def test_a_pod_of_the_node_chooses_at_its_socket(asker, text, version, address):
    found = asker(text, version)
    assert (found.name, found.place) == ("pod shop/web", Place.SOCKET)
    assert (found.address, found.endpoint.id) == (ip_address(address), 7)


@pytest.mark.parametrize(
    ("config", "protocol"),
    [
        (replace(CONFIG, sockets=False), Protocol.TCP),
        (replace(CONFIG, sockets_of_host_only=True), Protocol.TCP),
        (CONFIG, Protocol.SCTP),
    ],
)
def test_what_sockets_do_not_serve_is_chosen_for_the_packet(asker, config, protocol):
    assert asker("shop/web", protocol=protocol, config=config).place is Place.POD


def test_processes_of_the_node_have_their_sockets_served_even_where_pods_have_not(asker):
    assert asker("", config=replace(CONFIG, sockets_of_host_only=True)).place is Place.SOCKET


@pytest.mark.parametrize("text", ["shop/far", "10.0.1.8", "172.30.0.12", "shop/far-exporter"])
def test_who_is_on_another_node_is_asked_about_there(asker, text):
    assert asker(text).node == "node2"


def test_everybody_else_comes_from_outside(asker):
    found = asker("203.0.113.5")
    assert (found.place, found.node) == (Place.DEVICE, "")


@pytest.mark.parametrize("text", ["shop/web/x", "/web", "shop/"])
def test_what_names_nobody_is_refused(asker, text):
    with pytest.raises(RequestError):
        asker(text)


def test_an_unknown_pod_is_not_found(asker):
    with pytest.raises(PodNotFoundError):
        asker("shop/nobody")


def test_a_client_of_the_other_family_cannot_ask(asker):
    with pytest.raises(RequestError, match="IPv6"):
        asker("10.0.0.7", version=6)


def test_hubble_is_told_the_names_of_frontends():
    hub = MetadataHub()
    feed = Feed(hub, EndpointTable())
    name = ServiceName("shop", "cart")

    def frontend(address, port):
        at = L4Address(ip_address(address), port, Protocol.TCP)
        return Frontend(at, Scope.EXTERNAL, FrontendKind.CLUSTER_IP, name)

    named = frontend("10.96.4.20", 80)
    feed.services([named, frontend("0.0.0.0", 30080), frontend("10.96.4.20", 0)])
    (told,) = (update.service for update in hub._state.values())
    assert (told.namespace, told.name) == ("shop", "cart")
    assert (told.frontend.ip, told.frontend.port, told.frontend.protocol) == ("10.96.4.20", 80, 6)
    feed.services([], [named.at])
    assert not hub._state


def test_processes_of_the_node_are_served_at_sockets_alone(asker):
    assert asker("").unserved == ""
    assert "bpf-lb-sock is off" in asker("", config=replace(CONFIG, sockets=False)).unserved
    assert "protocol" in asker("", protocol=Protocol.SCTP).unserved
    assert asker("shop/web", protocol=Protocol.SCTP).unserved == ""
