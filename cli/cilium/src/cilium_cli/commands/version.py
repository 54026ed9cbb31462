# SPDX-License-Identifier: Apache-2.0
"""`cilium version`: of this command, and of the agent it speaks with."""

from __future__ import annotations

from importlib.metadata import version as installed

import click

from cilium_cli.errors import CommandError
from cilium_cli.outputs import emit, output_option
from cilium_cli.targets import Target, find_target

_OWN = "cilium-cli"


@click.command(short_help="Version of this command and of the agent.")
@click.option("--client", "client_only", is_flag=True, help="Do not ask the agent.")
@output_option
def version(output: str, *, client_only: bool) -> None:
    """Print the version of this command, and of the agent if one answers."""
    document = {"client": installed(_OWN)}
    if not client_only:
        try:
            document["agent"] = _ask(find_target(None, None, None))
        except CommandError as error:
            document["agent"] = f"unknown ({error.message})"

    def render() -> None:
        for name, value in document.items():
            click.echo(f"{name}: {value}")

    emit(output, document, render)


def _ask(target: Target) -> str:
    from cilium.agent.v1 import agent_pb2

    from cilium_cli.connecting import TIMEOUT_S, agent

    with agent(target) as stub:
        answer = stub.GetStatus(agent_pb2.GetStatusRequest(), timeout=TIMEOUT_S)
    return str(answer.version)
