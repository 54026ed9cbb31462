"""Keeps the maps as the services of the cluster want them.

Watches mark changes in a `ServiceTable`; the "services" controller carries out what has become
different, one batch at a time. What an earlier run left in the maps serves until `begin`, which is
called once every source has reported all there is, and then only what differs is touched. What does
not fit is offered again with every run, and has the controller fail meanwhile. Event loop only.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

from cilium_core.errors import ExhaustedError
from cilium_core.policy.ports import Protocol
from cilium_core.services import Scope
from cilium_core.telemetry import counter, gauge, get_logger, histogram

from cilium_agent.datapath.errors import DatapathError
from cilium_agent.services.pods import LocalPods

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from typing import Any

    from cilium_core.services import Frontend, L4Address, NodeFacts, ServiceTable

    from cilium_agent.datapath import Datapath
    from cilium_agent.datapath.services import Applied
    from cilium_agent.endpoints.tables import EndpointTable
    from cilium_agent.feeds import Feed
    from cilium_agent.planes import Plane
    from cilium_agent.services.checks import HealthChecks

    Object = Mapping[str, Any]
    Place = tuple[L4Address, Scope]

log = get_logger()

FRONTENDS = gauge("cilium_services_frontends", "Frontends in the maps.")
CHANGED = counter("cilium_services_events_total", "Frontends changed.", "action")
APPLY_SECONDS = histogram(
    "cilium_services_apply_duration_seconds", "Time to carry out a batch of changes."
)


class Services:
    """The services of this node."""

    def __init__(
        self,
        table: ServiceTable,
        *,
        plane: Plane,
        feed: Feed,
        endpoints: EndpointTable,
        checks: HealthChecks | None,
        terminate: bool,
    ) -> None:
        """Take the parts.

        `checks` is None where load balancers are told nothing. With `terminate` sockets that are
        connected to a backend which is gone are ended.
        """
        self.trigger: Callable[[], None] = lambda: None
        self.redirects_changed: Callable[[], None] = lambda: None
        self.table = table
        self.pods = LocalPods(table, endpoints, self._pods_changed)
        self._plane = plane
        self._feed = feed
        self._endpoints = endpoints
        self._checks = checks
        self._terminate = terminate
        self._begun = False
        self._doubtful = False
        self._applied: dict[Place, Frontend] = {}
        self._refused: dict[Place, str] = {}
        self._redirects: object = ()

    # ---- what is watched ----

    def upsert_service(self, document: Object) -> None:
        """Note a Service object as it is now."""
        self.table.upsert_service(document)
        self.trigger()

    def delete_service(self, document: Object) -> None:
        """Note that a Service object is gone."""
        self.table.delete_service(document)
        self.trigger()

    def upsert_slice(self, document: Object) -> None:
        """Note an EndpointSlice object as it is now."""
        self.table.upsert_slice(document)
        self.trigger()

    def delete_slice(self, document: Object) -> None:
        """Note that an EndpointSlice object is gone."""
        self.table.delete_slice(document)
        self.trigger()

    def upsert_redirect_policy(self, document: Object) -> None:
        """Note a CiliumLocalRedirectPolicy object as it is now."""
        self.table.upsert_redirect_policy(document)
        self.trigger()

    def delete_redirect_policy(self, document: Object) -> None:
        """Note that a CiliumLocalRedirectPolicy object is gone."""
        self.table.delete_redirect_policy(document)
        self.trigger()

    def _pods_changed(self) -> None:
        self.trigger()

    def set_node(self, facts: NodeFacts | None) -> None:
        """Note what this node is now."""
        if facts is not None:
            self.table.set_node(facts)
            self.trigger()

    # ---- what is in the maps ----

    def frontends(self) -> Collection[Frontend]:
        """The frontends that are in the maps, but for those that an earlier run left."""
        return self._applied.values()

    def get(self, at: L4Address, scope: Scope = Scope.EXTERNAL) -> Frontend | None:
        """The frontend at an address, if there is one."""
        return self._applied.get((at, scope))

    def refused(self) -> Mapping[Place, str]:
        """Frontends that do not fit into the maps, with the reason."""
        return self._refused

    def exempt_pods(self) -> frozenset[tuple[str, str]]:
        """Pods, by namespace and name, that serve a redirect which does not hold for them."""
        return frozenset(
            (pod.name.namespace, pod.name.name)
            for redirect, pods in self.table.redirects()
            if redirect.skip_from_backend
            for pod in pods
        )

    # ---- carrying out ----

    async def begin(self) -> None:
        """Take over what an earlier run left in the maps; every source has told of all it has.

        Raises what `reconcile` does, which goes on from there.
        """
        self._begun = self._doubtful = True
        await self.reconcile()

    async def reconcile(self) -> None:
        """Carry out what has changed. Raises ExhaustedError when something does not fit."""
        if not self._begun:
            return
        whole, began = self._doubtful, time.monotonic()
        changes = self.table.take_changes()
        deletes = set(changes.deletes)
        if whole:
            upserts = {(one.at, one.scope): one for one in self.table.all_frontends()}
            deletes |= self._applied.keys() - upserts.keys()
        else:
            retried = (self.table.frontend(*place) for place in self._refused)
            upserts = {(one.at, one.scope): one for one in retried if one is not None}
            upserts |= {(one.at, one.scope): one for one in changes.upserts}
        self._doubtful = True
        applied = await self._plane.run(
            _apply, self._plane.datapath, list(upserts.values()), list(deletes), prune=whole
        )
        self._doubtful = False
        self._note(upserts, deletes, applied)
        if upserts or deletes:
            took = time.monotonic() - began
            APPLY_SECONDS.observe(took)
            log.debug(
                "services applied",
                frontends=len(upserts),
                gone=len(deletes),
                took_s=round(took, 4),
            )
        await self._end_sockets(applied.vanished)
        self._follow_redirects()
        if self._checks is not None:
            await self._checks.set(self.table.health_checks())
        if self._refused:
            (at, _), reason = next(iter(self._refused.items()))
            raise ExhaustedError(
                f"{len(self._refused)} frontends do not fit into the maps, such as {at}: {reason}; "
                "raise bpf-lb-map-max"
            )

    async def sweep(self) -> None:
        """Forget connections to what is gone, after which its ids may mean others."""
        if self._begun:
            done = await self._plane.run(_sweep, self._plane.datapath)
            log.debug(
                "services swept",
                connections=done.connections,
                translations=done.translations,
                affinities=done.affinities,
            )

    def _note(
        self, upserts: Mapping[Place, Frontend], deletes: Iterable[Place], applied: Applied
    ) -> None:
        gone = [place for place in deletes if self._applied.pop(place, None) is not None]
        for place in deletes:
            self._refused.pop(place, None)
        new = []
        for place, frontend in upserts.items():
            reason = applied.refused.get(place)
            if reason is not None:
                if place not in self._refused:
                    log.error("service left out", frontend=str(frontend.at), reason=reason)
                self._refused[place] = reason
                continue
            self._refused.pop(place, None)
            self._applied[place] = frontend
            new.append(frontend)
        CHANGED.add(len(new), "upsert")
        CHANGED.add(len(gone), "delete")
        FRONTENDS.set(len(self._applied))
        left = [at for at, _ in gone if not any((at, scope) in self._applied for scope in Scope)]
        self._feed.services(new, left)

    async def _end_sockets(self, vanished: Iterable[L4Address]) -> None:
        """Have processes ask anew whose sockets are connected to somebody who is gone."""
        backends = [one for one in vanished if one.protocol is Protocol.UDP]
        if backends and self._terminate:
            namespaces = [e.attachment.netns for e in self._endpoints if e.alive and e.created]
            try:
                ended = await self._plane.end_sockets(backends, namespaces)
            except DatapathError as error:
                log.warning("sockets of vanished backends go on", error=str(error))
                return
            if ended:
                log.info("sockets of vanished backends ended", sockets=ended)

    def _follow_redirects(self) -> None:
        redirects = self.table.redirects()
        if redirects != self._redirects:
            self._redirects = redirects
            self.redirects_changed()


def _apply(
    datapath: Datapath, upserts: list[Frontend], deletes: list[Place], *, prune: bool
) -> Applied:
    applied = datapath.services.apply(upserts, deletes)
    if prune:
        pruned = datapath.services.prune()
        applied = dataclasses.replace(applied, vanished=(*applied.vanished, *pruned))
    return applied


def _sweep(datapath: Datapath) -> Any:
    return datapath.services.sweep()
