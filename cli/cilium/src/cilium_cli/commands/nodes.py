# SPDX-License-Identifier: Apache-2.0
"""`cilium node`: the nodes of the cluster."""

from __future__ import annotations

import click
from cilium.agent.v1 import agent_pb2

from cilium_cli.connecting import TIMEOUT_S, agent
from cilium_cli.outputs import emit, output_option, plain, table
from cilium_cli.targets import Target, node_options


@click.group(short_help="Nodes of the cluster: list.")
def node() -> None:
    """Show the nodes of the cluster."""


@node.command("list")
@output_option
@node_options
def list_nodes(target: Target, output: str) -> None:
    """List the nodes that a node knows, itself first."""
    with agent(target) as stub:
        answer = stub.ListNodes(agent_pb2.ListNodesRequest(), timeout=TIMEOUT_S)

    def render() -> None:
        table(
            ["Name", "IPv4 Address", "Endpoint CIDR", "IPv6 Address", "Endpoint CIDR", "Source"],
            [
                [
                    f"{item.cluster}/{item.name}",
                    item.ipv4,
                    "\n".join(cidr for cidr in item.pod_cidrs if ":" not in cidr),
                    item.ipv6,
                    "\n".join(cidr for cidr in item.pod_cidrs if ":" in cidr),
                    item.source,
                ]
                for item in answer.nodes
            ],
        )

    emit(output, [plain(item) for item in answer.nodes], render)
