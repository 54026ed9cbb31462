"""The command line on a real lab: every list in every format, and what it says to bad input."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import rdpcap

from tests.e2e.running import BIN, ECHO_PORT, Lab, Pod, eventually

if TYPE_CHECKING:
    from pathlib import Path

CLOSED_PORT = 9
LISTS = [
    ("endpoint", "list"),
    ("identity", "list"),
    ("ip", "list"),
    ("node", "list"),
    ("bpf", "ct", "list"),
    ("bpf", "policy", "list"),
    ("bpf", "ipcache", "list"),
    ("bpf", "endpoint", "list"),
    ("bpf", "tunnel", "list"),
    ("bpf", "metrics", "list"),
    ("lab", "pod", "list"),
    ("lab", "status"),
]


@pytest.fixture(scope="module")
def pod(lab: Lab) -> Pod:
    made = lab.add_pod("web", "--node", "node1", "-l", "app=web")
    other = lab.add_pod("other", "--node", "node2", "-l", "app=other")
    lab.reaches("other", [made.ipv4, made.ipv6])
    lab.reaches("web", [other.ipv4, "203.0.113.10"])
    return made


@pytest.mark.parametrize("command", LISTS, ids=" ".join)
def test_lists_print_tables_json_and_yaml(lab: Lab, pod: Pod, command: tuple[str, ...]) -> None:
    table = lab.cilium(*command)
    as_json = json.loads(lab.cilium(*command, "-o", "json"))
    as_yaml = yaml.safe_load(lab.cilium(*command, "-o", "yaml"))

    assert "\x1b" not in table
    assert len(table.splitlines()) >= 1
    assert isinstance(as_json, list)
    assert as_json
    assert as_yaml
    assert {type(row) for row in as_yaml} == {dict}


def test_status_names_every_component_and_is_ok(lab: Lab, pod: Pod) -> None:
    text = lab.cilium("status")

    for label in ("KVStore:", "Cilium:", "IPAM:", "Hubble:", "Controller Status:"):
        assert any(line.startswith(label) for line in text.splitlines()), label
    assert lab.cilium("status", "--brief") == "OK\n"
    assert lab.json("status")["ready"] is True


def test_an_endpoint_is_found_by_id_address_and_pod(lab: Lab, pod: Pod) -> None:
    by_pod = lab.json("endpoint", "get", "default/web")
    number = str(by_pod["endpoint"]["id"])

    assert lab.json("endpoint", "get", pod.ipv4)["endpoint"]["id"] == int(number)
    assert lab.json("endpoint", "get", pod.ipv6)["endpoint"]["id"] == int(number)
    assert "k8s:app=web" in lab.cilium("endpoint", "get", number)


def test_monitor_prints_events_as_lines_and_json(lab: Lab, pod: Pod) -> None:
    with lab.spawned("other", "load", "3", pod.ipv4, str(ECHO_PORT)):
        lines = lab.cilium("monitor", "--node", "node1", "--number", "5").splitlines()
        objects = lab.cilium("monitor", "-j", "-t", "trace", "--number", "3").splitlines()

    assert len(lines) == 5
    assert all("->" in line for line in lines)
    assert [json.loads(line)["type"] for line in objects] == ["trace"] * 3


def test_mutable_options_are_changed_and_shown(lab: Lab, pod: Pod) -> None:
    before = lab.json("config")

    changed = lab.json("config", "monitor-aggregation=none")
    lab.cilium("config", f"monitor-aggregation={before['monitor-aggregation']}")

    assert changed["monitor-aggregation"] == "none"
    assert lab.json("config") == before


@pytest.mark.parametrize(
    ("command", "exit_code", "words"),
    [
        (["endpoint", "get", "65000"], 3, "65000"),
        (["endpoint", "get", "default/nosuch"], 3, "nosuch"),
        (["endpoint", "get", "not an endpoint"], 1, "not an endpoint"),
        (["identity", "get", "9999999"], 3, "9999999"),
        (["identity", "get", "abc"], 2, "abc"),
        (["policy", "get", "nosuch"], 3, "nosuch"),
        (["policy", "wait", "999999999", "--timeout", "0.2"], 4, "999999999"),
        (["policy", "wait", "-1"], 2, "-1"),
        (["status", "--node", "node9"], 3, "node9"),
        (["status", "--node", "banana"], 1, "banana"),
        (["status", "--socket", "/nonexistent/cilium.sock"], 2, "/nonexistent/cilium.sock"),
        (["status", "-o", "xml"], 2, "xml"),
        (["config", "no-such-option=1"], 1, "no-such-option"),
        (["config", "monitor-aggregation=loud"], 1, "loud"),
        (["config", "tunnel-port=1"], 1, "tunnel-port"),
        (["config", "monitor-aggregation"], 1, "OPTION=VALUE"),
        (["prefilter", "update", "10.0.0.1/8"], 1, "10.0.0.1/8"),
        (["prefilter", "update", "banana"], 1, "banana"),
        (["prefilter", "update"], 1, "--rate-limit"),
        (["prefilter", "update", "--rate-limit", "-5"], 2, "-5"),
        (["bpf", "policy", "get", "0"], 2, "0"),
        (["monitor", "-t", "gossip"], 2, "gossip"),
        (["monitor", "--from", "70000"], 2, "70000"),
        (["lab", "up", "--name", "x/y"], 1, "x/y"),
        (["lab", "up", "--name", "fine", "--nodes", "0"], 1, "0"),
        (["lab", "up", "--name", "fine", "--nodes", "many"], 2, "many"),
        (["lab", "pod", "add", "UPPER"], 1, "UPPER"),
        (["lab", "pod", "add", "a/b/c"], 1, "a/b/c"),
        (["lab", "pod", "add", "x", "--node", "node7"], 3, "node7"),
        (["lab", "pod", "add", "x", "-l", "nolabel"], 1, "nolabel"),
        (["lab", "pod", "add", "x", "--port", "http=99999"], 1, "99999"),
        (["lab", "pod", "add", "web"], 1, "default/web"),
        (["lab", "pod", "delete", "nosuch"], 3, "nosuch"),
        (["lab", "pod", "add", "-f", "/nonexistent.yaml"], 1, "/nonexistent.yaml"),
        (["lab", "exec", "nosuch", "--", "true"], 3, "nosuch"),
        (["lab", "exec", "web", "--", "/no/such/program"], 1, "/no/such/program"),
        (["lab", "restart", "node1/cat"], 3, "node1/cat"),
        (["lab", "logs", "nosuch"], 3, "nosuch"),
        (["get", "spaceships"], 1, "spaceships"),
        (["get", "cnp", "nosuch"], 3, "nosuch"),
        (["delete", "cnp", "nosuch"], 3, "nosuch"),
        (["delete"], 2, "KIND"),
        (["apply", "-f", "/nonexistent.yaml"], 1, "/nonexistent.yaml"),
        (["frobnicate"], 2, "frobnicate"),
        (["status", "--lab", "nosuch"], 3, "nosuch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_named_and_has_an_exit_code(
    lab: Lab, pod: Pod, command: list[str], exit_code: int, words: str
) -> None:
    output = lab.cilium(*command, exit_code=exit_code)

    assert words in output
    assert "Traceback" not in output


GOOD = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: good}
spec: {endpointSelector: {}, ingress: [{}]}
---
"""


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: [", "p.yaml:8", "YAML"),
        ("kind: CiliumNetworkPolicy\nkind: Pod", "p.yaml:8", "twice"),
        ("- not an object", "p.yaml:7", "object"),
        ("kind: Spaceship\napiVersion: v1\nmetadata: {name: a}", "p.yaml:7", "Spaceship"),
        ("kind: CiliumNetworkPolicy\napiVersion: v1\nmetadata: {name: a}", "p.yaml:8", "v1"),
        (
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata:\n  name: Bad_Name",
            "p.yaml:10",
            "Bad_Name",
        ),
        (
            (
                "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: a}\nspec:\n"
                "  endpointSelector: {}\n  ingress:\n  - fromEndpoints: []\n    toPorts:\n"
                "    - ports:\n      - port: '70000'\n        protocol: TCP"
            ),
            "p.yaml:16",
            "70000",
        ),
        (
            (
                "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: a}\nspec:\n"
                "  endpointSelector: {}\n  ingres: []"
            ),
            "p.yaml:12",
            "ingres",
        ),
        (
            (
                "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: a}\nspec:\n"
                "  endpointSelector: {}\n  egress:\n  - toCIDR: [10.0.0.0/33]"
            ),
            "p.yaml:13",
            "10.0.0.0/33",
        ),
        (
            (
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"
                "metadata: {name: a}\nspec:\n"
                "  podSelector: {}\n  ingress:\n  - from:\n    - ipBlock: {cidr: banana}"
            ),
            "p.yaml:14",
            "banana",
        ),
    ],
)
def test_a_file_with_one_wrong_object_names_its_place_and_stores_nothing(
    lab: Lab, tmp_path: Path, text: str, place: str, words: str
) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(GOOD + text)

    output = lab.cilium("apply", "-f", str(path), exit_code=1)

    assert f"{tmp_path}/{place}" in output
    assert words in output
    assert "Traceback" not in output
    assert lab.json("get", "cnp")["items"] == []


def test_packets_that_nobody_listens_for_are_recorded_and_explained(lab: Lab, pod: Pod) -> None:
    # given a recording of what comes to a port that is closed
    server = f"unix://{lab.folder}/node1/run/hubble.sock"
    words = f"any 0 {pod.ipv4} {CLOSED_PORT} UDP"
    command = [str(BIN / "hubble"), "record", words, "--packet-limit", "1", "--server", server]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as recording:
        assert recording.stderr is not None
        assert "Started recording" in recording.stderr.readline()

        # when a pod of another node sends something there
        assert lab.reaches("other", [pod.ipv4], CLOSED_PORT, "udp") == [False]
        path, _ = recording.communicate(timeout=30)

    # then the packet is in the file, and its flow has the kernel's reason
    (packet,) = rdpcap(path.strip())
    assert isinstance(packet, Ether)
    assert (packet[IP].dst, packet[UDP].dport) == (pod.ipv4, CLOSED_PORT)
    filters = ("--verdict", "DROPPED", "--to-ip", pod.ipv4, "--to-port", str(CLOSED_PORT))
    flows = eventually(lambda: lab.hubble("observe", *filters), 10, "the drop is a flow")
    assert "default/other:" in flows
    assert "UDP; NO_SOCKET: Nobody listens at the port" in flows
