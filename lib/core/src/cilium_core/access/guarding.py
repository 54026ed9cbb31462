"""Looks up what the client of each call may see, and ends calls when that changes.

A guard of a `PackedServer`. Clients on a unix socket may see everything: who may open it is a
matter of its file's mode. Others are known by their certificates, if there are rules. Whoever may
call a method that does not know limits must be without.

The rules' file may change at any time. A change counts within two seconds, also for streams that
are open: these end, and the client asks anew. A file that cannot be used is told of in the log, and
the rules stay as they were.

Owned by one event loop.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cilium_core.access.limits import METADATA_KEY, MOST_NAMESPACES, Limits
from cilium_core.access.rules import Client, Rules, RulesError, read_rules
from cilium_core.errors import ForbiddenError, InvalidError
from cilium_core.files import versions_of
from cilium_core.serving.packed.calls import Call
from cilium_core.telemetry import counter, get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

log = get_logger()

LIMITED: Final = frozenset(
    {
        "observer.Observer/GetFlows",
        "observer.Observer/GetAgentEvents",
        "observer.Observer/GetDebugEvents",
        "observer.Observer/GetNodes",
        "observer.Observer/GetNamespaces",
        "observer.Observer/ServerStatus",
        "cilium.flows.v1.FlowsService/GetFlowBatches",
        "cilium.flows.v1.FlowsService/AggregateFlows",
        "cilium.flows.v1.ExplanationService/ExplainFlow",
        "cilium.flows.v1.StateService/GetState",
    }
)
"""Methods that keep to `call.limits`, and so are open to limited clients. The list is the promise:
a method that is not here is refused to them."""

_OPEN = ("grpc.health.v1.", "grpc.reflection.")
"""Services that show nothing of the cluster."""

_LOOK_INTERVAL_S = 2.0

_REFUSED = counter(
    "hubble_access_refused_total", "Calls refused since the client may not make them.", "method"
)


@dataclass(eq=False, slots=True)
class _Running:
    call: Call
    limits: Limits | None
    outdated: bool = False


class Access:
    """The guard of a server; `path` is the file of rules, without which certificates mean nothing.

    Raises RulesError.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._seen = versions_of([path]) if path else ()
        self._rules: Rules | None = read_rules(path) if path else None
        self._running: dict[asyncio.Task[object], _Running] = {}

    async def __call__(
        self, name: str, call: Call, handle: Callable[[Call], Awaitable[None]]
    ) -> None:
        """Run a call. Raises ForbiddenError when the client may not make it."""
        if name.startswith(_OPEN):
            await handle(call)
            return
        try:
            call.limits = self._limits(call)
            if call.limits is not None and name not in LIMITED:
                raise ForbiddenError(
                    f"{name} is only for clients that may see all namespaces; {call.limits}"
                )
        except ForbiddenError as error:
            _REFUSED.add(1, name)
            log.info("call refused", method=name, client=call.peer, reason=str(error))
            raise
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  handlers run in tasks
        running = self._running[task] = _Running(call, call.limits)
        try:
            await handle(call)
        except asyncio.CancelledError:
            if running.outdated and not task.uncancel():
                raise ForbiddenError(
                    "what this client may see has changed; ask once more"
                ) from None
            raise
        finally:
            del self._running[task]

    def _limits(self, call: Call) -> Limits | None:
        """What a client may see. Raises ForbiddenError for one that may see nothing."""
        limits = None
        if self._rules is not None and not call.is_local:
            client = Client.of_certificate(call.certificate)
            limits = self._rules.limits(client)
            if limits is not None and not limits.namespaces:
                raise ForbiddenError(f"{client} may see no namespace; no rule of access names it")
        said = call.metadata.get(METADATA_KEY)
        if said is None:
            return limits
        names = frozenset(filter(None, said.split(",")))
        if len(names) > MOST_NAMESPACES:
            raise InvalidError(
                f"{METADATA_KEY} has {len(names)} namespaces, and {MOST_NAMESPACES} is the most"
            )
        limited = (limits or Limits(names, "this call")).within(names)
        if not limited.namespaces:
            raise ForbiddenError(
                f"{limits} and asks to be limited to others"
                if limits
                else f"{METADATA_KEY} names no namespace"
            )
        return limited

    async def watch(self) -> None:
        """Follow the file of rules until cancelled."""
        while self._path is not None:
            await asyncio.sleep(_LOOK_INTERVAL_S)
            self.look()

    def look(self) -> None:
        """Take in the file of rules if it has changed, and end calls that are outdated by it."""
        if self._path is None or (now := versions_of([self._path])) == self._seen:
            return
        self._seen = now
        try:
            self._rules = read_rules(self._path)
        except RulesError as error:
            log.error("rules of access stay as they are", reason=str(error))
            return
        log.info("rules of access read again", file=str(self._path))
        for task, running in self._running.items():
            if not running.outdated and self._now(running.call) != running.limits:
                running.outdated = True
                task.cancel()

    def _now(self, call: Call) -> Limits | None:
        try:
            return self._limits(call)
        except ForbiddenError as error:
            return Limits(frozenset(), str(error))
