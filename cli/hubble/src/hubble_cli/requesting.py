"""From the flags of `hubble observe` to requests.

Pure: the clock and the flags come in as values, a request or a UsageError comes out.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from flow import flow_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from observer import observer_pb2

from hubble_cli import jsonlines, times
from hubble_cli.errors import UsageError
from hubble_cli.parsing import ParseError, Parser

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from google.protobuf.message import Message

    from hubble_cli.arguments import Parsed

DEFAULT_COUNT = 20
_ALL = (1 << 64) - 1

DEFAULT_FIELD_MASK = (
    "time",
    "verdict",
    "ethernet",
    "IP",
    "l4",
    "source.identity",
    "source.namespace",
    "source.pod_name",
    "destination.identity",
    "destination.namespace",
    "destination.pod_name",
    "Type",
    "node_name",
    "l7",
    "event_type",
    "source_service",
    "destination_service",
    "is_reply",
    "Summary",
    "ip_trace_id",
    "source_names",
    "destination_names",
    "policy_match_type",
    "traffic_direction",
    "auth_type",
    "debug_capture_point",
    "sock_xlate_point",
)
"""What the text outputs show; asking for no more saves servers from sending the rest.

Hubble's own client leaves the last seven out, and so prints no DNS names, and policy verdicts as
`policy-verdict:none TRAFFIC_DIRECTION_UNKNOWN`.
"""

POLICY_FIELDS = (
    "ingress_allowed_by",
    "egress_allowed_by",
    "ingress_denied_by",
    "egress_denied_by",
)
"""What they show besides when policies are to be named."""


WIDE_FIELDS = ("extensions", "file")
"""What they show besides when they are to be wide."""


class Selection:
    """Which flows or events, by place and time: --last, --first, --all, --since, --until, -f."""

    def __init__(self, parsed: Parsed, now_ns: int) -> None:
        values = parsed.values
        self.last = int(values.get("last", 0))  # type: ignore[arg-type]
        self.first = int(values.get("first", 0))  # type: ignore[arg-type]
        self.all = bool(values.get("all", False))
        self.follow = bool(values.get("follow", False))
        self._since = str(values.get("since", ""))
        self._until = str(values.get("until", ""))
        self._now_ns = now_ns

    def check(self) -> None:
        """Raise UsageError on flags that contradict each other."""
        pairs = (
            ("first", self.first, "last", self.last),
            ("first", self.first, "all", self.all),
            ("first", self.first, "follow", self.follow),
            ("last", self.last, "all", self.all),
        )
        for one, given, other, also_given in pairs:
            if given and also_given:
                raise UsageError(f"cannot set both --{one} and --{other}")

    def since(self) -> Timestamp | None:
        """Start of the time range."""
        return self._time("since", self._since)

    def until(self) -> Timestamp | None:
        """End of the time range; has no meaning when following."""
        return None if self.follow else self._time("until", self._until)

    def _time(self, flag: str, text: str) -> Timestamp | None:
        if not text:
            return None
        try:
            seconds, nanos = times.parse_time(text, self._now_ns)
        except UsageError as error:
            raise UsageError(f"failed to parse the {flag} time: {error}") from error
        return Timestamp(seconds=seconds, nanos=nanos)


def flows_request(
    selection: Selection,
    allowed: Sequence[flow_pb2.FlowFilter],
    denied: Sequence[flow_pb2.FlowFilter],
    field_mask: Sequence[str],
    *,
    from_file: bool = False,
) -> observer_pb2.GetFlowsRequest:
    """The request for flows. Raises UsageError."""
    selection.check()
    since, until = selection.since(), selection.until()
    number = selection.last
    if since is None and until is None and not selection.first:
        if selection.all:
            number = _ALL
        elif not number and not selection.follow and not from_file:
            number = DEFAULT_COUNT
    request = observer_pb2.GetFlowsRequest(
        number=selection.first or number,
        first=bool(selection.first),
        follow=selection.follow,
        whitelist=allowed,
        blacklist=denied,
        since=since,
        until=until,
    )
    if field_mask:
        for path in field_mask:
            _check_path(path)
        request.field_mask.paths.extend(field_mask)
    return request


def events_number(selection: Selection) -> int:
    """How many agent or debug events to ask for."""
    if selection.since() is None and selection.until() is None:
        if selection.all:
            return _ALL
        return selection.last or DEFAULT_COUNT
    return selection.last


def _check_path(path: str) -> None:
    descriptor: Any = flow_pb2.Flow.DESCRIPTOR
    for step in path.split("."):
        field = descriptor.fields_by_name.get(step) if descriptor is not None else None
        if field is None:
            raise UsageError(
                f'failed to construct field mask: proto: invalid path "{path}"'
                ' for message "flow.Flow"'
            )
        descriptor = None if field.is_repeated else field.message_type


def raw_filters(flag: str, texts: Iterable[str]) -> list[flow_pb2.FlowFilter]:
    """FlowFilters from the JSON of --allowlist or --denylist. Raises UsageError."""
    decoder = json.JSONDecoder()
    found = []
    for text in texts:
        rest = text.lstrip()
        while rest:
            parser = Parser(flow_pb2.FlowFilter)
            try:
                value, end = decoder.raw_decode(rest)
                found.append(parser.parse(value))
                if parser.unknown:
                    raise ParseError(f'unknown field "{parser.unknown}"')
            except ValueError as error:
                raise UsageError(
                    f"invalid --{flag} flag: failed to decode '{text}': {error}"
                ) from error
            rest = rest[end:].lstrip()
    return found


def filters_as_yaml(
    allowed: Sequence[flow_pb2.FlowFilter], denied: Sequence[flow_pb2.FlowFilter]
) -> str:
    """Both lists as YAML that a configuration file understands."""
    lines = []
    for name, filters in (("allowlist", allowed), ("denylist", denied)):
        if filters:
            lines.append(f"{name}:\n")
            lines += [f"    - {_yaml_string(jsonlines.encode(one))}\n" for one in filters]
    return "".join(lines) or "{}\n"


def _yaml_string(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def describe(request: Message) -> str:
    """A request on one line, for the debug log. JSON cannot show a mask with capitals in it."""
    from google.protobuf import text_format

    return text_format.MessageToString(request, as_one_line=True)
