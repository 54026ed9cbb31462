"""Host ports of pods."""

from __future__ import annotations

import copy

from cilium_core.services import FrontendKind, HostPort, LocalPod, PodName, ServiceName
from cilium_core.services.objects import anywhere

from tests.unit.services.cluster import at, backends, ip, places, service, table_of

POD = PodName("shop", "cache-0")
NAME = ServiceName("shop", "cache-0:host-port")


def pod(*ports, addresses=("10.1.0.1",), **fields):
    return LocalPod(POD, tuple(map(ip, addresses)), host_ports=ports, **fields)


def test_a_host_port_is_on_every_address_for_node_ports_and_where_sockets_look():
    table = table_of()

    table.set_pod(pod(HostPort(8080, 80)))

    assert places(table, NAME) == ["0.0.0.0:8080/TCP", "192.168.0.1:8080/TCP"]
    assert table.frontend(at("192.168.0.1:8080")).kind is FrontendKind.HOST_PORT
    assert backends(table, "192.168.0.1:8080") == ["10.1.0.1:80"]
    assert [one.at.port for one in table.frontends(NAME)] == [8080, 8080]


def test_a_host_address_limits_a_host_port_to_it():
    table = table_of()

    table.set_pod(pod(HostPort(8080, 80, address=ip("127.0.0.1"))))

    assert places(table, NAME) == ["127.0.0.1:8080/TCP"]
    assert not table.frontend(at("127.0.0.1:8080")).routable


def test_all_addresses_of_one_family_limit_a_host_port_to_that():
    table = table_of()

    table.set_pod(pod(HostPort(8080, 80, address=anywhere(6)), addresses=("10.1.0.1", "fd00:1::1")))

    assert places(table, NAME) == ["[::]:8080/TCP", "[fc00::1]:8080/TCP"]


def test_host_ports_in_the_range_of_node_ports_are_left_out():
    table = table_of()

    table.set_pod(pod(HostPort(30080, 80)))

    assert places(table, NAME) == []
    assert "Pod shop/cache-0" in table.warnings[0]
    assert "30080 is in the range of NodePorts" in table.warnings[0]


def test_a_pod_that_goes_takes_its_host_ports_along():
    table = table_of()
    table.set_pod(pod(HostPort(8080, 80)))
    table.take_changes()

    table.remove_pod(POD)

    deleted = sorted(str(key[0]) for key in table.take_changes().deletes)
    assert deleted == ["0.0.0.0:8080/TCP", "192.168.0.1:8080/TCP"]


def test_services_come_before_host_ports():
    table = table_of(service(externalIPs=["192.168.0.1"]))

    table.set_pod(pod(HostPort(80, 80)))

    assert table.frontend(at("192.168.0.1:80")).kind is FrontendKind.EXTERNAL_IPS


def test_pod_objects_of_this_node_alone_count():
    obj = {
        "kind": "Pod",
        "metadata": {"namespace": "shop", "name": "cache-0"},
        "spec": {
            "nodeName": "one",
            "containers": [{"ports": [{"containerPort": 80, "hostPort": 8080}]}],
        },
        "status": {"phase": "Running", "podIP": "10.1.0.1"},
    }
    table = table_of(obj)
    assert places(table, NAME)

    moved = copy.deepcopy(obj)
    moved["spec"]["nodeName"] = "two"
    table.upsert_pod(moved)

    assert not places(table, NAME)


def test_pods_that_have_ended_or_share_the_nodes_network_have_no_host_ports():
    for change in ({"hostNetwork": True}, {"phase": "Succeeded"}):
        table = table_of(
            {
                "kind": "Pod",
                "metadata": {"namespace": "shop", "name": "cache-0"},
                "spec": {
                    "nodeName": "one",
                    "containers": [{"ports": [{"containerPort": 80, "hostPort": 8080}]}],
                    **change,
                },
                "status": {"phase": change.get("phase", "Running"), "podIP": "10.1.0.1"},
            }
        )
        assert not places(table, NAME)
