"""From the engine's updates to the kernel: proxies first, then policies, then the endpoints' rows.

One `flush` writes what changed for all endpoints in one step. What fails is remembered and written
in full by the next one. An endpoint whose policy does not fit gets the part that allows no more
than the whole and says so; it holds up no other, and is written in full when its policy changes.
Used by `policies` within its passes.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cilium_core.policy import PolicyRef
from cilium_core.telemetry import counter, get_logger, histogram

from cilium_agent.datapath import PolicyChange
from cilium_agent.endpoints import rows
from cilium_agent.endpoints.records import Endpoint, EndpointID
from cilium_agent.endpoints.states import State
from cilium_agent.errors import EndpointNotFoundError
from cilium_agent.redirections import Redirections, with_ports

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from cilium_core.policy import (
        EndpointPolicy,
        EndpointUpdate,
        PolicyEngine,
        PolicyEntry,
        PolicyKey,
    )
    from cilium_core.policy.l7 import Redirect
    from cilium_core.policy.unions import Conflict

    from cilium_agent.datapath import EndpointInfo, PolicyOverflow
    from cilium_agent.endpoints.tables import EndpointTable
    from cilium_agent.feeds import Feed
    from cilium_agent.redirections import Proxies

    Write = Callable[
        [Mapping[int, PolicyChange], list[EndpointInfo]], Awaitable[list[PolicyOverflow]]
    ]
    Wanted = EndpointPolicy | EndpointUpdate

log = get_logger()

REGENERATIONS = counter(
    "cilium_endpoint_regenerations_total", "Endpoints given a policy.", "outcome"
)
REGENERATION_SECONDS = histogram(
    "cilium_endpoint_regeneration_time_stats_seconds",
    "Time of the steps of giving endpoints a policy.",
    "scope",
)
OVERFLOWS = counter(
    "cilium_policy_map_overflows_total", "Policies that did not fit into an endpoint's map."
)
CONFLICTS = counter(
    "cilium_policy_conflicts_total", "Endpoints whose policies contradicted each other."
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
        proxies: Proxies,
        lockdown: bool = False,
    ) -> None:
        """`write` installs policies, then rows; `lockdown` closes endpoints on overflow."""
        self._engine = engine
        self._table = table
        self._write = write
        self._feed = feed
        self._lockdown = lockdown
        self._redirections = Redirections(engine, proxies)
        self._stale: set[EndpointID] = set()
        self._partial: set[EndpointID] = set()
        self._rows: set[EndpointID] = set()

    @property
    def stale(self) -> frozenset[EndpointID]:
        """Endpoints whose policy is to be written again, as that failed."""
        return frozenset(self._stale)

    def want_row(self, endpoint_id: EndpointID) -> None:
        """Have an endpoint's row written with the next flush, even if its policy is the same."""
        self._rows.add(endpoint_id)

    def redirects_moved(self, redirects: Iterable[Redirect]) -> None:
        """Have entries written again whose redirects have another port."""
        self._redirections.moved(redirects)

    def redirect_users(self) -> dict[Redirect, list[int]]:
        """The endpoints whose policies name each redirect."""
        return self._redirections.users()

    def forget(self, endpoint_id: EndpointID) -> None:
        """An endpoint is gone."""
        self._engine.remove_endpoint(endpoint_id)
        self._redirections.note(endpoint_id, frozenset())
        self._stale.discard(endpoint_id)
        self._partial.discard(endpoint_id)
        self._rows.discard(endpoint_id)

    async def flush(self) -> None:
        """Write what changed, in one step for all endpoints; what fails is remembered."""
        began = time.perf_counter()
        updates = {_endpoint_id(u.endpoint): u for u in self._engine.flush()}
        computed = time.perf_counter()
        self.publish_cookies()
        states: dict[EndpointID, Wanted] = dict(updates)
        for endpoint_id, update in updates.items():
            self._redirections.note(endpoint_id, update.redirects)
        self._stale |= {EndpointID(number) for number in self._redirections.take_moved()}
        self._stale |= self._partial & (updates.keys() | self._rows)
        full: dict[EndpointID, EndpointPolicy] = {}
        for endpoint_id in self._stale | (self._rows - states.keys()):
            if (policy := self._engine.policy(endpoint_id)) is not None:
                states[endpoint_id] = policy
                if endpoint_id in self._stale:
                    full[endpoint_id] = policy
        work = {number: u for number, u in updates.items() if number not in full}
        self._stale |= work.keys()
        self._rows |= states.keys()
        if states:
            changes = await self._changes(work, full)
            realised = time.perf_counter()
            await self._install(changes, states, updates)
            written = time.perf_counter()
            REGENERATION_SECONDS.observe(computed - began, "policyCalculation")
            REGENERATION_SECONDS.observe(realised - computed, "proxyWaitForAck")
            REGENERATION_SECONDS.observe(written - realised, "mapSync")
            REGENERATION_SECONDS.observe(written - began, "total")
        self._advance()

    def publish_cookies(self) -> None:
        """Tell what the cookies of new entries stand for."""
        changes = self._engine.cookies.take_changes()
        if changes:
            self._feed.rules({cookie: origins for cookie, origins in changes.items() if origins})
            self._feed.rules_deleted(cookie for cookie, origins in changes.items() if not origins)

    def sweep_redirects(self) -> None:
        """Let go of redirects that no entry in the kernel names any more."""
        if not self._stale and not self._partial:
            self._redirections.sweep()

    async def _changes(
        self, work: Mapping[EndpointID, EndpointUpdate], full: Mapping[EndpointID, EndpointPolicy]
    ) -> dict[int, PolicyChange]:
        """What to write, with ports; endpoints that share a policy share what is written."""
        ports = await self._redirections.ports([*work, *full])
        shared: dict[int, Mapping[PolicyKey, PolicyEntry]] = {}

        def translated(
            entries: Mapping[PolicyKey, PolicyEntry],
        ) -> Mapping[PolicyKey, PolicyEntry]:
            if id(entries) not in shared:
                shared[id(entries)] = with_ports(entries, ports)
            return shared[id(entries)]

        changes: dict[int, PolicyChange] = {}
        for number, update in work.items():
            delta = update.delta
            changes[number] = PolicyChange(translated(delta.add), delta.remove, update.full)
        for number, policy in full.items():
            changes[number] = PolicyChange(translated(policy.entries), replace=True)
        return changes

    async def _install(
        self,
        changes: Mapping[int, PolicyChange],
        states: Mapping[EndpointID, Wanted],
        updates: Mapping[EndpointID, EndpointUpdate],
    ) -> None:
        endpoints = self._begin(states)
        living = {endpoint.id for endpoint in endpoints}
        wanted = {number: change for number, change in changes.items() if number in living}
        changed = [self._row(e, states[e.id]) for e in endpoints if self._row_due(e, states[e.id])]
        try:
            overflows = await self._write(wanted, changed)
        except Exception as error:
            for endpoint in endpoints:
                self._fail(endpoint, str(error))
            raise
        overflown = {overflow.endpoint_id: overflow for overflow in overflows}
        for endpoint in endpoints:
            if (update := updates.get(endpoint.id)) is not None:
                self._tell_conflicts(endpoint, update.conflicts)
            if (overflow := overflown.get(endpoint.id)) is not None:
                self._overflow(endpoint, overflow)
            else:
                self._succeed(endpoint, states[endpoint.id])
        if overflown and self._lockdown:
            await self._lock([e for e in endpoints if e.id in overflown])

    async def _lock(self, endpoints: list[Endpoint]) -> None:
        """Have endpoints drop everything until their policies fit."""
        for endpoint in endpoints:
            endpoint.row_stale = True
        await self._write({}, [rows.row(endpoint, rows.NOT_READY) for endpoint in endpoints])

    def _begin(self, states: Iterable[EndpointID]) -> list[Endpoint]:
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

    def _row_due(self, endpoint: Endpoint, state: Wanted) -> bool:
        """Whether the endpoint's row must be written: it is new, or enforcement changes."""
        return (
            endpoint.policy_revision == 0
            or endpoint.row_stale
            or endpoint.ingress_enforced != state.ingress_enforced
            or endpoint.egress_enforced != state.egress_enforced
        )

    def _row(self, endpoint: Endpoint, state: Wanted) -> EndpointInfo:
        flags = rows.flags_of(
            ingress=state.ingress_enforced, egress=state.egress_enforced, audit=endpoint.audit
        )
        return rows.row(endpoint, flags)

    def _succeed(self, endpoint: Endpoint, state: Wanted) -> None:
        endpoint.ingress_enforced = state.ingress_enforced
        endpoint.egress_enforced = state.egress_enforced
        endpoint.policy_revision = self._engine.revision
        endpoint.row_stale = False
        endpoint.overflown = frozenset()
        endpoint.error = ""
        self._stale.discard(endpoint.id)
        self._partial.discard(endpoint.id)
        self._rows.discard(endpoint.id)
        if endpoint.alive:
            endpoint.enter(State.READY, "policy enforced", builder=True)
        REGENERATIONS.add(1, "success")
        self._feed.regenerated(endpoint, "")
        self._table.changed(endpoint)

    def _fail(self, endpoint: Endpoint, error: str) -> None:
        REGENERATIONS.add(1, "fail")
        repeated = endpoint.error == error
        endpoint.error = error
        if endpoint.state is State.REGENERATING:
            endpoint.enter(State.WAITING_TO_REGENERATE, f"policy not enforced: {error}")
        if not repeated:
            log.error("policy not enforced as written", endpoint=endpoint.id, error=error)
            self._feed.regenerated(endpoint, error)

    def _overflow(self, endpoint: Endpoint, overflow: PolicyOverflow) -> None:
        """Say whose entries are left out."""
        OVERFLOWS.add(1)
        endpoint.overflown = frozenset(
            PolicyRef(origin.kind, origin.namespace, origin.name)
            for cookie in overflow.missing
            for origin in self._engine.cookies.origins(cookie)
            if origin.kind
        )
        self._stale.discard(endpoint.id)
        self._rows.discard(endpoint.id)
        self._partial.add(endpoint.id)
        names = ", ".join(sorted(map(str, endpoint.overflown)))
        self._fail(endpoint, f"{overflow}; left out is some of {names}")

    def _tell_conflicts(self, endpoint: Endpoint, conflicts: tuple[Conflict, ...]) -> None:
        if conflicts == endpoint.conflicts:
            return
        endpoint.conflicts = conflicts
        if conflicts:
            CONFLICTS.add(1)
            text = "; ".join(map(str, conflicts))
            endpoint.note(f"policies contradict each other: {text}")
            log.error("policies contradict each other", endpoint=endpoint.id, error=text)
            self._feed.regenerated(endpoint, text)

    def _advance(self) -> None:
        """Endpoints that a revision does not touch enforce it as well."""
        revision, behind = self._engine.revision, self._stale | self._partial
        for endpoint in self._table:
            if endpoint.policy_revision and endpoint.id not in behind:
                endpoint.policy_revision = revision


def _endpoint_id(name: object) -> EndpointID:
    if not isinstance(name, int):
        raise TypeError(f"the policy engine knows endpoints by id, not as {name!r}")
    return EndpointID(name)
