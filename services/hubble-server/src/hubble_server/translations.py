"""Finds what a client asked before its socket was given a backend in the place of a service.

No packet says so. The programs at sockets tell of each translation with the number of the socket,
once before and once after, and the ring holds these as flows for a while.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from cilium_core.flow_questions import asked_address, sides_of
from flow import flow_pb2
from observer import observer_pb2

if TYPE_CHECKING:
    from cilium.agent.v1 import agent_pb2

    from hubble_server.servicers.flows import FlowStreams

_TYPE_SOCK: Final = 7
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
        if asked_address(flow) is None:
            return None
        if flow.sock_xlate_point == flow_pb2.SOCK_XLATE_POINT_PRE_DIRECTION_FWD:
            return None
        after = flow
        if flow.event_type.type != _TYPE_SOCK:
            found = await self._find(flow, flow_pb2.SOCK_XLATE_POINT_POST_DIRECTION_FWD)
            if found is None:
                return None
            after = found
        before = await self._find(
            after, flow_pb2.SOCK_XLATE_POINT_PRE_DIRECTION_FWD, after.socket_cookie
        )
        frontend = asked_address(before) if before is not None else None
        if before is None or frontend is None:
            return None
        named = before.destination_service
        service = f"{named.namespace}/{named.name}" if named.name else ""
        return Translation(frontend, service, before.time.ToNanoseconds())

    async def _find(self, flow: flow_pb2.Flow, point: int, cookie: int = 0) -> flow_pb2.Flow | None:
        """The last flow of sockets before another one: to the same server, or with a cookie."""
        client, server = sides_of(flow)
        wanted = flow_pb2.FlowFilter(source_ip=[client.address])
        wanted.event_type.add(type=_TYPE_SOCK, match_sub_type=True, sub_type=point)
        request = observer_pb2.GetFlowsRequest(until=flow.time)
        if cookie:
            wanted.experimental.cel_expression.append(f"_flow.socket_cookie == {cookie}u")
            request.since.FromNanoseconds(flow.time.ToNanoseconds() - _LONGEST_NS)
        else:
            wanted.destination_ip.append(server.address)
            wanted.destination_port.append(str(server.port))
        request.whitelist.append(wanted)
        found = await self._streams.newest(request, in_ring=True)
        return found.flow if found is not None else None
