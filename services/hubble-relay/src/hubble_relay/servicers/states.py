"""cilium.flows.v1.StateService: what held at a moment, of all nodes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
from cilium.flows.v1 import states_pb2
from cilium_core.serving.packed import Method, stream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cilium_core.serving.packed import Call

    from hubble_relay.connections import Connection, Pool

STATES: Final = "cilium.flows.v1.StateService"
_METHOD: Final = f"/{STATES}/GetState"
_TIMEOUT_S: Final = 30.0


class StateServicer:
    """Passes on what each node tells, and names those that tell nothing."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def methods(self) -> dict[str, Method]:
        """What to serve."""
        return {"GetState": stream(self._get_state, states_pb2.GetStateRequest)}

    async def _get_state(self, request: states_pb2.GetStateRequest, call: Call) -> None:
        wanted = request.SerializeToString()
        metadata = () if call.limits is None else (call.limits.metadata,)
        await call.start()

        async def ask(connection: Connection) -> None:
            for message in await _told(connection, wanted, metadata):
                await call.send_many([message])

        await asyncio.gather(*map(ask, self._pool.connections))


async def _told(
    connection: Connection, request: bytes, metadata: Sequence[tuple[str, str]]
) -> list[bytes]:
    """What one node tells, or why it tells nothing."""
    note = "did not answer"
    if connection.available and connection.channel is not None:
        start: Any = connection.channel.unary_stream(_METHOD)
        try:
            found = start(request, timeout=_TIMEOUT_S, metadata=metadata)
            return [message async for message in found]
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                note = "cannot tell states"
        except asyncio.CancelledError:
            # the connection was closed while it was asked
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
    told = states_pb2.NodeState(node_name=connection.name, note=note)
    return [told.SerializeToString()]
