# SPDX-License-Identifier: Apache-2.0
"""`cilium proxy`: the programs that enforce rules above the transport layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from cilium.agent.v1 import agent_pb2
from cilium_core.verdict_texts import redirect_lines

from cilium_cli.connecting import TIMEOUT_S, agent
from cilium_cli.outputs import emit, output_option, plain, table
from cilium_cli.targets import Target, node_options

if TYPE_CHECKING:
    from collections.abc import Iterator


@click.group(short_help="Proxies for HTTP, TLS, DNS and Kafka: status.")
def proxy() -> None:
    """Show the proxies of a node, which start when the first policy needs them."""


@proxy.command("status")
@output_option
@node_options
def status(target: Target, output: str) -> None:
    """Show which proxies run, and what each of their ports enforces for whom.

    Exits with 1 when something does not work.
    """
    with agent(target) as stub:
        answer = stub.GetProxyStatus(agent_pb2.GetProxyStatusRequest(), timeout=TIMEOUT_S)
    emit(output, plain(answer), lambda: _render(answer))
    if answer.problems:
        raise click.exceptions.Exit(1)


def _render(answer: agent_pb2.GetProxyStatusResponse) -> None:
    click.echo(answer.summary)
    for problem in answer.problems:
        click.echo(f"{click.style('Problem:', fg='red')} {problem}")
    if answer.programs:
        click.echo()
        table(
            ["PROGRAM", "STATE", "PID", "STARTS", "CONNECTED", "LAST EXIT"],
            [
                [
                    item.name,
                    "running" if item.pid else "dead",
                    item.pid or "",
                    item.starts,
                    "yes" if item.connected else "no",
                    item.last_exit,
                ]
                for item in answer.programs
            ],
        )
    if answer.redirects:
        click.echo()
        table(
            ["PORT", "KIND", "DIRECTION", "STATE", "ENDPOINTS", "ENFORCES"],
            [
                [
                    item.port or "",
                    item.redirect.kind,
                    "ingress" if item.redirect.ingress else "egress",
                    item.error or " ".join(_states(item)),
                    ", ".join(map(str, item.endpoints)),
                    "\n".join(redirect_lines(item.redirect)),
                ]
                for item in answer.redirects
            ],
        )


def _states(item: agent_pb2.ProxyRedirect) -> Iterator[str]:
    yield "acknowledged" if item.acknowledged else "waiting"
    if not item.in_use:
        yield "(unused)"
