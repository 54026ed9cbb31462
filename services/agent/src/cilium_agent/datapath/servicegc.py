"""Sweeps what connections remember of frontends and backends that are gone.

Connections of services and session affinities hold ids. Before an id may mean somebody else, every
entry with it has to go. The maps are read in pieces and judged by NumPy, beside live traffic.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from cilium_core import abi

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cilium_agent.datapath.maps import Map, Maps

_TRACKED = (
    ("CT_TCP4", "ct_key4"),
    ("CT_ANY4", "ct_key4"),
    ("CT_TCP6", "ct_key6"),
    ("CT_ANY6", "ct_key6"),
)
_TRANSLATED = (("SNAT4", "nat_entry4"), ("SNAT6", "nat_entry6"))


@dataclass(frozen=True, slots=True)
class Swept:
    """Entries that were removed."""

    connections: int
    translations: int
    affinities: int


class Sweeper:
    """What is in use, and the removal of all that refers to anything else."""

    def __init__(self, maps: Maps, ids: bytes, backends: bytes) -> None:
        """`ids` of frontends and `backends` have a 1 at the place of each id in use."""
        self._maps = maps
        self._live = np.zeros(abi.LB_OTHER_FRONTEND + 1, bool)
        self._live[: len(ids)] = np.frombuffer(ids, np.uint8) == 1
        self._live[[0, abi.LB_OTHER_FRONTEND]] = True
        self._serving = np.frombuffer(backends, np.uint8) == 1

    def connections(self) -> tuple[int, int]:
        """Forget connections and their translations; returns how many of each."""
        live, serving = self._live, self._serving
        connections = sum(
            _connections(self._maps[name], abi.dtype(key), live, serving) for name, key in _TRACKED
        )
        translations = sum(
            _translations(self._maps[name], abi.dtype(value), live) for name, value in _TRANSLATED
        )
        return connections, translations

    def affinities(self, timeouts: Mapping[int, int]) -> int:
        """Forget affinities, those too that have run out; returns how many.

        `timeouts` are the seconds that affinity lasts, by id of a frontend.
        """
        kept = np.zeros(len(self._live), np.int64)
        for number, seconds in timeouts.items():
            kept[number] = seconds
        return _affinities(self._maps["LB_AFFINITY"], self._live, self._serving, kept)


def _connections(held: Map, key_type: Any, live: Any, serving: Any) -> int:
    entry_type = abi.dtype("ct_entry")
    removed = 0
    for keys, values, _ in held.batches():
        rows, entries = np.frombuffer(keys, key_type), np.frombuffer(values, entry_type)
        dead = ~_at(live, entries["rev_nat"])
        dead |= (rows["kind"] == abi.CT_SERVICE) & ~_at(serving, entries["backend"])
        removed += held.delete_many(key.tobytes() for key in rows[dead])
    return removed


def _translations(held: Map, value_type: Any, live: Any) -> int:
    removed = 0
    for keys, values, _ in held.batches():
        dead = ~_at(live, np.frombuffer(values, value_type)["rev_nat"])
        rows = np.frombuffer(keys, np.dtype((np.void, held.key_size)))
        removed += held.delete_many(key.tobytes() for key in rows[dead])
    return removed


def _affinities(held: Map, live: Any, serving: Any, kept: Any) -> int:
    removed, now = 0, int(time.monotonic())
    for keys, values, _ in held.batches():
        rows = np.frombuffer(keys, abi.dtype("lb_affinity_key"))
        entries = np.frombuffer(values, abi.dtype("lb_affinity"))
        numbers = rows["rev_nat"]
        dead = ~_at(live, numbers) | ~_at(serving, entries["backend"])
        dead |= (
            entries["last_used"].astype(np.int64) + kept[np.minimum(numbers, len(kept) - 1)] < now
        )
        removed += held.delete_many(key.tobytes() for key in rows[dead])
    return removed


def _at(flags: Any, numbers: Any) -> Any:
    """Flags by number, those out of range being unset."""
    return flags[np.minimum(numbers, len(flags) - 1)] & (numbers < len(flags))
