"""What `cilium service explain` and Hubble say of services is what happens to real traffic."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.running import ECHO_PORT, PYTHON, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.running import Lab, Pod

NODE = "172.30.0.11"
WORLD = "172.30.0.2"
PORT = 80
STICKY_PORT = 81
_CONNECT = (
    "import socket, sys\n"
    "try:\n"
    "    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5,\n"
    "        source_address=('0.0.0.0', int(sys.argv[3])))\n"
    "except OSError as error:\n"
    "    sys.exit(f'refused: {error}')\n"
)


@pytest.fixture(scope="module")
def lab(start_lab: Callable[..., Lab]) -> Lab:
    return start_lab(2, "bpf-lb-algorithm=maglev", "bpf-lb-maglev-table-size=251")


@pytest.fixture(scope="module")
def client(lab: Lab) -> Pod:
    return lab.add_pod("client", "--node", "node1", command=False)


@pytest.fixture(scope="module")
def frontends(lab: Lab, client: Pod) -> dict[str, dict[str, Any]]:
    """Frontends over IPv4 of three services: web and sticky with two backends, empty with none."""
    del client
    for node in ("node1", "node2"):
        lab.add_pod(f"web-{node}", "--node", node, "--label", "app=web")
    web = {"selector": {"app": "web"}}
    ports = {"targetPort": ECHO_PORT, "protocol": "TCP"}
    specs = {
        "web": {**web, "type": "NodePort", "ports": [{"port": PORT, **ports}]},
        "sticky": {
            **web,
            "sessionAffinity": "ClientIP",
            "ports": [{"port": STICKY_PORT, **ports}],
        },
        "empty": {"selector": {"app": "nobody"}, "ports": [{"port": PORT, **ports}]},
    }
    items = [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}
        for name, spec in specs.items()
    ]
    document = {"apiVersion": "v1", "kind": "List", "items": items}
    lab.cilium("apply", "-f", "-", stdin=json.dumps(document))

    def found() -> dict[str, dict[str, Any]] | None:
        listed = lab.json("service", "list")
        known = {
            one["name"]: one
            for one in listed
            if one["type"] == "ClusterIP" and ":" not in one["frontend"]["ip"]
        }
        for one in listed:
            if one["frontend"]["ip"] == NODE:
                known["nodeport"] = one
        whole = all(len(known.get(name, {}).get("backends", [])) == 2 for name in ("web", "sticky"))
        return known if whole and {"empty", "nodeport"} <= known.keys() else None

    services = eventually(found, 20, "services have their backends")
    assert isinstance(services, dict)
    return services


def place(service: dict[str, Any], port: int = 0) -> str:
    return f"{service['frontend']['ip']}:{port or service['frontend']['port']}"


def explain(lab: Lab, at: str, *options: str) -> dict[str, Any]:
    answer = lab.json("service", "explain", at, *options)
    assert answer["kernel"] is None or answer["kernel"]["agrees"], answer
    assert not answer["unverified"]
    assert isinstance(answer, dict)
    return answer


def connect(lab: Lab, who: str, at: str, source_port: int) -> str:
    ip, _, port = at.rpartition(":")
    return lab.cilium(
        "lab", "exec", who, "--", PYTHON, "-c", _CONNECT, ip, port, str(source_port),
        exit_code=None,
    )  # fmt: skip


@pytest.mark.parametrize("source_port", [41000, 41001, 41002, 41003])
def test_a_client_from_outside_gets_the_backend_that_its_hash_leads_to(
    lab: Lab, frontends: dict[str, dict[str, Any]], source_port: int
) -> None:
    at = place(frontends["nodeport"])
    options = ("--from", WORLD, "--source-port", str(source_port))
    told = explain(lab, at, *options)
    connect(lab, "world", at, source_port)
    (entry,) = [
        one
        for one in lab.json("bpf", "ct", "list")
        if one["scope"] == "SVC" and one["sourcePort"] == source_port
    ]

    assert (told["choice"], told["place"]) == ("maglev", "device")
    assert told["kernel"]["program"] == "from-netdev"
    assert told["kernel"]["backend"]["address"] == told["backend"]["address"]
    assert told["backend"]["id"] == entry["backend"]
    again = explain(lab, at, *options)
    assert (again["choice"], again["backend"]["id"]) == ("connection", entry["backend"])


def test_a_pod_gets_any_backend_until_affinity_binds_it(
    lab: Lab, client: Pod, frontends: dict[str, dict[str, Any]]
) -> None:
    at = place(frontends["sticky"])
    before = explain(lab, at, "--from", client.full_name)
    connect(lab, client.full_name, at, 0)
    after = explain(lab, at, "--from", client.full_name)
    (kept,) = lab.json("bpf", "affinity", "list")

    assert (before["choice"], before["place"]) == ("random", "socket")
    assert [one["possible"] for one in before["candidates"]] == [True, True]
    assert after["choice"] == "affinity"
    assert after["backend"]["id"] == kept["backend"]


def test_what_nobody_serves_is_told_to_be_refused_and_is(
    lab: Lab, client: Pod, frontends: dict[str, dict[str, Any]]
) -> None:
    for at in (place(frontends["empty"]), place(frontends["web"], 99)):
        told = explain(lab, at, "--from", client.full_name)
        assert told["choice"] == "refused"
        assert told["kernel"]["dropReason"] == "Service backend not found"
        connect(lab, client.full_name, at, 0)
    outside = explain(lab, place(frontends["web"]), "--from", WORLD)
    assert outside["choice"] == "refused"
    assert outside["kernel"]["dropReason"] == "Is a ClusterIP"


def test_a_pod_of_another_node_is_asked_about_there(
    lab: Lab, frontends: dict[str, dict[str, Any]]
) -> None:
    told = explain(lab, place(frontends["web"]), "--from", "web-node2")
    assert (told["client"], told["node"]) == ("pod default/web-node2", "")
    assert told["kernel"]["program"] == "from-container"


def test_flows_have_the_names_of_services(
    lab: Lab, client: Pod, frontends: dict[str, dict[str, Any]]
) -> None:
    connect(lab, client.full_name, place(frontends["web"]), 0)

    def seen(*options: str) -> list[dict[str, Any]]:
        lines = lab.hubble("observe", "--last", "1000", "-o", "jsonpb", *options).splitlines()
        return [json.loads(line)["flow"] for line in lines]

    asked = eventually(
        lambda: seen("--to-service", "default/web", "-t", "trace-sock"), 10, "the request is seen"
    )
    answers = eventually(
        lambda: seen("--from-service", "default/web", "--type", "trace"), 10, "an answer is seen"
    )

    assert {one["sock_xlate_point"] for one in asked} == {"SOCK_XLATE_POINT_PRE_DIRECTION_FWD"}
    assert {one["source"]["pod_name"] for one in asked} == {"client"}
    assert {one["IP"]["source_xlated"] for one in answers} == {NODE}
    assert {one["source"]["pod_name"] for one in answers} <= {"web-node1", "web-node2"}
    points = {one["sock_xlate_point"] for one in seen("-t", "trace-sock")}
    assert "SOCK_XLATE_POINT_POST_DIRECTION_FWD" in points
