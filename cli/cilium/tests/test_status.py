"""`cilium status`: what of it is shown when."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from cilium.agent.v1 import agent_pb2
from cilium_cli.commands import status as module
from click.testing import CliRunner

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cilium_cli.targets import Target

ANSWER = agent_pb2.GetStatusResponse(
    ready=True,
    components=[
        agent_pb2.ComponentStatus(name=name, state=state, message=message)
        for name, state, message in (
            ("KubeProxyReplacement Details", agent_pb2.COMPONENT_STATE_OK, "Mode: SNAT\nXDP: no"),
            ("Cilium", agent_pb2.COMPONENT_STATE_OK, "1.0 on node1"),
            ("KubeProxyReplacement", agent_pb2.COMPONENT_STATE_WARNING, "True   [eth0]; but"),
            ("KVStore", agent_pb2.COMPONENT_STATE_OK, "etcd"),
        )
    ],
)


class Stub:
    def GetStatus(  # noqa: N802
        self, request: agent_pb2.GetStatusRequest, timeout: float
    ) -> agent_pb2.GetStatusResponse:
        assert request is not None
        assert timeout > 0
        return ANSWER


@pytest.fixture(autouse=True)
def agent(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def connect(target: Target) -> Iterator[Stub]:
        yield Stub()

    monkeypatch.setattr(module, "agent", connect)


def run(*arguments: str) -> list[str]:
    done = CliRunner().invoke(module.status, ["--socket", "/run/nowhere.sock", *arguments])
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


def test_services_stand_where_people_look_for_them() -> None:
    assert [line.partition(":")[0] for line in run()] == [
        "KVStore",
        "KubeProxyReplacement",
        "Cilium",
        "Endpoints",
    ]


def test_details_of_services_are_shown_when_asked_for() -> None:
    shown = run("--verbose")
    at = shown.index("KubeProxyReplacement Details:")
    assert shown[at + 1 : at + 3] == ["  Mode: SNAT", "  XDP: no"]
    assert "KubeProxyReplacement:    Warning   True   [eth0]; but" in shown
