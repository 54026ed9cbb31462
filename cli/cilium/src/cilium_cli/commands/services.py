# SPDX-License-Identifier: Apache-2.0
"""`cilium service`: services as the agent knows them, and who would serve a client."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from cilium.agent.v1 import agent_pb2

from cilium_cli.addresses import read_endpoint, read_protocol, service_address_text
from cilium_cli.connecting import TIMEOUT_S, agent
from cilium_cli.errors import NotFoundError
from cilium_cli.outputs import emit, output_option, plain, table
from cilium_cli.targets import Target, node_options, siblings

if TYPE_CHECKING:
    from collections.abc import Iterator

_TIMEOUT_S = 60.0
"""Ten thousands of services take seconds to tell."""


@click.group(short_help="Services: list, get, explain.")
def service() -> None:
    """Show services, and which backend a client would get."""


@service.command("list")
@click.option("--name", default="", metavar="NAMESPACE/NAME", help="This service only.")
@click.option("-v", "--verbose", is_flag=True, help="Names and nodes as well.")
@output_option
@node_options
def list_services(target: Target, output: str, name: str, *, verbose: bool) -> None:
    """List the frontends of services with their backends.

    `/i` after the protocol stands for what pods and nodes get, where that differs from what the
    outside gets.
    """
    found = _services(target, agent_pb2.ListServicesRequest(name=name))

    def render() -> None:
        headers = ["ID", "Frontend", "Service Type", "Backend"]
        rows = [_row(one, verbose=verbose) for one in found]
        table([*headers, "Service"] if verbose else headers, rows)

    emit(output, [plain(one) for one in found], render)


def _services(target: Target, request: agent_pb2.ListServicesRequest) -> list[agent_pb2.Service]:
    with agent(target) as stub:
        return [
            one for part in stub.ListServices(request, timeout=_TIMEOUT_S) for one in part.services
        ]


def _row(one: agent_pb2.Service, *, verbose: bool) -> list[object]:
    backends = [
        f"{number} => {_backend_text(backend, verbose=verbose)}"
        for number, backend in enumerate(one.backends, start=1)
    ]
    row: list[object] = [one.id or "", _frontend_text(one), one.type, "\n".join(backends)]
    return [*row, f"{one.namespace}/{one.name}"] if verbose else row


def _frontend_text(one: agent_pb2.Service) -> str:
    return service_address_text(one.frontend) + ("/i" if one.scope == "internal" else "")


def _backend_text(backend: agent_pb2.ServiceBackend, *, verbose: bool = False) -> str:
    text = f"{service_address_text(backend.address)} ({backend.state})"
    return f"{text} on {backend.node}" if verbose and backend.node else text


@service.command("get")
@click.argument("number", type=click.IntRange(1, 65535), metavar="ID")
@output_option
@node_options
def get_service(target: Target, output: str, number: int) -> None:
    """Show all there is to know of one frontend, by its id in `service list`."""
    found = _services(target, agent_pb2.ListServicesRequest(id=number))
    if not found:
        raise NotFoundError(
            f"no frontend has the id {number}", "the ids there are: cilium service list"
        )

    def render() -> None:
        for one in found:
            for line in _details(one):
                click.echo(line)

    emit(output, [plain(one) for one in found], render)


def _details(one: agent_pb2.Service) -> Iterator[str]:
    port = f", port {one.port_name}" if one.port_name else ""
    yield f"{_frontend_text(one)}: {one.type} of {one.namespace}/{one.name}{port}"
    yield f"  id {one.id}, {'' if one.routable else 'not '}asked from outside"
    policies = f"external {one.external_traffic_policy}, internal {one.internal_traffic_policy}"
    yield f"  traffic policies: {policies}"
    forwarding = f", forwarding {one.forwarding}" if one.forwarding else ""
    yield f"  algorithm {one.algorithm}{forwarding}"
    if one.affinity_timeout_s:
        yield f"  session affinity by client address for {one.affinity_timeout_s} s"
    if one.source_ranges:
        word = "not from" if one.source_ranges_deny else "only from"
        yield f"  {word} {', '.join(one.source_ranges)}"
    yield "  backends:" if one.backends else "  no backends"
    for backend in one.backends:
        notes = [
            f"id {backend.id}",
            "gets new connections" if backend.eligible else "gets no new connections",
            *([f"on {backend.node}"] if backend.node else []),
            *([f"zone {backend.zone}"] if backend.zone else []),
            *([f"weight {backend.weight}"] if backend.weight != 1 else []),
        ]
        yield f"    {_backend_text(backend)}: {', '.join(notes)}"


# ---- explaining ----

_CHOICES = {
    agent_pb2.SERVICE_CHOICE_RANDOM: "any of the candidates, with equal chances",
    agent_pb2.SERVICE_CHOICE_MAGLEV: "an entry of the Maglev table",
    agent_pb2.SERVICE_CHOICE_AFFINITY: "kept by session affinity",
    agent_pb2.SERVICE_CHOICE_CONNECTION: "kept by its connection",
    agent_pb2.SERVICE_CHOICE_REFUSED: "nobody",
    agent_pb2.SERVICE_CHOICE_NOT_TRANSLATED: "nobody else: it is not translated here",
}


@service.command("explain")
@click.argument("address", metavar="ADDRESS:PORT")
@click.option(
    "--from",
    "client",
    default="",
    metavar="POD|ADDRESS",
    help="Who asks: NAMESPACE/NAME, or an address; a process of the node if left out.",
)
@click.option(
    "--source-port", type=click.IntRange(1, 65535), help="The port that the client asks from."
)
@click.option(
    "--proto", default="TCP", show_default=True, metavar="PROTOCOL", help="TCP, UDP, SCTP."
)
@click.option("--no-verify", is_flag=True, help="Do not run a packet through the loaded programs.")
@output_option
@node_options
def explain(
    target: Target,
    output: str,
    address: str,
    client: str,
    source_port: int | None,
    proto: str,
    *,
    no_verify: bool,
) -> None:
    """Tell which backend a client of a service would get, and why.

    \b
    cilium service explain 10.96.4.20:80 --from shop/frontend
    cilium service explain 192.0.2.7:30080 --from 203.0.113.5 --source-port 40000
    cilium service explain [fd00:96::a]:53 --proto UDP

    The answer is held against what the loaded eBPF programs do with such a packet; exits with 1
    when they disagree.
    """  # noqa: D301 - click reads the backspace
    request = _request(address, client, source_port, proto)
    request.no_verify = no_verify
    answer = _ask(target, request)
    if answer.node:
        answer = _ask_there(target, request, answer)
    emit(output, plain(answer), lambda: _render(answer))
    if answer.HasField("kernel") and not answer.kernel.agrees:
        raise click.exceptions.Exit(1)


def _request(
    address: str, client: str, source_port: int | None, proto: str
) -> agent_pb2.ExplainServiceRequest:
    place, slash, suffix = address.partition("/")
    try:
        at = read_endpoint(place)
        protocol = read_protocol(suffix if slash else proto)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return agent_pb2.ExplainServiceRequest(
        frontend=agent_pb2.ServiceAddress(ip=at.ip, port=at.port, protocol=protocol),
        client=client,
        client_port=source_port or 0,
    )


def _ask(
    target: Target, request: agent_pb2.ExplainServiceRequest
) -> agent_pb2.ExplainServiceResponse:
    with agent(target) as stub:
        answer: agent_pb2.ExplainServiceResponse = stub.ExplainService(request, timeout=TIMEOUT_S)
    return answer


def _ask_there(
    target: Target,
    request: agent_pb2.ExplainServiceRequest,
    answer: agent_pb2.ExplainServiceResponse,
) -> agent_pb2.ExplainServiceResponse:
    """Ask the node of the lab that the client is on, where the choice is made."""
    for sibling in siblings(target):
        if sibling.name == answer.node:
            return _ask(sibling, request)
    return answer


def _render(answer: agent_pb2.ExplainServiceResponse) -> None:
    one = answer.service
    click.echo(f"{_frontend_text(one)}: {one.type} of {one.namespace}/{one.name}")
    click.echo(f"  asked by {answer.client}, chosen {_PLACES.get(answer.place, answer.place)}")
    click.echo(f"  served by {_choice_text(answer)}")
    for number, step in enumerate(answer.steps, start=1):
        click.echo(f"    {number}. {step}")
    if answer.candidates:
        click.echo("  backends:")
    for candidate in answer.candidates:
        mark = click.style("+", fg="green") if candidate.possible else "-"
        note = f": {candidate.message}" if candidate.message else ""
        click.echo(f"    {mark} {_backend_text(candidate.backend, verbose=True)}{note}")
    if answer.HasField("kernel"):
        click.echo(f"  the kernel {_kernel_text(answer)}")
    elif answer.unverified:
        click.echo(f"  not verified: {answer.unverified}")


_PLACES = {
    "socket": "as the socket connects",
    "pod": "as the pod's packet leaves",
    "device": "as the packet comes to the node's device",
}


def _choice_text(answer: agent_pb2.ExplainServiceResponse) -> str:
    why = _CHOICES.get(answer.choice, "")
    if answer.choice == agent_pb2.SERVICE_CHOICE_RANDOM and answer.HasField("backend"):
        why = "the only candidate"
    if answer.HasField("backend"):
        chosen = click.style(service_address_text(answer.backend.address), bold=True)
        return f"{chosen}, {why}"
    return click.style(why, fg="red") if why == "nobody" else why


def _kernel_text(answer: agent_pb2.ExplainServiceResponse) -> str:
    found = answer.kernel
    parts, past = [], ""
    if answer.place == "socket":
        past = "for a packet past the socket "
        possible = any(candidate.possible for candidate in answer.candidates)
        same = "has these candidates" if possible else "has nobody either"
        parts.append(found.difference or f"the map that sockets choose from {same}")
    if found.HasField("backend"):
        parts.append(f"{past}{found.program} chose {service_address_text(found.backend.address)}")
    elif found.drop_reason:
        parts.append(f"{past}{found.program} refused it ({found.drop_reason})")
    elif found.program != "map":
        parts.append(f"{past}{found.program} took it for no service")
    word = "agrees" if found.agrees else "DISAGREES"
    return f"{click.style(word, fg='green' if found.agrees else 'red')}: {'; '.join(parts)}"
