"""Services in the maps: frontends, their backends, and what goes with them.

`apply` makes frontends as they are told to be, in an order in which no packet meets half of one:
what a frontend refers to is there before its entry is, which is swapped in one step, and goes
afterwards. Rows that say already what they shall are not written. A new `Services` takes over what
an earlier run left, ids included; `prune` removes of it what nobody has asked for since.

What does not fit is reported and left out. A system call that fails otherwise raises BpfError; what
is known is read from the maps again then, and the caller applies everything anew. One thread.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cilium_core import abi
from cilium_core.services.hashing import DEFAULT_SEED
from cilium_core.services.models import Algorithm, Frontend, L4Address, Scope

from cilium_agent.datapath.maglevs import MaglevTables
from cilium_agent.datapath.serviceaddresses import AddressBits
from cilium_agent.datapath.servicearrays import Array
from cilium_agent.datapath.servicebackends import Backends, Group
from cilium_agent.datapath.servicegc import Sweeper, Swept
from cilium_agent.datapath.serviceids import FullError, Numbers
from cilium_agent.datapath.servicerows import (
    KEY4,
    MEMBER,
    SERVICE,
    flags_of,
    frontend_key,
    range_key,
    reverse_row,
)
from cilium_agent.datapath.syscalls import wait_for_running_programs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cilium_agent.datapath.maps import Map, Maps

_REVERSE = abi.sizeof("lb_frontend")
_RANGE4 = abi.sizeof("lb_range_key4")
_PRESENT = (1).to_bytes(4, "little")
_NOTHING: frozenset[bytes] = frozenset()


Place = tuple[L4Address, Scope]


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a change."""

    refused: Mapping[Place, str]
    """Frontends that did not fit, with the reason; they stay as they were, or absent."""
    vanished: tuple[L4Address, ...]
    """Backends that no frontend has any more."""


@dataclass(slots=True)
class _Row:
    """A frontend in the maps; `frontend` is None while only an earlier run has asked for it."""

    frontend: Frontend | None
    rev_nat: int
    value: bytes
    group: Group | None = None
    members: frozenset[bytes] = _NOTHING
    ranges: frozenset[bytes] = _NOTHING


@dataclass(slots=True)
class _Batch:
    """What one call writes and removes."""

    rows: dict[bytes, bytes] = field(default_factory=dict)
    gone: list[bytes] = field(default_factory=list)
    names: dict[int, bytes] = field(default_factory=dict)
    members: dict[bytes, bytes] = field(default_factory=dict)
    ranges: dict[bytes, bytes] = field(default_factory=dict)
    old_members: set[bytes] = field(default_factory=set)
    old_ranges: set[bytes] = field(default_factory=set)
    old_tables: set[int] = field(default_factory=set)
    groups: list[Group] = field(default_factory=list)


class Services:
    """All maps of services."""

    _backends: Backends
    _numbers: Numbers
    _unswept: bool

    def __init__(
        self,
        maps: Maps,
        *,
        maglev_seed: str = DEFAULT_SEED,
        external_clusterip: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take over what is in the maps.

        With `external_clusterip` frontends that are not routable may be asked from outside too.
        """
        self._maps = maps
        self._seed = maglev_seed
        self._all_external = external_clusterip
        self._clock = clock
        self._by_family: dict[int, Map] = {4: maps["LB4_SERVICES"], 6: maps["LB6_SERVICES"]}
        self._ranges: dict[int, Map] = {4: maps["LB4_RANGES"], 6: maps["LB6_RANGES"]}
        self._members = maps["LB_MEMBERS"]
        self._names = Array(maps["LB_REVERSE_NAT"])
        self._addresses = AddressBits(maps["LB_ADDRESSES"])
        self._rows: dict[bytes, _Row] = {}
        self._read()

    # ---- frontends ----

    def apply(
        self,
        upserts: Iterable[Frontend],
        deletes: Iterable[Place] = (),
    ) -> Applied:
        """Make these frontends so, and remove others."""
        refused: dict[Place, str] = {}
        batch = _Batch()
        try:
            for at, scope in deletes:
                self._remove(frontend_key(at, scope), batch)
            for frontend in upserts:
                try:
                    self._stage(frontend, batch)
                except FullError as error:
                    refused[frontend.at, frontend.scope] = str(error)
            self._write(batch)
        except Exception:
            self._reload()
            raise
        return Applied(refused, tuple(self._backends.take_vanished()))

    def prune(self) -> tuple[L4Address, ...]:
        """Remove what an earlier run left and nobody has asked for since.

        Returns the backends that no frontend has any more.
        """
        batch = _Batch()
        left = [key for key, row in self._rows.items() if row.frontend is None]
        try:
            for key in left:
                self._remove(key, batch)
            self._backends.forget_restored()
            self._prune_sets(batch)
            self._tables.prune()
            self._names.write(
                {
                    number: bytes(_REVERSE)
                    for number in self._names.used("port")
                    if number not in self._frontend_of
                }
            )
            self._write(batch)
        except Exception:
            self._reload()
            raise
        return tuple(self._backends.take_vanished())

    def frontends(self) -> Iterator[Frontend]:
        """The frontends that were asked for and are in the maps."""
        return (row.frontend for row in self._rows.values() if row.frontend is not None)

    def rev_nat(self, at: L4Address, scope: Scope = Scope.EXTERNAL) -> int:
        """Id of a frontend, 0 when it has none."""
        row = self._rows.get(frontend_key(at, scope))
        return 0 if row is None else row.rev_nat

    def counts(self) -> dict[str, int]:
        """Entries in use by what they are."""
        return {
            "frontends": len(self._rows),
            "backends": self._backends.numbers.used,
            "slots": self._backends.slots_used,
            "ids": self._numbers.used,
            "retired_backends": len(self._backends.numbers.retired),
            "retired_ids": len(self._numbers.retired),
            "maglev_tables": self._tables.count,
        }

    def sweep(self) -> Swept:
        """Forget connections and affinities to frontends and backends that are gone.

        Their ids may mean others afterwards.
        """
        ids, backends = set(self._numbers.retired), set(self._backends.numbers.retired)
        self._backends.settle()
        sweeper = self._sweeper()
        connections = translations = 0
        if ids or backends or self._unswept:
            self._unswept = False
            wait_for_running_programs()
            connections, translations = sweeper.connections()
        affinities = sweeper.affinities(self._timeouts())
        self._backends.free(backends)
        for number in ids:
            self._numbers.free(number)
            del self._number_of[self._frontend_of.pop(number)]
        return Swept(connections, translations, affinities)

    def erase(self) -> None:
        """Remove everything, ids included."""
        for held in (*self._by_family.values(), *self._ranges.values(), self._members):
            held.delete_many([key for key, _ in held.items()])
        self._tables.erase()
        self._names.erase()
        self._backends.erase()
        self._reload()

    def close(self) -> None:
        """Let go of the memory; the maps stay as they are."""
        self._backends.close()
        self._names.close()
        self._addresses.close()

    # ---- what is known ----

    def _reload(self) -> None:
        self._backends.close()
        self._rows = {}
        self._read()

    def _read(self) -> None:
        """Learn from the maps what there is."""
        self._unswept = True
        self._backends = Backends(self._maps, self._clock, self._sweep_once)
        self._numbers = Numbers(
            "ids of frontends",
            min(self._names.size, abi.LB_OTHER_FRONTEND),
            self._sweep_once,
        )
        self._number_of: dict[bytes, int] = {}
        self._frontend_of: dict[int, bytes] = {}
        self._tables = MaglevTables(self._maps["LB_MAGLEV"], self._seed)
        self._used = Counter[int]()
        self._member_count = self._range_count = 0
        runs = set()
        for held in self._by_family.values():
            for key, value in held.items():
                first, count, rev_nat, _, _ = SERVICE.unpack(value)
                self._rows[key] = _Row(None, rev_nat, value)
                self._used[len(key)] += 1
                if count:
                    runs.add((first, count))
                if rev_nat and rev_nat not in self._frontend_of:
                    self._numbers.reserve(rev_nat)
                    self._number_of[key], self._frontend_of[rev_nat] = rev_nat, key
        self._addresses.set(self._rows)
        self._backends.restore_runs(runs)
        self._kept_members = {key for key, _ in self._members.items()}
        self._kept_ranges = {key for held in self._ranges.values() for key, _ in held.items()}

    def _sweeper(self) -> Sweeper:
        return Sweeper(self._maps, self._numbers.in_use(), self._backends.numbers.in_use())

    def _timeouts(self) -> dict[int, int]:
        """Seconds that affinity lasts, by id."""
        found = ((row.rev_nat, SERVICE.unpack(row.value)[4]) for row in self._rows.values())
        return {number: seconds for number, seconds in found if seconds}

    def _sweep_once(self) -> None:
        """Before the first new ids: connections may remember some that an earlier run gave up."""
        if self._unswept:
            self._unswept = False
            sweeper = self._sweeper()
            sweeper.connections()
            sweeper.affinities(self._timeouts())

    def _prune_sets(self, batch: _Batch) -> None:
        members = {key for row in self._rows.values() for key in row.members}
        ranges = {key for row in self._rows.values() for key in row.ranges}
        batch.old_members |= self._kept_members - members
        batch.old_ranges |= self._kept_ranges - ranges
        self._kept_members, self._kept_ranges = set(), set()

    # ---- staging: what is known changes here, the maps in _write ----

    def _stage(self, frontend: Frontend, batch: _Batch) -> None:
        key = frontend_key(frontend.at, frontend.scope)
        row = self._rows.get(key)
        if row is not None and row.frontend == frontend:
            return
        self._check_room(key, row, frontend)
        number = self._number(key) if frontend.at.port else 0
        try:
            group = self._backends.acquire(frontend)
        except FullError:
            if row is None and number:
                self._numbers.retire(number)
            raise
        if row is None:
            row = self._rows[key] = _Row(frontend, number, b"")
            self._used[len(key)] += 1
        self._stage_name(frontend, number, batch)
        flags = flags_of(frontend)
        if self._wants_table(frontend):
            flags |= abi.LB_MAGLEV
            self._tables.want(number, frontend.eligible, group.serving)
            batch.old_tables.discard(number)
        elif self._tables.has(number):
            batch.old_tables.add(number)
        self._stage_sets(frontend, row, group, batch)
        if row.group is not None:
            batch.groups.append(row.group)
        value = SERVICE.pack(
            group.first, len(group.serving), number, flags, frontend.affinity_timeout
        )
        if value != row.value:
            batch.rows[key] = value
        row.frontend, row.group, row.rev_nat, row.value = frontend, group, number, value

    def _check_room(self, key: bytes, row: _Row | None, frontend: Frontend) -> None:
        held = self._by_family[frontend.at.address.version]
        used = self._used[len(key)]
        if row is None and used >= held.spec.max_entries:
            raise FullError(f"all {used} entries of {held} are in use")
        if frontend.affinity_timeout:
            known = len(row.members) if row is not None else 0
            _check_fits(self._members, self._member_count - known + len(frontend.eligible))
        if frontend.source_ranges:
            known = len(row.ranges) if row is not None else 0
            held = self._ranges[frontend.at.address.version]
            _check_fits(held, self._range_count - known + len(frontend.source_ranges))

    def _number(self, key: bytes) -> int:
        number = self._number_of.get(key)
        if number is None:
            number = self._numbers.take()
            self._number_of[key], self._frontend_of[number] = number, key
        elif number in self._numbers.retired:
            self._numbers.revive(number)
        return number

    def _stage_name(self, frontend: Frontend, number: int, batch: _Batch) -> None:
        if number:
            name = reverse_row(frontend.at)
            if self._names.row(number, _REVERSE) != name or number in batch.names:
                batch.names[number] = name

    def _wants_table(self, frontend: Frontend) -> bool:
        return (
            frontend.algorithm is Algorithm.MAGLEV
            and frontend.scope is Scope.EXTERNAL
            and bool(frontend.eligible)
            and (frontend.routable or self._all_external)
            and not frontend.at.address.is_unspecified
        )

    def _stage_sets(self, frontend: Frontend, row: _Row, group: Group, batch: _Batch) -> None:
        number = row.rev_nat
        members, ranges = _NOTHING, _NOTHING
        if number and frontend.affinity_timeout:
            members = frozenset(MEMBER.pack(backend, number) for backend in group.serving)
        if number and frontend.source_ranges is not None:
            ranges = frozenset(
                range_key(number, network)
                for network in frontend.source_ranges
                if network.version == frontend.at.address.version
            )
        if members != row.members:
            self._drop_members(row.members - members, batch)
            self._add_members(members - row.members, batch)
            row.members = members
        if ranges != row.ranges:
            self._drop_ranges(row.ranges - ranges, batch)
            self._add_ranges(ranges - row.ranges, batch)
            row.ranges = ranges

    def _add_members(self, keys: Iterable[bytes], batch: _Batch) -> None:
        for key in keys:
            self._member_count += 1
            batch.old_members.discard(key)
            if key not in self._kept_members:
                batch.members[key] = _PRESENT

    def _drop_members(self, keys: Iterable[bytes], batch: _Batch) -> None:
        for key in keys:
            self._member_count -= 1
            batch.old_members.add(key)
            batch.members.pop(key, None)
            self._kept_members.discard(key)

    def _add_ranges(self, keys: Iterable[bytes], batch: _Batch) -> None:
        for key in keys:
            self._range_count += 1
            batch.old_ranges.discard(key)
            if key not in self._kept_ranges:
                batch.ranges[key] = _PRESENT

    def _drop_ranges(self, keys: Iterable[bytes], batch: _Batch) -> None:
        for key in keys:
            self._range_count -= 1
            batch.old_ranges.add(key)
            batch.ranges.pop(key, None)
            self._kept_ranges.discard(key)

    def _remove(self, key: bytes, batch: _Batch) -> None:
        row = self._rows.pop(key, None)
        if row is None:
            return
        self._used[len(key)] -= 1
        batch.gone.append(key)
        self._drop_members(row.members, batch)
        self._drop_ranges(row.ranges, batch)
        if row.group is not None:
            batch.groups.append(row.group)
        if row.rev_nat:
            self._numbers.retire(row.rev_nat)
            batch.names[row.rev_nat] = bytes(_REVERSE)
            if self._tables.has(row.rev_nat):
                batch.old_tables.add(row.rev_nat)

    # ---- writing ----

    def _write(self, batch: _Batch) -> None:
        """Carry a batch out, in the order that keeps every packet served."""
        self._backends.write()
        self._names.write({n: row for n, row in batch.names.items() if any(row)})
        self._members.set_many(batch.members)
        for version, held in self._ranges.items():
            held.set_many(_of_family(batch.ranges, version, _RANGE4))
        self._tables.write()
        self._addresses.add(batch.rows)
        gone = [key for key in batch.gone if key not in self._rows]
        for version, held in self._by_family.items():
            # Entries that others send readers to come first: those of the inner scope.
            rows = _of_family(batch.rows, version, KEY4.size)
            held.set_many(dict(sorted(rows.items(), key=_inner_first)))
            held.delete_many(key for key in gone if (len(key) == KEY4.size) == (version == 4))
        self._names.write({n: row for n, row in batch.names.items() if not any(row)})
        self._members.delete_many(batch.old_members)
        for version, held in self._ranges.items():
            held.delete_many(
                key for key in batch.old_ranges if (len(key) == _RANGE4) == (version == 4)
            )
        self._tables.drop(batch.old_tables)
        for group in batch.groups:
            self._backends.release(group)
        self._backends.write()


def _check_fits(held: Map, wanted: int) -> None:
    if wanted > held.spec.max_entries:
        raise FullError(f"{held} has room for {held.spec.max_entries} entries, not {wanted}")


def _of_family(rows: Mapping[bytes, bytes], version: int, short: int) -> dict[bytes, bytes]:
    return {key: row for key, row in rows.items() if (len(key) == short) == (version == 4)}


def _inner_first(entry: tuple[bytes, bytes]) -> bool:
    return entry[0][-1] != abi.LB_INTERNAL
