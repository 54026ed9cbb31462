# SPDX-License-Identifier: Apache-2.0
"""`cilium endpoint`: the pods a node runs."""

from __future__ import annotations

import ipaddress

import click
from cilium.agent.v1 import agent_pb2
from cilium_core.verdict_texts import identity_text, port_text, redirect_lines

from cilium_cli.connecting import TIMEOUT_S, agent
from cilium_cli.errors import InputError
from cilium_cli.outputs import emit, output_option, plain, table
from cilium_cli.policy_texts import proxy_text, verdict_text
from cilium_cli.runtime_options import emit_options, parse_options
from cilium_cli.targets import Target, node_options

_ENFORCEMENT = {
    agent_pb2.ENFORCEMENT_DISABLED: "Disabled",
    agent_pb2.ENFORCEMENT_ENABLED: "Enabled",
    agent_pb2.ENFORCEMENT_AUDIT: "Disabled (Audit)",
}


@click.group(short_help="Pods of a node: list, get, config.")
def endpoint() -> None:
    """Show the pods a node runs: addresses, identity, enforcement, policy."""


@endpoint.command("list")
@output_option
@node_options
def list_endpoints(target: Target, output: str) -> None:
    """List the endpoints of a node."""
    with agent(target) as stub:
        answer = stub.ListEndpoints(agent_pb2.ListEndpointsRequest(), timeout=TIMEOUT_S)

    def render() -> None:
        table(
            [
                "ENDPOINT",
                "POLICY (ingress)\nENFORCEMENT",
                "POLICY (egress)\nENFORCEMENT",
                "IDENTITY",
                "LABELS (source:key[=value])",
                "IPv6",
                "IPv4",
                "STATUS",
            ],
            [
                [
                    item.id,
                    _ENFORCEMENT.get(item.ingress, ""),
                    _ENFORCEMENT.get(item.egress, ""),
                    item.identity or "",
                    "\n".join(item.labels),
                    item.ipv6,
                    item.ipv4,
                    item.state,
                ]
                for item in answer.endpoints
            ],
        )

    emit(output, [plain(item) for item in answer.endpoints], render)


@endpoint.command("get")
@click.argument("endpoint", metavar="ID|ADDRESS|NAMESPACE/POD")
@output_option
@node_options
def get_endpoint(target: Target, output: str, endpoint: str) -> None:
    """Show one endpoint, what the kernel enforces for it, and its recent states."""
    request = parse_endpoint(endpoint)
    with agent(target) as stub:
        answer = stub.GetEndpoint(request, timeout=TIMEOUT_S)
    emit(output, plain(answer), lambda: _render(answer))


@endpoint.command("config")
@click.argument("endpoint", metavar="ID|ADDRESS|NAMESPACE/POD")
@click.argument("changes", nargs=-1, metavar="[OPTION=VALUE]...")
@output_option
@node_options
def configure(target: Target, output: str, endpoint: str, changes: tuple[str, ...]) -> None:
    """Show an endpoint's options, after changing those given, such as PolicyAuditMode=Enabled."""
    options = parse_options(changes)
    with agent(target) as stub:
        found = stub.GetEndpoint(parse_endpoint(endpoint), timeout=TIMEOUT_S)
        request = agent_pb2.UpdateEndpointConfigRequest(id=found.endpoint.id, options=options)
        answer = stub.UpdateEndpointConfig(request, timeout=TIMEOUT_S)
    emit_options(output, answer.options)


def parse_endpoint(text: str) -> agent_pb2.GetEndpointRequest:
    """Tell an id, an address and a pod apart; raises InputError for anything else."""
    if text.isdecimal():
        if not 0 < int(text) <= 65535:
            raise InputError(f"endpoint id: {text} is out of range", "ids are 1 to 65535")
        return agent_pb2.GetEndpointRequest(id=int(text))
    try:
        return agent_pb2.GetEndpointRequest(ip=str(ipaddress.ip_address(text)))
    except ValueError:
        pass
    if text.count("/") == 1 and all(text.split("/")):
        return agent_pb2.GetEndpointRequest(pod=text)
    raise InputError(
        f"endpoint: {text!r} is no id, address or pod", "write 774, 10.244.0.7 or shop/cart"
    )


def _render(answer: agent_pb2.GetEndpointResponse) -> None:
    item = answer.endpoint
    facts = {
        "Endpoint": str(item.id),
        "Pod": f"{item.namespace}/{item.pod_name}",
        "State": item.state,
        "Identity": str(item.identity),
        "Labels": "\n".join(item.labels),
        "IPv4": item.ipv4,
        "IPv6": item.ipv6,
        "MAC": item.mac,
        "Interface": f"{item.interface} ({item.ifindex})",
        "Container": item.container_id,
        "Ingress": _ENFORCEMENT.get(item.ingress, ""),
        "Egress": _ENFORCEMENT.get(item.egress, ""),
        "Policy revision": str(item.policy_revision),
        "Default deny": "\n".join((*item.ingress_default_deny, *item.egress_default_deny)),
        "Options": ", ".join(f"{key}={value}" for key, value in sorted(item.options.items())),
        "Error": item.error,
        "Conflicts": "\n".join(item.conflicts),
        "Named ports": ", ".join(f"{p.name}={p.port}/{p.protocol}" for p in item.named_ports),
    }
    for name, value in facts.items():
        first, *more = value.split("\n")
        click.echo(f"{name + ':':<17}{first}".rstrip())
        for line in more:
            click.echo(" " * 17 + line)
    click.echo("\nPolicy in the kernel:")
    table(
        ["POLICY", "DIRECTION", "IDENTITY", "PORT/PROTO", "PROXY PORT", "RULES"],
        [
            [
                verdict_text(entry),
                entry.direction.capitalize(),
                identity_text(entry),
                port_text(entry),
                proxy_text(entry),
                "\n".join((*entry.derived_from, *(f"  {t}" for t in redirect_lines(entry.l7)))),
            ]
            for entry in answer.realized_policy
        ],
    )
    click.echo("\nLog:")
    for entry in answer.log:
        click.echo(f"  {entry.time.ToJsonString()}  {entry.state:<24}  {entry.message}".rstrip())
