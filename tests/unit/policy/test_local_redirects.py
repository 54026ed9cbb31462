"""CiliumLocalRedirectPolicy: its rules, and its normal form."""

from __future__ import annotations

import ipaddress

import pytest
from cilium_core.labels import LabelSet
from cilium_core.policy import PolicyError, Protocol
from cilium_core.policy.local_redirects import LocalRedirectPolicy, PortPair, translate
from cilium_core.policy.parsing import check_model

PODS = {"localEndpointSelector": {"matchLabels": {"app": "proxy"}}}


def port(number="80", protocol="TCP", name=None):
    found = {"port": number, "protocol": protocol}
    return {**found, "name": name} if name else found


def policy(frontend, *backend, **fields):
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumLocalRedirectPolicy",
        "metadata": {"name": "a", "namespace": "x"},
        "spec": {
            "redirectFrontend": frontend,
            "redirectBackend": {**PODS, "toPorts": list(backend)},
            **fields,
        },
    }


def address(*ports, ip="169.254.169.254"):
    return {"addressMatcher": {"ip": ip, "toPorts": list(ports)}}


def service(*ports, namespace="x"):
    found = {"serviceName": "dns", "namespace": namespace}
    return {"serviceMatcher": {**found, "toPorts": list(ports)} if ports else found}


def read(obj):
    return translate(check_model(LocalRedirectPolicy, obj))


def test_an_address_leads_to_pods_of_the_policys_namespace():
    found = read(policy(address(port("8080")), port("80"), skipRedirectFromBackend=True))

    assert found.address == ipaddress.ip_address("169.254.169.254")
    assert found.ports == (PortPair(Protocol.TCP, 8080, 80),)
    assert found.skip_from_backend
    assert found.pods.matches(
        LabelSet.parse(["k8s:app=proxy", "k8s:io.kubernetes.pod.namespace=x"])
    )
    assert not found.pods.matches(
        LabelSet.parse(["k8s:app=proxy", "k8s:io.kubernetes.pod.namespace=y"])
    )


def test_a_service_without_ports_means_all_of_them():
    found = read(policy(service(), port("53", "UDP", "dns"), port("53", "TCP", "DNS-tcp")))

    assert (found.address, found.service) == (None, "dns")
    assert found.ports == (
        PortPair(Protocol.UDP, None, 53, "dns"),
        PortPair(Protocol.TCP, None, 53, "dns-tcp"),
    )


def test_several_ports_pair_by_name():
    found = read(
        policy(
            service(port("1", name="a"), port("2", "UDP", "b")),
            port("9", "UDP", "b"),
            port("8", "TCP", "a"),
        )
    )

    assert found.ports == (
        PortPair(Protocol.UDP, 2, 9, "b"),
        PortPair(Protocol.TCP, 1, 8, "a"),
    )


REFUSED = {
    "both matchers": policy({**address(port()), **service()}, port()),
    "no matcher": policy({}, port()),
    "no frontend port": policy(address(), port()),
    "no backend port": policy(address(port())),
    "no address": policy(address(port(), ip="10.0.0.0/8"), port()),
    "service of another namespace": policy(service(namespace="y"), port()),
    "port 0": policy(address(port("0")), port()),
    "port name as number": policy(address(port("http")), port()),
    "another protocol": policy(address(port(protocol="SCTP")), port()),
    "protocols that differ": policy(address(port(protocol="UDP")), port()),
    "several ports without names": policy(service(port("1"), port("2")), port("3")),
    "names that do not pair": policy(
        service(port("1", name="a"), port("2", name="b")),
        port("3", name="a"),
        port("4", name="c"),
    ),
    "one name twice": policy(service(), port("1", name="a"), port("2", name="A")),
    "no protocol": policy(address({"port": "1"}), port()),
    "unknown field": policy(address(port()), port(), redirectTarget={}),
}


@pytest.mark.parametrize("obj", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_wrong_is_refused(obj):
    with pytest.raises(PolicyError):
        read(obj)
