"""The agent's gRPC servers: its own API and the metadata stream, and that of the proxies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from cilium.agent.v1 import agent_pb2_grpc
from cilium.metadata.v1 import metadata_pb2_grpc, notices_pb2_grpc
from cilium.proxy.v1 import proxy_pb2_grpc
from cilium_core.proxying.subscribing import SOCKET
from cilium_core.serving.grpc_server import GrpcServer

from cilium_agent.datapath.errors import DatapathError
from cilium_agent.proxies.serving import SERVICE, ProxyServicer
from cilium_agent.servicers.agents import AgentServicer
from cilium_agent.servicers.metadata import MetadataServicer
from cilium_agent.servicers.notices import NoticeServicer

if TYPE_CHECKING:
    from cilium_agent.app import Agent

API_SOCKET = "cilium.sock"
METADATA_SOCKET = "metadata.sock"


async def serve(agent: Agent) -> GrpcServer:
    """Serve both; raises ConflictError when somebody else does already."""
    server = GrpcServer(status_codes={DatapathError: grpc.StatusCode.FAILED_PRECONDITION})
    server.add(
        "cilium.agent.v1.AgentService",
        agent_pb2_grpc.add_AgentServiceServicer_to_server,
        AgentServicer(agent),
    )
    server.add(
        "cilium.metadata.v1.MetadataService",
        metadata_pb2_grpc.add_MetadataServiceServicer_to_server,
        MetadataServicer(agent.hub),
    )
    server.add(
        "cilium.metadata.v1.NoticeService",
        notices_pb2_grpc.add_NoticeServiceServicer_to_server,
        NoticeServicer(agent.table, agent.store, agent.settings.node_name),
    )
    for name in (API_SOCKET, METADATA_SOCKET):
        server.listen_unix(agent.settings.state_dir / name)
    await server.start()
    return server


async def serve_proxies(agent: Agent) -> GrpcServer:
    """Serve the proxies that subscribe; raises ConflictError when somebody else does already."""
    server = GrpcServer()
    server.add(
        SERVICE,
        proxy_pb2_grpc.add_ProxyServiceServicer_to_server,
        ProxyServicer(agent.boards, agent.names, agent.sink.report),
    )
    server.listen_unix(agent.settings.state_dir / SOCKET)
    await server.start()
    return server
