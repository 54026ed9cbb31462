"""From filter flags to FlowFilters.

Flags arrive one by one, in the order they were written, because `--not` turns the very next one
around. Flags that mean "either side" need two filters, one for the source and one for the
destination; all other flags go into both, and equal twins are folded into one at the end.
Pure: values in, messages or errors out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from flow import flow_pb2

from hubble_cli import names
from hubble_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Add = Callable[[flow_pb2.FlowFilter], None]

_EXCLUSIVE = (
    (
        "from-fqdn",
        "from-ip",
        "ip",
        "fqdn",
        "from-namespace",
        "namespace",
        "from-all-namespaces",
        "all-namespaces",
    ),
    ("from-fqdn", "from-ip", "ip", "fqdn", "from-pod", "pod"),
    (
        "to-fqdn",
        "to-ip",
        "ip",
        "fqdn",
        "to-namespace",
        "namespace",
        "to-all-namespaces",
        "all-namespaces",
    ),
    ("to-fqdn", "to-ip", "ip", "fqdn", "to-pod", "pod"),
    ("to-pod", "namespace", "all-namespaces"),
    ("from-pod", "namespace", "all-namespaces"),
    ("to-service", "namespace", "all-namespaces"),
    ("from-service", "namespace", "all-namespaces"),
    ("label", "from-label"),
    ("label", "to-label"),
    ("service", "from-service"),
    ("service", "to-service"),
    ("port", "to-port"),
    ("port", "from-port"),
    ("identity", "to-identity"),
    ("identity", "from-identity"),
    ("workload", "to-workload"),
    ("workload", "from-workload"),
    ("encrypted", "unencrypted"),
)
"""Sets of flags of which only one may be given, in the order their conflicts are told."""

_EITHER_SIDE = {
    "fqdn": ("source_fqdn", "destination_fqdn"),
    "pod": ("source_pod", "destination_pod"),
    "ip": ("source_ip", "destination_ip"),
    "label": ("source_label", "destination_label"),
    "service": ("source_service", "destination_service"),
    "port": ("source_port", "destination_port"),
    "workload": ("source_workload", "destination_workload"),
    "identity": ("source_identity", "destination_identity"),
    "cluster": ("source_cluster_name", "destination_cluster_name"),
}
_PLAIN = {
    "uuid": "uuid",
    "snat-ip": "source_ip_xlated",
    "trace-id": "trace_id",
    "http-status": "http_status_code",
    "http-method": "http_method",
    "http-path": "http_path",
    "http-url": "http_url",
    "protocol": "protocol",
    "node-name": "node_name",
    "node-label": "node_labels",
    **{f"from-{flag}": source for flag, (source, _) in _EITHER_SIDE.items()},
    **{f"to-{flag}": destination for flag, (_, destination) in _EITHER_SIDE.items()},
}
_NAMESPACES = {
    "namespace": "either",
    "all-namespaces": "either",
    "from-namespace": "source",
    "from-all-namespaces": "source",
    "to-namespace": "destination",
    "to-all-namespaces": "destination",
}


class FilterList:
    """Collects the flags of one list, allowed or denied."""

    def __init__(self) -> None:
        self._left = flow_pb2.FlowFilter()
        self._right = flow_pb2.FlowFilter()
        self._touched = False
        self._flags: set[str] = set()
        self._namespaces: dict[str, list[str]] = {"either": [], "source": [], "destination": []}

    def add(self, flag: str, value: str) -> None:
        """Take one flag in. Raises UsageError when the value or the combination is wrong."""
        self._flags.add(flag)
        self._check_exclusive()
        if side := _NAMESPACES.get(flag):
            self._namespaces[side].append("" if flag.endswith("all-namespaces") else value)
        elif fields := _EITHER_SIDE.get(flag):
            converted = _convert(flag, value)
            self._apply(_adder(fields[0], converted), _adder(fields[1], converted))
        else:
            add = _special(flag, value) or _adder(_PLAIN[flag], _convert(flag, value))
            self._apply(add, add)
        self._check_namespaces()

    def filters(self) -> list[flow_pb2.FlowFilter]:
        """The filters so far; none when no flag came."""
        if not self._touched and not any(self._namespaces.values()):
            return []
        left, right = flow_pb2.FlowFilter(), flow_pb2.FlowFilter()
        left.CopyFrom(self._left)
        right.CopyFrom(self._right)
        for both in (left, right):
            _qualify(both, "destination", self._namespaces["destination"])
            _qualify(both, "source", self._namespaces["source"])
        _qualify(left, "source", self._namespaces["either"])
        _qualify(right, "destination", self._namespaces["either"])
        return [left] if left == right else [left, right]

    def _apply(self, to_left: Add, to_right: Add) -> None:
        self._touched = True
        to_left(self._left)
        to_right(self._right)

    def _check_exclusive(self) -> None:
        for group in _EXCLUSIVE:
            given = [flag for flag in group if flag in self._flags]
            if len(given) > 1:
                raise UsageError(f"filters --{given[0]} and --{given[1]} cannot be combined")

    def _check_namespaces(self) -> None:
        problems: list[str] = []
        for one in (self._left, self._right):
            found: list[str] = []
            for side, sides in (
                ("either", ("source", "destination")),
                ("source", ("source",)),
                ("destination", ("destination",)),
            ):
                for end in sides:
                    for kind in ("pod", "service"):
                        found += _conflict(self._namespaces[side], getattr(one, f"{end}_{kind}"))
            found += _mixed(one.source_pod, one.source_service)
            found += _mixed(one.destination_pod, one.destination_service)
            if found:
                problems = found
                break
        if problems:
            raise UsageError("\n".join(problems))


class FilterFlags:
    """All filter flags of a command, `--not` included."""

    def __init__(self) -> None:
        self._allowed = FilterList()
        self._denied = FilterList()
        self._negate = False

    def add(self, flag: str, value: str) -> None:
        """Take the next flag in, in the order written. Raises UsageError."""
        if flag == "not":
            if self._negate:
                raise UsageError("consecutive --not statements")
            self._negate = True
            return
        target = self._denied if self._negate else self._allowed
        self._negate = False
        target.add(flag, value)

    def finish(self) -> tuple[list[flow_pb2.FlowFilter], list[flow_pb2.FlowFilter]]:
        """White- and blacklist. Raises UsageError when a `--not` has nothing to turn around."""
        if self._negate:
            raise UsageError("trailing --not found in the arguments")
        return self._allowed.filters(), self._denied.filters()


def _adder(field: str, value: object) -> Add:
    return lambda one: getattr(one, field).append(value)


def _convert(flag: str, value: str) -> object:
    if flag.endswith("identity"):
        return _identity(value)
    if flag.endswith("workload"):
        kind, slash, name = value.partition("/")
        if not slash:
            kind, name = "", value
        return flow_pb2.Workload(name=name, kind=kind)
    return value


def _identity(value: str) -> int:
    for number, name in names.RESERVED_IDENTITIES.items():
        if name == value and number:
            return number
    number_text = re.fullmatch(r"(0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO]?[0-7_]*|\d[\d_]*)", value)
    try:
        if number_text is not None:
            number = int(_go_literal(number_text[1]), 0)
            if 0 <= number < 1 << 32:
                return number
    except ValueError:
        pass
    # 11 is reserved as well but has no name to show.
    known = " ".join(
        [*(name for number, name in names.RESERVED_IDENTITIES.items() if number), "11"]
    )
    raise UsageError(f"invalid security identity, expected one of [{known}] or a numeric value")


def _go_literal(text: str) -> str:
    """A Go integer literal for Python: a leading zero means octal."""
    if re.fullmatch(r"0[0-7_]+", text):
        return "0o" + text[1:].lstrip("_")
    return text


def _special(flag: str, value: str) -> Add | None:
    """Flags whose value is more than a string put into a list."""
    if flag in ("ipv4", "ipv6", "ip-version"):
        version = _ip_version({"ipv4": "v4", "ipv6": "v6"}.get(flag, value))
        return _adder("ip_version", version)
    if flag in ("encrypted", "unencrypted"):
        return _adder("encrypted", flag == "encrypted")
    parse = _PARSERS.get(flag)
    return parse(value) if parse else None


def _ip_version(value: str) -> int:
    value = value.lower()
    if value in ("4", "v4", "ipv4", "ip4"):
        return flow_pb2.IPv4
    if value in ("6", "v6", "ipv6", "ip6"):
        return flow_pb2.IPv6
    return flow_pb2.IP_NOT_USED


def _ip_trace_id(value: str) -> Add:
    if value == "0":
        raise UsageError("invalid --ip-trace-id value; must be greater than 0")
    return _adder("ip_trace_id", _unsigned(value, 64, "invalid --ip-trace-id value: "))


def _verdict(value: str) -> Add:
    if value not in flow_pb2.Verdict.DESCRIPTOR.values_by_name:
        raise UsageError(f"invalid --verdict value: {value}")
    return _adder("verdict", flow_pb2.Verdict.Value(value))


def _drop_reason(value: str) -> Add:
    if not value:
        raise UsageError("empty --drop-reason-desc value")
    if value not in flow_pb2.DropReason.DESCRIPTOR.values_by_name:
        raise UsageError(f"invalid --drop-reason-desc value: {value}")
    return _adder("drop_reason_desc", flow_pb2.DropReason.Value(value))


def _http_header(value: str) -> Add:
    key, colon, content = value.partition(":")
    if not colon:
        raise UsageError(f'invalid http-header value "{value}", expected name:value')
    return _adder("http_header", flow_pb2.HTTPHeader(key=key, value=content))


def _event_type(value: str) -> Add:
    name, colon, sub = value.partition(":")
    number = names.EVENT_TYPES.get(name)
    if number is None:
        number = _unsigned(
            name,
            32,
            f"unable to parse type '{name}', not a known type name"
            " and unable to parse as numeric value: ",
        )
        known: dict[str, int] = {}
    elif number == names.EVENT_TRACE:
        known = {text: point for point, text in names.TRACE_POINTS.items()}
    elif number == names.EVENT_AGENT:
        known = names.AGENT_EVENT_SUBTYPES
    else:
        known = {}
    # The field is signed: numbers past its range wrap, as they do for every client.
    wanted = flow_pb2.EventTypeFilter(type=_signed(number))
    if colon:
        wanted.match_sub_type = True
        if sub in known:
            wanted.sub_type = known[sub]
        else:
            number = _unsigned(
                sub,
                32,
                f"unable to parse event sub-type '{sub}', not a known sub-type name"
                " and unable to parse as numeric value: ",
            )
            wanted.sub_type = _signed(number)
    return _adder("event_type", wanted)


def _tcp_flags(value: str) -> Add:
    wanted = flow_pb2.TCPFlags()
    for name in value.split(","):
        if name.upper() not in flow_pb2.TCPFlags.DESCRIPTOR.fields_by_name:
            raise UsageError(f"unknown tcp flag: {name}")
        setattr(wanted, name.upper(), True)
    return _adder("tcp_flags", wanted)


def _traffic_direction(value: str) -> Add:
    if value.lower() not in ("ingress", "egress"):
        raise UsageError(f"{value.lower()}: invalid traffic direction, expected ingress or egress")
    return _adder("traffic_direction", flow_pb2.TrafficDirection.Value(value.upper()))


def _interface(value: str) -> Add:
    return _adder("interface", flow_pb2.NetworkInterface(name=value))


def _cel_expression(value: str) -> Add:
    return lambda one: one.experimental.cel_expression.append(value)


_PARSERS: dict[str, Callable[[str], Add]] = {
    "ip-trace-id": _ip_trace_id,
    "verdict": _verdict,
    "drop-reason-desc": _drop_reason,
    "http-header": _http_header,
    "type": _event_type,
    "tcp-flags": _tcp_flags,
    "traffic-direction": _traffic_direction,
    "interface": _interface,
    "cel-expression": _cel_expression,
}

FLAGS = frozenset({"not", "ipv4", "ipv6", "ip-version", "encrypted", "unencrypted"}).union(
    _EITHER_SIDE, _PLAIN, _NAMESPACES, _PARSERS
)
"""Every flag that this module understands, without its dashes."""


def _unsigned(text: str, bits: int, prefix: str) -> int:
    if not re.fullmatch(r"[0-9]+", text):
        raise UsageError(f'{prefix}strconv.ParseUint: parsing "{text}": invalid syntax')
    if (number := int(text)) >= 1 << bits:
        raise UsageError(f'{prefix}strconv.ParseUint: parsing "{text}": value out of range')
    return number


def _signed(number: int) -> int:
    return number - (1 << 32) if number >= 1 << 31 else number


def _qualify(one: flow_pb2.FlowFilter, end: str, namespaces: list[str]) -> None:
    """Put the namespaces on pod and service names that have none."""
    if not namespaces:
        return
    pods, services = getattr(one, f"{end}_pod"), getattr(one, f"{end}_service")
    if not pods and not services:
        pods.append("")
    for values in (pods, services):
        spelled = [
            full
            for value in values
            for full in ([value] if "/" in value else [f"{ns}/{value}" for ns in namespaces])
        ]
        del values[:]
        values.extend(spelled)


def _namespace_of(name: str) -> str:
    namespace, slash, _ = name.partition("/")
    return namespace if slash else ""


def _conflict(namespaces: Iterable[str], given: Iterable[str]) -> list[str]:
    for namespace in namespaces:
        for name in given:
            found = _namespace_of(name)
            if found and found != namespace:
                return [f'namespace conflict: "{namespace}" does not contain "{name}"']
    return []


def _mixed(pods: Iterable[str], services: Iterable[str]) -> list[str]:
    for pod in pods:
        namespace = _namespace_of(pod)
        for service in services:
            if namespace and namespace != _namespace_of(service):
                return [f'namespace of service "{service}" conflict with pod "{namespace}"']
    return []
