"""Why a client gets a backend."""

from __future__ import annotations

import pytest
from cilium_core.services import Scope, ServiceOptions
from cilium_core.services.explaining import Choice, Client, Facts, Place, asked, explain
from cilium_core.services.hashing import DEFAULT_SEED, read_seed
from cilium_core.services.maglev import entry_of_flow
from cilium_core.services.maglev import table as maglev_table
from cilium_core.services.models import Algorithm

from tests.unit.services.cluster import (
    at,
    endpoint,
    endpoint_slice,
    ip,
    node,
    pod,
    policy,
    port,
    redirect_port,
    service,
    table_of,
    to_address,
)

OUTSIDE = Client(Place.DEVICE, ip("203.0.113.9"), 40000)
POD = Client(Place.POD, ip("10.1.0.7"), 40000)
SOCKET = Client(Place.SOCKET)
TWO = endpoint_slice(endpoint("10.1.0.1", node="one"), endpoint("10.2.0.1"))
NODE_PORT = "192.168.0.1:30080"


def node_port(**fields):
    return service(port(nodePort=30080), type="NodePort", **fields)


def find(table, where, client=SOCKET):
    return asked(table.frontend, at(where), client.place, table.node)


def why(table, where, client=SOCKET, facts=None):
    return explain(find(table, where, client), client, facts, node=table.node)


def test_without_anything_special_it_is_chance():
    found = why(table_of(service(), TWO), "10.96.0.1:80")

    assert (found.choice, found.backend) == (Choice.RANDOM, None)
    assert [one.chance for one in found.fates] == [0.5, 0.5]
    assert found.steps[0] == "10.96.0.1:80/TCP is ClusterIP of shop/web"
    assert "one of 2 is chosen at random" in found.steps[-1]


def test_the_only_backend_is_named():
    found = why(table_of(service(), endpoint_slice(endpoint("10.1.0.1"))), "10.96.0.1:80")

    assert found.backend.at == at("10.1.0.1:8080")


def test_a_drained_backend_is_told_with_its_reason():
    leaving = endpoint("10.2.0.1", ready=False, serving=True, terminating=True)
    found = why(table_of(service(), endpoint_slice(endpoint("10.1.0.1"), leaving)), "10.96.0.1:80")

    assert found.fates[1].chance == 0
    assert "terminating: keeps its connections" in found.fates[1].text
    assert "1 of 2 backends take new connections" in found.steps


def test_who_served_a_client_before_does_so_again():
    table = table_of(service(sessionAffinity="ClientIP"), TWO)

    found = why(table, "10.96.0.1:80", facts=Facts(affinity=at("10.2.0.1:8080")))

    assert (found.choice, found.backend.at) == (Choice.AFFINITY, at("10.2.0.1:8080"))


def test_affinity_to_who_is_gone_is_told_and_does_not_count():
    table = table_of(service(sessionAffinity="ClientIP"), TWO)

    found = why(table, "10.96.0.1:80", facts=Facts(affinity=at("10.2.0.9:8080")))

    assert found.choice is Choice.RANDOM
    assert "10.2.0.9:8080/TCP served the client before, and takes no new connections" in found.steps


def test_a_tracked_connection_keeps_a_backend_that_is_drained():
    leaving = endpoint("10.2.0.1", ready=False, serving=True, terminating=True)
    table = table_of(service(), endpoint_slice(endpoint("10.1.0.1"), leaving))

    found = why(table, "10.96.0.1:80", POD, Facts(connection=at("10.2.0.1:8080")))

    assert (found.choice, found.backend.at) == (Choice.CONNECTION, at("10.2.0.1:8080"))


@pytest.mark.parametrize("affinity", ["None", "ClientIP"])
def test_from_outside_a_maglev_table_decides(affinity):
    table = table_of(
        node_port(sessionAffinity=affinity), TWO, options=ServiceOptions(algorithm=Algorithm.MAGLEV)
    )
    frontend = find(table, NODE_PORT, OUTSIDE)
    positions = maglev_table(frontend.eligible, 251, DEFAULT_SEED)
    entries = [frontend.eligible[one].at for one in positions]

    found = explain(frontend, OUTSIDE, Facts(table=entries, seed=read_seed(DEFAULT_SEED).flows))

    entry = entry_of_flow(
        at("203.0.113.9:40000"), frontend.at, 251, DEFAULT_SEED, affinity=affinity == "ClientIP"
    )
    assert (found.choice, found.entry) == (Choice.MAGLEV, entry)
    assert found.backend.at == entries[entry]
    assert found.steps[-1].startswith(f"the entry leads to {entries[entry]}, active on")


def test_without_a_port_a_maglev_table_gives_chances():
    table = table_of(node_port(), TWO, options=ServiceOptions(algorithm=Algorithm.MAGLEV))
    entries = [at("10.1.0.1:8080")] * 150 + [at("10.2.0.1:8080")] * 101
    client = Client(Place.DEVICE, ip("203.0.113.9"))

    found = why(table, NODE_PORT, client, Facts(table=entries))

    assert [round(one.chance, 2) for one in found.fates] == [0.6, 0.4]
    assert found.backend is None


@pytest.mark.parametrize(
    ("where", "reason"), [("10.96.0.1:80", 174), ("10.96.0.1:81", 158), ("198.51.100.1:81", 158)]
)
def test_what_the_outside_may_not_ask_is_refused_with_the_drop_reason(where, reason):
    table = table_of(service(externalIPs=["198.51.100.1"]), TWO)

    found = why(table, where, OUTSIDE)

    assert (found.choice, found.reason) == (Choice.REFUSED, reason)


@pytest.mark.parametrize(
    ("policy_of_ranges", "client", "refused"),
    [
        ("allow", "10.0.0.9", False),
        ("allow", "11.0.0.9", True),
        ("deny", "10.0.0.9", True),
        ("deny", "11.0.0.9", False),
    ],
)
def test_source_ranges_decide_who_may_ask(policy_of_ranges, client, refused):
    table = table_of(
        service(
            type="LoadBalancer",
            ingress=[{"ip": "203.0.113.1"}],
            loadBalancerSourceRanges=["10.0.0.0/8"],
            annotations={"service.cilium.io/src-ranges-policy": policy_of_ranges},
        ),
        TWO,
    )

    found = why(table, "203.0.113.1:80", Client(Place.DEVICE, ip(client), 1))

    assert found.reason == (177 if refused else None)


def test_a_service_without_backends_is_refused():
    found = why(table_of(service()), "10.96.0.1:80")

    assert (found.choice, found.reason) == (Choice.REFUSED, 158)
    assert found.steps[-1] == "it has no backends"


def test_without_local_backends_the_traffic_policy_is_named():
    table = table_of(node_port(externalTrafficPolicy="Local"), endpoint_slice(endpoint("10.2.0.1")))

    outside, inside = why(table, NODE_PORT, OUTSIDE), why(table, NODE_PORT, POD)

    assert outside.steps[-1] == "it has no backends on this node"
    assert inside.backend.at == at("10.2.0.1:8080")
    assert inside.frontend.scope is Scope.INTERNAL


@pytest.mark.parametrize("where", ["127.0.0.1:30080", "192.168.0.1:30080", "192.168.0.2:30080"])
def test_sockets_find_node_ports_on_all_nodes_and_loopback(where):
    assert find(table_of(node_port(), TWO), where).service.name == "web"


def test_the_loopback_address_of_a_pod_is_not_the_nodes():
    table = table_of(node_port(), TWO)
    where = at("127.0.0.1:30080")

    assert asked(table.frontend, where, Place.SOCKET, table.node, of_node=False) is None


def test_what_is_no_service_is_not_found():
    table = table_of(node_port(), TWO)

    assert find(table, "8.8.8.8:53") is None
    assert find(table, "192.168.0.2:30080", POD) is None


def test_external_addresses_of_nobody_are_not_translated_at_sockets():
    table = table_of(service(externalIPs=["198.51.100.1", "192.168.0.1"]), TWO)

    assert why(table, "198.51.100.1:80").choice is Choice.NOT_TRANSLATED
    assert why(table, "198.51.100.1:80", POD).choice is Choice.RANDOM
    assert why(table, "192.168.0.1:80").choice is Choice.RANDOM


def test_pods_that_serve_by_a_redirect_can_be_exempt():
    rule = policy(to_address(redirect_port(80)), redirect_port(80), skipRedirectFromBackend=True)
    table = table_of(rule)
    table.set_pod(pod())

    own = why(table, "169.254.169.254:80", Client(Place.POD, exempt=True))
    other = why(table, "169.254.169.254:80", Client(Place.POD))

    assert own.choice is Choice.NOT_TRANSLATED
    assert other.backend.at == at("10.1.0.9:80")


def test_a_frontend_that_is_served_near_tells_who_is_farther_away():
    slices = endpoint_slice(
        endpoint("10.1.0.1", hints={"forZones": [{"name": "east"}]}),
        endpoint("10.2.0.1", hints={"forZones": [{"name": "west"}]}),
    )
    table = table_of(service(trafficDistribution="PreferClose"), slices)

    found = why(table, "10.96.0.1:80")

    assert found.backend.at == at("10.1.0.1:8080")
    assert found.fates[1].text == "active, and farther away than others (topology)"
    assert table.node == node()
