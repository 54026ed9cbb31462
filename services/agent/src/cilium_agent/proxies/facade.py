"""The proxies of a node, as the rest of the agent sees them.

`realise` gives ports to redirects and waits a moment until a proxy enforces them; the data plane
drops what it cannot hand to a listener, so that answering early is never answering wrongly.
Everything runs on the event loop. A port that turns out to be taken by a stranger is given up for
another one; then, and when a redirect without a port gets one, `on_ports_changed` is called.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilium_core.policy.l7 import L7Kind, Redirect
from cilium_core.telemetry import gauge, get_logger

from cilium_agent.proxies import encoding
from cilium_agent.proxies.backends import BackendStatus
from cilium_agent.proxies.errors import PortsExhaustedError, ProxyError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from cilium_agent.proxies.backends import Backend
    from cilium_agent.proxies.ports import PortTable
    from cilium_agent.proxies.secrets import Secrets

log = get_logger()

REDIRECTS = gauge("cilium_proxy_redirects", "Redirects in use.", "protocol")

REALISE_LIMIT_S = 1.0
SWEEP_S = 5.0
BIND_ATTEMPTS = 5


@dataclass(frozen=True)
class RedirectStatus:
    """One redirect: its port, whether a policy uses it, and whether its proxy enforces it."""

    redirect: Redirect
    port: int
    in_use: bool
    acknowledged: bool
    error: str = ""


@dataclass(frozen=True)
class ProxyStatus:
    """Everything about the proxies of a node."""

    redirects: tuple[RedirectStatus, ...]
    backends: tuple[BackendStatus, ...]
    ports: range
    error: str = ""

    @property
    def problems(self) -> list[str]:
        """What does not work, one line each."""
        lines = [self.error] if self.error else []
        for backend in self.backends:
            program = backend.program
            if program is not None and not program.pid:
                lines.append(f"{backend.name} does not run ({program.last_exit or 'starting'})")
            elif program is not None and not backend.connected:
                lines.append(f"{backend.name} is not connected to the agent")
        lines += [
            f"port {one.port} ({encoding.describe(one.redirect)}): {one.error}"
            for one in self.redirects
            if one.error
        ]
        return lines

    @property
    def line(self) -> str:
        """The line `Proxy Status` of `cilium status`."""
        used = sum(one.in_use for one in self.redirects)
        text = f"{used} redirects active on ports {self.ports[0]}-{self.ports[-1]}"
        for backend in self.backends:
            if backend.program is not None:
                pid = backend.program.pid
                text += f", {backend.name}: {f'pid {pid}' if pid else 'down'}"
        problems = self.problems
        return f"{problems[0]}; {text}" if problems else f"OK, {text}"


class Proxies:
    """Ports, backends and secrets of a node. Make it on a running event loop."""

    def __init__(self, ports: PortTable, backends: Iterable[Backend], secrets: Secrets) -> None:
        self.secrets = secrets
        self.on_ports_changed: Callable[[Collection[Redirect]], None] = lambda _: None
        """Called when redirects in use got a port, or another one, after `realise` returned."""

        self._ports = ports
        self._backends: dict[L7Kind, Backend] = {
            kind: backend for backend in backends for kind in backend.kinds
        }
        self._tasks: list[asyncio.Task[None]] = []
        self._homeless: dict[Redirect, str] = {}

    async def start(self) -> None:
        """Take up the ports and programs of an earlier run."""
        self._ports.load()
        for backend in self._unique():
            self._tell(backend)
        await asyncio.gather(*(backend.start() for backend in self._unique()))
        self._tasks = [asyncio.create_task(self._sweep(), name="sweep proxy ports")]

    async def stop(self) -> None:
        """The agent ends; proxies go on with what they enforce."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(one.stop() for one in self._unique()), return_exceptions=True)

    async def realise(
        self, redirects: Collection[Redirect], limit_s: float = REALISE_LIMIT_S
    ) -> Mapping[Redirect, int]:
        """Have these enforced, and return the port of each.

        Returns when the proxies have acknowledged them, and after `limit_s` seconds in any case.
        One that cannot have a port is missing in the answer: its traffic must be dropped.
        """
        before = self._ports.ports()
        wanted = [redirect for redirect in redirects if self._claim(redirect)]
        new = [redirect for redirect in wanted if redirect not in before]
        for backend in self._of(new):
            self._tell(backend)
        if new:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await self._settle(new)
        return {redirect: self._ports.claim(redirect) for redirect in wanted}

    def release(self, redirects: Iterable[Redirect]) -> None:
        """Say that no policy uses these any more; their ports stay for five minutes."""
        redirects = list(redirects)
        self._ports.release(redirects)
        for redirect in redirects:
            self._homeless.pop(redirect, None)

    def restored(self) -> None:
        """Say that all policies are in force; what an earlier run left and none uses may go."""
        self._ports.release_unclaimed()

    def status(self) -> ProxyStatus:
        """Everything about the proxies, as it is now."""
        backends = [backend.status() for backend in self._unique()]
        acknowledged = {one for backend in backends for one in backend.acknowledged}
        errors = {one: text for backend in backends for one, text in backend.errors.items()}
        redirects = tuple(
            RedirectStatus(
                redirect=redirect,
                port=port,
                in_use=self._ports.in_use(redirect),
                acknowledged=redirect in acknowledged,
                error=errors.get(redirect, ""),
            )
            for redirect, port in sorted(self._ports.ports().items(), key=lambda item: item[1])
        )
        error = next(iter(self._homeless.values()), "")
        return ProxyStatus(redirects, tuple(backends), self._ports.range, error)

    def refresh_metrics(self) -> None:
        """Set the gauges; called before a scrape."""
        used = Counter(one.kind.value for one in self._ports.ports() if self._ports.in_use(one))
        REDIRECTS.replace({(kind,): float(count) for kind, count in used.items()})

    # ---- inside ----

    def _unique(self) -> list[Backend]:
        return list(dict.fromkeys(self._backends.values()))

    def _of(self, redirects: Iterable[Redirect]) -> list[Backend]:
        return list(dict.fromkeys(self._backends[one.kind] for one in redirects))

    def _claim(self, redirect: Redirect) -> bool:
        try:
            if redirect.kind not in self._backends:
                raise ProxyError(f"this agent has no proxy for {redirect.kind.value}")
            self._ports.claim(redirect)
        except ProxyError as error:
            if redirect not in self._homeless:
                log.error(
                    "a redirect has no port and drops its traffic",
                    redirect=encoding.describe(redirect),
                    error=str(error),
                )
            self._homeless[redirect] = str(error)
            return False
        self._homeless.pop(redirect, None)
        return True

    def _tell(self, backend: Backend) -> None:
        self._ports.save()  # a port is on disk before anybody listens on it
        backend.want(self._ports.ports(backend.kinds))

    async def _settle(self, redirects: Collection[Redirect]) -> None:
        for _ in range(BIND_ATTEMPTS):
            await asyncio.gather(
                *(
                    backend.settled([one for one in redirects if one.kind in backend.kinds])
                    for backend in self._of(redirects)
                )
            )
            if not self._move_taken(redirects):
                return

    def _move_taken(self, redirects: Collection[Redirect]) -> list[Redirect]:
        """Give new ports to those whose port somebody else has."""
        taken = [one for one in redirects if self._backends[one.kind].port_taken(one)]
        for redirect in taken:
            with contextlib.suppress(PortsExhaustedError):
                old = self._ports.ports()[redirect]
                port = self._ports.move(redirect)
                log.warning("proxy port was taken by another program", port=old, instead=port)
        for backend in self._of(taken):
            self._tell(backend)
        return taken

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            for backend in self._of(self._ports.expire()):
                self._tell(backend)
            held = [one for one in self._ports.ports() if one.kind in self._backends]
            moved = self._move_taken(held)
            moved += [redirect for redirect in list(self._homeless) if self._claim(redirect)]
            for backend in self._of(moved):
                self._tell(backend)
            if moved:
                self.on_ports_changed(moved)
