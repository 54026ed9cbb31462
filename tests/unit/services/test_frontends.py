"""Which addresses and ports a service is asked at."""

from __future__ import annotations

import ipaddress

import pytest
from cilium_core.services import (
    Algorithm,
    Forwarding,
    FrontendKind,
    PortRange,
    Scope,
    ServiceName,
    ServiceOptions,
)

from tests.unit.services.cluster import (
    WEB,
    at,
    backends,
    endpoint,
    endpoint_slice,
    ip,
    node,
    places,
    port,
    service,
    table_of,
    wholes,
)

HERE = endpoint("10.1.0.1", node="one")
THERE = endpoint("10.2.0.1")
BOTH = endpoint_slice(HERE, THERE)


def test_a_cluster_address_leads_to_all_backends_and_is_not_for_the_outside():
    table = table_of(service(), BOTH)

    found = table.frontend(at("10.96.0.1:80"))

    assert found.kind is FrontendKind.CLUSTER_IP
    assert not found.routable
    assert [str(one.at) for one in found.eligible] == ["10.1.0.1:8080/TCP", "10.2.0.1:8080/TCP"]
    assert [one.local for one in found.backends] == [True, False]


def test_cluster_addresses_are_routable_when_that_is_configured():
    table = table_of(service(), BOTH, options=ServiceOptions(external_cluster_ip=True))

    assert table.frontend(at("10.96.0.1:80")).routable


def test_a_node_port_is_on_every_address_for_it_and_where_sockets_look():
    table = table_of(service(port(nodePort=30080), type="NodePort"), BOTH)

    assert places(table) == ["0.0.0.0:30080/TCP", "10.96.0.1:80/TCP", "192.168.0.1:30080/TCP"]
    assert table.frontend(at("192.168.0.1:30080")).routable
    assert not table.frontend(at("0.0.0.0:30080")).routable


def test_a_dual_stack_service_leads_each_family_to_its_own_backends():
    six = endpoint_slice(endpoint("fd00:1::1"), name="web-6", family="IPv6")
    table = table_of(
        service(port(nodePort=30080), type="NodePort", clusterIPs=["10.96.0.1", "fd00:96::1"]),
        BOTH,
        six,
    )

    assert backends(table, "[fd00:96::1]:80") == ["[fd00:1::1]:8080"]
    assert backends(table, "[fc00::1]:30080") == ["[fd00:1::1]:8080"]
    assert backends(table, "[::]:30080") == ["[fd00:1::1]:8080"]
    assert backends(table, "10.96.0.1:80") == ["10.1.0.1:8080", "10.2.0.1:8080"]


def test_a_load_balancer_is_on_its_addresses_that_are_virtual():
    ingress = [
        {"ip": "203.0.113.1"},
        {"ip": "203.0.113.2", "ipMode": "VIP"},
        {"ip": "203.0.113.3", "ipMode": "Proxy"},
        {"hostname": "lb.example"},
    ]
    table = table_of(service(type="LoadBalancer", ingress=ingress), BOTH)

    assert places(table) == ["10.96.0.1:80/TCP", "203.0.113.1:80/TCP", "203.0.113.2:80/TCP"]


def test_external_addresses_are_served_for_every_type():
    table = table_of(service(externalIPs=["198.51.100.1"]), BOTH)

    found = table.frontend(at("198.51.100.1:80"))
    assert (found.kind, found.routable) == (FrontendKind.EXTERNAL_IPS, True)


@pytest.mark.parametrize(
    "fields",
    [
        {"clusterIP": "None", "clusterIPs": ["None"]},
        {"type": "ExternalName", "externalName": "a.example"},
        {"labels": {"service.kubernetes.io/headless": ""}},
        {"labels": {"service.kubernetes.io/service-proxy-name": "other"}},
        {"clusterIPs": []},
    ],
)
def test_some_services_are_not_translated(fields):
    assert places(table_of(service(**fields), BOTH)) == []


def test_a_proxy_name_limits_the_agent_to_services_that_ask_for_it():
    labels = {"service.kubernetes.io/service-proxy-name": "cilium"}
    options = ServiceOptions(service_proxy_name="cilium")

    assert places(table_of(service(labels=labels), options=options))
    assert not places(table_of(service(), options=options))


def test_addresses_of_services_alone_have_an_entry_as_a_whole():
    table = table_of(
        service(
            port(nodePort=30080),
            type="LoadBalancer",
            externalIPs=["198.51.100.1", "192.168.0.1", "192.168.0.2"],
            ingress=[{"ip": "203.0.113.1"}],
        )
    )

    assert wholes(table) == ["10.96.0.1", "198.51.100.1", "203.0.113.1"]


def test_an_address_that_becomes_a_nodes_loses_its_entry_as_a_whole():
    table = table_of(service(externalIPs=["198.51.100.1"]))
    table.take_changes()

    table.set_node(node(remote_addresses=frozenset({ip("198.51.100.1")})))

    assert wholes(table) == ["10.96.0.1"]
    assert [key[0].port for key in table.take_changes().deletes] == [0]


def test_without_kube_proxys_replacement_only_cluster_addresses_are_served():
    table = table_of(
        service(port(nodePort=30080), type="NodePort", externalIPs=["198.51.100.1"]),
        options=ServiceOptions(kube_proxy_replacement=False),
    )

    assert places(table) == ["10.96.0.1:80/TCP"]


def test_several_ports_lead_by_name_to_ports_of_backends():
    ports = [port(80, "http"), port(53, "dns", protocol="UDP"), port(53, "dns-tcp")]
    targets = [port(8080, "http"), port(5353, "dns", protocol="UDP"), port(5354, "dns-tcp")]
    table = table_of(service(*ports), endpoint_slice(HERE, ports=targets))

    assert backends(table, "10.96.0.1:80") == ["10.1.0.1:8080"]
    assert backends(table, "10.96.0.1:53", protocol="UDP") == ["10.1.0.1:5353"]
    assert backends(table, "10.96.0.1:53") == ["10.1.0.1:5354"]


def test_slices_may_give_a_named_port_other_numbers():
    other = endpoint_slice(endpoint("10.2.0.9"), name="web-2", ports=[port(9090)])

    table = table_of(service(), endpoint_slice(HERE), other)

    assert backends(table, "10.96.0.1:80") == ["10.1.0.1:8080", "10.2.0.9:9090"]


def test_sctp_is_served_as_well():
    ports = [port(80, protocol="SCTP")]
    table = table_of(service(*ports), endpoint_slice(HERE, ports=ports))

    assert backends(table, "10.96.0.1:80", protocol="SCTP") == ["10.1.0.1:80"]


def test_an_external_traffic_policy_makes_two_scopes_of_external_frontends():
    table = table_of(
        service(port(nodePort=30080), type="NodePort", externalTrafficPolicy="Local"), BOTH
    )

    assert backends(table, "192.168.0.1:30080") == ["10.1.0.1:8080"]
    assert backends(table, "192.168.0.1:30080", Scope.INTERNAL) == [
        "10.1.0.1:8080",
        "10.2.0.1:8080",
    ]
    assert backends(table, "10.96.0.1:80") == ["10.1.0.1:8080", "10.2.0.1:8080"]
    assert backends(table, "10.96.0.1:80", Scope.INTERNAL) is None
    assert table.frontend(at("192.168.0.1:30080")).two_scopes


def test_an_internal_traffic_policy_limits_the_inside_alone():
    table = table_of(
        service(port(nodePort=30080), type="NodePort", internalTrafficPolicy="Local"), BOTH
    )

    assert backends(table, "10.96.0.1:80") == ["10.1.0.1:8080"]
    assert backends(table, "192.168.0.1:30080", Scope.INTERNAL) == ["10.1.0.1:8080"]
    assert backends(table, "192.168.0.1:30080") == ["10.1.0.1:8080", "10.2.0.1:8080"]


def test_with_both_policies_one_scope_is_enough():
    policies = {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}
    table = table_of(service(port(nodePort=30080), type="NodePort", **policies), BOTH)

    assert backends(table, "192.168.0.1:30080") == ["10.1.0.1:8080"]
    assert table.frontend(at("192.168.0.1:30080"), Scope.INTERNAL) is None
    assert not table.frontend(at("192.168.0.1:30080")).two_scopes


@pytest.mark.parametrize(
    ("spec", "timeout"),
    [
        ({}, 0),
        ({"sessionAffinity": "ClientIP"}, 10800),
        (
            {
                "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            },
            60,
        ),
        (
            {
                "sessionAffinity": "None",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            },
            0,
        ),
    ],
)
def test_session_affinity_has_the_timeout_that_is_asked_for(spec, timeout):
    assert table_of(service(**spec)).frontend(at("10.96.0.1:80")).affinity_timeout == timeout


def test_session_affinity_can_be_off_for_the_whole_agent():
    table = table_of(
        service(sessionAffinity="ClientIP"), options=ServiceOptions(session_affinity=False)
    )

    assert table.frontend(at("10.96.0.1:80")).affinity_timeout == 0


def ranged(options=None, **fields):
    ranges = fields.pop("ranges", ["10.0.0.0/8", "fd00::/8"])
    return table_of(
        service(
            port(nodePort=30080),
            type="LoadBalancer",
            ingress=[{"ip": "203.0.113.1"}],
            loadBalancerSourceRanges=ranges,
            **fields,
        ),
        options=options,
    )


def test_source_ranges_hold_for_load_balancers_and_their_family():
    table = ranged()

    found = table.frontend(at("203.0.113.1:80"))
    assert found.source_ranges == (ipaddress.ip_network("10.0.0.0/8"),)
    assert table.frontend(at("192.168.0.1:30080")).source_ranges is None


def test_source_ranges_hold_for_all_types_when_that_is_configured():
    table = ranged(ServiceOptions(source_range_all_types=True))

    assert table.frontend(at("192.168.0.1:30080")).source_ranges
    assert table.frontend(at("10.96.0.1:80")).source_ranges is None


def test_source_ranges_of_the_other_family_alone_let_nobody_ask():
    assert ranged(ranges=["fd00::/8"]).frontend(at("203.0.113.1:80")).source_ranges == ()


def test_source_ranges_can_deny():
    table = ranged(annotations={"service.cilium.io/src-ranges-policy": "deny"})

    assert table.frontend(at("203.0.113.1:80")).source_ranges_deny


@pytest.mark.parametrize("ranges", [["nonsense"], "10.0.0.0/8", [7]])
def test_source_ranges_that_cannot_be_read_let_nobody_ask(ranges):
    table = ranged(ranges=ranges)

    assert table.frontend(at("203.0.113.1:80")).source_ranges == ()
    assert "loadBalancerSourceRanges" in table.warnings[0]


def test_a_service_chooses_its_algorithm_and_forwarding_for_the_outside():
    annotations = {
        "service.cilium.io/lb-algorithm": "maglev",
        "service.cilium.io/forwarding-mode": "dsr",
    }
    table = table_of(service(port(nodePort=30080), type="NodePort", annotations=annotations), BOTH)

    found = table.frontend(at("192.168.0.1:30080"))
    assert (found.algorithm, found.forwarding) == (Algorithm.MAGLEV, Forwarding.DSR)
    assert table.frontend(at("10.96.0.1:80")).algorithm is Algorithm.RANDOM


def test_a_service_overrules_the_agents_algorithm():
    table = table_of(
        service(
            port(nodePort=30080),
            type="NodePort",
            annotations={"service.cilium.io/lb-algorithm": "random"},
        ),
        options=ServiceOptions(algorithm=Algorithm.MAGLEV),
    )

    assert table.frontend(at("192.168.0.1:30080")).algorithm is Algorithm.RANDOM


def test_a_type_annotation_limits_the_kinds_of_frontends():
    table = table_of(
        service(
            port(nodePort=30080),
            type="LoadBalancer",
            ingress=[{"ip": "203.0.113.1"}],
            annotations={"service.cilium.io/type": "LoadBalancer"},
        )
    )

    assert places(table) == ["203.0.113.1:80/TCP"]


@pytest.mark.parametrize(
    ("annotations", "served"),
    [
        ({"service.cilium.io/node": "edge"}, True),
        ({"service.cilium.io/node": "core"}, False),
        ({"service.cilium.io/node-selector": "disk in (fast,slow)"}, True),
        ({"service.cilium.io/node-selector": "disk=slow"}, False),
        ({"service.cilium.io/node-selector": "disk in ("}, False),
    ],
)
def test_annotations_limit_the_nodes_that_serve(annotations, served):
    assert bool(places(table_of(service(annotations=annotations)))) is served


def test_a_node_that_gets_a_label_begins_to_serve():
    table = table_of(service(annotations={"service.cilium.io/node": "core"}))
    labels = node().labels.parse(["k8s:service.cilium.io/node=core"])

    table.set_node(node(labels=labels))

    assert places(table) == ["10.96.0.1:80/TCP"]


def test_a_node_port_outside_the_range_is_served_and_remarked_on():
    table = table_of(
        service(port(nodePort=8080), type="NodePort"),
        options=ServiceOptions(node_port_range=PortRange(30000, 32767)),
    )

    assert "192.168.0.1:8080/TCP" in places(table)
    assert "8080 is not in node-port-range, 30000 to 32767" in table.warnings[0]


def test_one_place_belongs_to_one_service_and_goes_to_the_next_when_it_is_free():
    first = service(externalIPs=["198.51.100.1"])
    first["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"
    second = service(name="api", externalIPs=["198.51.100.1"], clusterIPs=["10.96.0.2"])
    second["metadata"]["creationTimestamp"] = "2021-01-01T00:00:00Z"

    table = table_of(second, first)

    assert table.frontend(at("198.51.100.1:80")).service == WEB
    (warning,) = table.warnings
    assert warning.startswith("Service shop/api: spec: 198.51.100.1:80/TCP is left out, as ")
    table.take_changes()
    table.delete_service(first)
    assert table.frontend(at("198.51.100.1:80")).service == ServiceName("shop", "api")
    assert table.warnings == ()
    changes = table.take_changes()
    assert at("198.51.100.1:80") not in [key[0] for key in changes.deletes]


def test_nobody_takes_a_cluster_address_by_naming_it_as_an_external_one():
    thief = service(name="a", externalIPs=["10.96.0.1"], clusterIPs=["10.96.0.9"])
    thief["metadata"]["creationTimestamp"] = "1999-01-01T00:00:00Z"

    table = table_of(thief, service())

    assert table.frontend(at("10.96.0.1:80")).service == WEB
