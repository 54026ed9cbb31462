"""Names in a lab: judged, learned before their answers arrive, and outliving whoever dies."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.e2e.running import ECHO_PORT, Lab, Pod, Running, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOKUPS = str(Path(__file__).with_name("lookups.py"))
NAMES = 20
LOAD_S = 8
PATIENCE_S = "2"
"""After which a lookup has failed; resolvers have more."""
LATE_S = 3.0
"""Slack for machines that run other things besides the test."""

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: names}
spec:
  endpointSelector: {matchLabels: {app: client}}
  egress:
  - toEndpoints: [{matchLabels: {k8s-app: kube-dns}}]
    toPorts:
    - ports: [{port: "53", protocol: ANY}]
      rules:
        dns: [{matchPattern: "*.fresh.test"}, {matchName: "api.test"}, {matchName: pod.test}]
  - toFQDNs: [{matchPattern: "*.fresh.test"}, {matchName: pod.test}]
"""


class Cast(NamedTuple):
    """A client on node1, name servers on both nodes, and a pod that has a name."""

    client: Pod
    near: Pod
    far: Pod
    web: Pod


@pytest.fixture(scope="module")
def cast(lab: Lab) -> Iterator[Cast]:
    web = lab.add_pod("web", "--node", "node2", "-l", "app=web")
    zones: dict[str, Any] = {
        f"n{number}.fresh.test": {"A": [f"198.51.100.{number}"], "ttl": 3600}
        for number in range(1, NAMES + 1)
    }
    zones |= {
        "api.test": {"A": ["203.0.113.10"], "AAAA": ["2001:db8:113::a"]},
        "pod.test": {"A": [web.ipv4]},
        "www.fresh.test": {"CNAME": "edge.elsewhere.test"},
        "edge.elsewhere.test": {"A": ["198.51.100.100"], "ttl": 3600},
    }
    made = Cast(
        lab.add_pod("client", "--node", "node1", "-l", "app=client", command=False),
        lab.add_pod("near", "--node", "node1", "-l", "k8s-app=kube-dns", command=False),
        lab.add_pod("far", "--node", "node2", "-l", "k8s-app=kube-dns", command=False),
        web,
    )
    for number in (*range(1, NAMES + 1), 100, 101):
        lab.cilium(
            "lab", "exec", "world", "--", "ip", "addr", "add", f"198.51.100.{number}", "dev", "lo"
        )
    with (
        lab.spawned("near", "serve", json.dumps(zones), program=LOOKUPS) as near,
        lab.spawned("far", "serve", json.dumps(zones), program=LOOKUPS) as far,
        lab.spawned("world", "serve", str(ECHO_PORT)),
        lab.applied(POLICY),
    ):
        near.wait_line("serving")
        far.wait_line("serving")
        eventually(lambda: said(lab, "evil.test", made.near.ipv4) == "REFUSED", 20, "rules hold")
        yield made


def said(lab: Lab, name: str, server: str, *words: str) -> Any:
    return run(lab, "ask", server, name, *words)


def run(lab: Lab, *arguments: str) -> Any:
    with lab.spawned("client", *arguments, program=LOOKUPS) as running:
        return running.outcome(limit_s=60)


def proxy_pid(lab: Lab) -> int:
    path = lab.folder / "node1" / "run" / "proxies" / "dns-proxy.pid"
    return int(json.loads(path.read_text())["pid"])


@pytest.mark.parametrize("transport", ["", "tcp"])
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("where", ["near", "far"])
def test_names_are_judged(lab: Lab, cast: Cast, where: str, family: str, transport: str) -> None:
    server = getattr(getattr(cast, where), family)

    assert said(lab, "API.test", server, "AAAA", transport) == "NOERROR 2001:db8:113::a"
    assert said(lab, "evil.test", server, "A", transport) == "REFUSED"
    assert said(lab, "a.b.fresh.test", server, "A", transport) == "REFUSED"
    assert said(lab, "none.fresh.test", server, "A", transport) == "NXDOMAIN"


def test_an_address_is_open_from_the_first_packet_after_its_name(lab: Lab, cast: Cast) -> None:
    names = [f"n{number}.fresh.test" for number in range(1, NAMES)]
    before = lab.reaches("client", ["198.51.100.1"])
    outcomes = run(lab, "visit", cast.near.ipv4, str(ECHO_PORT), *names)

    assert before == [False]
    assert outcomes == dict.fromkeys(names, "connected")
    assert lab.reaches("client", [f"198.51.100.{NAMES}", "203.0.113.10"]) == [False, False]


def test_an_alias_opens_what_it_leads_to(lab: Lab, cast: Cast) -> None:
    outcomes = run(lab, "visit", cast.far.ipv4, str(ECHO_PORT), "www.fresh.test")

    assert outcomes == {"www.fresh.test": "connected"}
    assert lab.reaches("client", ["198.51.100.101"]) == [False]


def test_a_name_does_not_open_a_pod(lab: Lab, cast: Cast) -> None:
    assert said(lab, "pod.test", cast.near.ipv4) == f"NOERROR {cast.web.ipv4}"
    assert lab.reaches("client", [cast.web.ipv4]) == [False]


def test_queries_and_answers_are_flows(lab: Lab, cast: Cast) -> None:
    said(lab, "api.test", cast.near.ipv4)
    said(lab, "evil.test", cast.near.ipv4)

    def seen() -> bool:
        lines = lab.hubble("observe", "--protocol", "dns", "--last", "50")
        return all(
            text in lines
            for text in (
                "dns-request proxy FORWARDED (DNS Query api.test. A)",
                'DNS Answer "203.0.113.10"',
                "dns-request proxy DROPPED (DNS Query evil.test. A)",
            )
        )

    eventually(seen, 10, "DNS flows")


def loading(lab: Lab, cast: Cast, *patience: str) -> Any:
    words = ("load", cast.near.ipv4, "api.test", str(LOAD_S), *patience)
    return lab.spawned("client", *words, program=LOOKUPS)


def test_no_lookup_fails_while_the_agent_is_killed_and_comes_back(lab: Lab, cast: Cast) -> None:
    running: Running
    with loading(lab, cast, PATIENCE_S) as running:
        lab.cilium("lab", "kill", "node1/agent")
        assert said(lab, "evil.test", cast.near.ipv4) == "REFUSED"
        assert said(lab, "n2.fresh.test", cast.near.ipv4) == "NOERROR 198.51.100.2"
        lab.cilium("lab", "start", "node1/agent")
        lab.cilium("lab", "wait")
        outcome = running.outcome(limit_s=60)

    assert outcome["failed"] == 0
    assert outcome["answered"] > 100


def test_a_name_learned_without_an_agent_counts_once_it_is_back(lab: Lab, cast: Cast) -> None:
    last = f"n{NAMES}.fresh.test"
    lab.cilium("lab", "kill", "node1/agent")
    try:
        assert said(lab, last, cast.near.ipv4) == f"NOERROR 198.51.100.{NAMES}"
        assert lab.reaches("client", ["198.51.100.1", f"198.51.100.{NAMES}"]) == [True, False]
    finally:
        lab.cilium("lab", "start", "node1/agent")
        lab.cilium("lab", "wait")

    eventually(lambda: lab.reaches("client", [f"198.51.100.{NAMES}"]) == [True], 10, "learned")


def test_a_killed_proxy_is_back_soon_with_its_rules(lab: Lab, cast: Cast) -> None:
    before = proxy_pid(lab)
    with loading(lab, cast) as running:
        eventually(lambda: said(lab, "api.test", cast.near.ipv4) != "silence", 10, "answers")
        os.kill(before, signal.SIGKILL)
        outcome = running.outcome(limit_s=60)

    assert outcome["answered"] > 100
    assert outcome["failed"] > 0
    assert outcome["longest_s"] < 2 + LATE_S
    assert proxy_pid(lab) != before
    assert said(lab, "evil.test", cast.near.ipv4) == "REFUSED"


def test_addresses_keep_their_identities_over_a_restart(lab: Lab, cast: Cast) -> None:
    def identities() -> list[str]:
        lines = lab.cilium("bpf", "ipcache", "list", "--node", "node1").splitlines()
        return sorted(" ".join(line.split()[:2]) for line in lines if "198.51.100." in line)

    before = identities()
    lab.cilium("lab", "restart", "node1/agent")
    lab.cilium("lab", "wait")

    assert len(before) >= NAMES
    assert identities() == before


def test_names_can_be_listed_and_forgotten(lab: Lab, cast: Cast) -> None:
    assert "n1.fresh.test." in lab.cilium("fqdn", "cache", "list", "--node", "node1")
    lab.cilium("fqdn", "cache", "clean", "--matchpattern", "n1.fresh.test", "--node", "node1", "-f")

    eventually(lambda: lab.reaches("client", ["198.51.100.1"]) == [False], 200, "forgotten")
