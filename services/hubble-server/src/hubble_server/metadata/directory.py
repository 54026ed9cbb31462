"""The names behind events, as of now: what the agent said, indexed for joining in bulk.

Owned by the ingest thread, which applies the agent's changes between batches of events: what is
new at once, what replaces or removes something after the events that were already waiting, because
those are older than the change. The event loop reads the interned rows only.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from cilium.metadata.v1 import metadata_pb2

from hubble_server.hashing import MISSING, Index, Keys
from hubble_server.metadata.addresses import (
    IPV4_SALT,
    AddressKey,
    Prefix,
    PrefixTable,
    parse_prefix,
    salted,
)
from hubble_server.metadata.names import NameTable
from hubble_server.metadata.rows import (
    AddressRow,
    EndpointRow,
    Generations,
    InterfaceRow,
    Interned,
    RowFacts,
    RulesRow,
    ServiceRow,
    Workload,
    cluster_of,
    labels_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

ROWS_LIMIT = 65_536
"""Endpoint rows after which a new generation begins, so that churn cannot fill the memory."""

_NAMESPACE_TTL_S = 3600


class Directory:
    """Current metadata and the interned rows made from it."""

    def __init__(self) -> None:
        self.rows: Interned[EndpointRow] = Interned(EndpointRow())
        self.rules: Interned[RulesRow] = Interned(RulesRow())
        self.interfaces: Interned[InterfaceRow] = Interned(InterfaceRow())
        self.services: Interned[ServiceRow] = Interned(ServiceRow())
        self.names = NameTable()
        self._identities: dict[int, tuple[str, ...]] = {}
        self._endpoints: dict[int, metadata_pb2.Endpoint] = {}
        self._owners: dict[AddressKey, int] = {}
        self._entries: dict[str, metadata_pb2.IPEntry] = {}
        self._hosts: dict[AddressKey, metadata_pb2.IPEntry] = {}
        self._prefixes = PrefixTable()
        self._rules: dict[int, int] = {}
        self._interfaces: dict[int, str] = {}
        self._interface_rows = Index()
        self._frontends: dict[tuple[str, int, int], metadata_pb2.Service] = {}
        self._service_rows = Index()
        self._addresses = Index()
        self._address_rows: list[AddressRow] = [AddressRow()]
        self._address_numbers: dict[AddressRow, int] = {AddressRow(): 0}
        self._address_identities = RowFacts(np.uint32)
        self._pairs = Index()
        self._pairs_of_identity: dict[int, list[int]] = {}
        self._row_endpoints = RowFacts(np.uint16)
        self._row_seen_s = RowFacts(np.int64)
        self._namespaces: dict[str, int] = {}
        self._generations = Generations(ROWS_LIMIT)

    # ---- changes ----

    @property
    def is_empty(self) -> bool:
        """Whether the agent has told nothing yet."""
        return not self._identities and not self._endpoints and not self._entries

    def is_addition(self, update: metadata_pb2.Update) -> bool:
        """Whether the change adds something about which nothing was known."""
        match update.WhichOneof("update"):
            case "endpoint":
                endpoint = update.endpoint
                return endpoint.id not in self._endpoints and not any(
                    key in self._owners for key in _keys(endpoint.ips)
                )
            case "identity":
                return update.identity.id not in self._identities
            case "ip":
                return update.ip.prefix not in self._entries
            case "rules":
                return update.rules.cookie not in self._rules
            case "interface":
                return update.interface.index not in self._interfaces
            case "service":
                return _frontend(update.service.frontend) not in self._frontends
            case "names":
                return (update.names.endpoint, update.names.ip) not in self.names
        return False

    def apply(self, update: metadata_pb2.Update) -> None:
        """Apply one change. What is malformed (an address that is none) is ignored."""
        match update.WhichOneof("update"):
            case "endpoint":
                self._set_endpoint(update.endpoint)
            case "endpoint_deleted":
                self._delete_endpoint(update.endpoint_deleted)
            case "identity":
                self._set_identity(update.identity.id, tuple(sorted(update.identity.labels)))
            case "identity_deleted":
                self._identities.pop(update.identity_deleted, None)
            case "ip":
                self._set_entry(update.ip)
            case "ip_deleted":
                self._delete_entry(update.ip_deleted)
            case "rules":
                row = RulesRow(
                    tuple(policy.SerializeToString() for policy in update.rules.policies),
                    tuple(dict.fromkeys(update.rules.log)),
                )
                self._rules[update.rules.cookie] = self.rules.number(row)
            case "rules_deleted":
                self._rules.pop(update.rules_deleted, None)
            case "interface":
                device = InterfaceRow(update.interface.index, update.interface.name)
                self._interfaces[device.ifindex] = device.name
                self._interface_rows.set(device.ifindex, 0, self.interfaces.number(device))
            case "interface_deleted":
                self._interfaces.pop(update.interface_deleted, None)
                self._interface_rows.set(update.interface_deleted, 0, MISSING)
            case "service":
                self._set_service(update.service)
            case "frontend_deleted":
                self._delete_service(update.frontend_deleted)
            case "names":
                self.names.set(update.names)

    def replace(self, snapshot: Iterable[metadata_pb2.Update]) -> None:
        """Take a whole state: what it lacks is deleted, what it holds is set."""
        updates = list(snapshot)
        present: dict[str, set[object]] = {}
        for update in updates:
            kind = update.WhichOneof("update")
            if kind is not None:
                present.setdefault(kind, set()).add(_key_of(update))
        make = metadata_pb2.Update
        gone = [
            *(
                make(endpoint_deleted=x)
                for x in self._endpoints.keys() - present.get("endpoint", set())
            ),
            *(
                make(identity_deleted=x)
                for x in self._identities.keys() - present.get("identity", set())
            ),
            *(make(ip_deleted=x) for x in self._entries.keys() - present.get("ip", set())),
            *(make(rules_deleted=x) for x in self._rules.keys() - present.get("rules", set())),
            *(
                make(interface_deleted=x)
                for x in self._interfaces.keys() - present.get("interface", set())
            ),
        ]
        for frontend in self._frontends.keys() - present.get("service", set()):
            ip, port, protocol = frontend
            gone.append(
                make(frontend_deleted=metadata_pb2.Frontend(ip=ip, port=port, protocol=protocol))
            )
        self.names.keep(present.get("names", ()))
        for update in (*gone, *updates):
            self.apply(update)

    def _set_endpoint(self, endpoint: metadata_pb2.Endpoint) -> None:
        known = self._endpoints.get(endpoint.id)
        if known == endpoint:
            return
        if known is not None:
            self._delete_endpoint(endpoint.id)
        stored = metadata_pb2.Endpoint()
        stored.CopyFrom(endpoint)
        self._endpoints[endpoint.id] = stored
        for key in _keys(endpoint.ips):
            self._owners[key] = endpoint.id
            self._renew_address(key)

    def pod_of(self, endpoint_id: int) -> tuple[str, str]:
        """Namespace and name of the pod of an endpoint, empty for one that is not known."""
        endpoint = self._endpoints.get(endpoint_id)
        return (endpoint.namespace, endpoint.pod_name) if endpoint is not None else ("", "")

    def _delete_endpoint(self, number: int) -> None:
        endpoint = self._endpoints.pop(number, None)
        if endpoint is None:
            return
        for key in _keys(endpoint.ips):
            if self._owners.get(key) == number:
                del self._owners[key]
                self._renew_address(key)

    def _set_identity(self, number: int, labels: tuple[str, ...]) -> None:
        if self._identities.get(number) == labels:
            return
        self._identities[number] = labels
        for address in self._pairs_of_identity.pop(number, ()):
            self._pairs.set(address << 32 | number, 0, MISSING)

    def _set_entry(self, entry: metadata_pb2.IPEntry) -> None:
        known = self._entries.get(entry.prefix)
        if known == entry:
            return
        prefix = _prefix(entry.prefix)
        if prefix is None:
            return
        stored = metadata_pb2.IPEntry()
        stored.CopyFrom(entry)
        self._entries[entry.prefix] = stored
        if prefix.is_address:
            self._hosts[prefix.key] = stored
            self._renew_address(prefix.key)
        else:
            self._prefixes.set(prefix, entry.identity)

    def _delete_entry(self, text: str) -> None:
        if self._entries.pop(text, None) is None:
            return
        prefix = parse_prefix(text)
        if prefix.is_address:
            self._hosts.pop(prefix.key, None)
            self._renew_address(prefix.key)
        else:
            self._prefixes.forget(prefix)

    def _set_service(self, service: metadata_pb2.Service) -> None:
        stored = metadata_pb2.Service()
        stored.CopyFrom(service)
        key = _service_key(service.frontend)
        if key is None:
            return
        self._frontends[_frontend(service.frontend)] = stored
        self._service_rows.set(
            *key, self.services.number(ServiceRow(service.namespace, service.name))
        )

    def _delete_service(self, frontend: metadata_pb2.Frontend) -> None:
        key = _service_key(frontend)
        if self._frontends.pop(_frontend(frontend), None) is not None and key is not None:
            self._service_rows.set(*key, MISSING)

    def _renew_address(self, key: AddressKey) -> None:
        """Point an address at what is known about it now: the local endpoint first."""
        owner = self._owners.get(key)
        entry = self._hosts.get(key)
        if owner is not None:
            endpoint = self._endpoints[owner]
            row = AddressRow(
                owner,
                endpoint.identity,
                endpoint.namespace,
                endpoint.pod_name,
                tuple(Workload(each.name, each.kind) for each in endpoint.workloads),
            )
        elif entry is not None:
            row = AddressRow(0, entry.identity, entry.namespace, entry.pod_name)
        else:
            self._addresses.set(*key, MISSING)
            return
        number = self._address_numbers.get(row)
        if number is None:
            number = len(self._address_rows)
            self._address_rows.append(row)
            self._address_numbers[row] = number
            self._address_identities.set(number, row.identity)
        self._addresses.set(*key, number)

    # ---- joining ----

    def endpoint_rows(
        self, high: Keys, low: Keys, is_ipv6: NDArray[np.bool_], identities: NDArray[np.uint32]
    ) -> NDArray[np.uint32]:
        """Rows of the ends at these addresses, whose packets carry these identities (0: none)."""
        salted_low = salted(low, is_ipv6)
        addresses = np.maximum(self._addresses.find(high, salted_low), 0).astype(np.uint32)
        unknown = identities == 0
        if unknown.any():
            identities = np.where(
                unknown, self._address_identities.take(addresses), identities
            ).astype(np.uint32)
            at = np.flatnonzero((identities == 0) & (addresses == 0))
            if len(at):
                found = self._prefixes.find(high[at], low[at], is_ipv6[at])
                identities[at] = np.maximum(found, 0)
        keys = addresses.astype(np.uint64)
        keys <<= np.uint64(32)
        keys |= identities
        rows = self._pairs.find(keys)
        missing = rows == MISSING
        if missing.any():
            for key in np.unique(keys[missing]).tolist():
                self._make_row(key >> 32, key & 0xFFFFFFFF)
            rows = self._pairs.find(keys)
        return rows.view(np.uint32)

    def _make_row(self, address: int, identity: int) -> None:
        known = self._address_rows[address]
        labels = labels_of(identity, self._identities.get(identity))
        number = self.row_of(
            EndpointRow(
                known.endpoint_id,
                identity,
                known.namespace,
                labels,
                known.pod_name,
                known.workloads,
                cluster_of(labels),
            )
        )
        self._pairs.set(address << 32 | identity, 0, number)
        self._pairs_of_identity.setdefault(identity, []).append(address)

    def row_of(self, row: EndpointRow) -> int:
        """Number of a row that is known whole."""
        number = self.rows.number(row)
        self._row_endpoints.set(number, row.id & 0xFFFF)
        self._row_seen_s.reserve(number)
        return number

    def endpoint_ids(self, rows: NDArray[np.uint32]) -> NDArray[np.uint16]:
        """Ids of the local endpoints behind rows, 0 for others."""
        return self._row_endpoints.take(rows).view(np.uint16)

    def endpoint_addresses(
        self, numbers: NDArray[np.uint16], is_ipv6: NDArray[np.bool_]
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.bool_]]:
        """Addresses of local endpoints by their ids, one of the family each; and which have one."""
        high, low = np.zeros(len(numbers), dtype=np.uint64), np.zeros(len(numbers), dtype=np.uint64)
        known = np.zeros(len(numbers), dtype=np.bool_)
        wanted = zip(numbers.tolist(), is_ipv6.tolist(), strict=True)
        for at, (number, six) in enumerate(wanted):
            endpoint = self._endpoints.get(number)
            for text in endpoint.ips if endpoint is not None else ():
                if (":" in text) == six and (prefix := _prefix(text)) is not None:
                    salt = 0 if six else IPV4_SALT
                    high[at], low[at], known[at] = prefix.key.high, prefix.key.low ^ salt, True
                    break
        return high, low, known

    def service_rows(
        self,
        high: Keys,
        low: Keys,
        is_ipv6: NDArray[np.bool_],
        ports: NDArray[np.uint16],
        protocols: NDArray[np.uint8],
    ) -> NDArray[np.uint32] | None:
        """Rows of the services at these frontends, 0 for none; None when no service is known."""
        if not self._frontends:
            return None
        second = salted(low, is_ipv6) ^ _mix(ports.astype(np.uint64), protocols.astype(np.uint64))
        return np.maximum(self._service_rows.find(high, second), 0).view(np.uint32)

    def rules_rows(self, cookies: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Rows of the rules that cookies stand for, 0 when the agent has not told."""
        return _translate(cookies, self._rules)

    def interface_rows(self, indexes: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Rows of devices by index; one without a known name has a row with the index alone."""
        keys = indexes.astype(np.uint64)
        rows = self._interface_rows.find(keys)
        missing = rows == MISSING
        if missing.any():
            for index in np.unique(keys[missing]).tolist():
                number = self.interfaces.number(InterfaceRow(index))
                self._interface_rows.set(index, 0, number)
            rows = self._interface_rows.find(keys)
        return rows.view(np.uint32)

    # ---- memory ----

    def seen(self, rows: NDArray[np.uint32]) -> None:
        """Note that flows of these ends were seen just now."""
        self._row_seen_s.put(rows, int(time.monotonic()))

    def namespaces(self) -> set[str]:
        """Namespaces of the ends seen during the past hour.

        Called by the event loop; a row that is added meanwhile may or may not count.
        """
        horizon = max(int(time.monotonic()) - _NAMESPACE_TTL_S, 1)
        found = {name for name, seen in list(self._namespaces.items()) if seen >= horizon}
        for number in range(self.rows.base, self.rows.stop):
            try:
                row, seen = self.rows[number], self._row_seen_s.get(number)
            except IndexError:
                continue
            if row.namespace and seen >= horizon:
                found.add(row.namespace)
        return found

    def tidy(self, written: int, slots: int) -> None:
        """Begin a new generation of rows when there are too many, drop the old one in time.

        `written` counts all flows ever written into a ring of `slots`.
        """
        self.names.tidy(written, slots)
        if self._generations.begins(self.rows, written):
            self._pairs.clear()
            self._pairs_of_identity.clear()
            self._rebuild_addresses()
        first = self._generations.ends(written, slots)
        if first is None:
            return
        for number in range(self.rows.base, first):
            row, seen = self.rows[number], self._row_seen_s.get(number)
            if row.namespace:
                known = self._namespaces.get(row.namespace, 0)
                self._namespaces[row.namespace] = max(seen, known)
        horizon = int(time.monotonic()) - _NAMESPACE_TTL_S
        self._namespaces = {n: seen for n, seen in self._namespaces.items() if seen >= horizon}
        self.rows.drop_before(first)
        self._row_endpoints.drop_before(first)
        self._row_seen_s.drop_before(first)

    def _rebuild_addresses(self) -> None:
        self._addresses.clear()
        self._address_rows = [AddressRow()]
        self._address_numbers = {AddressRow(): 0}
        self._address_identities = RowFacts(np.uint32)
        for key in {**self._hosts, **self._owners}:
            self._renew_address(key)


def _mix(ports: Keys, protocols: Keys) -> Keys:
    return (ports << np.uint64(40)) ^ (protocols << np.uint64(56))


def _service_key(frontend: metadata_pb2.Frontend) -> AddressKey | None:
    prefix = _prefix(frontend.ip)
    if prefix is None:
        return None
    return AddressKey(
        prefix.key.high, prefix.key.low ^ (frontend.port << 40) ^ (frontend.protocol << 56)
    )


def _frontend(frontend: metadata_pb2.Frontend) -> tuple[str, int, int]:
    return frontend.ip, frontend.port, frontend.protocol


def _key_of(update: metadata_pb2.Update) -> object:
    match update.WhichOneof("update"):
        case "endpoint":
            return update.endpoint.id
        case "identity":
            return update.identity.id
        case "ip":
            return update.ip.prefix
        case "rules":
            return update.rules.cookie
        case "interface":
            return update.interface.index
        case "service":
            return _frontend(update.service.frontend)
        case "names":
            return update.names.endpoint, update.names.ip
    return None


def _prefix(text: str) -> Prefix | None:
    try:
        return parse_prefix(text)
    except ValueError:
        return None


def _keys(addresses: Iterable[str]) -> list[AddressKey]:
    return [prefix.key for prefix in map(_prefix, addresses) if prefix is not None]


def _translate(column: NDArray[np.uint32], numbers: dict[int, int]) -> NDArray[np.uint32]:
    unique, inverse = np.unique(column, return_inverse=True)
    found = [numbers.get(value, 0) for value in unique.tolist()]
    return np.array(found, dtype=np.uint32)[inverse]
