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
from cilium_cli.outputs import emit, output_option, plain, table
from cilium_cli.targets import Target, node_options


@click.group(short_help="Policies: get, list, selectors, wait, explain, validate.")
def policy() -> None:
    """Show the policies in force on a node, explain verdicts, and check policy files."""


policy.add_command(explain)
policy.add_command(validate)


@policy.command("get")
@click.argument("name", required=False, metavar="[[NAMESPACE/]NAME]")
@output_option
@node_options
def get_policy(target: Target, output: str, name: str | None) -> None:
    """Print the policies a node has, or those of one name; the last line is the revision."""
    answer = _policies(target)
    found = [item for item in answer.policies if name is None or _named(item, name)]
    if name is not None and not found:
        raise NotFoundError(
            f"policy {name!r} is not known to {target.name}", "`cilium policy list` shows all"
        )

    def render() -> None:
        for item in found:
            click.echo(json.dumps(json.loads(item.json), indent=2) if item.json else "null")
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


@policy.command("list")
@output_option
@node_options
def list_policies(target: Target, output: str) -> None:
    """List the policies a node has, and whether each is enforced as written."""
    answer = _policies(target)

    def render() -> None:
        table(
            ["KIND", "NAMESPACE", "NAME", "STATUS"],
            [[p.kind, p.namespace, p.name, p.error or "enforced"] for p in answer.policies],
        )
        click.echo(f"Revision: {answer.revision}")

    document = [
        {"kind": p.kind, "namespace": p.namespace, "name": p.name, "error": p.error}
        for p in answer.policies
    ]
    emit(output, {"revision": answer.revision, "policies": document}, render)


@policy.command("selectors")
@output_option
@node_options
def selectors(target: Target, output: str) -> None:
    """List the peers that policies select, and the identities behind each now."""
    with agent(target) as stub:
        answer = stub.ListSelectors(agent_pb2.ListSelectorsRequest(), timeout=TIMEOUT_S)
    rows = [
        [
            item.selector,
            "\n".join(item.users),
            len(item.users),
            "\n".join(map(str, item.identities)),
        ]
        for item in answer.selectors
    ]
    emit(
        output,
        [plain(item) for item in answer.selectors],
        lambda: table(["SELECTOR", "POLICIES", "USERS", "IDENTITIES"], rows),
    )


def _policies(target: Target) -> agent_pb2.GetPolicyResponse:
    with agent(target) as stub:
        answer: agent_pb2.GetPolicyResponse = stub.GetPolicy(
            agent_pb2.GetPolicyRequest(), timeout=TIMEOUT_S
        )
    return answer


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
