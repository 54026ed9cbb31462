"""Policy maps: one inner map per endpoint in cilium_policy, changed without opening a hole.

A packet is judged by two longest-prefix look-ups, one for its peer's identity and one for any
peer. A change in place is therefore seen whole by every packet as long as it touches one of the
two (per direction) and goes in this order: additions from the longest prefix to the shortest, then
removals from the shortest to the longest. A packet finds the old decision until the entry that
decides from then on is in, and that one ever after. Every other change builds a new inner map and
swaps it in, which the kernel makes one step.

A swap waits for a grace period of the kernel (some 10 ms), once for all endpoints of an `apply`.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilium_core import abi
from cilium_core.policy import PolicyEntry, PolicyKey

from cilium_agent.datapath import syscalls
from cilium_agent.datapath.maps import Map
from cilium_agent.datapath.models import NO_PORT, PolicyChange, PolicyOverflow

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cilium_agent.datapath.endpoints import Endpoints
    from cilium_agent.datapath.maps import Maps

    Rows = dict[bytes, bytes]

_KEY = abi.view("policy_key", "prefixlen", "identity", "direction", "proto", "port")
_ENTRY = abi.view("policy_entry", "precedence", "cookie", "proxy_port", "flags", "prefixlen")
_VERDICT = abi.POLICY_DENY | abi.POLICY_AUDIT
_VERDICT_BYTE = 0xFF
"""Of a precedence; 0 in entries that only name who closes a direction."""
_IN_PLACE = 256
"""Changes up to this size are made in place where that is safe."""


def encode_key(key: PolicyKey) -> bytes:
    """Key of the map; the prefix length is its first field."""
    return _KEY.pack(
        abi.POLICY_STATIC_BITS + key.prefixlen,
        key.identity,
        key.direction,
        key.proto,
        socket.htons(key.port),
    )


def encode_entry(key: PolicyKey, entry: PolicyEntry) -> bytes:
    """Value of the map; `redirect` is the port of the proxy here, or `NO_PORT`."""
    flags = abi.POLICY_DENY if entry.deny else 0
    flags |= abi.POLICY_AUDIT if entry.audit else 0
    flags |= abi.POLICY_REDIRECT if entry.redirect else 0
    port = max(entry.redirect, 0)
    return _ENTRY.pack(entry.precedence, entry.cookie, socket.htons(port), flags, key.prefixlen)


def decode(key: bytes, value: bytes) -> tuple[PolicyKey, PolicyEntry]:
    """Policy key and entry of a row."""
    bits, identity, direction, proto, port = _KEY.unpack(key)
    precedence, cookie, proxy_port, flags, _ = _ENTRY.unpack(value)
    redirect = (socket.ntohs(proxy_port) or NO_PORT) if flags & abi.POLICY_REDIRECT else 0
    return (
        PolicyKey(
            direction=direction,
            identity=identity,
            proto=proto,
            port=socket.ntohs(port),
            prefixlen=bits - abi.POLICY_STATIC_BITS,
        ),
        PolicyEntry(
            precedence=precedence,
            deny=bool(flags & abi.POLICY_DENY),
            redirect=redirect,
            audit=bool(flags & abi.POLICY_AUDIT),
            cookie=cookie,
        ),
    )


def order_in_place(
    added: Mapping[bytes, bytes], removed: Iterable[bytes], before: Mapping[bytes, bytes]
) -> tuple[Rows, list[bytes]] | None:
    """Additions and removals in the order that no packet sees half of; None when there is none.

    `before` is what the map holds.
    """
    removed = list(removed)
    lookups: dict[int, set[bool]] = {}
    for key in (*added, *removed):
        if not _is_neutral(before.get(key), added.get(key)):
            _, identity, direction, _, _ = _KEY.unpack(key)
            lookups.setdefault(direction, set()).add(identity == 0)
    if any(len(kinds) > 1 for kinds in lookups.values()):
        return None
    longest_first = sorted(added.items(), key=lambda item: _bits(item[0]), reverse=True)
    return dict(longest_first), sorted(removed, key=_bits)


def _is_neutral(old: bytes | None, new: bytes | None) -> bool:
    """Whether a row only names, before and after, who closes a direction: it decides nothing."""
    return _is_default(old) and _is_default(new)


def _is_default(value: bytes | None) -> bool:
    if value is None:
        return True
    precedence, _, _, flags, _ = _ENTRY.unpack(value)
    return flags == abi.POLICY_DENY and not precedence & _VERDICT_BYTE


def fitting(held: Mapping[bytes, bytes], wanted: Mapping[bytes, bytes], capacity: int) -> Rows:
    """The part of a policy that is put into a map too small for it; it allows nothing else.

    What refuses or goes through a proxy is kept first, as without it a weaker entry would decide;
    then what the map has already, and of the rest what fits. Empty, which refuses everything that
    is enforced, when not even the first part fits.
    """
    ranked: tuple[Rows, Rows, Rows] = ({}, {}, {})
    for key, value in wanted.items():
        flags = _ENTRY.unpack(value)[3]
        strict = flags & abi.POLICY_REDIRECT or flags & _VERDICT == abi.POLICY_DENY
        ranked[0 if strict else 1 if held.get(key) == value else 2][key] = value
    if len(ranked[0]) > capacity:
        return {}
    return dict(list((ranked[0] | ranked[1] | ranked[2]).items())[:capacity])


def _bits(key: bytes) -> int:
    return int(_KEY.unpack(key)[0])


def _cookie(value: bytes) -> int:
    return int(_ENTRY.unpack(value)[1])


@dataclass(slots=True)
class _Plan:
    """What becomes of an endpoint's map: rows to write and to remove, from what there is."""

    before: Rows | None
    added: Rows
    removed: list[bytes]
    size: int

    def after(self) -> Rows:
        """The contents afterwards."""
        rows = {**(self.before or {}), **self.added}
        for key in self.removed:
            rows.pop(key, None)
        return rows


class Policies:
    """The policy maps of the local endpoints."""

    def __init__(self, maps: Maps, endpoints: Endpoints) -> None:
        self._outer = maps["POLICY"]
        self._endpoints = endpoints
        self._inner: dict[int, Map] = {}
        self._rows: dict[int, dict[bytes, bytes]] = {}

    @property
    def capacity(self) -> int:
        """Entries that one endpoint's map holds."""
        inner = self._outer.spec.inner
        return 0 if inner is None else inner.max_entries

    def prepare(self, endpoint_id: int) -> None:
        """Give an endpoint without a policy map an empty one, which allows nothing it enforces.

        A new map in place costs a grace period of the kernel (some 10 ms); done ahead, beside
        other work, it makes the first policy of a new endpoint a mere write.
        """
        if self._held(endpoint_id) is None:
            self._swap({endpoint_id: {}})

    def replace(self, endpoint_id: int, entries: Mapping[PolicyKey, PolicyEntry]) -> None:
        """Make these entries the whole policy of an endpoint; see `apply`."""
        self.apply({endpoint_id: PolicyChange(add=entries, replace=True)})

    def update(
        self,
        endpoint_id: int,
        add: Mapping[PolicyKey, PolicyEntry],
        remove: Iterable[PolicyKey] = (),
    ) -> None:
        """Add or change some entries and remove others of an endpoint; see `apply`."""
        self.apply({endpoint_id: PolicyChange(add=add, remove=remove)})

    def apply(self, changes: Mapping[int, PolicyChange]) -> list[PolicyOverflow]:
        """Change the policies of several endpoints, each seen whole or not at all by any packet.

        Their policy revisions are raised afterwards, so that established connections are judged
        anew. Of a policy that does not fit, that part is put in place which allows no more than
        the whole (see `fitting`), and an overflow is returned.
        """
        encoded: dict[int, Rows] = {}
        overflows: list[PolicyOverflow] = []
        swaps: dict[int, Rows] = {}
        changed: list[int] = []
        for number, change in changes.items():
            plan = self._plan(number, change, encoded)
            if plan.size > self.capacity:
                rows, overflow = self._squeeze(number, plan)
                overflows.append(overflow)
                if rows != plan.before:
                    changed.append(number)
                    swaps[number] = rows
            elif plan.before is None or plan.added or plan.removed:
                changed.append(number)
                if not self._change_in_place(number, plan):
                    swaps[number] = plan.after()
        self._swap(swaps)
        self._endpoints.raise_policy_rev(changed)
        return overflows

    def delete(self, endpoint_id: int) -> bool:
        """Remove an endpoint's policy map; tells whether there was one."""
        self._forget(endpoint_id)
        return self._outer.delete(endpoint_id.to_bytes(4, "little"))

    def endpoints(self) -> list[int]:
        """Ids of the endpoints that have a policy map."""
        return sorted(int.from_bytes(key, "little") for key, _ in self._outer.items())

    def pressure(self) -> float:
        """The share of the fullest map that is in use, as far as contents are known."""
        return max(map(len, self._rows.values()), default=0) / max(self.capacity, 1)

    def dump(self, endpoint_id: int) -> dict[PolicyKey, PolicyEntry]:
        """What the kernel has for an endpoint, empty when it has no map."""
        inner = self._open(endpoint_id)
        return {} if inner is None else dict(decode(key, row) for key, row in inner.items())

    def close(self) -> None:
        """Close the descriptors of the inner maps."""
        for number in list(self._inner):
            self._forget(number)

    def _plan(self, number: int, change: PolicyChange, encoded: dict[int, Rows]) -> _Plan:
        """Compare a change with what there is; `encoded` holds what endpoints share of it."""
        before = self._held(number)
        held: Mapping[bytes, bytes] = before or {}
        rows = encoded.get(id(change.add))
        if rows is None:
            rows = {encode_key(key): encode_entry(key, row) for key, row in change.add.items()}
            encoded[id(change.add)] = rows
        added = {key: value for key, value in rows.items() if held.get(key) != value}
        gone = held if change.replace else (encode_key(key) for key in change.remove)
        removed = [key for key in gone if key in held and key not in rows]
        new = sum(key not in held for key in added)
        return _Plan(before, added, removed, len(held) + new - len(removed))

    def _squeeze(self, number: int, plan: _Plan) -> tuple[Rows, PolicyOverflow]:
        """What an endpoint gets in place of a policy that does not fit."""
        wanted = plan.after()
        rows = fitting(plan.before or {}, wanted, self.capacity)
        missing = frozenset(_cookie(value) for key, value in wanted.items() if key not in rows)
        return rows, PolicyOverflow(number, len(wanted), self.capacity, missing, closed=not rows)

    def _held(self, number: int) -> dict[bytes, bytes] | None:
        """Return what an endpoint's map holds, None without a map; asks the kernel once."""
        if number not in self._rows:
            inner = self._open(number)
            if inner is None:
                return None
            self._rows[number] = dict(inner.items())
        return self._rows[number]

    def _closed(self, number: int) -> bool:
        """Whether no packet is judged by an endpoint's map, as the endpoint is not ready."""
        row = self._endpoints.get(number)
        return row is not None and bool(row.flags & abi.ENDPOINT_NOT_READY)

    def _change_in_place(self, number: int, plan: _Plan) -> bool:
        """Change the map that is in use; tells False, with nothing done, when a swap is better."""
        before = plan.before
        if before is None or len(plan.added) + len(plan.removed) > _IN_PLACE:
            return False
        unseen = not before and self._closed(number)
        order = (plan.added, []) if unseen else order_in_place(plan.added, plan.removed, before)
        inner = self._open(number)
        if order is None or inner is None or len(before) + len(plan.added) > self.capacity:
            return False
        added, removed = order
        # What the map holds is unknown should one of the two fail: ask the kernel then.
        del self._rows[number]
        inner.set_many(added)
        inner.delete_many(removed)
        before.update(added)
        for key in removed:
            del before[key]
        self._rows[number] = before
        return True

    def _swap(self, swaps: Mapping[int, dict[bytes, bytes]]) -> None:
        """Build a map for each endpoint and put all of them in place at once."""
        spec = self._outer.spec.inner
        if not swaps or spec is None:
            return
        made: dict[int, Map] = {}
        try:
            for number, rows in swaps.items():
                made[number] = Map(spec, self._outer.new_inner())
                made[number].set_many(rows)
            self._outer.set_many(
                {
                    number.to_bytes(4, "little"): inner.fd.to_bytes(4, "little")
                    for number, inner in made.items()
                }
            )
        except BaseException:
            for inner in made.values():
                inner.close()
            for number in swaps:  # a batch may have got half way: ask the kernel next time
                self._forget(number)
            raise
        for number, inner in made.items():
            self._forget(number)
            self._inner[number] = inner
            self._rows[number] = swaps[number]

    def _open(self, number: int) -> Map | None:
        """Open an endpoint's map, None when there is none."""
        spec = self._outer.spec.inner
        if number not in self._inner and spec is not None:
            held = self._outer.get(number.to_bytes(4, "little"))
            if held is None:
                return None
            self._inner[number] = Map(spec, syscalls.map_by_id(int.from_bytes(held, "little")))
        return self._inner.get(number)

    def _forget(self, number: int) -> None:
        self._rows.pop(number, None)
        if inner := self._inner.pop(number, None):
            inner.close()
