# SPDX-License-Identifier: Apache-2.0
"""`cilium policy explain`: why traffic passes or not, and what would let it."""

from __future__ import annotations

import json
from typing import Any

import click
from cilium.agent.v1 import agent_pb2
from cilium_core.verdict_texts import PROTOCOLS, direction_lines, verdict_word

from cilium_cli.connecting import TIMEOUT_S, agent
from cilium_cli.errors import CommandError
from cilium_cli.outputs import emit, output_option, plain
from cilium_cli.targets import Target, node_options, siblings

_NUMBERS = {name.upper(): number for number, name in PROTOCOLS.items()}
_ICMP = (1, 58)
_DNS = (17, 53)


def _read_port(
    ctx: click.Context, param: click.Parameter, text: str | None
) -> tuple[int, int] | None:
    """Read `8080`, `53/UDP`, or `8/ICMP` with the ICMP type for a port; gives protocol and port."""
    if text is None:
        return None
    number, slash, protocol = text.partition("/")
    known = _NUMBERS.get(protocol.upper() if slash else "TCP")
    most = 255 if known in _ICMP else 65535
    if known is None or not number.isascii() or not number.isdigit() or int(number) > most:
        protocols = ", ".join(_NUMBERS)
        raise click.BadParameter(
            f"{text!r} is not of the form 8080/TCP; protocols are {protocols}", ctx, param
        )
    return known, int(number)


def _read_http(ctx: click.Context, param: click.Parameter, text: str | None) -> list[str] | None:
    """Read `GET /path`."""
    if text is None:
        return None
    method, blank, path = text.partition(" ")
    if not blank or not path.startswith("/") or not method.isalpha():
        raise click.BadParameter(f"{text!r} is not of the form 'GET /path'", ctx, param)
    return [method, path]


def _read_headers(
    ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]
) -> dict[str, str]:
    """Read `Name: value` texts."""
    headers = {}
    for text in texts:
        name, colon, value = text.partition(":")
        if not colon or not name:
            raise click.BadParameter(f"{text!r} is not of the form 'Name: value'", ctx, param)
        headers[name.lower()] = value.strip()
    return headers


@click.command("explain", short_help="Why traffic passes or not.")
@click.option("--from", "source", metavar="POD|IP|LABELS", help="Who sends.")
@click.option("--to", "destination", metavar="POD|IP|LABELS", help="Who receives.")
@click.option(
    "--port",
    callback=_read_port,
    metavar="PORT[/PROTOCOL]",
    help="Such as 8080/TCP, 53/UDP, or 8/ICMP for an ICMP type; TCP if none is given.",
)
@click.option(
    "--http", callback=_read_http, metavar="'METHOD /PATH'", help="An HTTP request, with its query."
)
@click.option("--host", default="", help="The host that the HTTP request names.")
@click.option(
    "--header",
    "headers",
    multiple=True,
    callback=_read_headers,
    metavar="'NAME: VALUE'",
    help="A header of the HTTP request; may be repeated.",
)
@click.option("--dns", metavar="NAME", help="A name that is looked up; on 53/UDP by default.")
@click.option("--flow", metavar="UUID", help="A flow that was seen, instead of all the above.")
@click.option(
    "--verify",
    is_flag=True,
    help="Also run the packet through the loaded eBPF programs and compare.",
)
@output_option
@node_options
def explain(target: Target, output: str, flow: str | None, **asked: Any) -> None:
    """Tell why policies let traffic pass or not: at the sender, and at the receiver.

    An end is a pod (NAMESPACE/NAME), an address, or labels separated by commas, such as
    app=web,io.kubernetes.pod.namespace=shop or reserved:host. Labels need not be any pod's.

    For each direction come the rules that decided, those that were tried and why each missed, the
    policies that close the direction, and a policy that would allow the traffic, ready to apply.

    \b
    cilium policy explain --from shop/frontend --to shop/api --port 8080 --http 'GET /users'
    cilium policy explain --from shop/frontend --to 10.96.0.10 --dns example.org
    cilium policy explain --flow 7bb0cd1e-7f6d-4e1c-9a59-3f6a8f4e4a0d --verify

    With --verify, exits with 1 when rules and programs disagree.
    """  # noqa: D301 - click reads the backspace
    request = _flow_request(target, flow, asked) if flow else _request(asked)
    request.verify = asked["verify"]
    with agent(target) as stub:
        answer = stub.ExplainPolicy(request, timeout=TIMEOUT_S)
    if request.verify:
        _verify_elsewhere(target, request, answer)
    emit(output, _document(answer), lambda: _render(request, answer))
    found = (answer.egress, answer.ingress)
    if any(end.HasField("kernel") and not end.kernel.agrees for end in found):
        raise click.exceptions.Exit(1)


def _request(asked: dict[str, Any]) -> agent_pb2.ExplainPolicyRequest:
    for name in ("from", "to"):
        if not asked["source" if name == "from" else "destination"]:
            raise click.UsageError(f"Missing option '--{name}'; or name a flow with --flow.")
    if asked["http"] and asked["dns"]:
        raise click.UsageError("--http and --dns exclude each other.")
    if (asked["host"] or asked["headers"]) and not asked["http"]:
        raise click.UsageError("--host and --header say more about --http, which is missing.")
    port = asked["port"] or (_DNS if asked["dns"] else None)
    if port is None:
        raise click.UsageError("Missing option '--port'.")
    request = agent_pb2.ExplainPolicyRequest(
        source=asked["source"], destination=asked["destination"], protocol=port[0], port=port[1]
    )
    if asked["http"]:
        method, path = asked["http"]
        request.http.method, request.http.path, request.http.host = method, path, asked["host"]
        request.http.headers.update(asked["headers"])
    elif asked["dns"]:
        request.dns_name = asked["dns"]
    return request


def _flow_request(
    target: Target, uuid: str, asked: dict[str, Any]
) -> agent_pb2.ExplainPolicyRequest:
    from cilium_core.flow_questions import FlowQuestionError, policy_question

    from cilium_cli.flow_questions import find_flow

    names = ("source", "destination", "port", "http", "dns", "host", "headers")
    if any(asked[name] for name in names):
        raise click.UsageError("--flow says it all: leave out --from, --to, --port and requests.")
    try:
        return policy_question(find_flow(uuid, [target, *siblings(target)]))
    except FlowQuestionError as error:
        raise CommandError(str(error)) from error


def _verify_elsewhere(
    target: Target,
    request: agent_pb2.ExplainPolicyRequest,
    answer: agent_pb2.ExplainPolicyResponse,
) -> None:
    """Ask the other nodes of a lab about ends of theirs, which they know best."""
    for sibling in siblings(target):
        if answer.egress.HasField("kernel") and answer.ingress.HasField("kernel"):
            break
        with agent(sibling) as stub:
            other = stub.ExplainPolicy(request, timeout=TIMEOUT_S)
        for mine, theirs in ((answer.egress, other.egress), (answer.ingress, other.ingress)):
            if theirs.HasField("kernel") and not mine.HasField("kernel"):
                mine.CopyFrom(theirs)
    answer.allowed = answer.egress.allowed and answer.ingress.allowed
    if answer.egress.HasField("kernel") or answer.ingress.HasField("kernel"):
        del answer.unverified[:]


def _document(answer: agent_pb2.ExplainPolicyResponse) -> dict[str, Any]:
    document = plain(answer)
    for direction in ("egress", "ingress"):
        text = document[direction]["suggestion"]
        document[direction]["suggestion"] = json.loads(text) if text else None
    return document


def _render(
    request: agent_pb2.ExplainPolicyRequest, answer: agent_pb2.ExplainPolicyResponse
) -> None:
    name = PROTOCOLS.get(request.protocol, str(request.protocol))
    icmp = request.protocol in _ICMP
    shown = f"{name} type {request.port}" if icmp else f"{request.port}/{name}"
    match request.WhichOneof("request"):
        case "http":
            shown += f", {request.http.method} {request.http.path}"
        case "dns_name":
            shown += f", {request.dns_name}"
    ends = (answer.source, answer.destination)
    verdict = verdict_word(_paint, allowed=answer.allowed)
    click.echo(
        f"{verdict}: {ends[0].name} to {ends[1].name}, {shown} (policy revision {answer.revision})"
    )
    for word, party in zip(("from", "to"), ends, strict=True):
        identity = str(party.identity) if party.identity else "none"
        click.echo(f"  {word:<5}{party.name}: identity {identity} ({party.origin})")
        click.echo(f"       {', '.join(party.labels)}")
    for found, party in ((answer.egress, ends[0]), (answer.ingress, ends[1])):
        click.echo()
        for line in direction_lines(found, party.name, _paint):
            click.echo(line)
    for why in answer.unverified:
        click.echo(f"\nNot verified: {why}")


def _paint(text: str, colour: str) -> str:
    return click.style(text, fg=colour)
