"""The servers of an agent: its gRPC API, health and metrics, and the CNI plugin's socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cilium_core.telemetry import Health

from cilium_agent import statuses
from cilium_agent.cni.serving import CNIService

if TYPE_CHECKING:
    from cilium_core.serving.grpc_server import GrpcServer
    from cilium_core.serving.http_server import HttpServer

    from cilium_agent.app import Agent


class Servers:
    """What listens for this agent; each part serves from its call until `stop`."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._running: list[HttpServer | GrpcServer] = []

    async def serve_api(self) -> None:
        """Serve the gRPC API, and health and metrics where they are asked for."""
        from cilium_core.serving.observability import observability_server

        from cilium_agent.servicers.serving import serve

        agent, settings = self._agent, self._agent.settings
        self._running.append(await serve(agent))
        if settings.agent_health_port:
            health = Health()
            health.add("agent", self._health)
            server = observability_server(health, registry=None)
            await server.listen_tcp(f"127.0.0.1:{settings.agent_health_port}")
            self._running.append(server)
        if settings.prometheus_serve_addr:
            from cilium_agent.measuring import register

            register(agent)
            metrics = observability_server()
            await metrics.listen_tcp(settings.prometheus_serve_addr)
            self._running.append(metrics)

    async def serve_proxies(self) -> None:
        """Serve our own proxies: what they enforce, and what they report."""
        from cilium_agent.servicers.serving import serve_proxies

        self._running.append(await serve_proxies(self._agent))

    async def serve_cni(self) -> None:
        """Serve the CNI plugin; it waits until the agent is ready."""
        from cilium_core.serving.http_server import HttpServer

        agent = self._agent
        service = CNIService(
            started=agent.started,
            table=agent.table,
            provisioner=agent.provisioner,
            check=agent.plane.check_link,
            gateways=agent.addresses.routers,
            trouble=self._cni_trouble,
        )
        server = HttpServer()
        service.routes(server)
        await server.listen_unix(agent.settings.state_dir / "cni.sock", mode=0o600)
        self._running.append(server)

    async def stop(self) -> None:
        """Stop serving; running calls get the servers' grace."""
        await asyncio.gather(*(server.stop() for server in self._running), return_exceptions=True)

    def _cni_trouble(self) -> str:
        agent = self._agent
        if not agent.ready:
            return f"the agent is {agent.phase}"
        return "" if agent.store.status().connected else "the key-value store does not answer"

    def _health(self) -> str:
        agent = self._agent
        return statuses.failures(agent) if agent.ready else f"the agent is {agent.phase}"
