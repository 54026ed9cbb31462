"""From the engine's updates to the kernel: policies first, then the endpoints' rows.

One `flush` writes what changed for all endpoints in one step. What fails is remembered and written
in full by the next one. An endpoint whose policy does not fit keeps the old one and says so, and
holds up no other. Used by `policies` within its passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cilium_core.telemetry import counter, get_logger

from cilium_agent.datapath import EndpointInfo, PolicyChange, PolicyMapOverflow
from cilium_agent.endpoints import rows
from cilium_agent.endpoints.records import Endpoint, EndpointID
from cilium_agent.endpoints.states import State
from cilium_agent.errors import EndpointNotFoundError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from cilium_core.policy import EndpointPolicy, EndpointUpdate, PolicyEngine

    from cilium_agent.endpoints.tables import EndpointTable
    from cilium_agent.feeds import Feed

    Write = Callable[[Mapping[int, PolicyChange], list[EndpointInfo]], Awaitable[None]]
    Wanted = EndpointPolicy | EndpointUpdate

log = get_logger()

REGENERATIONS = counter(
    "cilium_endpoint_regenerations_total", "Endpoints given a policy.", "outcome"
)


class Installer:
    """Keeps the kernel's policies equal to the engine's."""

    def __init__(
        self,
        engine: PolicyEngine,
        *,
        table: EndpointTable,
        write: Write,
        feed: Feed,
        audit: bool = False,
    ) -> None:
        """`write` installs policies, then rows."""
        self._engine = engine
        self._table = table
        self._write = write
        self._feed = feed
        self._audit = audit
        self._stale: set[EndpointID] = set()
        self._rows: set[EndpointID] = set()

    @property
    def stale(self) -> frozenset[EndpointID]:
        """Endpoints whose policy did not get into the kernel."""
        return frozenset(self._stale)

    def want_row(self, endpoint_id: EndpointID) -> None:
        """Have an endpoint's row written with the next flush, even if its policy is the same."""
        self._rows.add(endpoint_id)

    def forget(self, endpoint_id: EndpointID) -> None:
        """An endpoint is gone."""
        self._engine.remove_endpoint(endpoint_id)
        self._stale.discard(endpoint_id)
        self._rows.discard(endpoint_id)

    async def flush(self) -> None:
        """Write what changed, in one step for all endpoints; what fails is remembered."""
        updates = {_endpoint_id(u.endpoint): u for u in self._engine.flush()}
        self.publish_cookies()
        work: dict[int, PolicyChange] = {}
        states: dict[EndpointID, Wanted] = {}
        for endpoint_id, update in updates.items():
            work[endpoint_id] = _change_of(update)
            states[endpoint_id] = update
        for endpoint_id in list(self._stale):
            if (policy := self._engine.policy(endpoint_id)) is not None:
                work[endpoint_id] = PolicyChange(add=policy.entries, replace=True)
                states[endpoint_id] = policy
        for endpoint_id in self._rows - states.keys():
            if (policy := self._engine.policy(endpoint_id)) is not None:
                states[endpoint_id] = policy
        self._stale |= {EndpointID(endpoint_id) for endpoint_id in work}
        self._rows |= states.keys()
        await self._install(work, states)
        self._advance()

    def publish_cookies(self) -> None:
        """Tell what the cookies of new entries stand for."""
        changes = self._engine.cookies.take_changes()
        if changes:
            self._feed.rules({cookie: origins for cookie, origins in changes.items() if origins})
            self._feed.rules_deleted(cookie for cookie, origins in changes.items() if not origins)

    async def _install(
        self, work: dict[int, PolicyChange], states: dict[EndpointID, Wanted]
    ) -> None:
        while states:
            endpoints = self._begin(states)
            living = {endpoint.id for endpoint in endpoints}
            wanted = {number: change for number, change in work.items() if number in living}
            changed = [self._row(e, states[e.id]) for e in endpoints if self._row_due(e, states)]
            try:
                await self._write(wanted, changed)
            except PolicyMapOverflow as error:
                failed = EndpointID(error.endpoint_id)
                self._fail(failed, str(error))
                work.pop(failed, None)
                states.pop(failed, None)
                continue
            except Exception as error:
                for endpoint in endpoints:
                    self._fail(endpoint.id, str(error))
                raise
            for endpoint in endpoints:
                self._succeed(endpoint, states[endpoint.id])
            return

    def _begin(self, states: Mapping[EndpointID, object]) -> list[Endpoint]:
        endpoints = []
        for endpoint_id in states:
            try:
                endpoint = self._table.get(endpoint_id)
            except EndpointNotFoundError:
                self.forget(endpoint_id)
                continue
            if not endpoint.alive or endpoint.link is None:
                continue
            if endpoint.state is State.READY:
                endpoint.enter(State.WAITING_TO_REGENERATE, "policy changed")
            if endpoint.state is not State.REGENERATING:
                endpoint.enter(State.REGENERATING, "policy computed", builder=True)
            endpoints.append(endpoint)
        return endpoints

    def _row_due(self, endpoint: Endpoint, states: Mapping[EndpointID, Wanted]) -> bool:
        """Whether the endpoint's row must be written: it is new, or enforcement changes."""
        state = states[endpoint.id]
        return (
            endpoint.policy_revision == 0
            or endpoint.row_stale
            or endpoint.ingress_enforced != state.ingress_enforced
            or endpoint.egress_enforced != state.egress_enforced
        )

    def _row(self, endpoint: Endpoint, state: Wanted) -> EndpointInfo:
        flags = rows.flags_of(
            ingress=state.ingress_enforced, egress=state.egress_enforced, audit=self._audit
        )
        return rows.row(endpoint, flags)

    def _succeed(self, endpoint: Endpoint, state: Wanted) -> None:
        endpoint.ingress_enforced = state.ingress_enforced
        endpoint.egress_enforced = state.egress_enforced
        endpoint.policy_revision = self._engine.revision
        endpoint.row_stale = False
        endpoint.error = ""
        self._stale.discard(endpoint.id)
        self._rows.discard(endpoint.id)
        if endpoint.alive:
            endpoint.enter(State.READY, "policy enforced", builder=True)
        REGENERATIONS.add(1, "success")
        self._feed.regenerated(endpoint, "")
        self._table.changed(endpoint)

    def _fail(self, endpoint_id: EndpointID, error: str) -> None:
        REGENERATIONS.add(1, "fail")
        try:
            endpoint = self._table.get(endpoint_id)
        except EndpointNotFoundError:
            return
        endpoint.error = error
        if endpoint.state is State.REGENERATING:
            endpoint.enter(State.WAITING_TO_REGENERATE, f"policy not installed: {error}")
        log.error("policy not installed; the old one stays", endpoint=endpoint_id, error=error)
        self._feed.regenerated(endpoint, error)

    def _advance(self) -> None:
        """Endpoints that a revision does not touch enforce it as well."""
        revision = self._engine.revision
        for endpoint in self._table:
            if endpoint.policy_revision and endpoint.id not in self._stale:
                endpoint.policy_revision = revision


def _endpoint_id(name: object) -> EndpointID:
    if not isinstance(name, int):
        raise TypeError(f"the policy engine knows endpoints by id, not as {name!r}")
    return EndpointID(name)


def _change_of(update: EndpointUpdate) -> PolicyChange:
    return PolicyChange(add=update.delta.add, remove=update.delta.remove, replace=update.full)
