"""The gRPC services that Envoy calls, on a unix socket: discovery and access log."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from cilium_core.serving.grpc_server import GrpcServer
from cilium_core.telemetry import get_logger
from envoy.service.accesslog.v3 import als_pb2, als_pb2_grpc
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from cilium_agent.proxies.envoy import accesslogs
from cilium_agent.proxies.envoy.discovery import Conversation, Offers
from cilium_agent.proxies.envoy.logging import LogName

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    import grpc.aio
    from cilium.proxy.v1 import proxy_pb2

log = get_logger()

DISCOVERY = "envoy.service.discovery.v3.AggregatedDiscoveryService"
ACCESS_LOG = "envoy.service.accesslog.v3.AccessLogService"


class DiscoveryServicer(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]
    """Speaks with Envoy about its configuration."""

    def __init__(self, offers: Offers) -> None:
        self._offers = offers
        self._streams: dict[Conversation, asyncio.Queue[Any]] = {}

    @property
    def connected(self) -> bool:
        """Whether an Envoy is there."""
        return bool(self._streams)

    def push(self, *, again: bool = False) -> None:
        """Tell Envoy what changed; with `again`, also what it refused."""
        for conversation, queue in self._streams.items():
            for response in conversation.push(again=again):
                queue.put_nowait(response)

    async def StreamAggregatedResources(  # noqa: N802 - the name is the proto's
        self,
        request_iterator: AsyncIterator[discovery_pb2.DiscoveryRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[discovery_pb2.DiscoveryResponse]:
        """One conversation."""
        del context
        conversation = Conversation(self._offers)
        queue: asyncio.Queue[Any] = asyncio.Queue()
        self._streams[conversation] = queue
        reader = asyncio.create_task(_read(request_iterator, conversation, queue))
        log.info("Envoy connected")
        try:
            while (response := await queue.get()) is not None:
                yield response
            await reader  # raises what was wrong with a request that cannot be read
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            del self._streams[conversation]
            if not self._streams:
                self._offers.forget_answers()
            log.info("Envoy disconnected")


async def _read(
    requests: AsyncIterator[discovery_pb2.DiscoveryRequest],
    conversation: Conversation,
    queue: asyncio.Queue[Any],
) -> None:
    try:
        async for request in requests:
            for response in conversation.request(request):
                queue.put_nowait(response)
    finally:
        queue.put_nowait(None)


class AccessLogServicer(als_pb2_grpc.AccessLogServiceServicer):  # type: ignore[misc]
    """Takes what Envoy saw."""

    def __init__(self, take: Callable[[LogName, list[proxy_pb2.Record]], None]) -> None:
        self._take = take

    async def StreamAccessLogs(  # noqa: N802 - the name is the proto's
        self,
        request_iterator: AsyncIterator[als_pb2.StreamAccessLogsMessage],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> als_pb2.StreamAccessLogsResponse:
        """One log; the first message names it."""
        del context
        name: LogName | None = None
        async for message in request_iterator:
            if message.HasField("identifier"):
                name = LogName.parse(message.identifier.log_name)
            if name is not None:
                self._take(name, accesslogs.records(name, message))
        return als_pb2.StreamAccessLogsResponse()


def make_server(
    path: Path, discovery: DiscoveryServicer, access_log: AccessLogServicer
) -> GrpcServer:
    """The server, listening but not started. Raises `CiliumError` when the path cannot be used."""
    server = GrpcServer(options=[("grpc.max_receive_message_length", 16 << 20)])
    add_discovery = ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server
    server.add(DISCOVERY, add_discovery, discovery)
    server.add(ACCESS_LOG, als_pb2_grpc.add_AccessLogServiceServicer_to_server, access_log)
    server.listen_unix(path, mode=0o600)
    return server
