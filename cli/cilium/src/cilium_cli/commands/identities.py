# SPDX-License-Identifier: Apache-2.0
"""`cilium identity`: which labels stand behind which number."""

from __future__ import annotations

import click
from cilium.agent.v1 import agent_pb2

from cilium_cli.connecting import TIMEOUT_S, agent
from cilium_cli.errors import NotFoundError
from cilium_cli.outputs import emit, output_option, plain, table
from cilium_cli.targets import Target, node_options


@click.group(short_help="Security identities: list, get.")
def identity() -> None:
    """Show security identities and the labels behind them."""


@identity.command("list")
@click.option("--endpoints", is_flag=True, help="Also how many endpoints of the node have each.")
@output_option
@node_options
def list_identities(target: Target, output: str, *, endpoints: bool) -> None:
    """List the identities a node knows, reserved ones included."""
    found = _identities(target)

    def render() -> None:
        rows = [[item.id, "\n".join(item.labels), item.endpoints] for item in found]
        columns = ["ID", "LABELS", "REFCOUNT"]
        keep = 3 if endpoints else 2
        table(columns[:keep], [row[:keep] for row in rows])

    emit(output, [plain(item) for item in found], render)


@identity.command("get")
@click.argument("number", type=click.IntRange(1, 0xFFFFFFFF))
@output_option
@node_options
def get_identity(target: Target, output: str, number: int) -> None:
    """Show one identity by its number."""
    found = [item for item in _identities(target) if item.id == number]
    if found:
        _emit_one(output, found[0])
        return
    raise NotFoundError(
        f"identity {number} is not known to {target.name}", "`cilium identity list` shows all"
    )


def _emit_one(output: str, item: agent_pb2.Identity) -> None:
    row = [item.id, "\n".join(item.labels)]
    emit(output, plain(item), lambda: table(["ID", "LABELS"], [row]))


def _identities(target: Target) -> list[agent_pb2.Identity]:
    with agent(target) as stub:
        answer = stub.ListIdentities(agent_pb2.ListIdentitiesRequest(), timeout=TIMEOUT_S)
    return list(answer.identities)
