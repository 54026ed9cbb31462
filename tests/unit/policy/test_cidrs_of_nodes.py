"""CIDR rules where nodes have their addresses in their identities, and where they have not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.policy import oracle
from tests.unit.policy.worlds import TCP, World, ccnp, cnp, outside, pod

SERVER = {"matchLabels": {"app": "server"}}


def node(*addresses: str, name: str = "remote-node") -> oracle.Party:
    cidrs = dict.fromkeys(addresses, ("cidr", ""))
    return oracle.Party({name: ("reserved", ""), oracle.CLUSTER: ("k8s", "default"), **cidrs})


def world(*objects: dict[str, Any]) -> World:
    made = World(
        {
            "server": pod("x", {"app": "server"}),
            "node1": node("172.30.0.11/32", "fd00--11/128"),
            "node2": node("172.30.0.12/32", "fd00--12/128"),
            "plain": node(),
            "172.30.9.9": outside("172.30.9.9"),
            "192.0.2.1": outside("192.0.2.1"),
        }
    )
    made.apply(*objects)
    return made


def admitted(*objects: dict[str, Any]) -> set[str]:
    made = world(*objects)
    peers = made.parties.keys() - {"server"}
    return {peer for peer in peers if made.passes_at("server", "ingress", peer, TCP, 80)}


def ingress(*items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return cnp({"endpointSelector": SERVER, "ingress": list(items), **more})


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"fromCIDR": ["172.30.0.0/24"]}, {"node1", "node2"}),
        ({"fromCIDR": ["172.30.0.12/32"]}, {"node2"}),
        ({"fromCIDR": ["fd00::11/128"]}, {"node1"}),
        (
            {"fromCIDRSet": [{"cidr": "172.30.0.0/16", "except": ["172.30.0.11/32"]}]},
            {"node2", "172.30.9.9"},
        ),
        ({"fromCIDR": ["0.0.0.0/0"]}, {"node1", "node2", "172.30.9.9", "192.0.2.1"}),
        (
            {"fromCIDRSet": [{"cidr": "0.0.0.0/0", "except": ["172.30.0.0/16"]}]},
            {"192.0.2.1"},
        ),
        ({"fromCIDR": ["::/0"]}, {"node1", "node2"}),
        ({"fromEntities": ["world"]}, {"172.30.9.9", "192.0.2.1"}),
        ({"fromEntities": ["remote-node"]}, {"node1", "node2", "plain"}),
    ],
)
def test_cidr_rules_mean_the_nodes_that_have_an_address_inside(item, expected):
    assert admitted(ingress(item)) == expected


def test_a_denied_cidr_denies_the_nodes_inside():
    everyone = ingress({"fromEntities": ["all"]}, ingressDeny=[{"fromCIDR": ["172.30.0.0/24"]}])
    assert admitted(everyone) == {"plain", "172.30.9.9", "192.0.2.1"}


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        ("172.30.0.0/16", {"node2", "172.30.9.9"}),
        ("0.0.0.0/0", {"node2", "172.30.9.9", "192.0.2.1"}),
    ],
)
def test_cidr_groups_mean_nodes_too(member, expected):
    group = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumCIDRGroup",
        "metadata": {"name": "g"},
        "spec": {"externalCIDRs": [member]},
    }
    named = {"cidrGroupRef": "g", "except": ["172.30.0.11/32"]}
    spec = {"endpointSelector": SERVER, "ingress": [{"fromCIDRSet": [named]}]}
    assert admitted(group, ccnp(spec)) == expected


def test_the_host_is_inside_by_any_of_its_addresses():
    made = world(ingress({"fromEntities": ["all"]}, ingressDeny=[{"fromCIDR": ["172.30.0.1/32"]}]))
    seen = []
    for addresses in ((), ("fd00--1/128", "172.30.0.1/32"), ("fd00--1/128",)):
        made.put("host", node(*addresses, name="host"))
        made.flush()
        seen.append(made.passes_at("server", "ingress", "host", TCP, 80))
    assert seen == [True, False, True]
