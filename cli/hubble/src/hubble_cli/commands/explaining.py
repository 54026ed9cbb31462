"""`hubble why`: why a flow had its verdict, and what would change it."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from hubble_cli import times
from hubble_cli.arguments import Command, Flag, Section
from hubble_cli.commands.observing import FILTERS, chosen_filters
from hubble_cli.errors import UsageError
from hubble_cli.settings import RAW_FILTERS, SERVER, Settings

if TYPE_CHECKING:
    from hubble_cli.arguments import Parsed

_WHY = Section(
    "Why",
    (
        Flag("since", "string", "not before a duration back (5m) or a time"),
        Flag("until", "string", "not after a duration back or a time"),
        Flag(
            "verify",
            "bool",
            "also run the packet through the loaded eBPF programs of the node that saw it",
            default=False,
            implied="true",
        ),
    ),
)
_OUTPUT = Section(
    "Formatting",
    (
        Flag("output", "string", "text or json", "o", "text", choices=("text", "json")),
        Flag(
            "color",
            "string",
            "colour: auto, always or never",
            default="auto",
            choices=("auto", "always", "never"),
        ),
    ),
)


def why(parsed: Parsed) -> None:
    """Explain the flow that is named, or the newest one that passes the filters."""
    from cilium.flows.v1 import explain_pb2
    from flow import flow_pb2

    from hubble_cli import jsonlines
    from hubble_cli.connecting import Connection
    from hubble_cli.printing.explanations import show
    from hubble_cli.terminals import Painter, wants_colour

    settings = Settings(parsed)
    settings.check()
    output = str(parsed.values.get("output", "text"))
    if output not in ("text", "json"):
        raise UsageError(f"invalid output format: {output}; choose text or json")
    allowed, denied = chosen_filters(parsed, settings)
    if parsed.operands:
        if parsed.filters:
            raise UsageError("the identifier says which flow: leave out the filters")
        allowed = [flow_pb2.FlowFilter(uuid=[parsed.operands[0]])]
    elif not allowed and not denied:
        raise UsageError(
            "say which flow: its identifier, as `hubble observe -o json` shows it, or filters, of "
            "whose flows the newest is explained, such as --verdict DROPPED"
        )
    request = explain_pb2.ExplainFlowRequest(verify=bool(parsed.values.get("verify")))
    request.flows.whitelist.extend(allowed)
    request.flows.blacklist.extend(denied)
    now_ns = time.time_ns()
    for flag, moment in (("since", request.flows.since), ("until", request.flows.until)):
        if text := str(parsed.values.get(flag, "")):
            moment.seconds, moment.nanos = times.parse_time(text, now_ns)
    with Connection(settings) as connection:
        answer = connection.explanation(request)
    if output == "json":
        sys.stdout.write(jsonlines.encode(answer) + "\n")
        return
    painter = Painter(wants_colour(str(parsed.values.get("color", "auto"))))
    sys.stdout.write(show(answer, painter))


COMMAND = Command(
    "why",
    "Explain why a flow had its verdict",
    why,
    (_WHY, FILTERS, RAW_FILTERS, _OUTPUT, SERVER),
    operands=(0, 1),
    usage="[UUID] [flags]",
    text="""\
Tells of one flow what happened, which policies and rules decided and why others did not match, what
a drop reason means and what can be done, which service was asked, and what has changed since. The
flow is named by its identifier, as "hubble observe -o json" shows it; with filters it is the newest
one that passes.

Examples:
  hubble why 7bb0cd1e-7f6d-4e1c-9a59-3f6a8f4e4a0d
  hubble why --verdict DROPPED --from-pod shop/frontend
  hubble why --http-status 403 --since 1h -o json
""",
)
