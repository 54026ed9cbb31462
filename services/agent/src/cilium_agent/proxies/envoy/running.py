"""A running Envoy: its process, what it is offered, and what it says.

`Engine` exists once the first redirect needs it, since it imports Envoy's messages (0.2 s, 20 MB).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from cilium_core.files import write_atomic
from cilium_core.telemetry import get_logger

from cilium_agent.proxies.backends import BackendStatus
from cilium_agent.proxies.envoy import bootstrap, mismatches
from cilium_agent.proxies.envoy.counting import RequestCounter
from cilium_agent.proxies.envoy.discovery import Offers
from cilium_agent.proxies.envoy.listening import all_listened_on
from cilium_agent.proxies.envoy.resources import Builder, uses_secrets
from cilium_agent.proxies.envoy.serving import AccessLogServicer, DiscoveryServicer, make_server
from cilium_agent.proxies.supervising import Program, Supervisor

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from cilium.proxy.v1 import proxy_pb2
    from cilium_core.policy.l7 import Redirect

    from cilium_agent.proxies.envoy.logging import LogName
    from cilium_agent.proxies.envoy.options import EnvoyOptions
    from cilium_agent.proxies.records import Sink
    from cilium_agent.proxies.secrets import Secrets

log = get_logger()

NAME = "envoy"
RETRY_S = 3.0
"""Between attempts with a listener that Envoy refused; a port may become free."""

LISTEN_ATTEMPTS = 50
LISTEN_PAUSE_S = 0.004
"""How often and at what distance to look whether Envoy listens on what it acknowledged."""

SECRETS_LIMIT_S = 60.0
"""How long a restarted agent waits for the Secrets that a running Envoy already has."""


class Engine:
    """Envoy and the services that it uses. Make it on a running event loop."""

    def __init__(
        self, state_dir: Path, options: EnvoyOptions, *, secrets: Secrets, sink: Sink
    ) -> None:
        directory = state_dir / "proxies"
        self._socket = state_dir / "xds.sock"
        self._admin = directory / "envoy-admin.sock"
        self._config = directory / "envoy.json"
        self._content = bootstrap.bootstrap(self._socket, self._admin, options)
        binary = bootstrap.find_binary(options)
        command = bootstrap.command(binary, self._config, self._content, options)
        self.supervisor = Supervisor(Program(NAME, command), directory, prepare=self._prepare)
        self._options = options
        self._secrets = secrets
        self._sink = sink
        self._builder = Builder(secrets, options)
        self._resources = self._builder.build({})
        self._ports: Mapping[Redirect, int] = {}
        self._offers = Offers()
        self._offers.on_answer = self._note_answer
        self._discovery = DiscoveryServicer(self._offers)
        self._server = make_server(self._socket, self._discovery, AccessLogServicer(self._take))
        self._counter = RequestCounter(self._admin)
        self._answered = asyncio.Event()
        self._began = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Serve, then adopt or start Envoy."""
        await self._server.start()
        self._secrets.listen(lambda _: self._refresh())
        self.supervisor.start()
        self._tasks = [asyncio.create_task(run()) for run in (self._retry, self._counter.run)]

    async def stop(self) -> None:
        """Leave Envoy to itself."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.supervisor.detach()
        await self._server.stop(0.2)

    def want(self, ports: Mapping[Redirect, int]) -> None:
        """Have exactly these redirects enforced."""
        self._ports = dict(ports)
        self._offer()

    async def settled(self, redirects: Collection[Redirect]) -> None:
        """Return once Envoy listens for each of these, or has refused it."""
        while not all(map(self._is_settled, redirects)):
            self._answered.clear()
            await self._answered.wait()
        accepted = [self._ports[one] for one in redirects if self._is_accepted(one)]
        pid, ipv6 = self.supervisor.status.pid, "::1" in self._options.listen_addresses
        for _ in range(LISTEN_ATTEMPTS):  # one whose secrets are missing does not listen
            if await asyncio.to_thread(all_listened_on, pid, accepted, ipv6=ipv6):
                return
            await asyncio.sleep(LISTEN_PAUSE_S)

    def port_taken(self, redirect: Redirect) -> bool:
        """Whether Envoy cannot bind the port."""
        error = self._offers.rejected.get(self._resources.names.get(redirect, ""), "")
        return "Address already in use" in error

    def status(self) -> BackendStatus:
        """How Envoy fares."""
        errors = {one: "; ".join(texts) for one, texts in self._resources.problems.items()}
        for redirect, name in self._resources.names.items():
            if name in self._offers.rejected:
                errors[redirect] = f"Envoy refuses it: {self._offers.rejected[name]}"
        return BackendStatus(
            name=NAME,
            program=self.supervisor.status,
            connected=self._discovery.connected,
            acknowledged=frozenset(
                one for one, name in self._resources.names.items() if self._offers.has(name)
            ),
            errors=errors,
            details={"admin": str(self._admin), "log": str(self.supervisor.log_file)},
        )

    # ---- inside ----

    async def _prepare(self) -> None:
        write_atomic(self._config, self._content)
        self._admin.unlink(missing_ok=True)

    def _refresh(self) -> None:
        self._builder.secrets_changed()
        self._offer()

    def _offer(self) -> None:
        self._resources = self._builder.build(self._ports)
        self._offers.replace(self._resources)
        self._offers.ready = self._offers.ready or self._knows_enough()
        self._discovery.push()

    def _knows_enough(self) -> bool:
        return (
            self._secrets.synchronised
            or not any(map(uses_secrets, self._ports))
            or time.monotonic() - self._began > SECRETS_LIMIT_S
        )

    def _is_accepted(self, redirect: Redirect) -> bool:
        return redirect in self._ports and self._offers.has(self._resources.names[redirect])

    def _is_settled(self, redirect: Redirect) -> bool:
        name = self._resources.names.get(redirect)
        return name is None or self._offers.has(name) or name in self._offers.rejected

    def _note_answer(self) -> None:
        self._answered.set()

    def _take(self, name: LogName, records: list[proxy_pb2.Record]) -> None:
        conditions = self._resources.reported.get(str(name))
        if conditions:
            mismatches.report(conditions, records)
        self._sink.take(name.kind, records)

    async def _retry(self) -> None:
        while True:
            await asyncio.sleep(RETRY_S)
            with contextlib.suppress(Exception):
                if not self._offers.ready:
                    self._offer()
                self._discovery.push(again=True)
