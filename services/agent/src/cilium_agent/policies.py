"""From policy objects and identities to what the kernel enforces, in the order that opens no hole.

Everything that bears on policy arrives here on the event loop and is only noted; one pass at a time
then carries it out, whole batches at once. A pass goes

    identities, ports, endpoints → maps        (still under the old rules)
    addresses that waited for an identity → address table
    new prefixes: identity → maps → address table
    policies → maps                            (every endpoint its old policy or its new one)
    prefixes out of use: address table → maps

where CIDR groups come before the policies that may refer to them. So no packet meets an identity
that the maps do not know, and none meets half of a policy. A pass that fails is repeated by the
"policy" controller; what an endpoint should have is written in full then. An endpoint whose policy
does not fit keeps the old one and says so, and holds up no other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from cilium_core.policy import (
    ContainerPort,
    EndpointPolicy,
    EndpointUpdate,
    Policy,
    PolicyEngine,
    PolicyError,
    PolicyOptions,
    PolicyRef,
    PrefixIdentities,
    Protocol,
    Subject,
    parse_cidr_group,
)
from cilium_core.policy.groups import KIND as CIDR_GROUP_KIND
from cilium_core.telemetry import counter, get_logger, histogram

from cilium_agent.datapath import EndpointInfo, PolicyChange, PolicyMapOverflow
from cilium_agent.endpoints import rows
from cilium_agent.endpoints.records import Endpoint, EndpointID
from cilium_agent.endpoints.states import State
from cilium_agent.errors import EndpointError, EndpointNotFoundError
from cilium_agent.ipcaches import Entry, IPCache, Source

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from cilium_core.identities import Identity, LocalIdentityAllocator, Prefix
    from cilium_core.labels import LabelSet

    from cilium_agent.accepted import AcceptedObjects
    from cilium_agent.endpoints.records import NamedPort
    from cilium_agent.endpoints.tables import EndpointTable
    from cilium_agent.feeds import Feed

    Write = Callable[[Mapping[int, PolicyChange], list[EndpointInfo]], Awaitable[None]]

log = get_logger()
T = TypeVar("T")

CHANGES = counter("cilium_policy_change_total", "Policy objects taken up or refused.", "outcome")
REGENERATIONS = counter(
    "cilium_endpoint_regenerations_total", "Endpoints given a policy.", "outcome"
)
PASS_SECONDS = histogram(
    "cilium_policy_implementation_delay", "Time from a change to its enforcement.", "source"
)

_FIRST_ALLOCATED = 256
"""Lower identities are fixed and never forgotten."""


@dataclass(frozen=True)
class RefusedPolicy:
    """A policy object that is not enforced as written."""

    object: Mapping[str, Any]
    error: str


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
        audit: bool = False,
    ) -> None:
        """`write` installs policies, then rows; `allocator` may hold restored numbers."""
        self.engine = PolicyEngine(options)
        self.refused: dict[PolicyRef, RefusedPolicy] = {}
        self._unreadable: dict[PolicyRef, RefusedPolicy] = {}
        self.prefixes = PrefixIdentities(options.families, allocator)
        self.trigger: Callable[[], None] = lambda: None
        self._allocator = allocator
        self._table = table
        self._ipcache = ipcache
        self._write = write
        self._feed = feed
        self._audit = audit
        self._accepted = accepted
        self._earlier = accepted.load()
        self._objects: dict[PolicyRef, Mapping[str, Any] | None] = {}
        self._addresses: dict[str, PendingAddress] = {}
        self._stale: set[EndpointID] = set()
        self._rows: set[EndpointID] = set()
        self._restored: dict[int, LabelSet] = {}
        self._noted_at = 0.0
        self._pass = asyncio.Lock()
        self._advanced = asyncio.Condition()
        for version in (4, 6):
            if options.families.ipv4 if version == 4 else options.families.ipv6:
                world = options.families.world(version)
                everywhere = "0.0.0.0/0" if version == 4 else "::/0"
                ipcache.upsert(everywhere, Source.GENERATED, Entry(identity=int(world)))

    # ---- what arrives ----

    def upsert_object(self, ref: PolicyRef, document: Mapping[str, Any]) -> None:
        """Note a policy object as it is now."""
        self._note()
        self._unreadable.pop(ref, None)
        self._objects[ref] = document

    def delete_object(self, ref: PolicyRef) -> None:
        """Note that a policy object is gone."""
        self._note()
        self._unreadable.pop(ref, None)
        self._objects[ref] = None

    def doubt_object(self, ref: PolicyRef, document: Mapping[str, Any], error: str) -> None:
        """Note that what is stored of a policy is no object; an earlier version stays in force."""
        self._note()
        self._unreadable[ref] = RefusedPolicy(document, error)
        if ref in self._earlier:
            self._objects.setdefault(ref, self._earlier[ref])

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

    def restore_identities(self, identities: Mapping[int, LabelSet]) -> None:
        """Keep node-local identities that the kernel still uses until `finish_restoring`."""
        for identity, labels in identities.items():
            self._restored[identity] = labels
            self.engine.upsert_identity(identity, labels)

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
                self.engine.upsert_endpoint(endpoint.id, subject_of(endpoint))
                self._rows.add(endpoint.id)
            await self._flush()

    def forget(self, endpoint_id: EndpointID) -> None:
        """An endpoint is gone."""
        self.engine.remove_endpoint(endpoint_id)
        self._stale.discard(endpoint_id)
        self._rows.discard(endpoint_id)

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
        pending = self.engine.revision - 1 if self._objects else self.engine.revision
        return min([*revisions, pending])

    # ---- passes ----

    async def reconcile(self) -> None:
        """Carry out all that was noted."""
        async with self._pass:
            noted_at, self._noted_at = self._noted_at, 0.0
            await self._flush()
            self._admit_addresses()
            await self._ipcache.flush()
            objects, self._objects = self._objects, {}
            try:
                await self._change_policies(objects)
            except BaseException:
                self._objects = {**objects, **self._objects}
                raise
            if noted_at:
                PASS_SECONDS.observe(time.monotonic() - noted_at, "kvstore")
        if self._stale:
            failed = ", ".join(str(endpoint_id) for endpoint_id in sorted(self._stale))
            raise EndpointError(f"policy not enforced on endpoint {failed}; the old one stays")

    async def finish_restoring(self) -> None:
        """Let go of node-local identities that no policy needs any more."""
        async with self._pass:
            self._allocator.finish_restoring()
            self._ipcache.drop_restored()
            await self._ipcache.flush()
            used = {identity.id for identity in self.prefixes.items().values()}
            for identity in self._restored:
                if identity not in used:
                    self.engine.delete_identity(identity)
            self._restored.clear()
            await self._flush()
            for ref in [ref for ref in self._earlier if ref not in self.refused]:
                del self._earlier[ref]
                await asyncio.to_thread(self._accepted.forget, ref)

    async def sweep_cookies(self) -> None:
        """Forget the cookies of rules that are long gone."""
        async with self._pass:
            self.engine.sweep_cookies()
            self._publish_cookies()

    def _note(self) -> None:
        if not self._noted_at:
            self._noted_at = time.monotonic()
        self.trigger()

    def _admit_addresses(self) -> None:
        """Move addresses whose identity is known into the address table."""
        known = self.engine.selectors.identities
        admitted = [p for p, pending in self._addresses.items() if pending.entry.identity in known]
        for prefix in admitted:
            pending = self._addresses.pop(prefix)
            self._ipcache.upsert(prefix, pending.source, pending.entry)

    async def _change_policies(self, objects: Mapping[PolicyRef, Mapping[str, Any] | None]) -> None:
        if objects:
            await self._take_up(objects)
        self.refused.update(self._unreadable)

    async def _take_up(self, objects: Mapping[PolicyRef, Mapping[str, Any] | None]) -> None:
        for ref, document in objects.items():
            if ref.kind == CIDR_GROUP_KIND:
                await self._change_group(ref, document)
        parsed: dict[PolicyRef, Policy | None] = {}
        for ref, document in objects.items():
            if ref.kind == CIDR_GROUP_KIND:
                continue
            if document is None:
                parsed[ref] = None
                self.refused.pop(ref, None)
                continue
            policy = self._read(ref, document, self.engine.parse)
            if policy is not None:
                parsed[ref] = policy
        await self._add_prefixes(
            {prefix for policy in parsed.values() if policy for prefix in policy.prefixes}
        )
        for ref, policy in parsed.items():
            self._change_policy(ref, policy)
        await self._flush()
        await self._remove_prefixes()
        await self._keep(objects)

    def _read(
        self, ref: PolicyRef, document: Mapping[str, Any], parse: Callable[[Mapping[str, Any]], T]
    ) -> T | None:
        """Parse an object; in place of one that is refused, what an earlier run accepted."""
        try:
            value = parse(document)
        except PolicyError as error:
            self._refuse(ref, document, error)
            earlier = self._earlier.get(ref)
            try:
                return None if earlier is None else parse(earlier)
            except PolicyError:
                return None
        self.refused.pop(ref, None)
        return value

    async def _keep(self, objects: Mapping[PolicyRef, Mapping[str, Any] | None]) -> None:
        """Have the disk know what is in force."""
        for ref, document in objects.items():
            if document is None:
                self._earlier.pop(ref, None)
                await asyncio.to_thread(self._accepted.forget, ref)
            elif ref not in self.refused and self._earlier.pop(ref, None) != document:
                await asyncio.to_thread(self._accepted.keep, ref, document)

    async def _change_group(self, ref: PolicyRef, document: Mapping[str, Any] | None) -> None:
        """Have the policies that refer to a CIDR group follow it."""
        if document is None:
            self.refused.pop(ref, None)
            change = self.engine.delete_cidr_group(ref.name)
        else:
            group = self._read(ref, document, parse_cidr_group)
            if group is None:
                return
            for warning in group.warnings:
                log.warning("policy warning", policy=str(ref), warning=warning)
            await self._add_prefixes(self.engine.group_prefixes(group))
            change = self.engine.upsert_cidr_group(group)
        await self._flush()
        await self._remove_prefixes()
        CHANGES.add(1, "success")
        log.info(
            "CIDR group deleted" if document is None else "CIDR group taken up",
            group=ref.name,
            revision=change.revision,
            policies=len(change.policies),
            endpoints=len(change.affected),
        )

    def _change_policy(self, ref: PolicyRef, policy: Policy | None) -> None:
        if policy is None:
            change = self.engine.delete_policy(*ref)
        else:
            change = self.engine.upsert_policy(policy)
            for warning in policy.warnings:
                log.warning("policy warning", policy=str(ref), warning=warning)
        CHANGES.add(1, "success")
        log.info(
            "policy deleted" if policy is None else "policy taken up",
            policy=str(ref),
            revision=change.revision,
            endpoints=len(change.affected),
        )
        labels = policy.rules[0].origin.labels if policy is not None and policy.rules else ()
        self._feed.policy(
            labels,
            change.revision,
            len(policy.rules) if policy is not None else 0,
            deleted=policy is None,
        )

    def _refuse(self, ref: PolicyRef, document: Mapping[str, Any], error: PolicyError) -> None:
        CHANGES.add(1, "fail")
        self.refused[ref] = RefusedPolicy(document, str(error))
        log.error("policy refused; an earlier version stays in force", error=str(error))

    async def _add_prefixes(self, wanted: Iterable[Prefix]) -> None:
        """Give new prefixes identities that the maps treat as they treated the addresses before."""
        added = self.prefixes.add(wanted)
        if not added:
            return
        for identity in added.values():
            self.engine.upsert_identity(identity.id, identity.labels)
        await self._flush()
        for prefix, identity in added.items():
            self._ipcache.upsert(str(prefix), Source.GENERATED, Entry(identity=identity.id))
        await self._ipcache.flush()
        self._feed.identities(added.values())

    async def _remove_prefixes(self) -> None:
        gone = self.prefixes.remove(self.prefixes.items().keys() - self.engine.required_prefixes())
        gone = {prefix: identity for prefix, identity in gone.items() if prefix.prefixlen}
        if not gone:
            return
        for prefix in gone:
            self._ipcache.delete(str(prefix), Source.GENERATED)
        await self._ipcache.flush()
        unused = [identity for identity in gone.values() if _forgettable(identity)]
        for identity in unused:
            self.engine.delete_identity(identity.id)
        await self._flush()
        self._feed.identities((), [identity.id for identity in unused])

    async def _flush(self) -> None:
        """Write what changed, in one step for all endpoints; what fails is remembered."""
        updates = {self._endpoint(u.endpoint): u for u in self.engine.flush()}
        self._publish_cookies()
        work: dict[int, PolicyChange] = {}
        states: dict[EndpointID, EndpointPolicy | EndpointUpdate] = {}
        for endpoint_id, update in updates.items():
            work[endpoint_id] = _change_of(update)
            states[endpoint_id] = update
        for endpoint_id in list(self._stale):
            if (policy := self.engine.policy(endpoint_id)) is not None:
                work[endpoint_id] = PolicyChange(add=policy.entries, replace=True)
                states[endpoint_id] = policy
        for endpoint_id in self._rows - states.keys():
            if (policy := self.engine.policy(endpoint_id)) is not None:
                states[endpoint_id] = policy
        self._stale |= {EndpointID(endpoint_id) for endpoint_id in work}
        self._rows |= states.keys()
        await self._install(work, states)
        await self._advance()

    async def _install(
        self,
        work: dict[int, PolicyChange],
        states: dict[EndpointID, EndpointPolicy | EndpointUpdate],
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

    def _row_due(
        self, endpoint: Endpoint, states: Mapping[EndpointID, EndpointPolicy | EndpointUpdate]
    ) -> bool:
        """Whether the endpoint's row must be written: it is new, or enforcement changes."""
        state = states[endpoint.id]
        return (
            endpoint.policy_revision == 0
            or endpoint.row_stale
            or endpoint.ingress_enforced != state.ingress_enforced
            or endpoint.egress_enforced != state.egress_enforced
        )

    def _row(self, endpoint: Endpoint, state: EndpointPolicy | EndpointUpdate) -> EndpointInfo:
        flags = rows.flags_of(
            ingress=state.ingress_enforced, egress=state.egress_enforced, audit=self._audit
        )
        return rows.row(endpoint, flags)

    def _succeed(self, endpoint: Endpoint, state: EndpointPolicy | EndpointUpdate) -> None:
        endpoint.ingress_enforced = state.ingress_enforced
        endpoint.egress_enforced = state.egress_enforced
        endpoint.policy_revision = self.engine.revision
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

    async def _advance(self) -> None:
        """Endpoints that a revision does not touch enforce it as well."""
        revision = self.engine.revision
        for endpoint in self._table:
            if endpoint.policy_revision and endpoint.id not in self._stale:
                endpoint.policy_revision = revision
        async with self._advanced:
            self._advanced.notify_all()

    def _publish_cookies(self) -> None:
        changes = self.engine.cookies.take_changes()
        if changes:
            self._feed.rules({cookie: origins for cookie, origins in changes.items() if origins})
            self._feed.rules_deleted(cookie for cookie, origins in changes.items() if not origins)

    @staticmethod
    def _endpoint(name: object) -> EndpointID:
        if not isinstance(name, int):
            raise TypeError(f"the policy engine knows endpoints by id, not as {name!r}")
        return EndpointID(name)


def subject_of(endpoint: Endpoint) -> Subject:
    """An endpoint as policy sees it."""
    return Subject(
        endpoint.identity, endpoint.labels, frozenset(container_ports(endpoint.named_ports))
    )


def container_ports(ports: Iterable[NamedPort]) -> list[ContainerPort]:
    """Named ports of protocols that policy knows; others cannot be named by any rule."""
    return [
        ContainerPort(port.name.lower(), Protocol[port.protocol.upper()], port.port)
        for port in ports
        if port.protocol.upper() in ("TCP", "UDP", "SCTP")
    ]


def _change_of(update: EndpointUpdate) -> PolicyChange:
    return PolicyChange(add=update.delta.add, remove=update.delta.remove, replace=update.full)


def _forgettable(identity: Identity) -> bool:
    return identity.id >= _FIRST_ALLOCATED
