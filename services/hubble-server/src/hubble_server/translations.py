"""Finds what a client asked before its socket was given a backend in the place of a service.

No packet says so. The programs at sockets tell of each translation with the number of the socket,
once before and once after, and the ring holds these as flows for a while.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from cilium_core.flow_questions import TYPE_SOCK, asked_address, translation_filter
from flow import flow_pb2
from observer import observer_pb2

if TYPE_CHECKING:
    from cilium.agent.v1 import agent_pb2

    from hubble_server.servicers.flows import FlowStreams

_BEFORE: Final = flow_pb2.SOCK_XLATE_POINT_PRE_DIRECTION_FWD
_AFTER: Final = flow_pb2.SOCK_XLATE_POINT_POST_DIRECTION_FWD
_LONGEST_NS: Final = 1_000_000_000
"""Between the two flows of one translation."""


class Translation(NamedTuple):
    """A translation at a socket."""

    frontend: agent_pb2.ServiceAddress
    service: str
    """`namespace/name`, empty when it is not known."""
    time_ns: int


class Translations:
    """Looks for translations in the ring."""

    def __init__(self, streams: FlowStreams) -> None:
        self._streams = streams

    async def behind(self, flow: flow_pb2.Flow) -> Translation | None:
        """The last translation before a flow from its client to its server; None without one."""
        at_socket = flow.event_type.type == TYPE_SOCK
        if asked_address(flow) is None or (at_socket and flow.sock_xlate_point != _AFTER):
            return None
        after = flow if at_socket else await self._find(flow, translation_filter(flow, _AFTER))
        if after is None:
            return None
        wanted = flow_pb2.FlowFilter(source_ip=[after.IP.source])
        wanted.event_type.add(type=TYPE_SOCK, match_sub_type=True, sub_type=_BEFORE)
        wanted.experimental.cel_expression.append(f"_flow.socket_cookie == {after.socket_cookie}u")
        before = await self._find(after, wanted, within_ns=_LONGEST_NS)
        frontend = asked_address(before) if before is not None else None
        if before is None or frontend is None:
            return None
        named = before.destination_service
        service = f"{named.namespace}/{named.name}" if named.name else ""
        return Translation(frontend, service, before.time.ToNanoseconds())

    async def _find(
        self, flow: flow_pb2.Flow, wanted: flow_pb2.FlowFilter, within_ns: int = 0
    ) -> flow_pb2.Flow | None:
        """The last flow up to another one that passes a filter, not too long before it."""
        request = observer_pb2.GetFlowsRequest(until=flow.time, whitelist=[wanted])
        if within_ns:
            request.since.FromNanoseconds(flow.time.ToNanoseconds() - within_ns)
        found = await self._streams.newest(request, in_ring=True)
        return found.flow if found is not None else None
