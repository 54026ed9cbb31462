"""What a client that is limited to namespaces may see, and its requests rewritten to that.

A flow may be seen by whoever may see the namespace of its source or of its destination. This is
written into the filters of a request, so that whatever answers them (a ring, a history, another
server) keeps the limits without knowing of them. Events that no filter selects are judged one by
one: those that concern a namespace by it, and the rest is not shown.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from flow import flow_pb2

from cilium_core.errors import ForbiddenError
from cilium_core.flow_filters import FilterError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from observer import observer_pb2

METADATA_KEY: Final = "cilium-namespaces"
"""Metadata by which a caller limits itself: names with commas between them. A relay sends it with
what it asks for a limited client; it only ever takes away from what the caller may see."""

MOST_NAMESPACES: Final = 256
"""Most namespaces of one client: their names are put into each of its filters."""

_LABELS = ("k8s:io.kubernetes.pod.namespace=", "k8s:io.cilium.k8s.policy.namespace=")
_TOLD = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """The namespaces that one client may see."""

    namespaces: frozenset[str]
    client: str
    """Who it is, for messages."""

    def __str__(self) -> str:
        return f"{self.client} may see {_listed(self.namespaces)} only"

    @property
    def metadata(self) -> tuple[str, str]:
        """What to send along with a call made for this client."""
        return METADATA_KEY, ",".join(sorted(self.namespaces))

    def within(self, others: frozenset[str]) -> Limits:
        """Limits that leave only what is in both."""
        return Limits(self.namespaces & others, self.client)

    def narrow(self, request: observer_pb2.GetFlowsRequest) -> observer_pb2.GetFlowsRequest:
        """A request for what this client may see of what it asked for.

        Raises ForbiddenError when that is nothing, FilterError for an empty name.
        """
        allowed = self.filters(request.whitelist)
        narrowed = type(request)()
        narrowed.CopyFrom(request)
        del narrowed.whitelist[:]
        narrowed.whitelist.extend(allowed)
        return narrowed

    def filters(self, whitelist: Sequence[flow_pb2.FlowFilter]) -> list[flow_pb2.FlowFilter]:
        """A whitelist that lets through what both it and the limits do. Raises as `narrow`."""
        if not self.namespaces:
            raise ForbiddenError(f"{self.client} may see no namespace")
        entries = list(whitelist) or [flow_pb2.FlowFilter()]
        found = [narrowed for entry in entries for narrowed in self._entry(entry)]
        if not found:
            asked = {
                _namespace(value)
                for entry in entries
                for value in (*entry.source_pod, *entry.destination_pod)
            }
            raise ForbiddenError(
                f"{self}, and what is asked for is of {_listed(asked - self.namespaces)}; "
                "ask for these, or have the rules of access changed"
            )
        return found

    def _entry(self, entry: flow_pb2.FlowFilter) -> list[flow_pb2.FlowFilter]:
        """Entries that together match what one does, of flows from or to our namespaces."""
        ends = (entry.source_pod, entry.destination_pod)
        if not all(all(values) for values in ends):
            raise FilterError("invalid filter, name must not be empty")
        if any(values and self.namespaces.issuperset(map(_namespace, values)) for values in ends):
            return [entry]
        found = []
        for end, values in zip(("source_pod", "destination_pod"), ends, strict=True):
            kept = self._names(values)
            if kept:
                narrowed = flow_pb2.FlowFilter()
                narrowed.CopyFrom(entry)
                del getattr(narrowed, end)[:]
                getattr(narrowed, end).extend(kept)
                found.append(narrowed)
        return found

    def _names(self, values: Sequence[str]) -> list[str]:
        """Those of `namespace/prefix` names that are in our namespaces; of none, any name."""
        kept = []
        for value in values or ("/",):
            namespace = _namespace(value)
            if not namespace:
                kept += [f"{ours}{value}" for ours in sorted(self.namespaces)]
            elif namespace in self.namespaces:
                kept.append(value)
        return kept

    def shows_agent_event(self, event: flow_pb2.AgentEvent) -> bool:
        """Whether an event of the agent may be seen."""
        kind = event.WhichOneof("notification")
        match kind:
            case "agent_start":
                return True
            case "policy_update":
                return self._labelled(event.policy_update.labels)
            case "endpoint_regenerate":
                return self._labelled(event.endpoint_regenerate.labels)
            case "endpoint_update" | "ipcache_update" | "service_upsert":
                return getattr(event, kind).namespace in self.namespaces
        return False

    def shows_debug_event(self, event: flow_pb2.DebugEvent) -> bool:
        """Whether a debug message of the data plane may be seen."""
        return event.source.namespace in self.namespaces

    def _labelled(self, labels: Iterable[str]) -> bool:
        return any(
            label.startswith(prefix) and label.removeprefix(prefix) in self.namespaces
            for label in labels
            for prefix in _LABELS
        )


def _namespace(name: str) -> str:
    """The namespace that a name in a filter asks for, empty for any."""
    namespace, slash, _ = name.partition("/")
    return namespace if slash else "default"


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _TOLD} more" if len(ordered) > _TOLD else ""
    plural = "s" if len(ordered) != 1 else ""
    return f"namespace{plural} {', '.join(ordered[:_TOLD])}{more}"
