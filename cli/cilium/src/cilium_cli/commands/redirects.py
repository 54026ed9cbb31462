# SPDX-License-Identifier: Apache-2.0
"""`cilium lrp`: local redirect policies, and what they redirect on a node."""

from __future__ import annotations

import click
from cilium.agent.v1 import agent_pb2

from cilium_cli.addresses import service_address_text
from cilium_cli.connecting import TIMEOUT_S, agent
from cilium_cli.outputs import emit, output_option, plain, table
from cilium_cli.targets import Target, node_options


@click.group(short_help="Local redirect policies: list.")
def lrp() -> None:
    """Show what local redirect policies redirect on a node."""


@lrp.command("list")
@output_option
@node_options
def list_redirects(target: Target, output: str) -> None:
    """List local redirect policies, with the pods of the node that serve in their place."""
    with agent(target) as stub:
        answer = stub.ListRedirectPolicies(
            agent_pb2.ListRedirectPoliciesRequest(), timeout=TIMEOUT_S
        )

    def render() -> None:
        table(
            ["NAMESPACE", "NAME", "TYPE", "SERVICE", "FRONTEND", "BACKENDS", "STATE"],
            [
                [
                    one.namespace,
                    one.name,
                    one.type,
                    one.service,
                    "\n".join(service_address_text(each.address) for each in one.frontends),
                    "\n".join(_backends_text(each) for each in one.frontends),
                    one.error or "ok",
                ]
                for one in answer.policies
            ],
        )

    emit(output, [plain(one) for one in answer.policies], render)


def _backends_text(one: agent_pb2.RedirectFrontend) -> str:
    return ", ".join(service_address_text(each.address) for each in one.backends) or "none"
