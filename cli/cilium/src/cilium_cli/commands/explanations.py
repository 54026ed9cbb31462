# SPDX-License-Identifier: Apache-2.0
"""`cilium policy explain`: why traffic passes or not, and what would let it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
from cilium.agent.v1 import agent_pb2

from cilium_cli.connecting import TIMEOUT_S, agent
from cilium_cli.outputs import emit, output_option, plain
from cilium_cli.policy_texts import PROTOCOLS, identity_text, port_text
from cilium_cli.targets import Target, node_options

if TYPE_CHECKING:
    from collections.abc import Iterator

_NUMBERS = {name.upper(): number for number, name in PROTOCOLS.items()}
_ICMP = (1, 58)


def _read_port(ctx: click.Context, param: click.Parameter, text: str) -> tuple[int, int]:
    """Read `8080`, `53/UDP`, or `8/ICMP` with the ICMP type for a port; gives protocol and port."""
    number, slash, protocol = text.partition("/")
    known = _NUMBERS.get(protocol.upper() if slash else "TCP")
    most = 255 if known in _ICMP else 65535
    if known is None or not number.isascii() or not number.isdigit() or int(number) > most:
        protocols = ", ".join(_NUMBERS)
        raise click.BadParameter(
            f"{text!r} is not of the form 8080/TCP; protocols are {protocols}", ctx, param
        )
    return known, int(number)


@click.command("explain", short_help="Why traffic passes or not.")
@click.option("--from", "source", required=True, metavar="POD|IP|LABELS", help="Who sends.")
@click.option("--to", "destination", required=True, metavar="POD|IP|LABELS", help="Who receives.")
@click.option(
    "--port",
    required=True,
    callback=_read_port,
    metavar="PORT[/PROTOCOL]",
    help="Such as 8080/TCP, 53/UDP, or 8/ICMP for an ICMP type; TCP if none is given.",
)
@output_option
@node_options
def explain(
    target: Target, output: str, source: str, destination: str, port: tuple[int, int]
) -> None:
    """Tell why policies let traffic pass or not: at the sender, and at the receiver.

    An end is a pod (NAMESPACE/NAME), an address, or labels separated by commas, such as
    app=web,io.kubernetes.pod.namespace=shop or reserved:host. Labels need not be any pod's.

    For each direction come the rules that decided, those that were tried and why each missed, the
    policies that close the direction, and a policy that would allow the traffic, ready to apply.
    """
    protocol, number = port
    request = agent_pb2.ExplainPolicyRequest(
        source=source, destination=destination, protocol=protocol, port=number
    )
    with agent(target) as stub:
        answer = stub.ExplainPolicy(request, timeout=TIMEOUT_S)
    emit(output, _document(answer), lambda: _render(answer, protocol, number))


def _document(answer: agent_pb2.ExplainPolicyResponse) -> dict[str, Any]:
    document = plain(answer)
    for direction in ("egress", "ingress"):
        text = document[direction]["suggestion"]
        document[direction]["suggestion"] = json.loads(text) if text else None
    return document


def _render(answer: agent_pb2.ExplainPolicyResponse, protocol: int, port: int) -> None:
    name = PROTOCOLS[protocol]
    shown = f"{name} type {port}" if protocol in _ICMP else f"{port}/{name}"
    ends = (answer.source, answer.destination)
    click.echo(
        f"{_verdict(allowed=answer.allowed)}: {ends[0].name} to {ends[1].name}, {shown} "
        f"(policy revision {answer.revision})"
    )
    for word, party in zip(("from", "to"), ends, strict=True):
        identity = str(party.identity) if party.identity else "none"
        click.echo(f"  {word:<5}{party.name}: identity {identity} ({party.origin})")
        click.echo(f"       {', '.join(party.labels)}")
    for found, party in ((answer.egress, ends[0]), (answer.ingress, ends[1])):
        click.echo()
        for line in _direction(found, party.name):
            click.echo(line)


def _verdict(*, allowed: bool) -> str:
    return click.style("ALLOWED", fg="green") if allowed else click.style("DENIED", fg="red")


def _direction(found: agent_pb2.ExplainedDirection, end: str) -> Iterator[str]:
    title = f"{found.direction.capitalize()} at {end}"
    yield f"{title}: {_verdict(allowed=found.allowed)}, {found.message}"
    if found.HasField("entry"):
        peer = identity_text(found.entry).partition("\n")[0]
        verdict = "deny" if found.entry.deny else "allow"
        yield f"  deciding entry: {verdict} {port_text(found.entry)}, peer {peer}"
    if found.reason == "default-deny":
        yield f"  default deny because of: {', '.join(found.default_deny)}"
    for rule in found.rules:
        place = f"{rule.namespace}/{rule.name}" if rule.namespace else rule.name
        outcome = "decides" if rule.decides else "; ".join(rule.misses) or "matches as well"
        yield f"  {rule.verdict:<5}  {rule.kind} {place} {rule.path}: {outcome}"
    if found.suggestion:
        import yaml

        yield "  this policy would allow it:"
        text = yaml.safe_dump(json.loads(found.suggestion), sort_keys=False, width=100)
        yield from (f"    {line}" for line in text.splitlines())
