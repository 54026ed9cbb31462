"""FlowFilters evaluated on single flows, the way every Hubble server understands them.

Used where flows are few or already messages: flows read from a file, and as the plain statement of
what the column filters of hubble-server must agree with. `compile_filters` turns the lists of a
request into one predicate and does all checking; the predicate itself never raises.

A list entry holds when all its set fields hold, a field when one of its values does. A flow passes
when the whitelist is empty or one entry holds, and no entry of the blacklist does.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections import defaultdict
from typing import TYPE_CHECKING

from cilium_core.errors import InvalidError
from cilium_core.label_selectors import SelectorError, parse_selector
from cilium_core.request_paths import request_path

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from flow.flow_pb2 import EventTypeFilter, Flow, FlowFilter, HTTPHeader, TCPFlags

    Predicate = Callable[[Flow], bool]

_REGEX_ERRORS = {
    "missing )": "missing closing )",
    "missing ]": "missing closing ]",
    "invalid repetition size": "invalid repeat count",
    "no argument for repetition operator": "missing argument to repetition operator",
    "bad repetition operator": "invalid nested repetition operator",
    "invalid perl operator": "invalid or unsupported Perl syntax",
    "invalid named capture group": "invalid named capture",
    "trailing \\": "trailing backslash at end of expression",
}
_DROPPED = 2
_L7 = 129
_L4_PROTOCOLS = {
    "icmp": ("ICMPv4", "ICMPv6"),
    "icmpv4": ("ICMPv4",),
    "icmpv6": ("ICMPv6",),
    "tcp": ("TCP",),
    "udp": ("UDP",),
    "sctp": ("SCTP",),
    "vrrp": ("VRRP",),
    "igmp": ("IGMP",),
}
_L7_PROTOCOLS = frozenset({"dns", "http", "kafka"})
_PORT_PROTOCOLS = frozenset({"TCP", "UDP", "SCTP"})
_TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR", "NS")
_PREFIX_LENGTH = re.compile(r"/(?:0|[1-9][0-9]*)$")
_DNS_NAME = r"(?:[-0-9_a-z]+(?:\.[-0-9_a-z]+)*)"
_QUOTED = re.compile(r"\\Q.*?(?:\\E|$)", re.DOTALL)
_ANY_BYTE = re.compile(r"(?<!\\)(?:\\\\)*\\C")
_NESTING = 1000
"""Deepest nesting of a regular expression."""
DEFAULT_CLUSTER = "default"


MOST_WORK = 20_000
"""Most work that the filters of a request may be, where a plain value is 1: 20,000 names of pods,
2,000 prefixes or 200 regular expressions. Nobody types so many, and every flow has to pass them."""

_ENTRY_WORK = 10
_WORK = {
    **dict.fromkeys(("source_ip", "source_ip_xlated", "destination_ip", "uuid"), 10),
    **dict.fromkeys(("source_label", "destination_label", "node_labels"), 10),
    **dict.fromkeys(("source_workload", "destination_workload", "interface", "tcp_flags"), 10),
    **dict.fromkeys(("source_fqdn", "destination_fqdn", "node_name", "event_type"), 10),
    **dict.fromkeys(("dns_query", "http_path", "http_url"), 100),
}
_CEL_WORK = 500
_SHOWN = 300
"""Letters of a pattern in front of an error about it."""
_REGEX_BYTES = 2 << 20
"""Most memory of a regular expression; 200 of them may be in a request."""


class FilterError(InvalidError):
    """A filter that makes no sense. Its text goes to the user as it is."""


class FilterLimitError(FilterError):
    """Filters that are too much work."""


def read_filters(where: str, value: object) -> tuple[FlowFilter, ...]:
    """Filters written in YAML or JSON, as a list. Raises FilterError naming the place."""
    from flow import flow_pb2
    from google.protobuf import json_format

    if not isinstance(value, list):
        raise FilterError(f"{where}: must be a list of filters")
    try:
        return tuple(json_format.ParseDict(one, flow_pb2.FlowFilter()) for one in value)
    except json_format.ParseError as error:
        raise FilterError(f"{where}: {error}") from error


def work_of(whitelist: Sequence[FlowFilter], blacklist: Sequence[FlowFilter] = ()) -> int:
    """How much work filters are. Raises FilterLimitError for more than MOST_WORK."""
    work = (len(whitelist) + len(blacklist)) * _ENTRY_WORK
    if work <= MOST_WORK:
        for entry in (*whitelist, *blacklist):
            work += len(entry.experimental.cel_expression) * _CEL_WORK
            work += sum(len(getattr(entry, field)) * _WORK.get(field, 1) for field in _BUILDERS)
    if work > MOST_WORK:
        raise FilterLimitError(
            f"the filters are {work} units of work, and {MOST_WORK} is the most; a plain value is "
            f"1 of them, a filter, prefix or label 10, a regular expression 100; ask for less"
        )
    return work


def compile_filters(
    whitelist: Sequence[FlowFilter], blacklist: Sequence[FlowFilter] = ()
) -> Predicate:
    """The predicate of a request. Raises FilterError."""
    work_of(whitelist, blacklist)
    allowed = [compile_filter(one) for one in whitelist]
    denied = [compile_filter(one) for one in blacklist]
    if not allowed and not denied:
        return lambda _: True

    def passes(flow: Flow) -> bool:
        if allowed and not any(holds(flow) for holds in allowed):
            return False
        return not any(holds(flow) for holds in denied)

    return passes


def compile_filter(wanted: FlowFilter) -> Predicate:
    """The predicate of one entry. Raises FilterError."""
    checks: list[Predicate] = []
    for field, build in _BUILDERS.items():
        values = getattr(wanted, field)
        if values:
            if field in _HTTP_TITLES:
                _check_http_event_type(field, wanted.event_type)
            checks.append(build(values))
    if wanted.experimental.cel_expression:
        checks.append(_cel(wanted.experimental.cel_expression))
    if len(checks) == 1:
        return checks[0]
    return lambda flow: all(check(flow) for check in checks)


def _cel(texts: Sequence[str]) -> Predicate:
    from cilium_core.cel import CelError, compile_expressions  # few filters need it

    try:
        return compile_expressions(texts)
    except CelError as error:
        raise FilterError(f"error compiling CEL expression: {error}") from error


def _any_of(get: Callable[[Flow], Any]) -> Callable[[Sequence[Any]], Predicate]:
    """A field that holds when the flow's value is one of those listed."""

    def build(values: Sequence[Any]) -> Predicate:
        listed = frozenset(values)
        return lambda flow: get(flow) in listed

    return build


def _identities(end: str) -> Callable[[Sequence[int]], Predicate]:
    """A flow without that end has no identity, which is not the identity 0."""

    def build(values: Sequence[int]) -> Predicate:
        listed = frozenset(values)
        return lambda flow: flow.HasField(end) and getattr(flow, end).identity in listed

    return build


def _event_types(types: Sequence[EventTypeFilter]) -> Predicate:
    wanted = [(one.type, one.sub_type if one.match_sub_type else None) for one in types]

    def holds(flow: Flow) -> bool:
        if not flow.HasField("event_type"):
            return False
        kind, sub = flow.event_type.type, flow.event_type.sub_type
        return any(
            (not type_ or type_ == kind) and (sub_type is None or sub_type == sub)
            for type_, sub_type in wanted
        )

    return holds


def _drop_reasons(values: Sequence[int]) -> Predicate:
    listed = frozenset(values)
    return lambda flow: flow.verdict == _DROPPED and flow.drop_reason_desc in listed


def _replies(values: Sequence[bool]) -> Predicate:
    listed = frozenset(values)

    def holds(flow: Flow) -> bool:
        # Dropped flows carry no answer and count as "no": older clients rely on it.
        if not flow.HasField("is_reply") and flow.verdict != _DROPPED:
            return False
        return flow.is_reply.value in listed

    return holds


def _protocols(values: Sequence[str]) -> Predicate:
    l4: set[str | None] = set()
    l7: set[str | None] = set()
    for value in values:
        name = value.lower()
        if name in _L4_PROTOCOLS:
            l4.update(_L4_PROTOCOLS[name])
        elif name in _L7_PROTOCOLS:
            l7.add(name)
        else:
            raise FilterError(f"invalid protocol filter: unknown protocol: {_quoted(value)}")
    return lambda flow: flow.l4.WhichOneof("protocol") in l4 or flow.l7.WhichOneof("record") in l7


def _addresses(field: str) -> Callable[[Sequence[str]], Predicate]:
    def build(values: Sequence[str]) -> Predicate:
        exact: set[str] = set()
        networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for value in values:
            try:
                if "/" in value:
                    if not _PREFIX_LENGTH.search(value):
                        raise ValueError("the part after the slash is no prefix length")
                    networks.append(ipaddress.ip_network(value, strict=False))
                else:
                    ipaddress.ip_address(value)
                    exact.add(value)
            except ValueError as error:
                kind = "prefix" if "/" in value else "address"
                raise FilterError(
                    f"invalid IP {kind} {_quoted(value)} in filter: {error}"
                ) from error

        def holds(flow: Flow) -> bool:
            text = getattr(flow.IP, field)
            if not text:
                return False
            if text in exact:
                return True
            if not networks or "%" in text:  # with a zone it is in no network
                return False
            try:
                address = ipaddress.ip_address(text)
            except ValueError:
                return False
            return any(address in network for network in networks)

        return holds

    return build


def _names(
    get: Callable[[Flow], tuple[str, str]], prefix: str = ""
) -> Callable[[Sequence[str]], Predicate]:
    """`ns/name-prefix`, where either part may be empty; a bare name is in namespace default."""

    def build(values: Sequence[str]) -> Predicate:
        listed = defaultdict[str, list[str]](list)
        for value in values:
            if not value:
                raise FilterError(f"{prefix}invalid filter, name must not be empty")
            namespace, *rest = value.split("/")
            wanted, start = (namespace, rest[0]) if rest else ("default", value)
            listed[wanted].append(start)
        starts = {wanted: tuple(prefixes) for wanted, prefixes in listed.items()}
        anywhere = starts.get("", ())

        def holds(flow: Flow) -> bool:
            namespace, name = get(flow)
            if not namespace and not name:
                return False
            return name.startswith(starts.get(namespace, ()) + anywhere)

        return holds

    return build


def _workloads(end: str) -> Callable[[Sequence[Any]], Predicate]:
    def build(values: Sequence[Any]) -> Predicate:
        wanted = [(one.name, one.kind) for one in values]

        def holds(flow: Flow) -> bool:
            return any(
                (not name or name == found.name) and (not kind or kind == found.kind)
                for found in getattr(flow, end).workloads
                for name, kind in wanted
            )

        return holds

    return build


def _quoted(text: str) -> str:
    """A text in double quotes, as clients have always been shown what they sent."""
    return json.dumps(text, ensure_ascii=False)


def glob_pattern(pattern: str) -> str:
    """Regular expression of a DNS name with `*`. Raises FilterError."""
    text = pattern.strip().removesuffix(".").lower()
    if not text:
        raise FilterError("empty pattern")
    if text.endswith("."):
        raise FilterError("multiple trailing dots in pattern")
    parts = []
    for letter in text:
        if letter == ".":
            parts.append(r"\.")
        elif letter == "*":
            parts.append("[-.0-9a-z]*")
        elif re.fullmatch(r"[-_0-9a-z]", letter):
            parts.append(letter)
        else:
            rune = _quoted(letter)[1:-1].replace('\\"', '"').replace("'", "\\'")
            raise FilterError(f"'{rune}': invalid rune in pattern")
    return "".join(parts)


def node_name_pattern(pattern: str) -> str:
    """Regular expression of `cluster/node` with `*`, either part optional. Raises FilterError."""
    if not pattern:
        raise FilterError("empty pattern")
    parts = pattern.split("/")
    if len(parts) > 2:
        raise FilterError("too many slashes in pattern")
    cluster, node = parts if len(parts) == 2 else ("", parts[0])
    return (
        f"{glob_pattern(cluster) if cluster else _DNS_NAME}"
        f"/{glob_pattern(node) if node else _DNS_NAME}"
    )


def _dns_names(field: str) -> Callable[[Sequence[str]], Predicate]:
    def build(values: Sequence[str]) -> Predicate:
        regex = _regex("|".join(map(glob_pattern, values)))
        return lambda flow: any(regex.fullmatch(name) for name in getattr(flow, field))

    return build


def _node_names(values: Sequence[str]) -> Predicate:
    regex = _regex("|".join(map(node_name_pattern, values)))

    def holds(flow: Flow) -> bool:
        name = flow.node_name
        if not name:
            return False
        full = name if "/" in name else f"{DEFAULT_CLUSTER}/{name}"
        return regex.fullmatch(full) is not None

    return holds


def _clusters(end: str) -> Callable[[Sequence[str]], Predicate]:
    def build(values: Sequence[str]) -> Predicate:
        if "" in values:
            raise FilterError("invalid filter, name must not be empty")
        listed = frozenset(values)
        return lambda flow: getattr(flow, end).cluster_name in listed

    return build


def _labels(
    get: Callable[[Flow], Sequence[str]], kind: str
) -> Callable[[Sequence[str]], Predicate]:
    def build(values: Sequence[str]) -> Predicate:
        try:
            selectors = [parse_selector(value) for value in values]
        except SelectorError as error:
            raise FilterError(f"invalid {kind} label filter: {error}") from error

        def holds(flow: Flow) -> bool:
            labels = get(flow)
            return any(selector.matches(labels) for selector in selectors)

        return holds

    return build


def _ports(end: str) -> Callable[[Sequence[str]], Predicate]:
    def build(values: Sequence[str]) -> Predicate:
        wanted = set()
        for value in values:
            if not re.fullmatch(r"[0-9]+", value):
                raise FilterError(
                    f"invalid {end} port filter: invalid port {_quoted(value)}:"
                    f" strconv.ParseUint: parsing {_quoted(value)}: invalid syntax"
                )
            if int(value) > 0xFFFF:
                raise FilterError(
                    f"invalid {end} port filter: invalid port {_quoted(value)}:"
                    f" strconv.ParseUint: parsing {_quoted(value)}: value out of range"
                )
            wanted.add(int(value))

        def holds(flow: Flow) -> bool:
            protocol = flow.l4.WhichOneof("protocol")
            if protocol not in _PORT_PROTOCOLS:
                return False
            return getattr(getattr(flow.l4, protocol), f"{end}_port") in wanted

        return holds

    return build


def _tcp_flags(values: Sequence[TCPFlags]) -> Predicate:
    wanted = [[name for name in _TCP_FLAGS if getattr(one, name)] for one in values]

    def holds(flow: Flow) -> bool:
        if flow.l4.WhichOneof("protocol") != "TCP" or not flow.l4.TCP.HasField("flags"):
            return False
        flags = flow.l4.TCP.flags
        return any(all(getattr(flags, name) for name in names) for names in wanted)

    return holds


def _interfaces(values: Sequence[Any]) -> Predicate:
    wanted = [(one.index, one.name) for one in values]

    def holds(flow: Flow) -> bool:
        if not flow.HasField("interface"):
            return False
        found = flow.interface
        return any(
            (not index or index == found.index) and (not name or name == found.name)
            for index, name in wanted
        )

    return holds


def _regexes(values: Sequence[str], prefix: str) -> list[Any]:
    try:
        return [_regex(value) for value in values]
    except FilterError as error:
        raise FilterError(f"{prefix}{error}") from error


def _start(pattern: str) -> str:
    """What to show of a pattern in front of what is wrong with it, which must not be cut off."""
    return pattern if len(pattern) <= _SHOWN else pattern[:_SHOWN] + "…"


def _regex(pattern: str) -> Any:
    """Compiled with RE2, whose syntax servers promise and which no pattern can make slow."""
    import re2

    _refuse_foreign(pattern)
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _REGEX_BYTES
    try:
        return re2.compile(pattern, options=options)
    except re2.error as error:
        text = error.args[0] if error.args else "invalid pattern"
        told = text.decode() if isinstance(text, bytes) else str(text)
        raise FilterError(f"error parsing regexp: {_regex_error(told, pattern)}") from error


def _refuse_foreign(pattern: str) -> None:
    """Refuse what RE2 takes and servers of Hubble do not."""
    bare = _QUOTED.sub("", pattern)
    if r"\C" in bare and _ANY_BYTE.search(bare):
        raise FilterError(r"error parsing regexp: invalid escape sequence: `\C`")
    if pattern.count("(") > _NESTING:
        depth = deepest = 0
        for letter in bare:
            depth += (letter == "(") - (letter == ")")
            deepest = max(deepest, depth)
        if deepest > _NESTING:
            raise FilterError(f"error parsing regexp: expression nests too deeply: `{pattern}`")


def _regex_error(told: str, pattern: str) -> str:
    """An error of RE2 in the words that servers use."""
    kind, _, place = told.partition(": ")
    if kind == "missing )":
        place = pattern
    return f"{_REGEX_ERRORS.get(kind, kind)}: `{place or pattern}`"


def _dns_queries(values: Sequence[str]) -> Predicate:
    regexes = _regexes(values, "invalid DNS query filter: failed to compile regexp: ")
    return lambda flow: (
        flow.l7.WhichOneof("record") == "dns"
        and any(regex.search(flow.l7.dns.query) for regex in regexes)
    )


def _http_status_codes(values: Sequence[str]) -> Predicate:
    starts = []
    for value in values:
        if re.fullmatch(r"[1-5][0-9]{2}", value):
            starts.append(value)
        elif re.fullmatch(r"[1-5][0-9]?\+", value):
            starts.append(value[:-1])
        else:
            raise FilterError(
                f"invalid http status code filter: invalid status code prefix: {_quoted(value)}"
            )

    def holds(flow: Flow) -> bool:
        if flow.l7.WhichOneof("record") != "http" or not flow.l7.http.code:
            return False
        code = f"{flow.l7.http.code:03d}"
        return any(code == start if len(start) == 3 else code.startswith(start) for start in starts)

    return holds


def _http_methods(values: Sequence[str]) -> Predicate:
    listed = frozenset(map(_folded, values))
    return lambda flow: bool(flow.l7.http.method) and _folded(flow.l7.http.method) in listed


def _folded(text: str) -> str:
    """A text without case, letter by letter: no letter becomes two."""
    if text.isascii():
        return text.lower()
    raised = [letter.upper() for letter in text]
    pairs = zip(text, raised, strict=True)
    return "".join((up if len(up) == 1 else letter).lower() for letter, up in pairs)


def _http_paths(values: Sequence[str]) -> Predicate:
    regexes = [
        regex
        for value in values
        for regex in _regexes([value], f"invalid http path filter: {_start(value)}: ")
    ]

    def holds(flow: Flow) -> bool:
        path = request_path(flow.l7.http.url)
        return path is not None and any(regex.search(path) for regex in regexes)

    return holds


def _http_urls(values: Sequence[str]) -> Predicate:
    regexes = [
        regex
        for value in values
        for regex in _regexes([value], f"invalid http url filter: {_start(value)}: ")
    ]

    def holds(flow: Flow) -> bool:
        url = flow.l7.http.url
        return bool(url) and any(regex.search(url) for regex in regexes)

    return holds


def _http_headers(values: Sequence[HTTPHeader]) -> Predicate:
    listed = {(one.key, one.value) for one in values}
    return lambda flow: any((one.key, one.value) in listed for one in flow.l7.http.headers)


def _check_http_event_type(field: str, types: Sequence[EventTypeFilter]) -> None:
    if types and all(one.type != _L7 for one in types):
        raise FilterError(
            f"filtering by http {_HTTP_TITLES[field]} requires the event type filter"
            " to only match 'l7' events"
        )


_HTTP_TITLES = {
    "http_status_code": "status code",
    "http_method": "method",
    "http_path": "path",
    "http_url": "url",
    "http_header": "headers",
}
_BUILDERS: dict[str, Callable[[Any], Predicate]] = {
    "uuid": _any_of(lambda flow: flow.uuid),
    "event_type": _event_types,
    "verdict": _any_of(lambda flow: flow.verdict),
    "drop_reason_desc": _drop_reasons,
    "reply": _replies,
    "encrypted": _any_of(lambda flow: flow.IP.encrypted),
    "source_identity": _identities("source"),
    "destination_identity": _identities("destination"),
    "protocol": _protocols,
    "source_ip": _addresses("source"),
    "destination_ip": _addresses("destination"),
    "source_ip_xlated": _addresses("source_xlated"),
    "source_pod": _names(lambda flow: (flow.source.namespace, flow.source.pod_name)),
    "destination_pod": _names(lambda flow: (flow.destination.namespace, flow.destination.pod_name)),
    "source_workload": _workloads("source"),
    "destination_workload": _workloads("destination"),
    "source_service": _names(
        lambda flow: (flow.source_service.namespace, flow.source_service.name),
        "invalid source service filter: ",
    ),
    "destination_service": _names(
        lambda flow: (flow.destination_service.namespace, flow.destination_service.name),
        "invalid destination service filter: ",
    ),
    "source_fqdn": _dns_names("source_names"),
    "destination_fqdn": _dns_names("destination_names"),
    "dns_query": _dns_queries,
    "source_label": _labels(lambda flow: flow.source.labels, "source"),
    "destination_label": _labels(lambda flow: flow.destination.labels, "destination"),
    "node_labels": _labels(lambda flow: flow.node_labels, "node"),
    "source_port": _ports("source"),
    "destination_port": _ports("destination"),
    "http_status_code": _http_status_codes,
    "http_method": _http_methods,
    "http_path": _http_paths,
    "http_url": _http_urls,
    "http_header": _http_headers,
    "tcp_flags": _tcp_flags,
    "node_name": _node_names,
    "source_cluster_name": _clusters("source"),
    "destination_cluster_name": _clusters("destination"),
    "ip_version": _any_of(lambda flow: flow.IP.ipVersion),
    "trace_id": _any_of(lambda flow: flow.trace_context.parent.trace_id),
    "traffic_direction": _any_of(lambda flow: flow.traffic_direction),
    "interface": _interfaces,
    "ip_trace_id": _any_of(lambda flow: flow.ip_trace_id.trace_id),
}
"""Field of FlowFilter → its check, in the order in which mistakes are told."""
