"""Answers load balancers that ask whether this node has backends of a service.

Each service of externalTrafficPolicy Local with a healthCheckNodePort has a port on every address
of the node: 200 while backends are here, 503 otherwise, with their number. Event loop only.
"""

from __future__ import annotations

import json
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

from cilium_core.errors import UnavailableError
from cilium_core.serving.http_server import HttpServer, Response
from cilium_core.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cilium_core.services import HealthCheck
    from cilium_core.serving.http_server import Request

log = get_logger()


class HealthChecks:
    """The servers, by port."""

    def __init__(self) -> None:
        self._checks: dict[int, HealthCheck] = {}
        self._servers: dict[int, HttpServer] = {}

    async def set(self, checks: Iterable[HealthCheck]) -> None:
        """Serve these checks and no others.

        Raises UnavailableError for ports that cannot be served; the others are.
        """
        self._checks = {check.port: check for check in checks}
        for port in self._servers.keys() - self._checks.keys():
            await self._servers.pop(port).stop(grace_s=0)
        failed = []
        for port in self._checks.keys() - self._servers.keys():
            try:
                self._servers[port] = await self._serve(port)
            except UnavailableError as error:
                check = self._checks[port]
                failed.append(f"healthCheckNodePort of service {check.service}: {error}")
        if failed:
            raise UnavailableError("; ".join(sorted(failed)))

    async def stop(self) -> None:
        """Stop serving."""
        await self.set(())

    async def _serve(self, port: int) -> HttpServer:
        server = HttpServer()
        for path in ("/", "/healthz"):
            server.route("GET", path, partial(self._answer, port))
        await server.listen_tcp(f":{port}")
        log.info("health checks served", service=str(self._checks[port].service), port=port)
        return server

    async def _answer(self, port: int, _request: Request) -> Response:
        check = self._checks.get(port)
        if check is None:
            return Response(HTTPStatus.NOT_FOUND)
        body = {
            "service": {"namespace": check.service.namespace, "name": check.service.name},
            "localEndpoints": check.local_endpoints,
        }
        here = check.local_endpoints > 0
        status = HTTPStatus.OK if here else HTTPStatus.SERVICE_UNAVAILABLE
        return Response(status, json.dumps(body).encode())
