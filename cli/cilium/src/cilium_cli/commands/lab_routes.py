# SPDX-License-Identifier: Apache-2.0
"""`cilium lab route`: how the world outside reaches addresses of services."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cilium_cli.outputs import emit, output_option, table
from cilium_cli.targets import lab_options

if TYPE_CHECKING:
    from cilium_cli.lab.layouts import Layout


@click.group()
def route() -> None:
    """Route addresses of services from the lab's world to nodes.

    The world reaches the nodes' own addresses, and so NodePorts and host ports, without.
    """


@route.command("add")
@click.argument("networks", nargs=-1, required=True, metavar="CIDR...")
@click.option(
    "--via",
    "nodes",
    multiple=True,
    required=True,
    metavar="NODE",
    help="Node to send it to; flows are spread over several.",
)
@lab_options
def add_route(lab: Layout, networks: tuple[str, ...], nodes: tuple[str, ...]) -> None:
    """Send what the world has for networks or addresses to nodes, and to no others."""
    from cilium_cli.lab import routing

    for network in networks:
        routing.add(lab, network, nodes)
        click.echo(f"the world sends {network} to {', '.join(nodes)}")


@route.command("delete")
@click.argument("networks", nargs=-1, required=True, metavar="CIDR...")
@lab_options
def delete_route(lab: Layout, networks: tuple[str, ...]) -> None:
    """Remove routes."""
    from cilium_cli.lab import routing

    for network in networks:
        routing.remove(lab, network)
        click.echo(f"the world sends {network} nowhere")


@route.command("list")
@output_option
@lab_options
def list_routes(lab: Layout, output: str) -> None:
    """List the routes that were added."""
    from cilium_cli.lab import routing

    found = [one._asdict() for one in routing.routes(lab)]
    rows = [[one["network"], ", ".join(one["nodes"])] for one in found]
    emit(output, found, lambda: table(["NETWORK", "NODES"], rows))
