"""`hubble observe`: flows, agent events and debug events."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from hubble_cli import names, times
from hubble_cli.arguments import Command, Flag, Section
from hubble_cli.errors import UsageError
from hubble_cli.settings import RAW_FILTERS, SERVER, Settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flow import flow_pb2
    from observer import observer_pb2

    from hubble_cli.arguments import Parsed
    from hubble_cli.printing.outputs import Options


def _filter(
    name: str,
    text: str,
    short: str = "",
    implied: str | None = None,
    choices: tuple[str, ...] = (),
) -> Flag:
    return Flag(name, "filter", text, short, implied=implied, choices=choices)


def _sides(name: str, what: str, short: str = "", choices: tuple[str, ...] = ()) -> list[Flag]:
    return [
        _filter(f"from-{name}", f"flows from {what}", choices=choices),
        _filter(name, f"flows from or to {what}", short, choices=choices),
        _filter(f"to-{name}", f"flows to {what}", choices=choices),
    ]


_WHEN = "a duration back from now (5m, 1h30m) or a time (2026-01-15, 2026-01-15T10:20Z, RFC 3339)"
SELECTORS = Section(
    "Selection",
    (
        Flag("all", "bool", "everything that is kept", default=False, implied="true"),
        Flag("first", "uint", "the first N, per node", default=0),
        Flag("last", "uint", "the last N, per node (20 if nothing else is said)", default=0),
        Flag("follow", "bool", "go on as they come", "f", default=False, implied="true"),
        Flag("since", "string", f"from {_WHEN}"),
        Flag("until", "string", f"up to {_WHEN}; ignored with --follow"),
    ),
)
RECALLING = Section(
    "Recalling",
    (
        Flag(
            "at",
            "string",
            "instead of flows, endpoints, identities and policies as they were at a moment: "
            + _WHEN,
        ),
    ),
)
COUNTING = Section(
    "Counting",
    (
        Flag(
            "aggregate-by",
            "list",
            f"count flows by these instead of listing them: {', '.join(names.DIMENSIONS)}",
            default=[],
            choices=names.DIMENSIONS,
        ),
        Flag("most", "uint", "groups to show, those with the most flows first", default=0),
    ),
)
_IDENTITIES = tuple(name for number, name in names.RESERVED_IDENTITIES.items() if number)
_EVENT_TYPES = tuple(name for name in names.EVENT_TYPES if name not in ("debug", "agent"))
FILTERS = Section(
    "Filter",
    (
        _filter("not", "turn the next filter around", implied="true"),
        *_sides("namespace", "pods of this namespace", "n"),
        _filter("from-all-namespaces", "flows from any namespace", implied="true"),
        _filter("all-namespaces", "flows from or to any namespace", "A", "true"),
        _filter("to-all-namespaces", "flows to any namespace", implied="true"),
        *_sides("pod", "pods named [namespace/]prefix; without a namespace: default"),
        *_sides("service", "services named [namespace/]prefix; without a namespace: default"),
        *_sides("workload", "a workload: name, Kind/name or Kind/"),
        *_sides("label", "endpoints matching a label selector, as key=value", "l"),
        *_sides("identity", "a security identity, number or reserved name", choices=_IDENTITIES),
        *_sides("ip", "an address or CIDR"),
        _filter("snat-ip", "flows translated to this address or CIDR"),
        *_sides("fqdn", "a DNS name; * matches any part of it"),
        *_sides("cluster", "a cluster, by its exact name"),
        *_sides("port", "a TCP, UDP or SCTP port"),
        _filter("ipv4", "IPv4 flows", "4", "v4"),
        _filter("ipv6", "IPv6 flows", "6", "v6"),
        _filter("ip-version", "flows of IP version v4, v6 or none", choices=("none", "v4", "v6")),
        _filter(
            "protocol",
            "flows of an L4 or L7 protocol, such as tcp, icmp, dns",
            choices=(
                *("icmp", "icmpv4", "icmpv6", "sctp", "tcp", "udp", "vrrp", "igmp"),
                *("dns", "http", "kafka"),
            ),
        ),
        _filter("tcp-flags", "flows with all these TCP flags, as syn,ack"),
        _filter(
            "type",
            f"events of TYPE[:SUBTYPE]; types {', '.join(_EVENT_TYPES)};"
            f" subtypes of trace {', '.join(names.TRACE_POINTS.values())}",
            "t",
            choices=(*_EVENT_TYPES, *(f"trace:{point}" for point in names.TRACE_POINTS.values())),
        ),
        _filter(
            "verdict",
            "flows with this verdict",
            choices=(
                *("FORWARDED", "DROPPED", "AUDIT", "REDIRECTED"),
                *("ERROR", "TRACED", "TRANSLATED"),
            ),
        ),
        _filter("drop-reason-desc", "flows dropped for this reason, as POLICY_DENIED"),
        _filter(
            "traffic-direction", "ingress or egress connections", choices=("ingress", "egress")
        ),
        _filter("encrypted", "encrypted flows", implied="true"),
        _filter("unencrypted", "flows that are not encrypted", implied="true"),
        _filter("http-status", "HTTP answers with this status: 404, 40+, 5+"),
        _filter("http-method", "HTTP requests with this method"),
        _filter("http-path", "HTTP requests whose path matches this regular expression"),
        _filter("http-url", "HTTP requests whose URL matches this regular expression"),
        _filter("http-header", "HTTP requests with this header, as name:value"),
        _filter("node-name", "flows seen on these nodes: node, cluster/ or cluster/node, with *"),
        _filter("node-label", "flows seen on nodes matching a label selector"),
        _filter("interface", "flows seen at this network interface"),
        _filter("uuid", "the flow with this identifier"),
        _filter("trace-id", "flows of this trace"),
        _filter("ip-trace-id", "packets marked with this IP trace id"),
        _filter("cel-expression", "flows for which this CEL expression is true"),
    ),
)
FORMATTING = Section(
    "Formatting",
    (
        Flag(
            "output",
            "string",
            "compact, dict, json (the same as jsonpb), table, or wide for a table with --wide",
            "o",
            "compact",
            choices=("compact", "dict", "json", "jsonpb", "table", "wide"),
        ),
        Flag("print-node-name", "bool", "show the node", default=False, implied="true"),
        Flag(
            "print-policy-names",
            "bool",
            "show which policies decided",
            default=False,
            implied="true",
        ),
        Flag(
            "time-format",
            "string",
            f"how to show times: {', '.join(times.FORMATS)}",
            default="StampMilli",
            choices=times.FORMATS,
        ),
    ),
)
FLOW_FORMATTING = Section(
    "Flow format",
    (
        Flag(
            "wide",
            "bool",
            "also show packets, bytes, and where in the eBPF sources a flow was dropped",
            default=False,
            implied="true",
        ),
        Flag(
            "color",
            "string",
            "colour in compact and dict: auto, always or never",
            default="auto",
            choices=("auto", "always", "never"),
        ),
        Flag(
            "ip-translation",
            "bool",
            "show names instead of addresses",
            default=True,
            implied="true",
        ),
        Flag("numeric", "bool", "show addresses only", default=False, implied="true"),
    ),
)
OTHER = Section(
    "Other",
    (
        Flag("field-mask", "list", "fields to ask for; JSON output only", default=[]),
        Flag(
            "use-default-field-masks",
            "bool",
            "ask only for what text outputs show",
            default=True,
            implied="true",
        ),
        Flag("input-file", "string", "read flows from this file of JSON lines; - is stdin"),
        Flag(
            "input-dir", "string", "read flows from this directory, a server's hubble-history-dir"
        ),
        Flag(
            "print-raw-filters",
            "bool",
            "print the filters as YAML and send nothing",
            default=False,
            implied="true",
        ),
        Flag("silent-errors", "bool", "print no node status", "s", default=False, implied="true"),
    ),
)


def _options(parsed: Parsed, settings: Settings) -> Options:
    from hubble_cli.printing.outputs import Format, Options, choose
    from hubble_cli.terminals import wants_colour

    values = parsed.values
    legacy = "legacy-json-output" in os.environ.get("HUBBLE_COMPAT", "").lower().split(",")
    wide = values.get("output") == "wide"
    output = choose("table" if wide else str(values.get("output", "compact")), legacy_json=legacy)
    if output is Format.TABLE and values.get("follow"):
        raise UsageError("table output format is not compatible with follow mode")
    return Options(
        output=output,
        time_format=str(values.get("time-format", "StampMilli")),
        ip_translation=bool(values.get("ip-translation", True)) and not values.get("numeric"),
        node_name=bool(values.get("print-node-name")),
        policy_names=bool(values.get("print-policy-names")),
        wide=wide or bool(values.get("wide")),
        debug=settings.enabled("debug"),
        silent=bool(values.get("silent-errors")),
        colour=wants_colour(str(values.get("color", "auto"))),
    )


def chosen_filters(
    parsed: Parsed, settings: Settings
) -> tuple[list[flow_pb2.FlowFilter], list[flow_pb2.FlowFilter]]:
    """Filters of the command line: one of the first must hold, none of the second. UsageError."""
    from hubble_cli import requesting
    from hubble_cli.filtering import FilterFlags

    flags = FilterFlags()
    for flag, value in parsed.filters:
        flags.add(flag.name, value)
    allowed, denied = flags.finish()
    return (
        [*allowed, *requesting.raw_filters("allowlist", settings.strings("allowlist"))],
        [*denied, *requesting.raw_filters("denylist", settings.strings("denylist"))],
    )


def _print_counts(parsed: Parsed, by: list[str], settings: Settings) -> None:
    """Print how many flows there are of each kind, instead of the flows."""
    from observer import observer_pb2

    from hubble_cli import replaying, requesting
    from hubble_cli.commands.counting import count, dimensions
    from hubble_cli.printing.counts import show

    numbers = dimensions(by)
    selection = requesting.Selection(parsed, time.time_ns())
    for flag in ("first", "last", "follow"):
        if parsed.values.get(flag):
            raise UsageError(
                f"--aggregate-by counts everything in a range of time: leave out --{flag}, and use "
                "--since and --until, or hubble top for what goes on now"
            )
    allowed, denied = chosen_filters(parsed, settings)
    request = observer_pb2.GetFlowsRequest(
        whitelist=allowed, blacklist=denied, since=selection.since(), until=selection.until()
    )
    most = int(parsed.values.get("most", 0))  # type: ignore[arg-type]
    if name := str(parsed.values.get("input-file", "")):
        from cilium_core.flow_totals import Totals

        totals = Totals()
        with replaying.open_lines(name) as lines:
            found = replaying.replay(lines, request, lambda text: print(text, file=sys.stderr))
            totals.count((one.flow for one in found if one.HasField("flow")), numbers)
        answer = totals.answer(most, ())
    elif name := str(parsed.values.get("input-dir", "")):
        from cilium_core.flow_totals import Totals

        from hubble_cli import histories

        totals = Totals()
        totals.count(
            (one.flow for one in histories.read(name, request) if one.HasField("flow")), numbers
        )
        answer = totals.answer(most, ())
    else:
        answer = count(request, by, most, settings)
    as_json = str(parsed.values.get("output", "")).lower().startswith("json")
    sys.stdout.write(show(answer, by, "json" if as_json else "table"))


def observe_flows(parsed: Parsed) -> None:
    """Print flows."""
    from hubble_cli import requesting
    from hubble_cli.printing.outputs import Format

    settings = Settings(parsed)
    settings.check()
    allowed, denied = chosen_filters(parsed, settings)
    if parsed.values.get("at"):
        from hubble_cli.commands.recalling import recall

        recall(parsed, settings, allowed, denied)
        return
    options = _options(parsed, settings)
    if by := parsed.values.get("aggregate-by"):
        _print_counts(parsed, by if isinstance(by, list) else [str(by)], settings)
        return
    mask = parsed.values.get("field-mask") or []
    if options.output is not Format.JSON:
        if mask:
            name = parsed.values.get("output", "compact")
            raise UsageError(f"{name} output format is not compatible with custom field mask")
        if parsed.values.get("use-default-field-masks", True):
            mask = list(requesting.DEFAULT_FIELD_MASK)
            if options.policy_names:
                mask += requesting.POLICY_FIELDS
            if options.wide:
                mask += requesting.WIDE_FIELDS
    input_file = str(parsed.values.get("input-file", ""))
    input_dir = str(parsed.values.get("input-dir", ""))
    if input_file and input_dir:
        raise UsageError("cannot set both --input-file and --input-dir")
    selection = requesting.Selection(parsed, time.time_ns())
    selection.check()
    request = requesting.flows_request(
        selection,
        allowed,
        denied,
        mask if isinstance(mask, list) else [],
        from_file=bool(input_file or input_dir),
    )
    if parsed.values.get("print-raw-filters"):
        sys.stdout.write(requesting.filters_as_yaml(allowed, denied))
    elif input_file:
        _print_file(input_file, request, options)
    elif input_dir:
        _print_directory(input_dir, request, options)
    else:
        _print_flows(request, options, settings)


def _print_file(name: str, request: observer_pb2.GetFlowsRequest, options: Options) -> None:
    from hubble_cli import replaying
    from hubble_cli.printing.flows import FlowPrinter

    printer = FlowPrinter(options)

    def warn(text: str) -> None:
        printer.streams.warn(f"warning: {text}\n")

    with replaying.open_lines(name) as lines:
        try:
            for number, response in enumerate(replaying.replay(lines, request, warn)):
                printer.print(response)
                if number % 256 == 0:
                    printer.streams.flush()
        finally:
            printer.streams.close()


def _print_directory(name: str, request: observer_pb2.GetFlowsRequest, options: Options) -> None:
    from hubble_cli import histories
    from hubble_cli.printing.flows import FlowPrinter

    printer = FlowPrinter(options)
    found = histories.read(name, request)
    try:
        for number, response in enumerate(found):
            printer.print(response)
            if number % 256 == 0:
                printer.streams.flush()
    finally:
        printer.streams.close()


def _print_flows(
    request: observer_pb2.GetFlowsRequest, options: Options, settings: Settings
) -> None:
    from hubble_cli.connecting import Connection
    from hubble_cli.printing.flows import FlowPrinter
    from hubble_cli.requesting import describe

    if options.debug:
        print(f"debug: GetFlows {describe(request)}", file=sys.stderr)
    printer = FlowPrinter(options)
    with Connection(settings) as connection:
        try:
            for responses in connection.flows(request):
                for response in responses:
                    printer.print(response)
                printer.streams.flush()
        except KeyboardInterrupt:
            pass
        finally:
            printer.streams.close()


def _observe_events(parsed: Parsed, kind: str) -> None:
    from observer import observer_pb2

    from hubble_cli import requesting
    from hubble_cli.connecting import Connection
    from hubble_cli.printing.events import EventPrinter

    settings = Settings(parsed)
    settings.check()
    options = _options(parsed, settings)
    selection = requesting.Selection(parsed, time.time_ns())
    agent = kind == "Agent"
    make = observer_pb2.GetAgentEventsRequest if agent else observer_pb2.GetDebugEventsRequest
    answer = observer_pb2.GetAgentEventsResponse if agent else observer_pb2.GetDebugEventsResponse
    request = make(
        number=requesting.events_number(selection),
        follow=selection.follow,
        since=selection.since(),
        until=selection.until(),
    )
    printer = EventPrinter(options)
    show = printer.print_agent if agent else printer.print_debug
    with Connection(settings) as connection:
        events: Iterable[object] = connection.stream(
            f"/observer.Observer/Get{kind}Events", request, answer
        )
        try:
            for event in events:
                show(event)  # type: ignore[arg-type]  # the printer of that kind
                printer.streams.flush()
        except KeyboardInterrupt:
            pass
        finally:
            printer.streams.close()


def observe_agent_events(parsed: Parsed) -> None:
    """Print agent events."""
    _observe_events(parsed, "Agent")


def observe_debug_events(parsed: Parsed) -> None:
    """Print debug events."""
    _observe_events(parsed, "Debug")


_FLOW_SECTIONS = (
    SELECTORS,
    RECALLING,
    COUNTING,
    FILTERS,
    RAW_FILTERS,
    FORMATTING,
    FLOW_FORMATTING,
    SERVER,
    OTHER,
)
_EVENT_SECTIONS = (SELECTORS, FORMATTING, SERVER, OTHER)
_FLOWS_TEXT = """\
Every filter may be given several times: one of its values has to match. Different filters must all
match. --not turns the next filter around; all filters turned around together describe flows that
are left out.

Examples:
  hubble observe -n shop --verdict DROPPED
  hubble observe --pod shop/cart --protocol tcp --port 8080 -f
  hubble observe --not --to-port 53 --since 5m -o json > flows.json
  hubble observe --input-file flows.json --last 10 -o table
  hubble observe --input-dir /var/lib/hubble --since 2h --verdict DROPPED
  hubble observe --since 10m --aggregate-by source,destination,port,verdict
  hubble observe --at 2h -n shop
"""
COMMAND = Command(
    "observe",
    "Observe flows and events",
    observe_flows,
    _FLOW_SECTIONS,
    (
        Command("flows", "Observe flows", observe_flows, _FLOW_SECTIONS, text=_FLOWS_TEXT),
        Command(
            "agent-events",
            "Observe events of the agent",
            observe_agent_events,
            _EVENT_SECTIONS,
        ),
        Command(
            "debug-events",
            "Observe debug events of the data plane",
            observe_debug_events,
            _EVENT_SECTIONS,
        ),
    ),
    text=_FLOWS_TEXT,
)
