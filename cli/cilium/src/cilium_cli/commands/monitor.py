# SPDX-License-Identifier: Apache-2.0
"""`cilium monitor`: the data plane's events, one line each, as they happen."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import click
from cilium.flows.v1 import flows_pb2

from cilium_cli import events
from cilium_cli.connecting import flows
from cilium_cli.targets import Target, node_options

if TYPE_CHECKING:
    from collections.abc import Callable

_ENDPOINT = click.IntRange(1, 65535)


@click.command(short_help="Data plane events as they happen.")
@click.option(
    "-t",
    "--type",
    "types",
    multiple=True,
    type=click.Choice(list(events.TYPES)),
    help="Only these.",
)
@click.option("--from", "sources", multiple=True, type=_ENDPOINT, help="From these endpoint ids.")
@click.option("--to", "destinations", multiple=True, type=_ENDPOINT, help="To these endpoint ids.")
@click.option(
    "--related-to", "related", multiple=True, type=_ENDPOINT, help="From or to these endpoint ids."
)
@click.option("-j", "--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("-v", "--verbose", is_flag=True, help="Time, endpoint and counters as well.")
@click.option("--number", type=click.IntRange(1), help="End after that many events.")
@click.option("--seconds", type=click.FloatRange(min=0), help="End after that time.")
@node_options
def monitor(
    target: Target,
    types: tuple[str, ...],
    sources: tuple[int, ...],
    destinations: tuple[int, ...],
    related: tuple[int, ...],
    number: int | None,
    seconds: float | None,
    *,
    as_json: bool,
    verbose: bool,
) -> None:
    """Print what the data plane reports: forwarded packets, drops, policy verdicts.

    Ends with Ctrl-C. Events that the kernel could not write are told as they are noticed.
    """
    request = flows_pb2.StreamEventsRequest(
        types=[events.TYPES[name] for name in types],
        related_to=related,
        **{"from": sources, "to": destinations},
    )

    def write(event: events.Event) -> None:
        click.echo(
            json.dumps(events.document(event)) if as_json else events.line(event, verbose=verbose)
        )

    _follow(target, request, write, number, seconds)


def _follow(
    target: Target,
    request: flows_pb2.StreamEventsRequest,
    write: Callable[[events.Event], None],
    number: int | None,
    seconds: float | None,
) -> None:
    from cilium_cli.errors import DeadlineError

    left = number
    deadline = None if seconds is None else time.monotonic() + seconds
    try:
        with flows(target) as stub:
            for batch in stub.StreamEvents(request, timeout=seconds):
                for cpu, lost in sorted(batch.lost.items()):
                    click.echo(f"CPU {cpu:02d}: {lost} events lost", err=True)
                for event in events.parse(batch.records, batch.clock_offset_ns):
                    write(event)
                    if left is not None:
                        left -= 1
                        if not left:
                            return
    except DeadlineError:
        if deadline is None or time.monotonic() < deadline - 0.5:
            raise
