"""Drops that users should find with their pods: from flows to notices for the agent.

Flows of drops come from the ring as they come to exporters. Equal ones are told of once an interval
with their count, and all of them a few times a second at most, so that a pod under attack fills no
store. The agent writes the notices as events (`cilium.metadata.v1.NoticeService`). Wording and
reasons are Hubble's.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cilium.metadata.v1 import notices_pb2
from cilium_core.errors import CiliumError, InvalidError
from cilium_core.telemetry import counter, get_logger
from flow import flow_pb2
from observer import observer_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

_log = get_logger()

REASON: Final = "PacketDrop"
NOTICED: Final = (
    "verdict", "drop_reason_desc", "traffic_direction", "IP", "l4", "source", "destination",
    "ingress_denied_by", "egress_denied_by",
)  # fmt: skip
"""Fields of flows that notices are made of."""
_KNOWN: Final = 4096
"""Different notices remembered at the most; then the oldest are forgotten."""
_AT_ONCE: Final = 16
"""Reports on their way at the most."""
_MOST_RESERVED: Final = 255
_PORTS: Final = frozenset({"TCP", "UDP", "SCTP"})

_EVENTS: Final = counter(
    "hubble_server_drop_events_total",
    "Notices of drops: written as events, left out by the rate limit, or lost on the way.",
    "result",
)


@dataclass(frozen=True, slots=True)
class DropRules:
    """Which drops become events, and how many."""

    reasons: tuple[str, ...]
    """Names of flow.DropReason."""
    interval_s: float = 120.0
    rate: int = 1
    """Events in a second."""
    extended: bool = False
    """Whether to name the policies that denied."""

    @property
    def filters(self) -> tuple[flow_pb2.FlowFilter, ...]:
        """What flows must pass."""
        return (flow_pb2.FlowFilter(verdict=[flow_pb2.DROPPED], drop_reason_desc=self.reasons),)


def reasons_of(names: Iterable[str]) -> tuple[str, ...]:
    """Reasons by their names, in any case. Raises InvalidError."""
    found = tuple(name.upper() for name in names)
    for name in found:
        if name not in flow_pb2.DropReason.DESCRIPTOR.values_by_name:
            raise InvalidError(
                f"{name.lower()!r} is no reason of a drop; they are named as in flows, such as "
                "policy_denied"
            )
    if not found:
        raise InvalidError("name at least one reason, or set hubble-drop-events to false")
    return found


def notice_of(flow: flow_pb2.Flow, *, extended: bool) -> notices_pb2.Notice | None:
    """What to tell of a drop; None where no pod of this node is concerned."""
    reason = flow_pb2.DropReason.Name(flow.drop_reason_desc).lower()
    if flow.traffic_direction == flow_pb2.INGRESS:
        pod, other, address = flow.destination, flow.source, flow.IP.source
        start, denied = f"Incoming packet dropped ({reason}) from", flow.ingress_denied_by
    elif flow.traffic_direction == flow_pb2.EGRESS:
        pod, other, address = flow.source, flow.destination, flow.IP.destination
        start, denied = f"Outgoing packet dropped ({reason}) to", flow.egress_denied_by
    else:
        return None
    if not pod.pod_name or not pod.ID:
        return None
    message = f"{start} {_end(other, address)} {_protocol(flow.l4)}".rstrip() + "."
    if extended and flow.drop_reason_desc == flow_pb2.POLICY_DENIED:
        names = sorted({_policy(one) for one in denied})
        message += f" Denied by {', '.join(names)}." if names else " No policy allows it."
    return notices_pb2.Notice(
        namespace=pod.namespace, pod_name=pod.pod_name, reason=REASON, message=message
    )


def _end(end: flow_pb2.Endpoint, address: str) -> str:
    if end.pod_name:
        return f"{end.namespace}/{end.pod_name} ({address})"
    if 0 < end.identity <= _MOST_RESERVED:
        reserved = (one for one in end.labels if one.startswith("reserved:"))
        name = next(reserved, f"identity {end.identity}").removeprefix("reserved:")
        return f"{name} ({address})"
    return address


def _protocol(l4: flow_pb2.Layer4) -> str:
    name = l4.WhichOneof("protocol") or ""
    return f"{name}/{getattr(l4, name).destination_port}" if name in _PORTS else name


def _policy(policy: flow_pb2.Policy) -> str:
    where = f"{policy.namespace}/" if policy.namespace else ""
    return f"{policy.kind} {where}{policy.name}".strip()


class Throttle:
    """Lets equal notices pass once an interval, and any a few times a second."""

    def __init__(self, rules: DropRules, clock: Callable[[], float] = time.monotonic) -> None:
        self._rules = rules
        self._clock = clock
        self._told: OrderedDict[tuple[str, str, str], tuple[float, int]] = OrderedDict()
        self._allowance = float(rules.rate)
        self._refilled_at = clock()

    def passes(self, notice: notices_pb2.Notice) -> bool:
        """Whether to tell of it now; then its count is set."""
        now = self._clock()
        key = (notice.namespace, notice.pod_name, notice.message)
        told_at, withheld = self._told.get(key, (float("-inf"), 0))
        if now - told_at < self._rules.interval_s:
            self._told[key] = told_at, withheld + 1
            return False
        if not self._take(now):
            _EVENTS.add(1, "limited")
            return False
        self._told[key] = now, 0
        self._told.move_to_end(key)
        if len(self._told) > _KNOWN:
            self._told.popitem(last=False)
        notice.count = withheld + 1
        return True

    def _take(self, now: float) -> bool:
        rate = self._rules.rate
        self._allowance = min(rate, self._allowance + (now - self._refilled_at) * rate)
        self._refilled_at = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True


class DropNotices:
    """A target of exporters: tells of drops by `report`. Make it on the event loop."""

    def __init__(
        self,
        rules: DropRules,
        report: Callable[[Sequence[notices_pb2.Notice]], Awaitable[int]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._extended = rules.extended
        self._throttle = Throttle(rules, clock)
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._under_way: set[asyncio.Task[None]] = set()
        self._failing = False

    def write(self, events: Sequence[bytes]) -> int:
        """Look through flows; the agent is told by the event loop."""
        flows = (observer_pb2.ExportEvent.FromString(data).flow for data in events)
        found = (notice_of(flow, extended=self._extended) for flow in flows)
        due = [one for one in found if one is not None and self._throttle.passes(one)]
        if due:
            self._loop.call_soon_threadsafe(self._begin, due)
        return len(events)

    def close(self) -> None:
        """What is under way ends by itself."""

    def _begin(self, notices: list[notices_pb2.Notice]) -> None:
        if len(self._under_way) >= _AT_ONCE:
            _EVENTS.add(len(notices), "lost")
            return
        task = asyncio.ensure_future(self._tell(notices))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _tell(self, notices: list[notices_pb2.Notice]) -> None:
        try:
            written = await self._report(notices)
        except CiliumError as error:
            _EVENTS.add(len(notices), "lost")
            if not self._failing:
                _log.warning("events of drops are not written", reason=str(error))
            self._failing = True
            return
        self._failing = False
        _EVENTS.add(written, "written")
