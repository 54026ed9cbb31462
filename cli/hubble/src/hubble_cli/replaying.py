"""Flows from a file of JSON lines instead of a server.

Order is kept. Filters and time range apply as they would on a server, but to every line: lost
events and node states have nothing a flow filter could match. A line that is no answer of GetFlows
is told and skipped.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cilium_core.flow_filters import FilterError, compile_filters
from flow import flow_pb2
from observer import observer_pb2

from hubble_cli.errors import HubbleError
from hubble_cli.parsing import ParseError, Parser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_MAX_LAST = 1_000_000
_ALL = (1 << 64) - 1
_OF_FLOWS = ("uuid", "verdict", "traffic_direction", "ip_version")
"""Fields of a filter that nothing but a flow can match, whatever value is asked for."""


def replay(
    lines: Iterable[str],
    request: observer_pb2.GetFlowsRequest,
    warn: Callable[[str], None],
) -> Iterator[observer_pb2.GetFlowsResponse]:
    """Answers from the lines that the request asks for. Raises HubbleError on a bad request."""
    try:
        passes = compile_filters(request.whitelist, request.blacklist)
    except FilterError as error:
        raise HubbleError(str(error)) from error
    number = request.number if request.number != _ALL else 0
    if not request.first and number > _MAX_LAST:
        raise HubbleError(f"--last must be <= 1_000_000, got {number}")
    found = _matching(lines, request, passes, warn)
    if not number:
        return found
    if request.first:
        return (response for _, response in zip(range(number), found, strict=False))
    return iter(deque(found, maxlen=number))


def _matching(
    lines: Iterable[str],
    request: observer_pb2.GetFlowsRequest,
    passes: Callable[[observer_pb2.Flow], bool],
    warn: Callable[[str], None],
) -> Iterator[observer_pb2.GetFlowsResponse]:
    parser = Parser(observer_pb2.GetFlowsResponse)
    others_pass = _others_pass(request)
    told = False
    since = request.since.ToNanoseconds() if request.HasField("since") else None
    until = request.until.ToNanoseconds() if request.HasField("until") else None
    for line in lines:
        text = line.rstrip("\r\n")
        try:
            response = parser.parse(json.loads(text))
        except (ValueError, ParseError) as error:
            warn(f"Failed to unmarshal json to flow: {error}: {text}")
            continue
        if parser.unknown and not told:
            told = True
            warn(
                f"unknown field {parser.unknown} detected: a newer program wrote these flows;"
                " upgrade hubble to see it"
            )
        if since is not None or until is not None:
            time_ns = response.time.ToNanoseconds()
            if (since is not None and time_ns < since) or (until is not None and time_ns > until):
                continue
        if passes(response.flow) if response.HasField("flow") else others_pass:
            yield response


def _others_pass(request: observer_pb2.GetFlowsRequest) -> bool:
    """Whether filters let through what is no flow: it is like a flow with nothing set."""

    def possible(filters: Iterable[flow_pb2.FlowFilter]) -> list[flow_pb2.FlowFilter]:
        return [one for one in filters if not any(getattr(one, field) for field in _OF_FLOWS)]

    allowed = possible(request.whitelist)
    if request.whitelist and not allowed:
        return False
    return compile_filters(allowed, possible(request.blacklist))(flow_pb2.Flow())


@contextmanager
def open_lines(name: str) -> Iterator[Iterable[str]]:
    """Lines of a file, or of standard input for `-`. Raises HubbleError."""
    if name == "-":
        yield sys.stdin
        return
    try:
        file = Path(name).open(encoding="utf-8", errors="replace")  # noqa: SIM115  closed below
    except OSError as error:
        raise HubbleError(f"open {name}: {(error.strerror or '').lower()}") from error
    with file:
        yield file
