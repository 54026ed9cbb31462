"""Real traffic of a node that has a policy of its own."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest
from cilium_agent.datapath import netlink as nl
from cilium_core import abi
from cilium_core.policy import PolicyEntry, PolicyKey

from tests.bpf.clusters import netlink, socket_in, wait_for
from tests.bpf.test_traffic import ask, bulk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bpf.clusters import Cluster

ID = 4000
EGRESS, INGRESS = abi.DIR_EGRESS, abi.DIR_INGRESS
ALLOW = PolicyEntry(precedence=1, deny=False)
BOTH = abi.ENDPOINT_ENFORCE_INGRESS | abi.ENDPOINT_ENFORCE_EGRESS


@contextlib.contextmanager
def firewall(cluster: Cluster, *allowed: tuple[int, int]) -> Iterator[None]:
    """Node 1 sends to and receives from these identities (direction, identity) alone."""
    plane, node = cluster.planes[0], cluster.nodes[0]
    ifindex = netlink(node, lambda opened: nl.index_of(opened, "cilium_host"))
    rules = {PolicyKey(direction, peer, 0, 0, 0): ALLOW for direction, peer in allowed}
    plane.policy.replace(ID, rules)
    plane.endpoints.upsert_node(ID, ifindex, BOTH)
    plane.set_config(host_firewall=True)
    try:
        yield
    finally:
        plane.set_config(host_firewall=False)
        plane.endpoints.delete(ID)
        plane.policy.delete(ID)


def test_pods_talk_across_nodes_that_talk_to_nobody(cluster: Cluster, family: int) -> None:
    here, there = cluster.pods[10], cluster.pods[20]
    with firewall(cluster):
        seen = bulk(here.namespace, there.namespace, there.address(family), family, 1 << 20)
        assert seen == (here.address(family), True)
        assert ask(there.namespace, here.namespace, here.address(family), family)[1]


def test_pods_reach_the_world_through_a_node_that_talks_to_nobody(
    cluster: Cluster, family: int
) -> None:
    world, address = cluster.place("world", family)
    with firewall(cluster):
        assert bulk(cluster.pods[10].namespace, world, address, family, 1 << 20)[1]


@pytest.mark.parametrize("where", ["world", "local pod", "remote pod"])
def test_a_node_reaches_only_whom_its_policy_names(
    cluster: Cluster, family: int, where: str
) -> None:
    (server, address), node = cluster.place(where, family), cluster.nodes[0]
    identity = {"world": abi.ID_WORLD, "local pod": 1011, "remote pod": 1020}[where]
    with firewall(cluster, (EGRESS, identity)):
        assert bulk(node, server, address, family, 1 << 20)[1]
    with firewall(cluster), socket_in(node, family, socket.SOCK_DGRAM) as asking:
        before = cluster.counted(133)
        with contextlib.suppress(PermissionError):
            asking.sendto(b"anybody?", (address, 9))
        wait_for(lambda: cluster.counted(133) > before)


@pytest.mark.parametrize(("number", "where"), [(10, "router"), (20, "router"), (10, "own node")])
def test_a_node_is_reached_only_by_whom_its_policy_names(
    cluster: Cluster, family: int, number: int, where: str
) -> None:
    (node, address), pod = cluster.place(where, family), cluster.pods[number]
    with firewall(cluster, (INGRESS, 1000 + number)):
        assert bulk(pod.namespace, node, address, family, 1 << 20)[1]
    with firewall(cluster), socket_in(pod.namespace, family, socket.SOCK_DGRAM) as asking:
        before = cluster.counted(133)
        asking.sendto(b"anybody?", (address, 9))
        wait_for(lambda: cluster.counted(133) > before)


def test_the_world_reaches_a_node_as_its_policy_says(cluster: Cluster, family: int) -> None:
    node, address = cluster.place("own node", family)
    with firewall(cluster, (INGRESS, abi.ID_WORLD)):
        assert bulk(cluster.world, node, address, family, 1 << 20)[1]
    with firewall(cluster), socket_in(cluster.world, family, socket.SOCK_DGRAM) as asking:
        before = cluster.counted(133)
        asking.sendto(b"anybody?", (address, 9))
        wait_for(lambda: cluster.counted(133) > before)
