# SPDX-License-Identifier: Apache-2.0
"""`cilium config`: options of a running agent that need no restart."""

from __future__ import annotations

import click
from cilium.agent.v1 import agent_pb2

from cilium_cli.connecting import TIMEOUT_S, agent
from cilium_cli.errors import InputError
from cilium_cli.outputs import emit, output_option
from cilium_cli.targets import Target, node_options


@click.command(short_help="Options of a running agent: show, change.")
@click.argument("changes", nargs=-1, metavar="[OPTION=VALUE]...")
@output_option
@node_options
def config(target: Target, output: str, changes: tuple[str, ...]) -> None:
    """Show the options that can be changed while the agent runs, after changing those given."""
    options = {}
    for change in changes:
        name, separator, value = change.partition("=")
        if not separator or not name:
            raise InputError(
                f"option: {change!r} is not OPTION=VALUE", "such as monitor-aggregation=none"
            )
        options[name] = value
    with agent(target) as stub:
        request = agent_pb2.UpdateConfigRequest(options=options)
        answer = stub.UpdateConfig(request, timeout=TIMEOUT_S)

    def render() -> None:
        width = max((len(name) for name in answer.options), default=0)
        for name, value in sorted(answer.options.items()):
            click.echo(f"{name:<{width}}   {value}")

    emit(output, dict(sorted(answer.options.items())), render)
