"""How services come from what is watched into the maps, with a recording data plane."""

import ipaddress
from types import SimpleNamespace

import pytest
from cilium_agent.datapath.errors import BpfError
from cilium_agent.datapath.services import Applied
from cilium_agent.endpoints.records import Attachment, Endpoint
from cilium_agent.endpoints.states import State
from cilium_agent.endpoints.tables import EndpointTable
from cilium_agent.services import LocalPods, Services
from cilium_core.errors import ExhaustedError
from cilium_core.services import FrontendKind, NodeFacts, Scope, ServiceTable

NODE_IP = ipaddress.ip_address("172.30.0.1")
NODE = NodeFacts("node1", frozenset({NODE_IP}), (NODE_IP,))


class Kernel:
    """In the place of the data plane's services."""

    def __init__(self):
        self.calls = []
        self.pruned = 0
        self.refused = {}
        self.vanished = ()
        self.error = None

    def apply(self, upserts, deletes):
        if self.error is not None:
            raise self.error
        self.calls.append(({str(one.at) for one in upserts}, {str(at) for at, _ in deletes}))
        refused = {
            (one.at, one.scope): self.refused[str(one.at)]
            for one in upserts
            if str(one.at) in self.refused
        }
        return Applied(refused, self.vanished)

    def prune(self):
        self.pruned += 1
        return ()


class Plane:
    """Runs calls at once."""

    def __init__(self):
        self.kernel = Kernel()
        self.datapath = SimpleNamespace(services=self.kernel)
        self.ended = []

    async def run(self, call, *arguments, **named):
        return call(*arguments, **named)

    async def end_sockets(self, backends, namespaces):
        self.ended.append((list(backends), list(namespaces)))
        return len(self.ended)


class Feed:
    """Remembers what flows are told."""

    def __init__(self):
        self.gone = []

    def services(self, _upserts, deletes=()):
        self.gone += [str(at) for at in deletes]


class Bench:
    """The reconciler between a table and a recording kernel."""

    def __init__(self):
        self.plane, self.feed, self.endpoints = Plane(), Feed(), EndpointTable()
        self.services = Services(
            ServiceTable(NODE),
            plane=self.plane,
            feed=self.feed,
            endpoints=self.endpoints,
            checks=None,
            terminate=True,
        )

    @property
    def kernel(self):
        return self.plane.kernel


def service(name, address, port=80, protocol="TCP"):
    return {
        "metadata": {"namespace": "default", "name": name},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ports": [{"name": "p", "port": port, "protocol": protocol}],
        },
    }


def endpoints(name, *addresses, protocol="TCP"):
    return {
        "metadata": {
            "namespace": "default",
            "name": f"{name}-1",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "ports": [{"name": "p", "port": 8080, "protocol": protocol}],
        "endpoints": [{"addresses": [one], "conditions": {"ready": True}} for one in addresses],
    }


@pytest.fixture
async def bench():
    made = Bench()
    made.services.upsert_service(service("web", "10.96.0.1"))
    made.services.upsert_slice(endpoints("web", "10.0.0.1"))
    await made.services.begin()
    made.kernel.calls.clear()
    return made


async def test_nothing_is_touched_before_the_sources_have_told_all():
    bench = Bench()
    bench.services.upsert_service(service("web", "10.96.0.1"))
    await bench.services.reconcile()
    assert (bench.kernel.calls, bench.kernel.pruned) == ([], 0)


async def test_what_an_earlier_run_left_is_pruned_once():
    bench = Bench()
    await bench.services.begin()
    await bench.services.reconcile()
    assert bench.kernel.pruned == 1


async def test_only_what_changed_is_written(bench):
    bench.services.upsert_service(service("db", "10.96.0.2"))
    await bench.services.reconcile()
    await bench.services.reconcile()
    assert bench.kernel.calls == [({"10.96.0.2:80/TCP", "10.96.0.2:0/TCP"}, set()), (set(), set())]


async def test_a_service_that_goes_is_taken_out_and_flows_are_told(bench):
    bench.services.delete_service(service("web", "10.96.0.1"))
    await bench.services.reconcile()
    assert bench.kernel.calls == [(set(), {"10.96.0.1:80/TCP", "10.96.0.1:0/TCP"})]
    assert sorted(bench.feed.gone) == ["10.96.0.1:0/TCP", "10.96.0.1:80/TCP"]
    assert list(bench.services.frontends()) == []


async def test_what_does_not_fit_is_named_and_offered_again(bench):
    bench.kernel.refused = {"10.96.0.2:80/TCP": "all 4 entries are in use"}
    bench.services.upsert_service(service("db", "10.96.0.2"))
    with pytest.raises(ExhaustedError, match=r"10\.96\.0\.2:80/TCP.*bpf-lb-map-max"):
        await bench.services.reconcile()
    assert [str(at) for at, _ in bench.services.refused()] == ["10.96.0.2:80/TCP"]
    bench.kernel.refused = {}
    await bench.services.reconcile()
    assert bench.kernel.calls[-1] == ({"10.96.0.2:80/TCP"}, set())
    assert bench.services.refused() == {}


async def test_after_a_failed_write_everything_is_applied_anew(bench):
    bench.kernel.error = BpfError("map update", 12)
    bench.services.delete_service(service("web", "10.96.0.1"))
    bench.services.upsert_service(service("db", "10.96.0.2"))
    with pytest.raises(BpfError):
        await bench.services.reconcile()
    bench.kernel.error = None
    await bench.services.reconcile()
    upserts, deletes = bench.kernel.calls[-1]
    assert upserts == {"10.96.0.2:80/TCP", "10.96.0.2:0/TCP"}
    assert deletes == {"10.96.0.1:80/TCP", "10.96.0.1:0/TCP"}
    assert bench.kernel.pruned == 2


async def test_sockets_of_vanished_udp_backends_are_ended_in_every_pod(bench):
    pod = endpoint("client", "10.0.0.9")
    pod.created = True
    bench.endpoints.add(pod)
    tcp = bench.services.get(_at(bench)).backends[0].at
    udp = type(tcp)(tcp.address, 53, type(tcp.protocol).UDP)
    bench.kernel.vanished = (tcp, udp)
    await bench.services.reconcile()
    assert bench.plane.ended == [([udp], ["/run/netns/client"])]


def _at(bench):
    return next(one.at for one in bench.services.frontends() if one.at.port)


def endpoint(name, address):
    return Endpoint(
        id=7,
        attachment=Attachment(name, f"/run/netns/{name}", "eth0"),
        namespace="default",
        pod_name=name,
        pod_uid="",
        ipv4=address,
        ipv6="",
        state=State.READY,
    )


def pod(name="web", node="node1", status=None):
    ports = [{"containerPort": 8080, "hostPort": 80, "protocol": "TCP"}]
    return {
        "metadata": {"namespace": "default", "name": name},
        "spec": {"nodeName": node, "containers": [{"name": "c", "ports": ports}]},
        "status": status or {},
    }


def host_ports(table):
    return {
        str(one.at): [str(each.at) for each in one.backends]
        for one in table.all_frontends()
        if one.kind is FrontendKind.HOST_PORT
        and one.scope is Scope.EXTERNAL
        and not one.at.address.is_unspecified
    }


@pytest.mark.parametrize("order", ["object first", "endpoint first"])
def test_a_pod_without_a_status_has_the_addresses_of_its_endpoint(order):
    table, known = ServiceTable(NODE), EndpointTable()
    pods = LocalPods(table, known, lambda: None)
    known.listen(pods.endpoint_changed)
    steps = [lambda: pods.upsert(pod()), lambda: known.add(endpoint("web", "10.0.0.5"))]
    for step in steps if order == "object first" else reversed(steps):
        step()
    assert host_ports(table) == {"172.30.0.1:80/TCP": ["10.0.0.5:8080/TCP"]}


def test_a_status_says_more_than_the_endpoint():
    table, known = ServiceTable(NODE), EndpointTable()
    pods = LocalPods(table, known, lambda: None)
    pods.upsert(pod(status={"podIPs": [{"ip": "10.0.0.6"}]}))
    assert host_ports(table) == {"172.30.0.1:80/TCP": ["10.0.0.6:8080/TCP"]}


def test_a_pod_of_another_node_has_no_port_here():
    table = ServiceTable(NODE)
    pods = LocalPods(table, EndpointTable(), lambda: None)
    pods.upsert(pod(node="node2", status={"podIPs": [{"ip": "10.0.0.6"}]}))
    assert host_ports(table) == {}


def test_a_pod_that_goes_gives_its_port_back():
    table = ServiceTable(NODE)
    pods = LocalPods(table, EndpointTable(), lambda: None)
    pods.upsert(pod(status={"podIPs": [{"ip": "10.0.0.6"}]}))
    pods.delete(pod())
    assert host_ports(table) == {}
