"""Tables of connections and translations at their limits: what holds, what is refused, recovery."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.e2e import balancing
from tests.e2e.balancing import Endpoint, Port
from tests.e2e.driving import Cluster, PodSpec
from tests.e2e.running import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.running import Lab

ROOM: Final = 32_768
"""Entries that each table may have here."""
PACKETS: Final = 60_000
RATE: Final = 20_000
SERVED: Final = 8080
OPEN: Final = 9090
NUMBER: Final = 40
PORTS: Final = [Port("tcp", "TCP", 80, SERVED, 30080)]
OUTSIDE: Final = {4: "203.0.113.10", 6: "2001:db8:113::a"}
CROWD: Final = {4: "203.0.113.100-203.0.113.200", 6: "2001:db8:113::100-2001:db8:113::200"}
"""Addresses outside that a flood comes from."""
NODE1: Final = {4: "172.30.0.11", 6: "fd00:30::11"}
NO_MAPPING: Final = "No mapping for NAT masquerade"
FREE_AGAIN_S: Final = 60.0
"""Until connections that were never answered are forgotten, and their ports with them."""


@pytest.fixture(scope="module")
def cluster(start_lab: Callable[..., Lab]) -> Iterator[Cluster]:
    tables = ("bpf-ct-global-tcp-max", "bpf-ct-global-any-max", "bpf-nat-global-max")
    lab = start_lab(2, *(f"{table}={ROOM}" for table in tables), "conntrack-gc-interval=1s")
    with Cluster(lab, 2) as made:
        serve = f"--tcp {SERVED} --udp {SERVED}"
        made.add_pods(
            [
                PodSpec("default", "client", {"app": "client"}, "node1", ""),
                PodSpec("default", "flooder", {"app": "flooder"}, "node1", ""),
                PodSpec("default", "near", {"app": "server"}, "node1", serve),
                PodSpec("default", "far", {"app": "server"}, "node2", serve),
            ]
        )
        made.serve_beside("default/client", "packets")
        made.serve_at("world", "--tcp", str(OPEN), "--udp", str(OPEN))
        pods = [made.pods["default/near"], made.pods["default/far"]]
        made.put(
            balancing.service("flooded", NUMBER, PORTS, "NodePort"),
            *balancing.slices("flooded", PORTS, [Endpoint(pod) for pod in pods]),
        )
        balancing.wait_for(made, "flooded", balancing.active(*pods))
        yield made


def held(cluster: Cluster, family: int) -> list[tuple[str, list[str]]]:
    """Who talks to whom while it floods: from `packets` too, and through every table."""
    at = 0 if family == 4 else 1
    service = f"{balancing.cluster_ips(NUMBER)[at]}:80"
    node = f"{NODE1[family]}:30080"
    world = f"{OUTSIDE[family]}:{OPEN}"
    return [
        ("client", [service] * 8 + [world] * 4),
        ("packets", [service] * 8),
        ("world", [node] * 8),
    ]


def entries(cluster: Cluster, table: str) -> int:
    """How many entries a table of node1 has, over both families."""
    return len(cluster.lab.json("bpf", table, "list", "--node", "node1"))


def drops(cluster: Cluster, reason: str) -> int:
    """Packets that node1 has dropped for a reason."""
    rows = cluster.lab.json("bpf", "metrics", "list", "--node", "node1")
    return sum(row["packets"] for row in rows if row["reasonText"] == reason)


def flood(cluster: Cluster, place: str, *arguments: str) -> dict[str, Any]:
    """Send PACKETS, and return what became of them."""
    command = ("flood", *arguments, str(RATE), str(PACKETS))
    with cluster.lab.spawned(place, *command) as running:
        outcome: dict[str, Any] = running.outcome(limit_s=60)
    assert outcome["failed"] == 0
    return outcome


def all_answer(cluster: Cluster, family: int) -> bool:
    """Whether new connections of every kind are answered."""
    asked: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}
    for place, targets in held(cluster, family):
        name = "default/client" if place == "client" else place
        pairs = [target.rsplit(":", 1) for target in targets]
        probes = [
            {"kind": "who", "over": "tcp", "address": address, "port": int(port)}
            for address, port in pairs
        ]
        asked[name] = ([], probes)
    return all(all(told) for told in cluster.probe(asked).values())


FLOODS: Final = {
    "of pods by a pod": ("flooder", "syn", "pod"),
    "of a service by a pod": ("flooder", "syn", "service"),
    "of the world by a pod": ("flooder", "udp", "world"),
    "of a node port by the world": ("world", "syn", "node"),
    "of a node port's datagrams by the world": ("world", "udp", "node"),
}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("name", FLOODS)
def test_connections_outlive_a_flood(cluster: Cluster, name: str, family: int) -> None:
    place, kind, target = FLOODS[name]
    flooder, near = cluster.pods["default/flooder"], cluster.pods["default/near"]
    at = 0 if family == 4 else 1
    source = CROWD[family] if place == "world" else (flooder.ipv4, flooder.ipv6)[at]
    address, port = {
        "pod": ((near.ipv4, near.ipv6)[at], SERVED),
        "service": (balancing.cluster_ips(NUMBER)[at], 80),
        "world": (OUTSIDE[family], OPEN),
        "node": (NODE1[family], 30080),
    }[target]
    with ExitStack() as stack:
        talkers = {}
        for client, targets in held(cluster, family):
            command = ("talk", "0.01", *targets)
            if client == "packets":
                netns = cluster.layout.pod_netns("default", "client")
                spawned = cluster.lab.spawned_beside(netns, *command)
            else:
                spawned = cluster.lab.spawned(client, *command)
            talkers[client] = stack.enter_context(spawned)
            talkers[client].wait_line("going")

        flood(cluster, place, kind, source, address, str(port))
        tracked, translated = entries(cluster, "ct"), entries(cluster, "nat")
        outcomes = {client: running.stopped() for client, running in talkers.items()}

    broken = {
        f"{client} {target}": told["error"]
        for client, outcome in outcomes.items()
        for target, told in outcome.items()
        if told["error"]
    }
    assert broken == {}
    assert tracked <= 4 * ROOM
    assert translated <= 2 * ROOM
    eventually(lambda: all_answer(cluster, family), 10, "new connections are answered")


@pytest.fixture(scope="module")
def roomy(start_lab: Callable[..., Lab]) -> Iterator[Cluster]:
    """Tables as large as ever: what runs out is ports."""
    lab = start_lab(1, "conntrack-gc-interval=1s")
    with Cluster(lab, 1) as made:
        made.add_pods(
            [
                PodSpec("default", "client", {"app": "client"}, "node1", ""),
                PodSpec("default", "flooder", {"app": "flooder"}, "node1", ""),
            ]
        )
        made.serve_at("world", "--tcp", str(OPEN), "--udp", str(OPEN))
        yield made


@pytest.mark.parametrize("family", [4, 6])
def test_what_finds_no_port_is_dropped_with_the_reason_until_ports_are_free(
    roomy: Cluster, family: int
) -> None:
    flooder = roomy.pods["default/flooder"]
    source = flooder.ipv4 if family == 4 else flooder.ipv6
    world = (OUTSIDE[family], OPEN)
    fresh = {"kind": "who", "over": "tcp", "address": world[0], "port": world[1]}
    before = drops(roomy, NO_MAPPING)

    with roomy.lab.spawned("client", "talk", "0.01", f"{world[0]}:{world[1]}") as talker:
        talker.wait_line("going")
        flood(roomy, "flooder", "syn", source, world[0], str(world[1]))
        dropped = drops(roomy, NO_MAPPING) - before
        outcome = talker.stopped()

    assert [told["error"] for told in outcome.values()] == [""]
    assert dropped > PACKETS // 4
    eventually(
        lambda: roomy.probe({"default/client": ([], [fresh] * 8)})["default/client"].count("") == 0,
        FREE_AGAIN_S,
        "new connections find ports",
    )
