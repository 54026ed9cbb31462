"""Flows counted instead of listed: `observe --aggregate-by`, `hubble top`, `hubble stats`."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from hubble_cli import names, times
from hubble_cli.arguments import Command, Flag, Section
from hubble_cli.commands.observing import FILTERS, chosen_filters
from hubble_cli.errors import UsageError
from hubble_cli.settings import RAW_FILTERS, SERVER, Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cilium.flows.v1 import flows_pb2
    from observer import observer_pb2

    from hubble_cli.arguments import Parsed

_S = 1_000_000_000
_CLEAR = "\x1b[H\x1b[2J"
_STATS = (
    ("Verdicts", ("verdict",)),
    ("Protocols", ("protocol",)),
    ("Reasons of drops", ("drop-reason",)),
    ("Busiest pairs", ("source", "destination", "port")),
    ("Dropped most", ("source", "destination", "port", "drop-reason")),
)
_OUTPUT = Section(
    "Formatting",
    (Flag("output", "string", "table or json", "o", "table", choices=("table", "json")),),
)
_MOST = Flag("most", "uint", "groups to show, those with the most flows first", default=20)
_TOP = Section(
    "Top",
    (
        Flag(
            "by",
            "list",
            f"what to tell flows apart by: {', '.join(names.DIMENSIONS)}",
            default=["source", "destination", "port", "verdict"],
            choices=names.DIMENSIONS,
        ),
        _MOST,
        Flag("window", "duration", "how far back to count", default=10 * _S),
        Flag("interval", "duration", "how often to count again on a terminal", default=2 * _S),
        Flag("once", "bool", "count once, as without a terminal", default=False, implied="true"),
    ),
)
_RANGE = Section(
    "Selection",
    (
        Flag("since", "string", "from a duration back (5m) or a time", default="5m"),
        Flag("until", "string", "up to a duration back or a time"),
    ),
)


def dimensions(words: Sequence[str]) -> list[int]:
    """Numbers of dimensions by name. Raises UsageError."""
    from cilium_core.flow_dimensions import NAMES

    for word in words:
        if word not in NAMES:
            raise UsageError(f"flows cannot be counted by {word!r}; choose from {', '.join(NAMES)}")
    return [NAMES[word] for word in words]


def count(
    request: observer_pb2.GetFlowsRequest, words: Sequence[str], most: int, settings: Settings
) -> flows_pb2.AggregateFlowsResponse:
    """Ask a server, whether it can count or not. Raises RemoteError."""
    from cilium.flows.v1 import flows_pb2

    from hubble_cli.connecting import Connection

    wanted = flows_pb2.AggregateFlowsRequest(flows=request, most=most)
    wanted.by.extend(dimensions(words))  # type: ignore[arg-type]  # numbers of an enum
    with Connection(settings) as connection:
        return connection.counts(wanted)


def top(parsed: Parsed) -> None:
    """Show the busiest groups of flows, again and again on a terminal."""
    from hubble_cli.printing.counts import show

    settings = Settings(parsed)
    settings.check()
    words = parsed.values.get("by") or ["source", "destination", "port", "verdict"]
    words = words if isinstance(words, list) else [str(words)]
    dimensions(words)
    values = parsed.values
    window_ns = int(values.get("window", 10 * _S))  # type: ignore[arg-type]
    output, most = str(values.get("output", "table")), int(values.get("most", 20))  # type: ignore[arg-type]
    live = sys.stdout.isatty() and not values.get("once") and output == "table"
    request = _request(parsed, settings)
    try:
        while True:
            request.since.FromNanoseconds(time.time_ns() - window_ns)
            answer = count(request, words, most, settings)
            text = show(answer, words, output, seconds=window_ns / _S)
            sys.stdout.write((_CLEAR if live else "") + text)
            sys.stdout.flush()
            if not live:
                return
            time.sleep(int(values.get("interval", 2 * _S)) / _S)  # type: ignore[arg-type]
    except KeyboardInterrupt:
        return


def stats(parsed: Parsed) -> None:
    """Tell in a few tables what went on."""
    from hubble_cli.printing.counts import show, show_json

    settings = Settings(parsed)
    settings.check()
    request = _request(parsed, settings)
    now_ns = time.time_ns()
    for flag, moment in (("since", request.since), ("until", request.until)):
        text = str(parsed.values.get(flag, "5m" if flag == "since" else ""))
        if text:
            moment.seconds, moment.nanos = times.parse_time(text, now_ns)
    answers = [(title, by, count(_narrowed(request, by), by, 10, settings)) for title, by in _STATS]
    if parsed.values.get("output", "table") == "json":
        sys.stdout.write(show_json({title: (by, answer) for title, by, answer in answers}))
        return
    for title, by, answer in answers:
        named = [group for group in answer.groups if any(group.values)]
        del answer.groups[:]
        answer.groups.extend(named)
        last = title == _STATS[-1][0]
        sys.stdout.write(f"{title}\n{show(answer, by, 'table', budget=last)}\n")


def _narrowed(
    request: observer_pb2.GetFlowsRequest, by: Sequence[str]
) -> observer_pb2.GetFlowsRequest:
    """Narrow a request to what a table is about: ports of services, reasons of drops."""
    from flow import flow_pb2
    from observer import observer_pb2

    made = observer_pb2.GetFlowsRequest()
    made.CopyFrom(request)
    if "port" in by:
        made.blacklist.append(flow_pb2.FlowFilter(reply=[True]))
    if "drop-reason" in by:
        others = [name for name, _ in flow_pb2.Verdict.items() if name != "DROPPED"]
        made.blacklist.append(flow_pb2.FlowFilter(verdict=others))
    return made


def _request(parsed: Parsed, settings: Settings) -> observer_pb2.GetFlowsRequest:
    from observer import observer_pb2

    allowed, denied = chosen_filters(parsed, settings)
    return observer_pb2.GetFlowsRequest(whitelist=allowed, blacklist=denied)


TOP = Command(
    "top",
    "Show the busiest flows, live",
    top,
    (_TOP, FILTERS, RAW_FILTERS, _OUTPUT, SERVER),
    text="""\
Counts the flows of the last seconds by what --by names, most first. On a terminal it counts again
every --interval.

Examples:
  hubble top
  hubble top --by source,drop-reason --verdict DROPPED
  hubble top --by policy --window 1m --once -o json
""",
)
STATS = Command(
    "stats",
    "Tell in a few tables what went on",
    stats,
    (_RANGE, FILTERS, RAW_FILTERS, _OUTPUT, SERVER),
    text="""\
Tables with ports leave replies out, as these go to the ports of clients.

Examples:
  hubble stats
  hubble stats --since 1h -n shop
""",
)
