"""`cilium policy explain`: what it asks, and how it tells the answer."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import yaml
from cilium.agent.v1 import agent_pb2
from cilium_cli.commands import explanations
from cilium_cli.commands.policies import policy
from click.testing import CliRunner, Result

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cilium_cli.targets import Target

WANTED = {"kind": "CiliumNetworkPolicy", "metadata": {"name": "allow-web-from-client"}}
ANSWER = agent_pb2.ExplainPolicyResponse(
    allowed=False,
    source=agent_pb2.PolicyParty(name="a", identity=300, labels=["k8s:app=a"], origin="labels"),
    destination=agent_pb2.PolicyParty(name="b", labels=["k8s:app=b"], origin="no identity yet"),
    egress=agent_pb2.ExplainedDirection(
        direction="egress",
        allowed=True,
        enforced=True,
        reason="allowed",
        message="a rule allows it",
        entry=agent_pb2.PolicyEntry(direction="egress", identity=301, protocol=6),
        rules=[
            agent_pb2.ExplainedRule(
                kind="CiliumNetworkPolicy",
                namespace="shop",
                name="out",
                path="spec.egress[0]",
                verdict="allow",
                decides=True,
            )
        ],
    ),
    ingress=agent_pb2.ExplainedDirection(
        direction="ingress",
        enforced=True,
        reason="default-deny",
        message="no rule allows it",
        default_deny=["NetworkPolicy shop/closed"],
        rules=[
            agent_pb2.ExplainedRule(
                kind="NetworkPolicy",
                namespace="shop",
                name="closed",
                path="spec.ingress[0]",
                verdict="allow",
                misses=["port: its ports are 80/TCP"],
            )
        ],
        suggestion=json.dumps(WANTED),
    ),
    revision=7,
)


class Stub:
    def __init__(self) -> None:
        self.asked: list[agent_pb2.ExplainPolicyRequest] = []

    def ExplainPolicy(  # noqa: N802
        self, request: agent_pb2.ExplainPolicyRequest, timeout: float
    ) -> agent_pb2.ExplainPolicyResponse:
        assert timeout > 0
        self.asked.append(request)
        return ANSWER


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    found = Stub()

    @contextmanager
    def connect(target: Target) -> Iterator[Stub]:
        yield found

    monkeypatch.setattr(explanations, "agent", connect)
    return found


def explain(*arguments: str) -> Result:
    ends = ("--socket", "/nonexistent", "--from", "a", "--to", "b")
    return CliRunner().invoke(policy, ["explain", *ends, *arguments])


@pytest.mark.parametrize(
    ("text", "asked"),
    [("8080", (6, 8080)), ("53/udp", (17, 53)), ("8/ICMP", (1, 8)), ("128/ICMPv6", (58, 128))],
)
def test_ports_are_read_with_their_protocol(stub: Stub, text: str, asked: tuple[int, int]) -> None:
    assert explain("--port", text).exit_code == 0

    (request,) = stub.asked
    assert (request.source, request.destination) == ("a", "b")
    assert (request.protocol, request.port) == asked


@pytest.mark.parametrize("text", ["", "x", "65536", "80/", "80/GRE", "256/ICMP", "-1", "8 0/TCP"])
def test_what_is_no_port_is_a_usage_error(stub: Stub, text: str) -> None:
    assert explain("--port", text).exit_code == 2
    assert not stub.asked


def test_people_read_the_verdict_the_rules_and_the_missing_policy(stub: Stub) -> None:
    lines = explain("--port", "8080").output.splitlines()

    assert lines == [
        "DENIED: a to b, 8080/TCP (policy revision 7)",
        "  from a: identity 300 (labels)",
        "       k8s:app=a",
        "  to   b: identity none (no identity yet)",
        "       k8s:app=b",
        "",
        "Egress at a: ALLOWED, a rule allows it",
        "  deciding entry: allow TCP, peer 301",
        "  allow  CiliumNetworkPolicy shop/out spec.egress[0]: decides",
        "",
        "Ingress at b: DENIED, no rule allows it",
        "  default deny because of: NetworkPolicy shop/closed",
        "  allow  NetworkPolicy shop/closed spec.ingress[0]: port: its ports are 80/TCP",
        "  this policy would allow it:",
        "    kind: CiliumNetworkPolicy",
        "    metadata:",
        "      name: allow-web-from-client",
    ]


def test_programs_get_the_same_as_a_document(stub: Stub) -> None:
    document = json.loads(explain("--port", "8080", "-o", "json").output)

    assert document == yaml.safe_load(explain("--port", "8080", "-o", "yaml").output)
    assert document["allowed"] is False
    assert document["ingress"]["suggestion"] == WANTED
    assert document["egress"]["suggestion"] is None
    assert document["ingress"]["entry"] is None
    assert document["egress"]["rules"][0]["decides"] is True
