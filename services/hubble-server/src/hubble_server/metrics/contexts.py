"""Context options: which labels of a metric say who the two ends of a flow are.

The option names, the kinds of values and their precedence are Hubble's. Names are case-insensitive;
of several alternatives the first that is not empty for a flow counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cilium_core.errors import InvalidError
from flow import flow_pb2

_CONTEXT_OPTIONS: Final = {
    name.lower(): (name.removesuffix("Context"))
    for name in (
        "sourceContext",
        "sourceEgressContext",
        "sourceIngressContext",
        "destinationContext",
        "destinationEgressContext",
        "destinationIngressContext",
    )
}
_LABELS_OPTION: Final = "labelscontext"
_APP_LABELS: Final = ("k8s:app.kubernetes.io/name=", "k8s:k8s-app=", "k8s:app=")
_DIRECTION: Final = "traffic_direction"
_API_SERVER: Final = "reserved:kube-apiserver"
DIRECTIONS: Final = {flow_pb2.INGRESS: "ingress", flow_pb2.EGRESS: "egress"}


class MetricsConfigError(InvalidError):
    """A metric, or an option of one, that makes no sense; names both."""


@dataclass(frozen=True, slots=True)
class _End:
    """One end of a flow with what lies beside the flow.Endpoint."""

    endpoint: flow_pb2.Endpoint
    ip: str
    names: Sequence[str]


def _workload(end: _End) -> tuple[str, str]:
    workloads = end.endpoint.workloads
    return (workloads[0].name, workloads[0].kind) if workloads else ("", "")


def _workload_path(end: _End) -> str:
    name, space = _workload(end)[0], end.endpoint.namespace
    return f"{space}/{name}" if name and space else name


def _pod(end: _End) -> str:
    name, space = end.endpoint.pod_name, end.endpoint.namespace
    return f"{space}/{name}" if name and space else name


def _reserved(end: _End) -> str:
    labels = end.endpoint.labels
    if _API_SERVER in labels:
        return _API_SERVER
    return next((label for label in labels if label.startswith("reserved:")), "")


def _app(end: _End) -> str:
    for label in end.endpoint.labels:
        for prefix in _APP_LABELS:
            if label.startswith(prefix) and len(label) > len(prefix):
                return label[len(prefix) :]
    return ""


_KINDS: Final[dict[str, Callable[[_End], str]]] = {
    "identity": lambda end: ",".join(end.endpoint.labels),
    "namespace": lambda end: end.endpoint.namespace,
    "pod": _pod,
    "pod-name": lambda end: end.endpoint.pod_name,
    "dns": lambda end: ",".join(end.names),
    "ip": lambda end: end.ip,
    "reserved-identity": _reserved,
    "workload": _workload_path,
    "workload-name": lambda end: _workload(end)[0],
    "app": _app,
}
_END_LABELS: Final[dict[str, Callable[[_End], str]]] = {
    "ip": lambda end: end.ip,
    "pod": lambda end: end.endpoint.pod_name,
    "namespace": lambda end: end.endpoint.namespace,
    "workload": lambda end: _workload(end)[0],
    "workload_kind": lambda end: _workload(end)[1],
    "app": _app,
}
_LABELS: Final = (
    *(f"{end}_{name}" for end in ("source", "destination") for name in _END_LABELS),
    _DIRECTION,
)


@dataclass(frozen=True, slots=True)
class ContextOptions:
    """Context options of one metric; made by `parse`."""

    contexts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Kinds of values by option, such as `source` or `destinationEgress`."""
    labels: tuple[str, ...] = ()

    @classmethod
    def parse(
        cls, metric: str, options: Iterable[tuple[str, Sequence[str]]]
    ) -> tuple[ContextOptions, dict[str, tuple[str, ...]]]:
        """Split a metric's options into context options and the rest. Raises MetricsConfigError."""
        contexts: dict[str, tuple[str, ...]] = {}
        labels: tuple[str, ...] = ()
        rest: dict[str, tuple[str, ...]] = {}
        for name, values in options:
            lowered = name.lower()
            if lowered in _CONTEXT_OPTIONS:
                kinds = tuple(value.lower() for value in values)
                for kind in kinds:
                    if kind not in _KINDS:
                        raise MetricsConfigError(
                            f"metric {metric}: {name}: {kind!r} is none of {', '.join(_KINDS)}"
                        )
                contexts[_CONTEXT_OPTIONS[lowered]] = kinds
            elif lowered == _LABELS_OPTION:
                labels = tuple(dict.fromkeys(values))
                for label in labels:
                    if label not in _LABELS:
                        raise MetricsConfigError(
                            f"metric {metric}: {name}: {label!r} is none of {', '.join(_LABELS)}"
                        )
            else:
                rest[lowered] = tuple(values)
        return cls(contexts, labels), rest

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the labels that these options add to a metric."""
        ends = (
            end
            for end in ("source", "destination")
            if any(option.startswith(end) for option in self.contexts)
        )
        return (*self.labels, *ends)

    @property
    def columns(self) -> tuple[str, ...]:
        """What these options look at in a flow."""
        found = {"direction"} if self.names else set()
        used = [(name, kind) for name, kinds in self.contexts.items() for kind in kinds]
        used += [label.partition("_")[::2] for label in self.labels if label != _DIRECTION]
        for where, kind in used:
            end = "source" if where.startswith("source") else "destination"
            if kind == "ip":
                found |= {f"{end}_high", f"{end}_low", "flags"}
            else:
                found.add(f"{end}_names" if kind == "dns" else f"{end}_row")
        return tuple(sorted(found))

    def values(self, flow: flow_pb2.Flow, *, swapped: bool = False) -> tuple[str, ...]:
        """Values of those labels. `swapped` takes the destination as source, as for answers."""
        source = _End(flow.source, flow.IP.source, flow.source_names)
        destination = _End(flow.destination, flow.IP.destination, flow.destination_names)
        ends = {"source": source, "destination": destination}
        if swapped:
            ends = {"source": destination, "destination": source}
        found = [self._label(label, flow, ends) for label in self.labels]
        direction = DIRECTIONS.get(flow.traffic_direction, "").capitalize()
        found += [self._context(end, direction, ends[end]) for end in ends if end in self.names]
        return tuple(found)

    @staticmethod
    def _label(label: str, flow: flow_pb2.Flow, ends: Mapping[str, _End]) -> str:
        if label == _DIRECTION:
            return DIRECTIONS.get(flow.traffic_direction, "unknown")
        end, _, name = label.partition("_")
        return _END_LABELS[name](ends[end])

    def _context(self, end: str, direction: str, who: _End) -> str:
        kinds = self.contexts.get(end + direction) or self.contexts.get(end) or ()
        return next((text for kind in kinds if (text := _KINDS[kind](who))), "")

    def is_of_pod(self, values: Sequence[str], namespace: str, pod: str) -> bool:
        """Whether a series with these label values is about a pod."""
        series = dict(zip(self.names, values, strict=True))
        for end in ("source", "destination"):
            kinds = {
                kind for name, of in self.contexts.items() if name.startswith(end) for kind in of
            }
            if "pod" in kinds and series.get(end) == f"{namespace}/{pod}":
                return True
            if (
                series.get(f"{end}_pod") == pod
                and series.get(f"{end}_namespace", namespace) == namespace
            ):
                return True
        return False
