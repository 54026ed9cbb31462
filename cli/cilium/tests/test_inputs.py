"""What users type: names, labels, ports, endpoints, targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cilium.agent.v1 import agent_pb2
from cilium_cli import outputs, targets
from cilium_cli.commands.endpoints import parse_endpoint
from cilium_cli.errors import InputError, NotFoundError
from cilium_cli.lab import layouts, objects
from cilium_core.verdict_texts import port_text

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", ["", "a-b", "A", "x" * 17, "a/b", "..", "a b"])
def test_a_lab_name_that_could_clash_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="lab name"):
        layouts.Layout(name)


def test_names_of_two_labs_never_share_a_prefix() -> None:
    one, other = layouts.Layout("a"), layouts.Layout("ab")

    assert not other.fabric_netns.startswith(one.prefix)


def test_pods_of_different_namespaces_never_share_a_network_namespace() -> None:
    lab = layouts.Layout("a")

    assert lab.pod_netns("a-b", "c") != lab.pod_netns("a", "b-c")


@pytest.mark.parametrize("name", ["node0", "node", "1", "node1x", "node-1", ""])
def test_what_is_no_node_of_a_lab_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="node"):
        layouts.node_number(name)


@pytest.mark.parametrize("text", ["", "/", "a/", "/b", "A/b", "a/b/c", "a/-b", "a_b", "a.b/c"])
def test_what_is_no_pod_name_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="pod"):
        layouts.parse_pod(text)


def test_a_pod_without_namespace_is_in_the_default_one() -> None:
    assert layouts.parse_pod("web") == ("default", "web")
    assert layouts.parse_pod("shop/web") == ("shop", "web")


def test_labels_come_one_or_several_a_text() -> None:
    assert objects.parse_labels(["a=1,b=2", "c="]) == {"a": "1", "b": "2", "c": ""}


@pytest.mark.parametrize("text", ["app", "=x", "a=1,b"])
def test_what_is_no_label_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="label"):
        objects.parse_labels([text])


def test_ports_have_an_optional_name_and_protocol() -> None:
    assert objects.parse_port("8080") == {"containerPort": 8080, "protocol": "TCP"}
    assert objects.parse_port("dns=53/udp") == {
        "name": "dns",
        "containerPort": 53,
        "protocol": "UDP",
    }


def test_host_ports_lead_to_container_ports() -> None:
    assert objects.parse_host_port("8080:80") == {
        "containerPort": 80,
        "protocol": "TCP",
        "hostPort": 8080,
    }
    assert objects.parse_host_port("127.0.0.1:5353:53/UDP")["hostIP"] == "127.0.0.1"
    assert objects.parse_host_port("[::1]:5353:53/udp") == {
        "containerPort": 53,
        "protocol": "UDP",
        "hostPort": 5353,
        "hostIP": "::1",
    }


@pytest.mark.parametrize("text", ["", "80", ":80", "0:80", "80:0", "x:80", "here:80:80", "1:2/IP"])
def test_what_is_no_host_port_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="port"):
        objects.parse_host_port(text)


def test_a_host_port_joins_the_port_it_leads_to() -> None:
    web = objects.parse_port("http=80")
    outer = [objects.parse_host_port(text) for text in ("8080:80", "8081:80", "53:53/UDP")]

    joined = objects.join_ports([web], outer)

    assert [(port.get("name"), port["hostPort"]) for port in joined] == [
        ("http", 8080),
        (None, 8081),
        (None, 53),
    ]


@pytest.mark.parametrize("text", ["", "0", "65536", "=80", "x", "80/ICMP", "-1", "a=b"])
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="port"):
        objects.parse_port(text)


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("774", "id", 774),
        ("10.244.0.7", "ip", "10.244.0.7"),
        ("FD00::7", "ip", "fd00::7"),
        ("shop/cart", "pod", "shop/cart"),
    ],
)
def test_endpoints_are_named_by_id_address_or_pod(text: str, field: str, value: object) -> None:
    request = parse_endpoint(text)

    assert request.WhichOneof("selector") == field
    assert getattr(request, field) == value


@pytest.mark.parametrize("text", ["0", "65536", "cart", "a/b/c", "10.0.0", "", "/"])
def test_what_names_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="endpoint"):
        parse_endpoint(text)


def test_a_socket_given_wins_over_a_lab(tmp_path: Path) -> None:
    target = targets.find_target(tmp_path / "cilium.sock", "nosuch", "node9")

    assert target.agent == tmp_path / "cilium.sock"
    assert target.hubble == tmp_path / "hubble.sock"


def test_a_lab_that_does_not_exist_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "RUN_ROOT", tmp_path)

    with pytest.raises(NotFoundError, match="nosuch"):
        targets.find_target(None, "nosuch", None)


def test_without_a_lab_the_agent_of_this_machine_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "RUN_ROOT", tmp_path)

    assert targets.find_target(None, None, None).agent == targets.DEFAULT_SOCKET


def test_with_one_lab_its_first_node_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "RUN_ROOT", tmp_path)
    (tmp_path / "only" / "node1").mkdir(parents=True)
    (tmp_path / "only" / "lab.json").write_text("{}")

    assert targets.find_target(None, None, None).agent == tmp_path / "only/node1/run/cilium.sock"


def test_with_two_labs_one_has_to_be_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "RUN_ROOT", tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lab.json").write_text("{}")

    with pytest.raises(InputError, match="one, two"):
        targets.find_target(None, None, None)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (agent_pb2.PolicyEntry(), "ANY"),
        (agent_pb2.PolicyEntry(protocol=6), "TCP"),
        (agent_pb2.PolicyEntry(protocol=6, port=80, end_port=80), "80/TCP"),
        (agent_pb2.PolicyEntry(protocol=17, port=8080, end_port=8095), "8080-8095/UDP"),
    ],
)
def test_ports_of_policy_entries(entry: agent_pb2.PolicyEntry, text: str) -> None:
    assert port_text(entry) == text


def test_messages_become_documents_with_numbers_and_short_enum_names() -> None:
    endpoint = agent_pb2.Endpoint(
        id=7, ingress=agent_pb2.ENFORCEMENT_ENABLED, policy_revision=1 << 40, labels=["a:b=c"]
    )

    document = outputs.plain(endpoint)

    assert document["id"] == 7
    assert document["ingress"] == "enabled"
    assert document["policyRevision"] == 1 << 40
    assert document["labels"] == ["a:b=c"]
    assert document["namedPorts"] == []


def test_tables_align_cells_of_several_lines(capsys: pytest.CaptureFixture[str]) -> None:
    outputs.table(["ID", "LABELS\n(all)"], [[7, "a\nbb"], [1234, ""]])

    assert capsys.readouterr().out.splitlines() == [
        "ID     LABELS",
        "       (all)",
        "7      a",
        "       bb",
        "1234",
    ]
