"""Policies in the kernel: what they allow, refuse, revoke, and how soon."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.e2e.running import ECHO_PORT, Lab, Pod, eventually
from tests.e2e.test_connectivity import OUTSIDE, echoing
from tests.unit.collecting import attributes, collecting_beside

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.collecting import Collector

SETTLE_S = 3.0


class Cast(NamedTuple):
    """A server on node1; a friend and a stranger on each node."""

    server: Pod
    friend: Pod
    stranger: Pod
    remote_friend: Pod
    remote_stranger: Pod


@pytest.fixture(scope="module")
def cast(lab: Lab) -> Cast:
    return Cast(
        lab.add_pod("server", "--node", "node1", "-l", "app=server", "--port", f"echo={ECHO_PORT}"),
        lab.add_pod("friend", "--node", "node1", "-l", "app=friend"),
        lab.add_pod("stranger", "--node", "node1", "-l", "app=stranger"),
        lab.add_pod("far-friend", "--node", "node2", "-l", "app=friend"),
        lab.add_pod("far-stranger", "--node", "node2", "-l", "app=stranger"),
    )


def policy(port: str = str(ECHO_PORT), protocol: str = "TCP", peer: str = "friend") -> str:
    """Only the peer may reach the server, at that port."""
    return f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: only-{peer}}}
spec:
  endpointSelector: {{matchLabels: {{app: server}}}}
  ingress:
  - fromEndpoints: [{{matchLabels: {{app: {peer}}}}}]
    toPorts: [{{ports: [{{port: "{port}", protocol: {protocol}}}]}}]
"""


def becomes(lab: Lab, source: str, pod: Pod, expected: bool, protocol: str = "tcp") -> None:
    """The source reaches both addresses of the pod, or neither, within the limit."""
    eventually(
        lambda: lab.reaches(source, [pod.ipv4, pod.ipv6], protocol=protocol) == [expected] * 2,
        SETTLE_S,
        f"{source} {'reaches' if expected else 'no longer reaches'} {pod.full_name}",
    )


def test_only_the_selected_peer_gets_in_on_any_node(lab: Lab, cast: Cast) -> None:
    with lab.applied(policy()):
        for stranger in ("stranger", "far-stranger"):
            becomes(lab, stranger, cast.server, False)
        for friend in ("friend", "far-friend"):
            becomes(lab, friend, cast.server, True)
            assert lab.reaches(friend, [cast.server.ipv4], protocol="udp") == [False]

    for stranger in ("stranger", "far-stranger"):
        becomes(lab, stranger, cast.server, True)


def test_the_policys_own_traffic_goes_out_and_its_replies_come_back(lab: Lab, cast: Cast) -> None:
    with lab.applied(policy()):
        becomes(lab, "stranger", cast.server, False)

        assert lab.reaches("server", [cast.stranger.ipv4, cast.stranger.ipv6]) == [True, True]
        assert lab.reaches("server", [cast.remote_stranger.ipv4], protocol="udp") == [True]


def test_the_node_itself_always_reaches_its_pods(lab: Lab, cast: Cast) -> None:
    with lab.applied(policy()):
        becomes(lab, "stranger", cast.server, False)

        assert lab.reaches("node1", [cast.server.ipv4, cast.server.ipv6]) == [True, True]
        assert lab.reaches("node2", [cast.server.ipv4, cast.server.ipv6]) == [False, False]


def test_ports_have_names(lab: Lab, cast: Cast) -> None:
    with lab.applied(policy(port="echo")):
        becomes(lab, "stranger", cast.server, False)
        becomes(lab, "far-friend", cast.server, True)


def test_a_policy_for_udp_leaves_tcp_refused(lab: Lab, cast: Cast) -> None:
    with lab.applied(policy(protocol="UDP")):
        becomes(lab, "friend", cast.server, False)
        becomes(lab, "friend", cast.server, True, protocol="udp")


@pytest.mark.parametrize("source", ["friend", "far-friend"])
def test_revoking_a_rule_stops_an_established_connection(lab: Lab, cast: Cast, source: str) -> None:
    with (
        lab.applied(policy()),
        lab.spawned(source, "hold", cast.server.ipv4, str(ECHO_PORT)) as held,
    ):
        held.wait_line("talking")
        with lab.applied(policy().replace("app: friend", "app: nobody")):
            revoked = time.time()
            outcome = held.outcome(limit_s=10)

    assert outcome["ended_by"] == "TimeoutError"
    assert outcome["last_talk"] - revoked < SETTLE_S


def test_a_connection_that_stays_allowed_survives_policy_changes(lab: Lab, cast: Cast) -> None:
    with (
        lab.applied(policy()),
        lab.spawned("far-friend", "load", "4", cast.server.ipv4, str(ECHO_PORT)) as loading,
    ):
        for _ in range(3):
            with lab.applied(policy(peer="stranger")):
                pass
        outcome = loading.outcome(limit_s=30)

    assert outcome["tcp"]["errors"] == []


DENY = """
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: block-outside}
spec:
  endpointSelector: {}
  enableDefaultDeny: {egress: false}
  egressDeny:
  - toCIDRSet:
    - {cidr: 203.0.113.0/24, except: [203.0.113.20/32]}
    - {cidr: "2001:db8:113::/64", except: ["2001:db8:113::14/128"]}
"""


def refuses(lab: Lab, source: str, addresses: list[str]) -> None:
    """The source soon reaches none of the addresses."""
    eventually(lambda: not any(lab.reaches(source, addresses)), SETTLE_S, f"{source} is refused")


def test_a_clusterwide_policy_blocks_networks_but_for_one_address(lab: Lab, cast: Cast) -> None:
    excepted = ["203.0.113.20", "2001:db8:113::14"]
    with echoing(lab, "world"):
        assert lab.reaches("friend", [*OUTSIDE, *excepted]) == [True] * 4
        with lab.applied(DENY):
            for source in ("friend", "far-stranger"):
                refuses(lab, source, OUTSIDE)
                assert lab.reaches(source, excepted) == [True, True]
            assert lab.reaches("friend", [cast.server.ipv4, cast.remote_friend.ipv6]) == [True] * 2


def test_an_egress_allow_list_lets_nothing_else_out(lab: Lab, cast: Cast) -> None:
    text = f"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: friend-egress}}
spec:
  podSelector: {{matchLabels: {{app: friend}}}}
  policyTypes: [Egress]
  egress:
  - to: [{{ipBlock: {{cidr: 203.0.113.0/28}}}}]
    ports: [{{port: {ECHO_PORT - 1}, endPort: {ECHO_PORT + 1}}}]
"""
    with echoing(lab, "world"), lab.applied(text):
        becomes(lab, "friend", cast.server, False)
        assert lab.reaches("friend", ["203.0.113.10", "203.0.113.20"]) == [True, False]
        assert lab.reaches("stranger", [cast.server.ipv4]) == [True]


def test_a_drop_names_the_reason_and_the_pods(lab: Lab, cast: Cast) -> None:
    with lab.applied(policy()):
        becomes(lab, "far-stranger", cast.server, False)

        def dropped() -> bool:
            output = lab.hubble(
                "observe",
                "--verdict",
                "DROPPED",
                "--from-pod",
                "default/far-stranger",
                "-o",
                "json",
            )
            flows = [json.loads(line)["flow"] for line in output.splitlines()]
            return any(
                flow["drop_reason_desc"] == "POLICY_DENIED"
                and flow["destination"]["pod_name"] == "server"
                for flow in flows
            )

        eventually(dropped, 5, "the drop is seen through the relay")
        said = lab.hubble("why", "--verdict", "DROPPED", "--from-pod", "default/far-stranger")
    assert "Drop reason: Policy denied" in said
    assert "Ingress at default/server: DENIED" in said
    assert "CiliumNetworkPolicy default/only-friend" in said
    counters = lab.json("bpf", "metrics", "list", "--node", "node1")
    assert any(c["reasonText"] == "Policy denied" and c["packets"] > 0 for c in counters)


def test_a_drop_is_an_event_of_the_pod_and_a_log_record_at_the_collector(
    lab: Lab, cast: Cast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = f"unix:{tmp_path}/otlp.sock"
    server = f"unix://{lab.folder}/node1/run/hubble.sock"
    said = "Incoming packet dropped (policy_denied) from default/far-stranger"

    def events() -> list[str]:
        found = lab.json("get", "events").get("items", [])
        return [one["message"] for one in found if one["involvedObject"]["name"] == "server"]

    def record_of_drop(collector: Collector, run: Any) -> bool:
        lab.reaches("far-stranger", [cast.server.ipv4])
        return any(
            (told.get("cilium.source.pod"), told["cilium.flow.verdict"])
            == ("far-stranger", "DROPPED")
            for told in (attributes(one.attributes) for one in run(collector.log_records(1)))
        )

    with (
        collecting_beside(endpoint) as (collector, run),
        lab.configured(
            "node1/hubble-server",
            {
                "otlp-endpoint": endpoint,
                "hubble-otlp-flows": "true",
                "hubble-otlp-allowlist": '{"verdict":["DROPPED"]}',
                "hubble-drop-events": "true",
            },
        ),
        lab.applied(policy()),
    ):
        becomes(lab, "far-stranger", cast.server, False)
        eventually(lambda: record_of_drop(collector, run), 10, "the collector has the drop")
        eventually(lambda: any(said in one for one in events()), 10, "the pod has the event")
        with monkeypatch.context() as environment:
            environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
            lab.hubble("status", server=server)
        spans: list[tuple[str, Any]] = []

        def is_one_trace() -> bool:
            spans.extend(run(collector.spans(1)))
            asked = {span.trace_id for name, span in spans if span.name == "hubble status"}
            served = {span.trace_id for name, span in spans if name == "hubble-server"}
            return bool(asked & served)

        eventually(is_one_trace, 10, "the command and what served it are one trace")


def test_the_prefilter_drops_at_the_device_and_lets_in_again(lab: Lab, cast: Cast) -> None:
    with echoing(lab, "node1"):
        assert lab.reaches("world", ["172.30.0.11", "fd00:30::11"]) == [True, True]

        lab.cilium("prefilter", "update", "172.30.0.2/32", "fd00:30::2/128", "--node", "node1")
        try:
            assert lab.reaches("world", ["172.30.0.11", "fd00:30::11"]) == [False, False]
        finally:
            lab.cilium("prefilter", "delete", "172.30.0.2/32", "fd00:30::2/128", "--node", "node1")

        assert lab.reaches("world", ["172.30.0.11", "fd00:30::11"]) == [True, True]


def test_a_policy_is_enforced_soon_after_apply_returns(lab: Lab, cast: Cast) -> None:
    """A small version of the benchmark; the bound is loose, machines under test are shared."""
    seconds = []
    for _ in range(3):
        with lab.spawned("friend", "hold", cast.server.ipv4, str(ECHO_PORT)) as held:
            held.wait_line("talking")
            with lab.applied(policy(peer="nobody")):
                applied = time.time()
                seconds.append(held.outcome(limit_s=10)["last_talk"] - applied)
        becomes(lab, "friend", cast.server, True)

    assert sorted(seconds)[1] < 1.0
