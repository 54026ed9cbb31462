"""From policy objects and identities to what the kernel enforces, in the order that opens no hole.

Everything that bears on policy arrives here on the event loop and is only noted; one pass at a time
then carries it out, whole batches at once. A pass goes

    identities, ports, endpoints → maps        (still under the old rules)
    services and the like, and addresses inside networks, which policies refer to → maps
    addresses that waited for an identity → address table
    new prefixes: identity → maps → address table
    policies → maps                            (every endpoint its old policy or its new one)
    prefixes out of use: address table → maps

where CIDR groups come before the policies that may refer to them. So no packet meets an identity
that the maps do not know, and none meets half of a policy. A pass that fails is repeated by the
"policy" controller; what an endpoint should have is written in full then.

Objects are in `intakes`, what they refer to in `references`, prefixes in `prefixing`, and the way
into the kernel in `installing`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cilium_core.policy import (
    ContainerPort,
    EndpointPolicy,
    PolicyEngine,
    PolicyOptions,
    PolicyRef,
    Protocol,
    Subject,
)
from cilium_core.telemetry import get_logger, histogram

from cilium_agent.errors import EndpointError
from cilium_agent.installing import Installer
from cilium_agent.intakes import PolicyObjects, RefusedPolicy
from cilium_agent.ipcaches import Entry, IPCache, Source
from cilium_agent.prefixing import Prefixes
from cilium_agent.redirections import NoProxies
from cilium_agent.references import References

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from cilium_core.identities import LocalIdentityAllocator
    from cilium_core.labels import LabelSet
    from cilium_core.policy import PrefixIdentities
    from cilium_core.policy.l7 import Redirect
    from cilium_core.policy.prefixes import Names
    from cilium_core.policy.selectors import FqdnSelector

    from cilium_agent.accepted import AcceptedObjects
    from cilium_agent.endpoints.records import Endpoint, EndpointID, NamedPort
    from cilium_agent.endpoints.tables import EndpointTable
    from cilium_agent.feeds import Feed
    from cilium_agent.installing import Write
    from cilium_agent.redirections import Proxies

log = get_logger()

INCREMENTAL_SECONDS = histogram(
    "cilium_policy_incremental_update_duration",
    "Time to bring changed identities into policy maps.",
    "scope",
)
PASS_SECONDS = histogram(
    "cilium_policy_implementation_delay", "Time from a change to its enforcement.", "source"
)


@dataclass(frozen=True)
class PendingAddress:
    """An address whose identity the maps must know before the address table says so."""

    source: Source
    entry: Entry


class Policies:
    """The policy of this node's endpoints."""

    def __init__(
        self,
        options: PolicyOptions,
        *,
        table: EndpointTable,
        ipcache: IPCache,
        write: Write,
        feed: Feed,
        allocator: LocalIdentityAllocator,
        accepted: AcceptedObjects,
        proxies: Proxies | None = None,
        lockdown: bool = False,
    ) -> None:
        """`write` installs policies, then rows; `allocator` may hold restored numbers.

        Without `proxies` what a policy redirects is dropped. `lockdown` has an endpoint drop
        everything while its policy does not fit into its map. `names_changed` is told which DNS
        names policies select by, after every pass, and `passed` is called.
        """
        self.engine = PolicyEngine(options)
        self.trigger: Callable[[], None] = lambda: None
        self.passed: Callable[[], None] = lambda: None
        self.names_changed: Callable[[frozenset[FqdnSelector]], None] = lambda _: None
        self._table = table
        self._ipcache = ipcache
        self._installer = Installer(
            self.engine,
            table=table,
            write=write,
            feed=feed,
            proxies=proxies or NoProxies(),
            lockdown=lockdown,
        )
        self._prefixes = Prefixes(
            self.engine,
            options.families,
            ipcache=ipcache,
            allocator=allocator,
            feed=feed,
            flush=self._flush,
        )
        self._objects = PolicyObjects(self.engine, self._prefixes, accepted, feed)
        self._addresses: dict[str, PendingAddress] = {}
        self._audit = False
        self._subjects: set[EndpointID] = set()
        self.references = References(
            self.engine, self._prefixes, ipcache, self._note, self._pending_addresses
        )
        self._noted_at = 0.0
        self._pass = asyncio.Lock()
        self._advanced = asyncio.Condition()

    @property
    def refused(self) -> Mapping[PolicyRef, RefusedPolicy]:
        """The objects that are not enforced as written."""
        return self._objects.refused

    @property
    def accepted_earlier(self) -> frozenset[PolicyRef]:
        """The policies that an earlier run accepted and this one has not heard of yet."""
        return self._objects.earlier

    @property
    def prefixes(self) -> PrefixIdentities:
        """The prefixes in use and their identities."""
        return self._prefixes.identities

    def named_identities(self) -> dict[int, LabelSet]:
        """The identities of addresses that have labels of DNS names."""
        return {
            int(identity.id): identity.labels
            for identity in map(self.prefixes.items().get, self.prefixes.names)
            if identity is not None
        }

    def redirect_users(self) -> dict[Redirect, list[int]]:
        """The endpoints whose policies name each redirect."""
        return self._installer.redirect_users()

    # ---- what arrives ----

    def upsert_object(self, ref: PolicyRef, document: Mapping[str, Any]) -> None:
        """Note a policy object as it is now."""
        self._objects.upsert(ref, document)
        self._note()

    def delete_object(self, ref: PolicyRef) -> None:
        """Note that a policy object is gone."""
        self._objects.delete(ref)
        self._note()

    def doubt_object(self, ref: PolicyRef, document: Mapping[str, Any], error: str) -> None:
        """Note that what is stored of a policy is no object; an earlier version stays in force."""
        self._objects.doubt(ref, document, error)
        self._note()

    def disregard_object(self, ref: PolicyRef, document: Mapping[str, Any], error: str) -> None:
        """Note an object of a kind that is not enforced yet, with why."""
        self._objects.disregard(ref, document, error)
        self._note()

    def forget_object(self, ref: PolicyRef) -> None:
        """Note that an object is gone that is not enforced yet, or was in doubt from the start."""
        self._objects.forget(ref)
        self._note()

    def upsert_identity(self, identity: int, labels: LabelSet) -> None:
        """Note what an identity means."""
        self.engine.upsert_identity(identity, labels)
        self.trigger()

    def delete_identity(self, identity: int) -> None:
        """Note that an identity means nothing any more."""
        self.engine.delete_identity(identity)
        self.trigger()

    def upsert_address(self, prefix: str, source: Source, entry: Entry) -> None:
        """Note whose an address is; it takes effect once the maps know the identity."""
        self._addresses[prefix] = PendingAddress(source, entry)
        self.references.note_addresses()
        self.trigger()

    def delete_address(self, prefix: str, source: Source) -> None:
        """Note that an address is nobody's."""
        pending = self._addresses.get(prefix)
        if pending is not None and pending.source is source:
            del self._addresses[prefix]
        self._ipcache.delete(prefix, source)
        self.trigger()

    def set_named_ports(
        self, pod: tuple[str, str], identity: int, ports: Iterable[NamedPort]
    ) -> None:
        """Note the named ports of a pod anywhere in the cluster."""
        self.engine.set_named_ports(pod, identity, container_ports(ports))
        self.trigger()

    def remove_named_ports(self, pod: tuple[str, str]) -> None:
        """Note that a pod's ports are gone."""
        self.engine.remove_named_ports(pod)
        self.trigger()

    def redirects_moved(self, redirects: Iterable[Redirect]) -> None:
        """Note that proxies enforce redirects on other ports than before."""
        self._installer.redirects_moved(redirects)
        self.trigger()

    def restore_identities(self, identities: Mapping[int, LabelSet]) -> None:
        """Keep node-local identities that the kernel still uses until `finish_restoring`."""
        self._prefixes.restore(identities)

    # ---- endpoints ----

    async def build(self, endpoint: Endpoint) -> None:
        """Install an endpoint's policy as of now and open its row.

        Raises `EndpointError` when it cannot be; what was enforced before stays.
        """
        await self.build_many([endpoint])
        if endpoint.error:
            raise EndpointError(f"endpoint {endpoint.id}: {endpoint.error}")

    async def build_many(self, endpoints: Iterable[Endpoint]) -> None:
        """Install the policies of several endpoints at once; `Endpoint.error` says which failed."""
        async with self._pass:
            for endpoint in endpoints:
                self._upsert(endpoint)
                self._installer.want_row(endpoint.id)
            await self._flush()

    async def set_audit(self, *, audit: bool) -> None:
        """Tell whether the whole node is in audit mode, in which proxies refuse nothing either."""
        async with self._pass:
            if audit == self._audit:
                return
            self._audit = audit
            for endpoint in self._table:
                if endpoint.id in self._subjects:
                    self._upsert(endpoint)
            await self._flush()

    def _upsert(self, endpoint: Endpoint) -> None:
        self._subjects.add(endpoint.id)
        self.engine.upsert_endpoint(endpoint.id, subject_of(endpoint, audit=self._audit))

    def forget(self, endpoint_id: EndpointID) -> None:
        """An endpoint is gone."""
        self._subjects.discard(endpoint_id)
        self._installer.forget(endpoint_id)

    async def apply_names(self, names: Names) -> None:
        """Give addresses the labels of their DNS names; returns when the kernel has them.

        `names` maps an address to all labels that its names give it now, none at all to forget it.
        """
        async with self._pass:
            await self._prefixes.apply_names(names)

    async def settle_identities(self) -> None:
        """Return once the maps know every identity noted so far."""
        async with self._pass:
            await self._flush()

    def realized(self, endpoint: Endpoint) -> EndpointPolicy | None:
        """The policy last computed for an endpoint."""
        return self.engine.policy(endpoint.id)

    async def wait_for(self, revision: int) -> int:
        """Return the revision that every endpoint enforces, once it is at least `revision`."""
        async with self._advanced:
            await self._advanced.wait_for(lambda: self.enforced_revision() >= revision)
        return self.enforced_revision()

    def enforced_revision(self) -> int:
        """The revision that every endpoint enforces; the repository's when there is none."""
        revisions = [e.policy_revision for e in self._table if e.alive and e.created]
        revision = self.engine.revision
        return min([*revisions, revision - 1 if self._objects.pending else revision])

    # ---- passes ----

    async def reconcile(self) -> None:
        """Carry out all that was noted."""
        async with self._pass:
            noted_at, self._noted_at = self._noted_at, 0.0
            began = time.monotonic()
            await self._flush()
            INCREMENTAL_SECONDS.observe(time.monotonic() - began, "global")
            await self.references.take_up()
            self._admit_addresses()
            await self._ipcache.flush()
            await self._objects.take_up()
            self.names_changed(self.engine.fqdn_selectors())
            if noted_at:
                PASS_SECONDS.observe(time.monotonic() - noted_at, "kvstore")
        self.passed()
        if stale := self._installer.stale:
            failed = ", ".join(str(endpoint_id) for endpoint_id in sorted(stale))
            raise EndpointError(f"policy not enforced on endpoint {failed}; the old one stays")

    async def finish_restoring(self) -> None:
        """Let go of node-local identities and accepted objects of an earlier run."""
        async with self._pass:
            await self._prefixes.finish_restoring()
            await self._objects.forget_earlier()

    async def sweep_cookies(self) -> None:
        """Forget the cookies of rules that are long gone."""
        async with self._pass:
            self.engine.sweep_cookies()
            self._installer.publish_cookies()

    async def sweep_redirects(self) -> None:
        """Let go of redirects that no policy uses any more."""
        async with self._pass:
            self._installer.sweep_redirects()

    def _note(self) -> None:
        if not self._noted_at:
            self._noted_at = time.monotonic()
        self.trigger()

    def _pending_addresses(self) -> Iterator[tuple[str, Entry]]:
        for prefix, pending in self._addresses.items():
            yield prefix, pending.entry

    def _admit_addresses(self) -> None:
        """Move addresses whose identity is known into the address table."""
        known = self.engine.selectors.identities
        admitted = [p for p, pending in self._addresses.items() if pending.entry.identity in known]
        for prefix in admitted:
            pending = self._addresses.pop(prefix)
            self._ipcache.upsert(prefix, pending.source, pending.entry)

    async def _flush(self) -> None:
        await self._installer.flush()
        async with self._advanced:
            self._advanced.notify_all()


def subject_of(endpoint: Endpoint, *, audit: bool = False) -> Subject:
    """An endpoint as policy sees it, on a node that is in audit mode or not."""
    ports = frozenset(container_ports(endpoint.named_ports))
    return Subject(endpoint.identity, endpoint.labels, ports, audit or endpoint.audit)


def container_ports(ports: Iterable[NamedPort]) -> list[ContainerPort]:
    """Named ports of protocols that policy knows; others cannot be named by any rule."""
    return [
        ContainerPort(port.name.lower(), Protocol[port.protocol.upper()], port.port)
        for port in ports
        if port.protocol.upper() in ("TCP", "UDP", "SCTP")
    ]
