"""MetadataService: the hub's snapshot and changes as a stream."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from cilium.metadata.v1 import metadata_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc.aio
    from cilium.metadata.v1 import metadata_pb2

    from cilium_agent.metadata import MetadataHub


class MetadataServicer(metadata_pb2_grpc.MetadataServiceServicer):
    """Serves a hub."""

    def __init__(self, hub: MetadataHub) -> None:
        self._hub = hub

    async def Watch(  # noqa: N802 - the name is the proto's
        self,
        request: metadata_pb2.WatchRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[metadata_pb2.WatchResponse]:
        """See the proto."""
        del request, context
        async with aclosing(self._hub.watch()) as responses:
            async for response in responses:
                yield response
