"""Services that change while they are used: backends replaced, the agent dead meanwhile."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.e2e import balancing
from tests.e2e.balancing import Endpoint, Port
from tests.e2e.driving import Cluster, PodSpec
from tests.e2e.running import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.running import Lab, Pod, Running

RATE: Final = 500
"""Connections per second, over both families together."""
QUIET_S: Final = 0.3
"""A backend that has served nobody for so long may end."""
CONVERGED_S: Final = 5.0
LATE_S: Final = 3.0
"""Slack for machines that run other things besides the test."""
SERVED: Final = 8080
PORTS: Final = [Port("tcp", "TCP", 80, SERVED, 30080)]
NODE1: Final = {4: "172.30.0.11", 6: "fd00:30::11"}
CLIENTS: Final = ("client", "packets", "world")
"""A pod, a process in it that programs at sockets do not see, and a host outside."""


@pytest.fixture(scope="module")
def cluster(start_lab: Callable[..., Lab]) -> Iterator[Cluster]:
    lab = start_lab(2)
    with Cluster(lab, 2) as made:
        made.add_pods([PodSpec("default", "client", {"app": "client"}, "node1", "")])
        made.serve_beside("default/client", "packets")
        made.serve_at("world")
        yield made


def add_backends(cluster: Cluster, *names: str) -> list[Pod]:
    """Pods that serve, on the nodes in turn."""
    specs = [
        PodSpec("default", name, {"app": "server"}, f"node{1 + number % 2}", f"--tcp {SERVED}")
        for number, name in enumerate(names)
    ]
    cluster.add_pods(specs)
    return [cluster.pods[f"default/{name}"] for name in names]


def quiet(cluster: Cluster, pod: Pod) -> bool:
    """Whether nobody asks a backend any more."""
    probe = {"kind": "quiet", "seconds": QUIET_S}
    return cluster.probe({pod.full_name: ([probe], [])})[pod.full_name] == ["ok"]


@contextmanager
def running(cluster: Cluster, client: str, *arguments: str) -> Iterator[Running]:
    """Run traffic.py where a client is, and return once it has had answers."""
    if client == "packets":
        netns = cluster.layout.pod_netns("default", "client")
        spawned = cluster.lab.spawned_beside(netns, *arguments)
    else:
        spawned = cluster.lab.spawned(client, *arguments)
    with spawned as process:
        process.wait_line("going")
        yield process


def frontend(client: str, number: int, family: int) -> tuple[str, int]:
    """Where a client asks for a service with PORTS."""
    if client == "world":
        return NODE1[family], 30080
    return balancing.cluster_ips(number)[0 if family == 4 else 1], 80


@pytest.mark.parametrize("client", CLIENTS)
def test_replacing_all_backends_fails_no_connection(cluster: Cluster, client: str) -> None:
    name, number = f"rolling-{client}", 30
    old = add_backends(cluster, *(f"old{at}-{client}" for at in range(4)))
    ends = [Endpoint(pod) for pod in old]
    document = balancing.service(name, number, PORTS, "NodePort")

    def publish(*, wanted: dict[str, str]) -> None:
        cluster.put(*balancing.slices(name, PORTS, ends))
        balancing.wait_for(cluster, name, wanted)

    cluster.put(document)
    publish(wanted=balancing.active(*old))
    ways = [frontend(client, number, family) for family in (4, 6)]
    try:
        with ExitStack() as stack:
            storms = [
                stack.enter_context(
                    running(cluster, client, "storm", str(RATE / 2), address, str(port))
                )
                for address, port in ways
            ]
            for at, pod in enumerate(old):
                # one more is ready, then an old one is told to end: it still serves, and is seen
                # to terminate; it ends when nobody asks it any more
                (fresh,) = add_backends(cluster, f"new{at}-{client}")
                ends.append(Endpoint(fresh))
                publish(wanted=balancing.active(*(end.pod for end in ends)))
                ends[0] = Endpoint(pod, ready=False, terminating=True)
                left = balancing.active(*(end.pod for end in ends[1:]))
                leaving = dict.fromkeys((pod.ipv4, pod.ipv6), "terminating")
                publish(wanted=left | leaving)
                eventually(partial(quiet, cluster, pod), 20, f"{pod.full_name} is left alone")
                del ends[0]
                publish(wanted=left)
                cluster.delete_pods([pod.full_name])
            outcomes = [storm.stopped() for storm in storms]
    finally:
        cluster.remove(document, *balancing.slices(name, PORTS, ends))
        made = {pod.full_name for pod in (*old, *(end.pod for end in ends))}
        cluster.delete_pods(made & set(cluster.pods))

    everyone = {f"default.{kind}{at}-{client}" for kind in ("old", "new") for at in range(4)}
    for outcome in outcomes:
        assert outcome["failed"] == {}
        assert outcome["connections"] >= 0.9 * RATE / 2 * outcome["seconds"]
        assert set(outcome["served"]) == everyone


class Talkers:
    """Connections through a service that are held while something happens."""

    def __init__(self, stack: ExitStack, cluster: Cluster, number: int) -> None:
        self._running = {}
        for client in CLIENTS:
            targets = []
            for family in (4, 6):
                address, port = frontend(client, number, family)
                targets += [f"{address}:{port}"] * 8
            self._running[client] = stack.enter_context(
                running(cluster, client, "talk", "0.01", *targets)
            )

    def broken(self) -> dict[str, Any]:
        """Stop, and tell whose connections did not last, and how they ended."""
        outcomes = {client: process.stopped() for client, process in self._running.items()}
        return {
            f"{client}: {target}": told
            for client, outcome in outcomes.items()
            for target, told in outcome.items()
            if told["error"]
        }


def test_services_that_change_while_the_agent_is_dead_are_right_when_it_is_back(
    cluster: Cluster,
) -> None:
    first, second, third = add_backends(cluster, "stays", "terminates", "comes")
    kept, doomed, fresh = 31, 32, 33
    ports = [Port("tcp", "TCP", 80, SERVED)]
    cluster.put(
        balancing.service("kept", kept, PORTS, "NodePort"),
        *balancing.slices("kept", PORTS, [Endpoint(first), Endpoint(second)]),
        balancing.service("doomed", doomed, ports),
        *balancing.slices("doomed", ports, [Endpoint(first)]),
    )
    balancing.wait_for(cluster, "kept", balancing.active(first, second))
    balancing.wait_for(cluster, "doomed", balancing.active(first))
    with ExitStack() as stack:
        talkers = Talkers(stack, cluster, kept)
        cluster.lab.cilium("lab", "kill", "node1/agent")
        later = [
            balancing.service("fresh", fresh, ports),
            *balancing.slices("fresh", ports, [Endpoint(third)]),
        ]
        leaving = Endpoint(second, ready=False, terminating=True)
        cluster.put(
            *balancing.slices("kept", PORTS, [Endpoint(first), leaving, Endpoint(third)]),
            *later,
        )
        cluster.remove(
            balancing.service("doomed", doomed, ports),
            *balancing.slices("doomed", ports, [Endpoint(first)]),
        )
        assert answers(cluster, kept) != {""}

        started = time.monotonic()
        cluster.lab.cilium("lab", "start", "node1/agent")
        eventually(
            lambda: (
                answers(cluster, kept) == {"default.stays", "default.comes"}
                and answers(cluster, fresh) == {"default.comes"}
                and not answers(cluster, doomed) & {"default.stays"}
            ),
            30,
            "node1 has what changed",
        )
        converged_s = time.monotonic() - started
        cluster.lab.cilium("lab", "wait")
        broken = talkers.broken()

    assert broken == {}
    assert converged_s < CONVERGED_S + LATE_S


def answers(cluster: Cluster, number: int) -> set[str]:
    """Who answers for a service: asked often, from sockets and by packets, over both families."""
    probes = [
        {"kind": "who", "over": "tcp", "address": address, "port": 80}
        for address in balancing.cluster_ips(number)
        for _ in range(12)
    ]
    seen = cluster.probe({"default/client": ([], probes), "packets": ([], probes)})
    return {answer.split(" ")[0] for told in seen.values() for answer in told}


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_killing_an_agent_resets_no_connection_and_changes_no_id(
    cluster: Cluster, node: str
) -> None:
    pods = add_backends(cluster, f"left-{node}", f"right-{node}")
    number, name = 34, f"steady-{node}"
    document = balancing.service(name, number, PORTS, "NodePort")
    parts = balancing.slices(name, PORTS, [Endpoint(pod) for pod in pods])
    cluster.put(document, *parts)
    balancing.wait_for(cluster, name, balancing.active(*pods))
    before = ids(cluster, node)
    try:
        with ExitStack() as stack:
            talkers = Talkers(stack, cluster, number)
            cluster.lab.cilium("lab", "restart", f"{node}/agent")
            cluster.lab.cilium("lab", "wait")
            eventually(lambda: ids(cluster, node) == before, 10, "ids are what they were")
            broken = talkers.broken()
    finally:
        cluster.remove(document, *parts)
        cluster.delete_pods(pod.full_name for pod in pods)

    assert broken == {}


def ids(cluster: Cluster, node: str) -> set[tuple[Any, ...]]:
    """Ids of frontends and backends on a node."""
    found: set[tuple[Any, ...]] = set()
    for front in cluster.frontends(node):
        at = front.frontend
        found.add((at.ip, at.port, at.protocol, front.scope, front.id))
        found |= {(end.address.ip, end.address.port, end.id) for end in front.backends}
    return found
