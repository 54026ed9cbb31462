"""What policies refer to beside identities: services, audited namespaces, networks.

Objects are noted as they come; `take_up`, one part of a pass, hands all of them to the engine in
one step, after the prefixes that policies then need have identities. Event loop only.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cilium_core.identities import NumericIdentity, ReservedIdentity
from cilium_core.policy.auditing import is_audited
from cilium_core.policy.networks import Networks, NetworkSelector, addresses_of
from cilium_core.policy.services import read_service, read_slice
from cilium_core.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cilium_core.identities import Prefix
    from cilium_core.labels import LabelSet
    from cilium_core.policy import PolicyEngine
    from cilium_core.policy.services import Services

    from cilium_agent.ipcaches import Entry, IPCache
    from cilium_agent.prefixing import Prefixes

log = get_logger()

Document = Mapping[str, Any]
Name = tuple[str, str]


class References:
    """What exists that policies may refer to; `trigger` asks for a pass."""

    def __init__(
        self,
        engine: PolicyEngine,
        prefixes: Prefixes,
        ipcache: IPCache,
        trigger: Callable[[], None],
        pending: Callable[[], Iterable[tuple[str, Entry]]] = tuple,
    ) -> None:
        """Take the parts; `pending` gives addresses that are about to get into the address table.

        Policies must know them before any packet does.
        """
        self._engine = engine
        self._prefixes = prefixes
        self._ipcache = ipcache
        self._trigger = trigger
        self._pending = pending
        self._services: dict[Name, Document | None] = {}
        self._slices: dict[Name, Document | None] = {}
        self._audited: set[str] = set()
        self._addresses_changed = True
        self._networks = False
        self._networks_at = -1
        ipcache.listen(lambda _changes: self.note_addresses())

    # ---- what arrives ----

    def upsert_service(self, document: Document) -> None:
        """Note a Service object as it is now."""
        self._services[_name(document)] = document
        self._trigger()

    def delete_service(self, document: Document) -> None:
        """Note that a Service object is gone."""
        self._services[_name(document)] = None
        self._trigger()

    def upsert_slice(self, document: Document) -> None:
        """Note an EndpointSlice object as it is now."""
        self._slices[_name(document)] = document
        self._trigger()

    def delete_slice(self, document: Document) -> None:
        """Note that an EndpointSlice object is gone."""
        self._slices[_name(document)] = None
        self._trigger()

    def upsert_namespace(self, document: Document) -> None:
        """Note whether a namespace is audited."""
        metadata = document.get("metadata")
        annotations = metadata.get("annotations") if isinstance(metadata, Mapping) else None
        name = _name(document)[1]
        if is_audited(annotations if isinstance(annotations, Mapping) else None):
            self._audited.add(name)
        else:
            self._audited.discard(name)
        self._trigger()

    def delete_namespace(self, document: Document) -> None:
        """Note that a namespace is gone, and with it its audit."""
        self._audited.discard(_name(document)[1])
        self._trigger()

    def note_addresses(self) -> None:
        """Note that addresses come, go or change hands."""
        self._addresses_changed = True

    # ---- within a pass ----

    async def take_up(self) -> None:
        """Have policies follow what was noted."""
        bindings = self._engine.bindings
        bindings = replace(bindings, services=self._noted_services(bindings.services))
        if self._audited != bindings.audited:
            bindings = replace(bindings, audited=frozenset(self._audited))
        if self._addresses_changed and self._uses_networks():
            self._addresses_changed = False
            bindings = replace(bindings, networks=Networks(addresses_of(self._cluster())))
        if bindings == self._engine.bindings:
            self._services.clear()
            self._slices.clear()
            return
        await self._prefixes.add(self._engine.prefixes_under(bindings))
        change = self._engine.set_bindings(bindings)
        await self._prefixes.settle()
        self._services.clear()
        self._slices.clear()
        if change.policies:
            log.info(
                "policies follow what they refer to",
                revision=change.revision,
                policies=len(change.policies),
                endpoints=len(change.affected),
            )

    def _noted_services(self, services: Services) -> Services:
        if not (self._services or self._slices):
            return services
        known, slices = dict(services.services), dict(services.slices)
        for name, document in self._services.items():
            if document is None:
                known.pop(name, None)
            else:
                service = read_service(document)
                known[service.namespace, service.name] = service
        for name, document in self._slices.items():
            if document is None:
                slices.pop(name, None)
            else:
                namespace, part, owner, addresses = read_slice(document)
                slices[namespace, part] = ((namespace, owner), frozenset(addresses))
        return replace(services, services=known, slices=slices)

    def _uses_networks(self) -> bool:
        """Whether some policy in force has networks; looked up once per revision."""
        if self._networks_at != self._engine.revision:
            self._networks_at = self._engine.revision
            self._networks = self._any_networks()
        return self._networks

    def _any_networks(self) -> bool:
        return any(
            isinstance(peer, NetworkSelector)
            for policy in self._engine.repository
            for rule in policy.rules
            for peer in rule.peers or ()
        )

    def _cluster(self) -> Iterator[tuple[Prefix, LabelSet]]:
        """The addresses of pods and nodes with their labels.

        Those that nodes have among their pods are left out: a network of pods does not mean nodes.
        """
        identities = self._engine.selectors.identities
        entries = {prefix: entry for prefix, _source, entry in self._ipcache.entries()}
        entries.update(self._pending())
        rows = [(ipaddress.ip_network(prefix), entry) for prefix, entry in entries.items()]
        pod_cidrs: dict[str, list[Prefix]] = {}
        for prefix, entry in rows:
            if prefix.prefixlen < prefix.max_prefixlen and entry.tunnel_ipv4 is not None:
                pod_cidrs.setdefault(entry.host_ip, []).append(prefix)
        for prefix, entry in rows:
            labels = identities.get(NumericIdentity(entry.identity))
            if labels is None or not entry.host_ip or prefix.prefixlen < prefix.max_prefixlen:
                continue
            of_node = ReservedIdentity.REMOTE_NODE.label in labels
            if not of_node or not any(
                prefix.network_address in cidr for cidr in pod_cidrs.get(entry.host_ip, ())
            ):
                yield prefix, labels


def _name(document: Document) -> Name:
    metadata = document.get("metadata")
    fields = metadata if isinstance(metadata, Mapping) else {}
    return str(fields.get("namespace") or "default"), str(fields.get("name") or "")
