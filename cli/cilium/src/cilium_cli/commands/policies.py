# SPDX-License-Identifier: Apache-2.0
"""`cilium policy`: what a node enforces and why, and checking files beforehand."""

from __future__ import annotations

import json

import click
from cilium.agent.v1 import agent_pb2

from cilium_cli.commands.explanations import explain
from cilium_cli.commands.policy_files import validate
from cilium_cli.connecting import TIMEOUT_S, agent
from cilium_cli.errors import DeadlineError, NotFoundError
from cilium_cli.outputs import emit, output_option, table
from cilium_cli.targets import Target, node_options


@click.group(short_help="Policies: get, wait, explain, validate.")
def policy() -> None:
    """Show the policies in force on a node, explain verdicts, and check policy files."""


policy.add_command(explain)
policy.add_command(validate)


@policy.command("get")
@click.argument("name", required=False, metavar="[[NAMESPACE/]NAME]")
@output_option
@node_options
def get_policy(target: Target, output: str, name: str | None) -> None:
    """List the policies a node has, or print one; the last line is the revision."""
    with agent(target) as stub:
        answer = stub.GetPolicy(agent_pb2.GetPolicyRequest(), timeout=TIMEOUT_S)
    found = [item for item in answer.policies if name is None or _named(item, name)]
    if name is not None and not found:
        raise NotFoundError(
            f"policy {name!r} is not known to {target.name}", "`cilium policy get` lists all"
        )

    def render() -> None:
        if name is not None:
            for item in found:
                click.echo(json.dumps(json.loads(item.json), indent=2))
        elif found:
            table(
                ["KIND", "NAMESPACE", "NAME", "STATUS"],
                [[p.kind, p.namespace, p.name, p.error or "enforced"] for p in found],
            )
        click.echo(f"Revision: {answer.revision}")

    document = {
        "revision": answer.revision,
        "policies": [
            {
                "kind": item.kind,
                "namespace": item.namespace,
                "name": item.name,
                "error": item.error,
                "object": json.loads(item.json) if item.json else None,
            }
            for item in found
        ],
    }
    emit(output, document, render)


def _named(item: agent_pb2.Policy, name: str) -> bool:
    return name in {item.name, f"{item.namespace}/{item.name}"}


@policy.command("wait")
@click.argument("revision", type=click.IntRange(0))
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0), default=60.0, show_default=True
)
@node_options
def wait(target: Target, revision: int, timeout_s: float) -> None:
    """Return once every endpoint of the node enforces at least REVISION."""
    try:
        with agent(target) as stub:
            request = agent_pb2.WaitForPolicyRequest(revision=revision)
            answer = stub.WaitForPolicy(request, timeout=timeout_s)
    except DeadlineError:
        raise DeadlineError(
            f"{target.name} does not enforce policy revision {revision} after {timeout_s:g} s",
            "`cilium endpoint list` shows endpoints that are not ready",
        ) from None
    click.echo(f"Revision: {answer.revision}")
