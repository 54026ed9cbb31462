"""Tells programs at sockets whose sockets they are, by the cookies of the pods' namespaces.

The "socket-namespaces" controller writes what has become different. A namespace that cannot be
opened is one whose pod is about to go; it is tried again with the next run. Event loop only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cilium_core.telemetry import get_logger

from cilium_agent.datapath.errors import NamespaceError
from cilium_agent.datapath.sockets import PodNamespace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from cilium_agent.datapath import Datapath
    from cilium_agent.endpoints.records import Endpoint
    from cilium_agent.endpoints.tables import EndpointTable
    from cilium_agent.planes import Plane

log = get_logger()


class SocketNamespaces:
    """The pods' namespaces as the programs know them."""

    def __init__(
        self,
        plane: Plane,
        table: EndpointTable,
        exempt: Callable[[], Collection[tuple[str, str]]],
        rebuild: Callable[[list[Endpoint]], Awaitable[None]],
    ) -> None:
        """`exempt` gives the pods, by namespace and name, that some redirects do not hold for.

        `rebuild` has the programs know the rows of endpoints as they are now.
        """
        self._rebuild = rebuild
        self.trigger: Callable[[], None] = lambda: None
        self._plane = plane
        self._table = table
        self._exempt = exempt
        self._cookies: dict[tuple[int, str], int] = {}
        """By endpoint and path: another pod may get a path anew."""
        self._written: dict[int, PodNamespace] = {}
        self._pruned = False

    def endpoint_changed(self, _endpoint: Endpoint) -> None:
        """Note that an endpoint came, changed or went."""
        self.trigger()

    def mark(self) -> list[Endpoint]:
        """Note on the endpoints which are exempt; returns those where that is new."""
        exempt, changed = self._exempt(), []
        for endpoint in self._table:
            skips = (endpoint.namespace, endpoint.pod_name) in exempt
            if endpoint.no_redirect != skips:
                endpoint.no_redirect = skips
                changed.append(endpoint)
        return changed

    async def reconcile(self) -> None:
        """Write what is different, and remove what is gone."""
        stale = [endpoint for endpoint in self.mark() if endpoint.created and endpoint.alive]
        if stale:
            await self._rebuild(stale)
        wanted: dict[int, PodNamespace] = {}
        looked = set()
        for endpoint in list(self._table):
            path = endpoint.attachment.netns
            if endpoint.is_host or not endpoint.alive or not endpoint.identity or not path:
                continue
            looked.add((endpoint.id, path))
            cookie = self._cookies.get((endpoint.id, path)) or await self._look(endpoint)
            if cookie:
                wanted[cookie] = PodNamespace(endpoint.id, endpoint.identity, endpoint.no_redirect)
        for place in self._cookies.keys() - looked:
            del self._cookies[place]
        changed = {
            cookie: pod for cookie, pod in wanted.items() if self._written.get(cookie) != pod
        }
        gone = self._written.keys() - wanted.keys()
        if changed or gone or not self._pruned:
            keep = None if self._pruned else set(wanted)
            await self._plane.run(_write, self._plane.datapath, changed, set(gone), keep)
            self._written, self._pruned = wanted, True

    async def _look(self, endpoint: Endpoint) -> int:
        path = endpoint.attachment.netns
        try:
            cookie = await self._plane.socket_cookie(path)
        except NamespaceError as error:
            log.debug("namespace not found", endpoint=endpoint.id, error=str(error))
            return 0
        self._cookies[endpoint.id, path] = cookie
        return cookie


def _write(
    datapath: Datapath, changed: dict[int, PodNamespace], gone: set[int], keep: set[int] | None
) -> None:
    for cookie, pod in changed.items():
        datapath.namespaces.upsert(cookie, pod)
    for cookie in gone:
        datapath.namespaces.delete(cookie)
    if keep is not None:
        datapath.namespaces.prune(keep)
