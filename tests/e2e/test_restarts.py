"""Crashes under load: every component killed with SIGKILL and started again."""

from __future__ import annotations

import json
import time
from typing import Any, NamedTuple

import pytest

from tests.e2e.running import ECHO_PORT, Lab, Pod, eventually

LOAD_S = 4
HEALTHY_S = 5.0
LATE_S = 3.0
"""Slack for machines that run other things besides the test."""


class Cast(NamedTuple):
    """A client on node1 and a server on node2, which only the client may reach."""

    client: Pod
    server: Pod


@pytest.fixture(scope="module")
def cast(lab: Lab) -> Cast:
    made = Cast(
        lab.add_pod("client", "--node", "node1", "-l", "app=client"),
        lab.add_pod("server", "--node", "node2", "-l", "app=server"),
    )
    lab.cilium(
        "apply",
        "-f",
        "-",
        stdin="""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: only-client}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress: [{fromEndpoints: [{matchLabels: {app: client}}]}]
""",
    )
    return made


def facts(lab: Lab) -> Any:
    """Endpoints with identities and addresses, on both nodes, and who has which pod CIDR."""
    endpoints = [
        (e["id"], e["identity"], e["ipv4"], e["ipv6"], e["podName"])
        for node in ("node1", "node2")
        for e in lab.json("endpoint", "list", "--node", node)
        if e["podName"]
    ]
    nodes = sorted((n["name"], *n["podCidrs"]) for n in lab.json("node", "list"))
    return endpoints, nodes


def ready(lab: Lab) -> bool:
    """Whether all components report to be ready."""
    rows = json.loads(lab.cilium("lab", "status", "-o", "json", exit_code=None))
    return all(row["state"] == "ready" for row in rows)


@pytest.mark.parametrize(
    "component",
    [
        "node1/agent",
        "node2/agent",
        "node1/hubble-server",
        "relay",
        "operator1",
        "operator2",
        "etcd",
    ],
)
def test_a_crash_costs_no_packet_and_is_over_soon(lab: Lab, cast: Cast, component: str) -> None:
    before = facts(lab)
    load = ("load", str(LOAD_S))
    with (
        lab.spawned("client", *load, cast.server.ipv4, str(ECHO_PORT)) as first,
        lab.spawned("client", *load, cast.server.ipv6, str(ECHO_PORT)) as second,
    ):
        eventually(lambda: lab.reaches("client", [cast.server.ipv4]) == [True], 5, "traffic flows")

        lab.cilium("lab", "restart", component)
        killed = time.monotonic()
        lab.cilium("lab", "wait", "--timeout", "20")
        healthy_s = time.monotonic() - killed
        outcomes = [running.outcome(limit_s=60) for running in (first, second)]

    for outcome in outcomes:
        assert outcome["tcp"]["errors"] == []
        assert outcome["udp"]["lost"] == 0
        assert outcome["tcp"]["messages"] > LOAD_S * 20
    assert facts(lab) == before
    assert healthy_s < HEALTHY_S + LATE_S


def test_policy_is_enforced_while_the_agent_is_dead(lab: Lab, cast: Cast) -> None:
    stranger = lab.add_pod("stranger", "--node", "node1", "-l", "app=stranger")
    lab.cilium("lab", "kill", "node2/agent")
    lab.cilium("lab", "kill", "node1/agent")
    try:
        assert lab.reaches("client", [cast.server.ipv4, cast.server.ipv6]) == [True, True]
        assert lab.reaches("stranger", [cast.server.ipv4, cast.server.ipv6]) == [False, False]
        assert stranger.node == "node1"
    finally:
        lab.cilium("lab", "start", "node1/agent")
        lab.cilium("lab", "start", "node2/agent")
        lab.cilium("lab", "wait")


def test_a_pod_deleted_while_the_agent_is_dead_is_forgotten_when_it_is_back(
    lab: Lab, cast: Cast
) -> None:
    pod = lab.add_pod("doomed", "--node", "node1", "-l", "app=doomed")
    lab.cilium("lab", "kill", "node1/agent")

    lab.cilium("lab", "pod", "delete", "doomed")
    lab.cilium("lab", "start", "node1/agent")
    lab.cilium("lab", "wait")

    assert "doomed" not in lab.cilium("endpoint", "list", "--node", "node1")
    assert pod.ipv4 not in lab.cilium("bpf", "endpoint", "list", "--node", "node1")


def test_pods_are_added_by_an_agent_that_restarts(lab: Lab, cast: Cast) -> None:
    lab.cilium("lab", "restart", "node1/agent")

    pod = lab.add_pod("impatient", "--node", "node1", "-l", "app=client")

    assert lab.reaches("impatient", [cast.server.ipv4, cast.server.ipv6]) == [True, True]
    assert pod.ipv4 != cast.client.ipv4


def test_losing_etcd_for_a_while_stops_nothing_that_runs(lab: Lab, cast: Cast) -> None:
    before = facts(lab)
    lab.cilium("lab", "kill", "etcd")
    try:
        assert lab.reaches("client", [cast.server.ipv4, cast.server.ipv6]) == [True, True]
    finally:
        lab.cilium("lab", "start", "etcd")
        lab.cilium("lab", "wait")

    assert facts(lab) == before
