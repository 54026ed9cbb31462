"""Envoy as a backend; nothing of Envoy is loaded before the first redirect."""

from __future__ import annotations

import asyncio
import importlib
from typing import TYPE_CHECKING, Any

from cilium_core.errors import CiliumError
from cilium_core.policy.l7 import L7Kind
from cilium_core.telemetry import get_logger

from cilium_agent.proxies.backends import BackendStatus

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from cilium_core.policy.l7 import Redirect

    from cilium_agent.proxies.envoy.options import EnvoyOptions
    from cilium_agent.proxies.envoy.running import Engine
    from cilium_agent.proxies.records import Sink
    from cilium_agent.proxies.secrets import Secrets

log = get_logger()

NAME = "envoy"
RETRY_S = 5.0


class EnvoyBackend:
    """Envoy, from the first redirect on."""

    def __init__(
        self, state_dir: Path, options: EnvoyOptions, *, secrets: Secrets, sink: Sink
    ) -> None:
        self._pid_file = state_dir / "proxies" / f"{NAME}.pid"
        self._arguments: dict[str, Any] = {
            "state_dir": state_dir,
            "options": options,
            "secrets": secrets,
            "sink": sink,
        }
        self._ports: Mapping[Redirect, int] = {}
        self._engine: Engine | None = None
        self._starting: asyncio.Task[None] | None = None
        self._up = asyncio.Event()
        self._error = ""

    @property
    def kinds(self) -> Collection[L7Kind]:
        """HTTP and TLS."""
        return (L7Kind.HTTP, L7Kind.TLS)

    async def start(self) -> None:
        """Take an Envoy up that an earlier agent left."""
        if self._pid_file.exists():
            self._begin()

    async def stop(self) -> None:
        """The agent ends; Envoy goes on."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._engine is not None:
            await self._engine.stop()

    def want(self, ports: Mapping[Redirect, int]) -> None:
        """Enforce exactly these."""
        self._ports = dict(ports)
        if self._engine is not None:
            self._engine.want(self._ports)
        elif ports:
            self._begin()

    async def settled(self, redirects: Collection[Redirect]) -> None:
        """Return once Envoy has said something about each of these."""
        await self._up.wait()
        if self._engine is not None:
            await self._engine.settled(redirects)

    def port_taken(self, redirect: Redirect) -> bool:
        """Whether Envoy cannot bind the redirect's port."""
        return self._engine is not None and self._engine.port_taken(redirect)

    def status(self) -> BackendStatus:
        """How it fares now."""
        if self._engine is not None:
            return self._engine.status()
        errors = dict.fromkeys(self._ports, self._error) if self._error else {}
        return BackendStatus(name=NAME, errors=errors)

    async def terminate(self) -> None:
        """End Envoy as well."""
        if self._engine is not None:
            await self._engine.supervisor.terminate()

    def _begin(self) -> None:
        if self._starting is None:
            self._starting = asyncio.create_task(self._run(), name="start Envoy")

    async def _run(self) -> None:
        while True:
            try:
                name = "cilium_agent.proxies.envoy.running"
                module = await asyncio.to_thread(importlib.import_module, name)
                engine: Engine = module.Engine(**self._arguments)
                engine.want(self._ports)
                await engine.start()
            except Exception as error:  # whatever it is, the redirects must not wait for ever
                self._error = f"Envoy cannot be started: {error}"
                log.error(
                    "Envoy cannot be started",
                    error=str(error),
                    exc_info=not isinstance(error, CiliumError | OSError),
                )
                await asyncio.sleep(RETRY_S)
            else:
                self._engine, self._error = engine, ""
                engine.want(self._ports)
                self._up.set()
                return
