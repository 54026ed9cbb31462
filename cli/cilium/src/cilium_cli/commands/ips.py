# SPDX-License-Identifier: Apache-2.0
"""`cilium ip`: the address to identity table as the agent knows it."""

from __future__ import annotations

import click
from cilium.agent.v1 import agent_pb2

from cilium_cli.connecting import TIMEOUT_S, agent
from cilium_cli.outputs import emit, output_option, plain, table
from cilium_cli.targets import Target, node_options


@click.group(short_help="Addresses and the identities behind them: list.")
def ip() -> None:
    """Show which identity an address has."""


@ip.command("list")
@click.option("-n", "--numeric", is_flag=True, help="Numbers instead of labels.")
@click.option("-v", "--verbose", is_flag=True, help="Node and pod behind each address as well.")
@output_option
@node_options
def list_ips(target: Target, output: str, *, numeric: bool, verbose: bool) -> None:
    """List prefixes and the identities they stand for."""
    with agent(target) as stub:
        answer = stub.ListIPs(agent_pb2.ListIPsRequest(), timeout=TIMEOUT_S)

    def render() -> None:
        rows = [
            [
                entry.prefix,
                entry.identity if numeric else "\n".join(entry.labels) or entry.identity,
                entry.source,
                entry.host_ip,
                f"{entry.namespace}/{entry.pod_name}" if entry.pod_name else "",
            ]
            for entry in answer.entries
        ]
        keep = 5 if verbose else 3
        headers = ["IP", "IDENTITY", "SOURCE", "HOST", "POD"]
        table(headers[:keep], [row[:keep] for row in rows])

    emit(output, [plain(entry) for entry in answer.entries], render)
