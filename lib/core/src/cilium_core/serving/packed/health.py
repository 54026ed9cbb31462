"""grpc.health.v1.Health for a packed server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from grpc_health.v1 import health_pb2

from cilium_core.serving.packed.calls import Call, CallError, Method, Status, stream, unary

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "grpc.health.v1.Health"

_States = health_pb2.HealthCheckResponse


class HealthService:
    """Serving states by service name; the empty name is the server as a whole."""

    def __init__(self) -> None:
        self._states: dict[str, bool] = {"": True}
        self._checks: dict[str, Callable[[], bool]] = {}
        self._changed = asyncio.Event()

    def set(self, service: str, *, serving: bool) -> None:
        """Set the state of a service, and tell those who watch."""
        self._states[service] = serving
        self._changed.set()
        self._changed = asyncio.Event()

    def stop(self) -> None:
        """Say of every service that it no longer serves."""
        for service in self._states:
            self._states[service] = False
        self._changed.set()
        self._changed = asyncio.Event()

    def methods(self) -> dict[str, Method]:
        """Methods of the service."""
        return {
            "Check": unary(self._check, health_pb2.HealthCheckRequest),
            "Watch": stream(self._watch, health_pb2.HealthCheckRequest),
        }

    def _state(self, service: str) -> health_pb2.HealthCheckResponse.ServingStatus.ValueType:
        serving = self._states.get(service)
        if serving is None:
            return _States.SERVICE_UNKNOWN
        return _States.SERVING if serving else _States.NOT_SERVING

    async def _check(
        self, request: health_pb2.HealthCheckRequest, _call: Call
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._states:
            raise CallError(Status.NOT_FOUND, f"unknown service {request.service!r}")
        return _States(status=self._state(request.service))

    async def _watch(self, request: health_pb2.HealthCheckRequest, call: Call) -> None:
        told = None
        while True:
            changed = self._changed
            state = self._state(request.service)
            if state != told:
                await call.send(_States(status=state))
                told = state
            await changed.wait()
