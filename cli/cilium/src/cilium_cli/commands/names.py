# SPDX-License-Identifier: Apache-2.0
"""`cilium fqdn`: the names that pods looked up, and the addresses behind them."""

from __future__ import annotations

import click
from cilium.agent.v1 import agent_pb2

from cilium_cli.connecting import TIMEOUT_S, agent
from cilium_cli.errors import NotFoundError
from cilium_cli.outputs import emit, output_option, plain, table
from cilium_cli.targets import Target, node_options

_SOURCES = ("lookup", "connection")


@click.group(short_help="DNS names that pods looked up: cache, names.")
def fqdn() -> None:
    """Show the DNS names that pods of a node looked up, and which policies speak of names."""


@fqdn.group()
def cache() -> None:
    """Show and clean what the DNS proxy has seen."""


@cache.command("list")
@click.option("-e", "--endpoint", type=click.IntRange(1, 65535), help="Only of this endpoint.")
@click.option(
    "-p",
    "--matchpattern",
    "pattern",
    default="",
    help="Only names like *.example.org.",
)
@click.option(
    "-s",
    "--source",
    type=click.Choice(_SOURCES),
    help="Only what lookups gave, or only what live connections keep.",
)
@output_option
@node_options
def list_cache(
    target: Target, output: str, endpoint: int | None, pattern: str, source: str | None
) -> None:
    """List names, how long they last, and their addresses."""
    request = agent_pb2.ListNamesRequest(pattern=pattern, endpoint_id=endpoint or 0)
    with agent(target) as stub:
        answer = stub.ListNames(request, timeout=TIMEOUT_S)
    found = [entry for entry in answer.names if source in (None, entry.source)]
    rows = [
        [
            entry.endpoint_id or "",
            entry.source,
            entry.name,
            entry.ttl_s,
            entry.expires.ToJsonString(),
            ",".join(entry.addresses),
        ]
        for entry in found
    ]
    headers = ["Endpoint", "Source", "FQDN", "TTL", "ExpirationTime", "IPs"]
    emit(output, [plain(entry) for entry in found], lambda: table(headers, rows))


@cache.command("clean")
@click.option(
    "-p", "--matchpattern", "pattern", default="", help="Only names like this; all by default."
)
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@node_options
def clean_cache(target: Target, pattern: str, *, force: bool) -> None:
    """Forget names. Policies on names stop matching their addresses until pods ask again."""
    what = f"the names like {pattern}" if pattern else "all names"
    if not force:
        click.confirm(f"Forget {what} on {target.name}?", abort=True)
    with agent(target) as stub:
        answer = stub.CleanNames(agent_pb2.CleanNamesRequest(pattern=pattern), timeout=TIMEOUT_S)
    plural = "address" if answer.addresses == 1 else "addresses"
    click.echo(f"Forgot {what}: {answer.addresses} {plural}")


@fqdn.command("names")
@output_option
@node_options
def names(target: Target, output: str) -> None:
    """List the names and patterns that policies speak of, and the identities they select now."""
    with agent(target) as stub:
        answer = stub.ListSelectors(agent_pb2.ListSelectorsRequest(), timeout=TIMEOUT_S)
    found = [item for item in answer.selectors if item.selector.startswith("fqdn:")]
    if not found and output == "table":
        raise NotFoundError(
            f"no policy on {target.name} speaks of names", "toFQDNs in an egress rule does"
        )
    rows = [
        [item.selector.removeprefix("fqdn:"), "\n".join(item.users), _numbers(item)]
        for item in found
    ]
    emit(
        output,
        [plain(item) for item in found],
        lambda: table(["NAME", "POLICIES", "IDENTITIES"], rows),
    )


def _numbers(item: agent_pb2.Selector) -> str:
    return "\n".join(map(str, item.identities))
