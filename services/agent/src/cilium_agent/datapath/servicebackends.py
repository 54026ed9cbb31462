"""Backends by id, and sets of them in runs of slots; the part of `services` that frontends share.

A backend's id keeps its address while anything refers to it, and afterwards until connections to
it have been swept. What a program may still be reading is written anew only after a while. Used by
one thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilium_core import abi

from cilium_agent.datapath.servicearrays import Array
from cilium_agent.datapath.serviceids import FullError, Numbers, Runs
from cilium_agent.datapath.servicerows import (
    STATES,
    backend_key,
    backend_row,
    l4_key,
    read_l4_key,
)
from cilium_agent.datapath.syscalls import wait_for_running_programs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from cilium_core.services.models import Backend, Frontend, L4Address

    from cilium_agent.datapath.maps import Maps

GRACE_S = 1.0
"""No program runs for nearly that long."""

_ROW = abi.sizeof("lb_backend")
_RESTORED = 0
"""In the place of a state: an earlier run wrote it."""

Ids = tuple[int, ...]


@dataclass(slots=True)
class _Backend:
    """Who has an id: references by state; the best of these states holds."""

    key: bytes
    local: bool
    references: dict[int, int]
    written: bytes = b""

    def row(self) -> bytes:
        """What the programs shall read."""
        states = [state for state in self.references if state != _RESTORED]
        if states:
            return backend_row(self.key, min(states), local=self.local)
        return self.written if self.references else bytes(_ROW)


@dataclass(slots=True)
class _Run:
    first: int
    references: int


@dataclass(slots=True)
class Group:
    """The backends of a frontend: all with their states, and those for new connections."""

    members: tuple[tuple[int, int], ...]
    serving: Ids
    first: int
    references: int = 0


class Backends:
    """Ids of backends and runs of slots."""

    def __init__(self, maps: Maps, clock: Callable[[], float], before: Callable[[], None]) -> None:
        """Read what an earlier run left; `before` is called ahead of each new id."""
        self._rows = Array(maps["LB_BACKENDS"])
        self._slots = Array(maps["LB_SLOTS"])
        self._clock = clock
        self.numbers = Numbers("ids of backends", self._rows.size, before)
        self._ids: dict[bytes, int] = {}
        self._backends: dict[int, _Backend] = {}
        self._groups: dict[tuple[tuple[tuple[int, int], ...], Ids], Group] = {}
        self._runs: dict[Ids, _Run] = {}
        self._left: list[tuple[float, int, int]] = []
        self._dirty: set[int] = set()
        self._fresh: dict[int, Ids] = {}
        self._restored: list[Group] = []
        self._vanished: set[int] = set()
        for number in self._rows.used("state"):
            row = self._rows.row(number, _ROW)
            key = backend_key(row)
            local = bool(row[21] & abi.LB_BACKEND_LOCAL)
            self._backends[number] = _Backend(key, local, {_RESTORED: 1}, row)
            self._ids[key] = number
            self.numbers.reserve(number)
        self._inherited = list(self._backends)

    def restore_runs(self, found: Collection[tuple[int, int]]) -> None:
        """Take over the runs (first, length) that frontends refer to."""
        for first, length in found:
            serving = tuple(self._slots.values[first : first + length].tolist())
            if serving not in self._runs:
                self._runs[serving] = _Run(first, 1)
                self._restored.append(Group((), serving, first))
        self._free = Runs(self._slots.size, found)

    def forget_restored(self) -> None:
        """Let go of what nobody has asked for since the restart."""
        for group in self._restored:
            self._drop_run(group)
        for number in self._inherited:
            self._unrefer(number, _RESTORED)
        self._restored, self._inherited = [], []

    @property
    def slots_used(self) -> int:
        """Slots in use, those that wait to be used again included."""
        return self._free.used

    # ---- references ----

    def acquire(self, frontend: Frontend) -> Group:
        """Return the group of a frontend's backends. Raises FullError, and then nothing changed."""
        members: list[tuple[int, int]] = []
        by_backend: dict[int, int] = {}
        try:
            for backend in frontend.backends:
                number = self._number(backend)
                by_backend[id(backend)] = number
                members.append((number, STATES[backend.state]))
            serving = tuple(
                by_backend.get(id(backend)) or self._number(backend)
                for backend in frontend.eligible
            )
            key = (tuple(members), serving)
            group = self._groups.get(key)
            if group is None:
                group = Group(*key, self._take_run(serving))
                self._groups[key] = group
                for number, state in group.members:
                    self._refer(number, state)
        except FullError:
            self._drop_unreferenced(number for number, _ in members)
            raise
        group.references += 1
        return group

    def release(self, group: Group) -> None:
        """Give a group back; call it once no frontend in the maps refers to it."""
        group.references -= 1
        if group.references:
            return
        del self._groups[group.members, group.serving]
        self._drop_run(group)
        for number, state in group.members:
            self._unrefer(number, state)

    def write(self) -> None:
        """Have the memory say what is known: before frontends refer to it, and after they did."""
        if self._dirty:
            rows = {}
            for number in self._dirty:
                backend = self._backends[number]
                row = backend.row()
                if row != backend.written:
                    rows[number] = backend.written = row
            self._rows.write(rows)
            self._dirty.clear()
        if self._fresh:
            self._slots.write_runs(self._fresh)
            self._fresh.clear()

    def take_vanished(self) -> list[L4Address]:
        """Backends that nobody refers to any more since this was asked last."""
        vanished, self._vanished = self._vanished, set()
        return [read_l4_key(self._backends[number].key) for number in vanished]

    def free(self, numbers: Iterable[int]) -> int:
        """Let retired ids mean others; nobody remembers them any more. Returns how many did."""
        freed = 0
        for number in numbers:
            if number in self.numbers.retired:
                self.numbers.free(number)
                del self._ids[self._backends.pop(number).key]
                freed += 1
        return freed

    def erase(self) -> None:
        """Zero the memory."""
        self._rows.erase()
        self._slots.erase()

    def close(self) -> None:
        """Let go of the memory."""
        self._rows.close()
        self._slots.close()

    def _number(self, backend: Backend) -> int:
        key = l4_key(backend.at)
        number = self._ids.get(key)
        if number is None:
            number = self._ids[key] = self.numbers.take()
            self._backends[number] = _Backend(key, backend.local, {}, bytes(_ROW))
        elif self._backends[number].local != backend.local:
            self._backends[number].local = backend.local
            self._dirty.add(number)
        return number

    def _refer(self, number: int, state: int) -> None:
        references = self._backends[number].references
        references[state] = references.get(state, 0) + 1
        if number in self.numbers.retired:
            self.numbers.revive(number)
            self._vanished.discard(number)
        self._dirty.add(number)

    def _unrefer(self, number: int, state: int) -> None:
        references = self._backends[number].references
        references[state] -= 1
        if references[state]:
            return
        del references[state]
        self._dirty.add(number)
        if not references:
            self.numbers.retire(number)
            self._vanished.add(number)

    def _drop_unreferenced(self, numbers: Iterable[int]) -> None:
        for number in set(numbers):
            if not self._backends[number].references and number not in self.numbers.retired:
                self.numbers.free(number)
                self._dirty.discard(number)
                del self._ids[self._backends.pop(number).key]

    # ---- runs ----

    def _take_run(self, serving: Ids) -> int:
        if not serving:
            return 0
        run = self._runs.get(serving)
        if run is None:
            run = self._runs[serving] = _Run(self._free_run(len(serving)), 0)
            self._fresh[run.first] = serving
        run.references += 1
        return run.first

    def _free_run(self, length: int) -> int:
        self._give_back(self._clock() - GRACE_S)
        try:
            return self._free.take(length)
        except FullError:
            if not self._left:
                raise
            wait_for_running_programs()
            self._give_back(self._clock())
            return self._free.take(length)

    def _give_back(self, until: float) -> None:
        """Let runs be used again that were left before a moment."""
        while self._left and self._left[0][0] <= until:
            _, first, length = self._left.pop(0)
            self._free.give(first, length)

    def settle(self) -> None:
        """Let runs be used again that nobody reads any more."""
        self._give_back(self._clock() - GRACE_S)

    def _drop_run(self, group: Group) -> None:
        if not group.serving:
            return
        run = self._runs[group.serving]
        run.references -= 1
        if not run.references:
            del self._runs[group.serving]
            self._fresh.pop(run.first, None)
            self._left.append((self._clock(), run.first, len(group.serving)))
