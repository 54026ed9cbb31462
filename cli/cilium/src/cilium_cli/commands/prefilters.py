# SPDX-License-Identifier: Apache-2.0
"""`cilium prefilter`: what XDP drops at the node's device before anything else sees it."""

from __future__ import annotations

import ipaddress

import click
from cilium.agent.v1 import agent_pb2

from cilium_cli.connecting import TIMEOUT_S, agent
from cilium_cli.errors import InputError
from cilium_cli.outputs import emit, output_option, plain
from cilium_cli.targets import Target, node_options


@click.group(short_help="XDP deny list and rate limit.")
def prefilter() -> None:
    """Show and change the XDP deny list and rate limit of a node."""


@prefilter.command("get")
@output_option
@node_options
def get_prefilter(target: Target, output: str) -> None:
    """Show the denied prefixes and the rate limit."""
    with agent(target) as stub:
        answer = stub.GetPrefilter(agent_pb2.GetPrefilterRequest(), timeout=TIMEOUT_S)
    _show(answer.prefilter, output)


@prefilter.command("update")
@click.argument("cidrs", nargs=-1, metavar="[CIDR]...")
@click.option(
    "--rate-limit", type=click.IntRange(0, 10_000_000), help="Packets a second and source; 0: off."
)
@click.option(
    "--burst", type=click.IntRange(1, 10_000_000), help="Packets a source may send at once."
)
@output_option
@node_options
def update(
    target: Target, output: str, cidrs: tuple[str, ...], rate_limit: int | None, burst: int | None
) -> None:
    """Deny packets from CIDRs, or limit the packet rate of every source."""
    if not cidrs and rate_limit is None and burst is None:
        raise InputError("nothing to change", "give CIDRs, --rate-limit or --burst")
    _change(
        target,
        output,
        agent_pb2.UpdatePrefilterRequest(
            add_cidrs=[_cidr(text) for text in cidrs],
            rate_limit_pps=rate_limit,
            rate_limit_burst=burst,
        ),
    )


@prefilter.command("delete")
@click.argument("cidrs", nargs=-1, required=True, metavar="CIDR...")
@output_option
@node_options
def delete(target: Target, output: str, cidrs: tuple[str, ...]) -> None:
    """No longer deny packets from CIDRs."""
    removed = [_cidr(text) for text in cidrs]
    _change(target, output, agent_pb2.UpdatePrefilterRequest(remove_cidrs=removed))


def _cidr(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise InputError(f"CIDR: {error}", "write 203.0.113.0/24 or 2001:db8::/32") from error


def _change(target: Target, output: str, request: agent_pb2.UpdatePrefilterRequest) -> None:
    with agent(target) as stub:
        answer = stub.UpdatePrefilter(request, timeout=TIMEOUT_S)
    _show(answer.prefilter, output)


def _show(state: agent_pb2.Prefilter, output: str) -> None:
    def render() -> None:
        click.echo(f"Revision: {state.revision}")
        click.echo(f"Devices: {', '.join(state.devices) or 'none (nothing to filter)'}")
        limit = "off"
        if state.rate_limit_pps:
            limit = f"{state.rate_limit_pps} packets/s a source, burst {state.rate_limit_burst}"
        click.echo(f"Rate limit: {limit}")
        click.echo("Denied:" if state.cidrs else "Denied: none")
        for cidr in state.cidrs:
            click.echo(f"  {cidr}")

    emit(output, plain(state), render)
