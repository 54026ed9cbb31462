"""Who reaches whom without any policy: pods, nodes and the outside, over both families."""

from __future__ import annotations

import contextlib
import json
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.e2e.running import BIN, ECHO_PORT, PYTHON, Lab, Pod, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

OUTSIDE = ["203.0.113.10", "2001:db8:113::a"]


class Cast(NamedTuple):
    """Two pods on one node and one on another."""

    client: Pod
    neighbour: Pod
    remote: Pod


@pytest.fixture(scope="module")
def cast(lab: Lab) -> Cast:
    return Cast(
        lab.add_pod("client", "--node", "node1", "-l", "app=client"),
        lab.add_pod("neighbour", "--node", "node1", "-l", "app=server"),
        lab.add_pod("remote", "--node", "node2", "-l", "app=server"),
    )


@contextlib.contextmanager
def echoing(lab: Lab, place: str) -> Iterator[None]:
    """Echo in a place that is no pod."""
    with lab.spawned(place, "serve", str(ECHO_PORT)):
        eventually(lambda: lab.reaches(place, ["127.0.0.1"]) == [True], 10, f"{place} listens")
        yield


@pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp"])
@pytest.mark.parametrize("other", ["neighbour", "remote"])
def test_pods_reach_pods(lab: Lab, cast: Cast, other: str, protocol: str) -> None:
    pod: Pod = getattr(cast, other)

    assert lab.reaches("client", [pod.ipv4, pod.ipv6], protocol=protocol) == [True, True]


def test_a_pod_reaches_itself(lab: Lab, cast: Cast) -> None:
    assert lab.reaches("client", [cast.client.ipv4, cast.client.ipv6]) == [True, True]


def test_addresses_are_unique_and_from_the_nodes_pod_cidr(lab: Lab, cast: Cast) -> None:
    nodes = lab.json("node", "list")
    cidrs = {node["name"]: node["podCidrs"] for node in nodes}

    assert len({address for pod in cast for address in (pod.ipv4, pod.ipv6)}) == 6
    for pod in cast:
        prefix4, prefix6 = sorted(cidrs[pod.node], key=lambda cidr: ":" in cidr)
        assert pod.ipv4.rsplit(".", 1)[0] == prefix4.rsplit(".", 1)[0]
        assert pod.ipv6.startswith(prefix6.partition("::/")[0])


@pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp"])
@pytest.mark.parametrize("node", ["node1", "node2"])
def test_nodes_reach_pods_here_and_there(lab: Lab, cast: Cast, node: str, protocol: str) -> None:
    addresses = [cast.client.ipv4, cast.client.ipv6, cast.remote.ipv4, cast.remote.ipv6]

    assert lab.reaches(node, addresses, protocol=protocol) == [True] * 4


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_pods_reach_nodes(lab: Lab, cast: Cast, node: str) -> None:
    number = node.removeprefix("node")
    addresses = [f"172.30.0.1{number}", f"fd00:30::1{number}"]

    with echoing(lab, node):
        for protocol in ("tcp", "udp", "icmp"):
            assert lab.reaches("client", addresses, protocol=protocol) == [True, True]


def test_pods_reach_the_outside_as_their_node(lab: Lab, cast: Cast) -> None:
    program = (
        "import socket; s = socket.create_server(('::', 7010), family=socket.AF_INET6,"
        " dualstack_ipv6=True); print('up', flush=True)\n"
        "for _ in range(2): print(s.accept()[1][0], flush=True)"
    )
    command = ["lab", "exec", "--lab", lab.name, "world", "--", PYTHON, "-c", program]
    with (
        echoing(lab, "world"),
        subprocess.Popen(
            [str(BIN / "cilium"), *command],
            stdout=subprocess.PIPE,
            text=True,
        ) as peers,
    ):
        assert peers.stdout is not None
        peers.stdout.readline()
        for protocol in ("tcp", "udp", "icmp"):
            assert lab.reaches("client", OUTSIDE, protocol=protocol) == [True, True]
        for address in OUTSIDE:
            lab.reaches("client", [address], port=7010)
        seen = peers.stdout.read().split()

    assert seen == ["::ffff:172.30.0.11", "fd00:30::11"]


@pytest.mark.parametrize("other", ["neighbour", "remote"])
def test_bulk_transfers_arrive_whole(lab: Lab, cast: Cast, other: str) -> None:
    pod: Pod = getattr(cast, other)

    for address in (pod.ipv4, pod.ipv6):
        outcome = lab.traffic("client", "bulk", address, str(ECHO_PORT), str(32 << 20))
        assert outcome["whole"]


def test_a_deleted_pod_is_gone_everywhere(lab: Lab, cast: Cast) -> None:
    pod = lab.add_pod("fleeting", "--node", "node2", "-l", "app=fleeting")
    assert lab.reaches("client", [pod.ipv4]) == [True]

    lab.cilium("lab", "pod", "delete", "fleeting")

    assert lab.reaches("client", [pod.ipv4]) == [False]
    assert "fleeting" not in lab.cilium("endpoint", "list", "--node", "node2")
    eventually(
        lambda: f"{pod.ipv4}/32" not in lab.cilium("ip", "list", "--node", "node1"),
        5,
        "the address leaves the other node's table",
    )


def test_labels_become_an_identity_known_on_all_nodes(lab: Lab, cast: Cast) -> None:
    for node in ("node1", "node2"):
        entries = lab.json("ip", "list", "--node", node)
        (entry,) = [e for e in entries if e["prefix"] == f"{cast.client.ipv4}/32"]
        assert "k8s:app=client" in entry["labels"]
        assert entry["podName"] == "client"


def test_flows_name_pods_on_both_sides(lab: Lab, cast: Cast) -> None:
    lab.reaches("client", [cast.remote.ipv4])

    def seen() -> bool:
        output = lab.hubble(
            "observe", "--from-pod", "default/client", "--to-pod", "default/remote", "-o", "json"
        )
        flows = [json.loads(line)["flow"] for line in output.splitlines()]
        return any(
            flow["verdict"] == "FORWARDED"
            and flow["l4"].get("TCP", {}).get("destination_port") == ECHO_PORT
            for flow in flows
        )

    eventually(seen, 5, "the flow is seen through the relay")
