# SPDX-License-Identifier: Apache-2.0
"""`cilium config`: options of a running agent that need no restart."""

from __future__ import annotations

import click
from cilium.agent.v1 import agent_pb2

from cilium_cli.connecting import TIMEOUT_S, agent
from cilium_cli.outputs import output_option
from cilium_cli.runtime_options import emit_options, parse_options
from cilium_cli.targets import Target, node_options


@click.command(short_help="Options of a running agent: show, change.")
@click.argument("changes", nargs=-1, metavar="[OPTION=VALUE]...")
@output_option
@node_options
def config(target: Target, output: str, changes: tuple[str, ...]) -> None:
    """Show the options that can be changed while the agent runs, after changing those given."""
    options = parse_options(changes)
    with agent(target) as stub:
        request = agent_pb2.UpdateConfigRequest(options=options)
        answer = stub.UpdateConfig(request, timeout=TIMEOUT_S)
    emit_options(output, answer.options)
