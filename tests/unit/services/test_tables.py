"""Changes, one after the other, come to the same as all objects at once."""

from __future__ import annotations

from cilium_core.services import HostPort, LocalPod, PodName, ServiceTable
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.services.cluster import (
    endpoint,
    endpoint_slice,
    ip,
    node,
    pod,
    policy,
    port,
    redirect_port,
    service,
    to_address,
    to_service,
    upsert,
)

NAMES = st.sampled_from(["web", "api", "db"])
CLUSTER = st.sampled_from([["10.96.0.1"], ["10.96.0.2"], ["10.96.0.3", "fd00:96::3"], ["None"]])
EXTERNAL = st.lists(st.sampled_from(["198.51.100.1", "192.168.0.1", "192.168.0.2"]), max_size=2)
TYPES = st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"])
POLICY = st.sampled_from(["Cluster", "Local"])
PORTS = st.sampled_from(
    [
        [port(80, nodePort=30080)],
        [port(80, nodePort=30081), port(443, "https", nodePort=30443)],
        [port(8081, "https")],
    ]
)
ENDPOINTS = st.lists(
    st.builds(
        endpoint,
        st.sampled_from(["10.1.0.1", "10.1.0.2", "10.2.0.1"]),
        node=st.sampled_from(["one", "two", None]),
        ready=st.booleans(),
        terminating=st.booleans(),
        hints=st.sampled_from([{}, {"forZones": [{"name": "east"}]}]),
    ),
    max_size=3,
)
HOST_PORTS = st.lists(
    st.builds(HostPort, st.sampled_from([8081, 30080]), st.just(80)), max_size=2
).map(tuple)
REDIRECTS = st.sampled_from(
    [
        (to_service(), redirect_port(53)),
        (to_service(redirect_port(443)), redirect_port(8443)),
        (to_address(redirect_port(80), address="198.51.100.1"), redirect_port(80)),
        (to_address(redirect_port(80), address="10.96.0.2"), redirect_port(80)),
    ]
)
PODS = st.builds(pod, st.sampled_from(["a", "b"]), ready=st.booleans())
NODES = st.builds(
    node,
    zone=st.sampled_from(["east", "west"]),
    remote_addresses=st.sampled_from(
        [frozenset({ip("192.168.0.2")}), frozenset({ip("198.51.100.1")})]
    ),
)


class Changing(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.node = node()
        self.table = ServiceTable(self.node)
        self.objects = {}
        self.pods = {}
        self.seen = {}

    @rule(
        name=NAMES,
        ports=PORTS,
        cluster=CLUSTER,
        external=EXTERNAL,
        kind=TYPES,
        outside=POLICY,
        inside=POLICY,
    )
    def upsert_service(self, name, ports, cluster, external, kind, outside, inside):
        self.put(
            service(
                *ports,
                name=name,
                type=kind,
                clusterIPs=cluster,
                externalIPs=external,
                externalTrafficPolicy=outside,
                internalTrafficPolicy=inside,
                trafficDistribution="PreferClose",
                ingress=[{"ip": "203.0.113.1"}],
            )
        )

    @rule(name=st.sampled_from(["s1", "s2"]), of=NAMES, endpoints=ENDPOINTS)
    def upsert_slice(self, name, of, endpoints):
        self.put(endpoint_slice(*endpoints, name=name, of=of))

    @rule(redirect=REDIRECTS)
    def upsert_redirect(self, redirect):
        self.put(policy(*redirect))

    def put(self, obj):
        self.objects[obj["kind"], obj["metadata"]["name"]] = obj
        upsert(self.table, obj)

    @precondition(lambda self: self.objects)
    @rule(data=st.data())
    def delete(self, data):
        obj = self.objects.pop(data.draw(st.sampled_from(sorted(self.objects))))
        {
            "Service": self.table.delete_service,
            "EndpointSlice": self.table.delete_slice,
            "CiliumLocalRedirectPolicy": self.table.delete_redirect_policy,
        }[obj["kind"]](obj)

    @rule(one=PODS)
    def set_pod(self, one):
        self.pods[one.name] = one
        self.table.set_pod(one)

    @rule(ports=HOST_PORTS, address=st.sampled_from(["10.1.0.1", "10.1.0.2"]))
    def set_host_ports(self, ports, address):
        one = LocalPod(PodName("shop", "c"), (ip(address),), host_ports=ports)
        self.pods[one.name] = one
        self.table.set_pod(one)

    @precondition(lambda self: self.pods)
    @rule(data=st.data())
    def remove_pod(self, data):
        name = data.draw(st.sampled_from(sorted(self.pods)))
        del self.pods[name]
        self.table.remove_pod(name)

    @rule(now=NODES)
    def set_node(self, now):
        self.node = now
        self.table.set_node(now)

    @rule()
    def take_changes(self):
        changes = self.table.take_changes()
        upserts = {(one.at, one.scope): one for one in changes.upserts}
        assert not upserts.keys() & set(changes.deletes)
        for key in changes.deletes:
            self.seen.pop(key, None)
        self.seen.update(upserts)
        assert {(one.at, one.scope): one for one in self.table.all_frontends()} == self.seen

    @invariant()
    def it_is_as_if_all_came_at_once(self):
        fresh = ServiceTable(self.node)
        for one in self.pods.values():
            fresh.set_pod(one)
        for obj in self.objects.values():
            upsert(fresh, obj)
        assert set(fresh.all_frontends()) == set(self.table.all_frontends())
        assert fresh.warnings == self.table.warnings
        assert fresh.health_checks() == self.table.health_checks()
        assert fresh.services() == self.table.services()

    @invariant()
    def every_frontend_makes_sense(self):
        for one in self.table.all_frontends():
            kept = {id(backend) for backend in one.backends}
            assert all(id(backend) in kept for backend in one.eligible)
            other = [self.table.frontend(one.at, scope) for scope in type(one.scope)]
            assert (None not in other) == one.two_scopes
            assert one in self.table.frontends(one.service)


TestChanging = Changing.TestCase
TestChanging.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
