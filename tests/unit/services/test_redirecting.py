"""Local redirect policies on a node."""

from __future__ import annotations

import ipaddress

import pytest
from cilium_core.services import (
    FrontendKind,
    PodName,
    ServiceName,
    ServiceOptions,
)

from tests.unit.services.cluster import (
    METADATA,
    at,
    backends,
    endpoint,
    endpoint_slice,
    places,
    pod,
    policy,
    port,
    redirect_port,
    service,
    table_of,
    to_address,
    to_service,
)

NAME = ServiceName("shop", "cache:local-redirect")


def table_with(*objects, pods=None, **fields):
    table = table_of(*objects, **fields)
    for one in pods or [pod()]:
        table.set_pod(one)
    return table


def test_an_address_leads_to_a_pod_of_this_node():
    table = table_with(policy(to_address(redirect_port(8080)), redirect_port(80)))

    found = table.frontend(at(f"{METADATA}:8080"))
    assert backends(table, f"{METADATA}:8080") == ["10.1.0.9:80"]
    assert (found.kind, found.routable, found.service) == (
        FrontendKind.LOCAL_REDIRECT,
        False,
        NAME,
    )
    assert places(table, NAME) == [f"{METADATA}:8080/TCP"]


@pytest.mark.parametrize(
    "other", [pod(app="web"), pod(ready=False), pod(namespace="bank"), pod("a", "fd00::1")]
)
def test_pods_that_do_not_fit_get_nothing(other):
    table = table_with(policy(to_address(redirect_port(8080)), redirect_port(80)), pods=[other])

    assert table.frontend(at(f"{METADATA}:8080")) is None


def test_a_redirect_ends_with_its_last_pod_and_traffic_goes_where_it_went():
    table = table_with(
        service(),
        endpoint_slice(endpoint("10.2.0.1")),
        policy(to_service(), redirect_port(53)),
    )
    assert backends(table, "10.96.0.1:80") == ["10.1.0.9:53"]
    assert table.warnings == ()

    table.remove_pod(PodName("shop", "proxy-0"))

    assert backends(table, "10.96.0.1:80") == ["10.2.0.1:8080"]


def test_a_service_may_come_after_its_redirect_and_go_again():
    table = table_with(policy(to_service(), redirect_port(53)))
    assert "service shop/web does not exist; nothing is redirected" in table.warnings[0]

    table.upsert_service(service())
    assert backends(table, "10.96.0.1:80") == ["10.1.0.9:53"]
    assert table.warnings == ()

    table.delete_service(service())
    assert places(table, NAME) == []


def test_ports_of_a_service_pair_by_name():
    table = table_with(
        service(port(53, "dns", protocol="UDP"), port(53, "dns-tcp"), port(9153, "metrics")),
        policy(to_service(), redirect_port(5353, "dns", "UDP"), redirect_port(5354, "dns-tcp")),
    )

    assert backends(table, "10.96.0.1:53", protocol="UDP") == ["10.1.0.9:5353"]
    assert backends(table, "10.96.0.1:53") == ["10.1.0.9:5354"]
    assert backends(table, "10.96.0.1:9153") == []


def test_ports_of_a_service_can_be_picked_by_number():
    table = table_with(
        service(port(80, "http"), port(443, "https")),
        policy(to_service(redirect_port(443)), redirect_port(8443)),
    )

    assert places(table, NAME) == ["10.96.0.1:443/TCP"]


def test_one_port_for_several_of_a_service_is_remarked_on():
    table = table_with(
        service(port(80, "http"), port(443, "https")), policy(to_service(), redirect_port(8080))
    )

    assert places(table, NAME) == ["10.96.0.1:443/TCP", "10.96.0.1:80/TCP"]
    assert "ports 80, 443 of the service all lead to port 8080 of the pods" in table.warnings[0]


def test_a_port_that_a_service_has_not_is_remarked_on():
    table = table_with(service(), policy(to_service(redirect_port(81)), redirect_port(8080)))

    assert places(table, NAME) == []
    assert "service shop/web has no port 81/TCP" in table.warnings[0]


def test_a_service_without_an_address_is_not_redirected():
    table = table_with(service(clusterIPs=["None"]), policy(to_service(), redirect_port(80)))

    assert places(table, NAME) == []
    assert "has no cluster address" in table.warnings[0]


def test_a_dual_stack_service_is_redirected_as_far_as_pods_have_addresses():
    both = service(clusterIPs=["10.96.0.1", "fd00:96::1"])
    six = pod("proxy-1", "10.1.0.8", "fd00:1::8")
    table = table_with(both, policy(to_service(), redirect_port(53)), pods=[pod(), six])

    assert backends(table, "10.96.0.1:80") == ["10.1.0.8:53", "10.1.0.9:53"]
    assert backends(table, "[fd00:96::1]:80") == ["[fd00:1::8]:53"]


def test_backends_can_be_left_alone():
    table = table_with(
        policy(to_address(redirect_port(80)), redirect_port(80), skipRedirectFromBackend=True)
    )

    assert table.frontend(at(f"{METADATA}:80")).skip_own


def test_backends_of_a_service_that_are_left_alone_are_remarked_on():
    table = table_with(
        service(), policy(to_service(), redirect_port(53), skipRedirectFromBackend=True)
    )

    assert table.frontend(at("10.96.0.1:80")).skip_own
    assert "spec.skipRedirectFromBackend: the pods that serve reach nobody" in table.warnings[0]


def test_an_address_matcher_takes_no_cluster_address():
    table = table_with(
        service(), policy(to_address(redirect_port(80), address="10.96.0.1"), redirect_port(80))
    )

    assert table.frontend(at("10.96.0.1:80")).kind is FrontendKind.CLUSTER_IP
    (warning,) = table.warnings
    assert warning.startswith(
        "CiliumLocalRedirectPolicy shop/cache: spec: 10.96.0.1:80/TCP is left"
    )


def test_addresses_can_be_limited():
    options = ServiceOptions(local_redirect_networks=(ipaddress.ip_network("10.0.0.0/8"),))
    table = table_with(policy(to_address(redirect_port(80)), redirect_port(80)), options=options)

    assert places(table, NAME) == []
    assert "169.254.169.254 is not in lrp-address-matcher-cidrs" in table.warnings[0]


def test_redirects_can_be_off():
    table = table_with(
        policy(to_address(redirect_port(80)), redirect_port(80)),
        options=ServiceOptions(local_redirects=False),
    )

    assert places(table, NAME) == []
    assert "enable-local-redirect-policy is off" in table.warnings[0]


def test_the_older_form_is_understood():
    old = policy(to_address(redirect_port(8080)))
    del old["spec"]["redirectBackend"]
    old["spec"]["redirectTarget"] = {
        "localEndpointSelector": {"matchLabels": {"app": "proxy"}},
        "port": 80,
    }
    table = table_with(old)

    assert backends(table, f"{METADATA}:8080") == ["10.1.0.9:80"]
    assert table.warnings


def test_a_policy_that_is_refused_redirects_nothing_and_says_why():
    right = policy(to_address(redirect_port(80)), redirect_port(80))
    table = table_with(right)
    wrong = policy(to_address(redirect_port(80)), redirect_port(80, protocol="UDP"))

    table.upsert_redirect_policy(wrong)

    assert places(table, NAME) == []
    assert table.warnings[0].startswith("CiliumLocalRedirectPolicy shop/cache: spec: ")
    table.delete_redirect_policy(wrong)
    assert table.warnings == ()


def test_redirects_are_listed_with_their_pods():
    table = table_with(policy(to_address(redirect_port(80)), redirect_port(80)))

    ((redirect, pods),) = table.redirects()

    assert redirect.name == "cache"
    assert [one.name for one in pods] == [PodName("shop", "proxy-0")]
