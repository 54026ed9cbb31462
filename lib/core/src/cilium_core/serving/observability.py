"""The small HTTP server that shows a process's health and metrics."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cilium_core.serving.http_server import HttpServer, Request, Response
from cilium_core.telemetry.metrics import CONTENT_TYPE, REGISTRY, Registry

if TYPE_CHECKING:
    from cilium_core.telemetry.health import Health


def observability_server(
    health: Health | None = None, *, registry: Registry | None = REGISTRY
) -> HttpServer:
    """Make a server for `/healthz` (200, or 503 with the failures) and `/metrics`.

    Either may be left out by passing None, so that they can stand on ports of their own.
    """
    server = HttpServer()
    if health is not None:

        async def healthz(_request: Request) -> Response:
            failures = health.failures()
            body = {"status": "failing" if failures else "ok", "failures": failures}
            return Response(503 if failures else 200, json.dumps(body).encode() + b"\n")

        server.route("GET", "/healthz", healthz)
    if registry is not None:

        async def metrics(_request: Request) -> Response:
            return Response(200, registry.exposition().encode(), CONTENT_TYPE)

        server.route("GET", "/metrics", metrics)
    return server
