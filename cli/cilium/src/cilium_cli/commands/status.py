# SPDX-License-Identifier: Apache-2.0
"""`cilium status`: one line a component, exit code 1 while something is wrong."""

from __future__ import annotations

import time
from textwrap import indent
from typing import TYPE_CHECKING

import click
from cilium.agent.v1 import agent_pb2

from cilium_cli.connecting import TIMEOUT_S, agent
from cilium_cli.errors import CommandError, DeadlineError
from cilium_cli.outputs import emit, output_option, plain, status_line
from cilium_cli.targets import Target, node_options

if TYPE_CHECKING:
    from collections.abc import Iterator

_ORDER = (
    "KVStore",
    "Kubernetes",
    "KubeProxyReplacement",
    "Host firewall",
    "CNI Config file",
    "Cilium",
    "NodeMonitor",
    "IPAM",
    "Routing",
    "Attach Mode",
    "Device Mode",
    "Masquerading",
    "Clock Source for BPF",
    "Controller Status",
    "Global Identity Range",
    "Hubble",
    "KubeProxyReplacement Details",
    "BPF Maps",
    "Encryption",
    "Cluster health",
)
_STATES = {
    agent_pb2.COMPONENT_STATE_OK: "Ok",
    agent_pb2.COMPONENT_STATE_WARNING: "Warning",
    agent_pb2.COMPONENT_STATE_FAILURE: "Failure",
    agent_pb2.COMPONENT_STATE_DISABLED: "Disabled",
}
_POLL_S = 0.1


@click.command(short_help="Health of a node's agent and its components.")
@click.option("--brief", is_flag=True, help="One word only: OK, or what is wrong.")
@click.option("--verbose", is_flag=True, help="Addresses in use and kernel features as well.")
@click.option("--wait", is_flag=True, help="Wait until the node is ready.")
@click.option(
    "--wait-duration",
    "limit_s",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="Longest wait in seconds.",
)
@output_option
@node_options
def status(
    target: Target, output: str, *, brief: bool, verbose: bool, wait: bool, limit_s: float
) -> None:
    """Print the health of a node's agent and its components.

    The exit code is 1 while the node is not ready or a component fails.
    """
    answer = _wait_ready(target, limit_s) if wait else _ask(target)
    bad = [c.name for c in answer.components if c.state == agent_pb2.COMPONENT_STATE_FAILURE]
    if brief and output == "table":
        click.echo("OK" if answer.ready and not bad else _trouble(answer, bad))
    else:
        emit(output, plain(answer), lambda: _render(answer, verbose=verbose))
    if not answer.ready or bad:
        raise click.exceptions.Exit(1)


def _ask(target: Target) -> agent_pb2.GetStatusResponse:
    with agent(target) as stub:
        answer: agent_pb2.GetStatusResponse = stub.GetStatus(
            agent_pb2.GetStatusRequest(), timeout=TIMEOUT_S
        )
    return answer


def _wait_ready(target: Target, limit_s: float) -> agent_pb2.GetStatusResponse:
    deadline = time.monotonic() + limit_s
    while True:
        answer = None
        trouble = ""
        try:
            answer = _ask(target)
        except CommandError as error:
            trouble = error.message
        if answer is not None and answer.ready:
            return answer
        if time.monotonic() > deadline:
            if answer is not None:
                return answer
            raise DeadlineError(f"{target.name} was not ready within {limit_s:g} s: {trouble}")
        time.sleep(_POLL_S)


def _trouble(answer: agent_pb2.GetStatusResponse, bad: list[str]) -> str:
    return f"failing: {', '.join(bad)}" if bad else "not ready"


def _render(answer: agent_pb2.GetStatusResponse, *, verbose: bool) -> None:
    for name, state, message in sorted(_lines(answer), key=_rank):
        if "\n" not in message:
            status_line(name, state, message)
        elif verbose:
            click.echo(f"{name}:")
            click.echo(indent(message, "  "))
    if not verbose:
        return
    if answer.ipam.allocations:
        click.echo("Allocated addresses:")
        for address, owner in sorted(answer.ipam.allocations.items()):
            click.echo(f"  {address} ({owner})")
    if answer.features:
        click.echo("Kernel features:")
        for feature, present in sorted(answer.features.items()):
            click.echo(f"  {feature}: {'yes' if present else 'no'}")


def _lines(answer: agent_pb2.GetStatusResponse) -> Iterator[tuple[str, str, str]]:
    names = set()
    for component in answer.components:
        names.add(component.name)
        yield component.name, _STATES.get(component.state, ""), component.message
    if "Cilium" not in names:
        state = "Ok" if answer.ready else "Warning"
        note = "" if answer.ready else ", not ready"
        yield "Cilium", state, f"{answer.version} on {answer.node_name}{note}"
    if "IPAM" not in names and answer.ipam.pod_cidrs:
        used = len(answer.ipam.allocations)
        yield "IPAM", "", f"{used} allocated from {', '.join(answer.ipam.pod_cidrs)}"
    if "Endpoints" not in names:
        state = "Ok" if answer.endpoints == answer.endpoints_ready else "Warning"
        text = f"{answer.endpoints_ready}/{answer.endpoints} ready"
        yield "Endpoints", state, f"{text}, policy revision {answer.policy_revision}"


def _rank(line: tuple[str, str, str]) -> int:
    return _ORDER.index(line[0]) if line[0] in _ORDER else len(_ORDER)
