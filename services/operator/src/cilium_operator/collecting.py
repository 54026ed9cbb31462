"""Garbage collection of identities that no node uses.

An identity is in use while its label set has a slave key (see `cilium_core.allocating`). One that
is unused in two looks in a row, with its master unchanged between them, is deleted in a
transaction that holds only if it is still unchanged and unused then: a node that begins to use it
meanwhile always wins.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from cilium_core.allocating import MASTERS, SLAVES
from cilium_core.kvstore import Compare, Delete, Store, absent_prefix, unchanged
from cilium_core.telemetry import counter, gauge, get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

log = get_logger()

ENTRIES = gauge(
    "cilium_operator_identity_gc_entries", "Identities by fate in the last look.", "status"
)
RUNS = counter("cilium_operator_identity_gc_runs", "Looks for unused identities.", "outcome")
LATENCY = gauge("cilium_operator_identity_gc_latency", "Seconds that the last look took.")

_RATE_WINDOW_S = 60.0


class IdentityCollector:
    """Remembers the candidates of the last look; the leader's periodic job."""

    def __init__(
        self,
        store: Store,
        numbers: range,
        *,
        rate_limit: int = 2500,
        fence: Callable[[], list[Compare]] = list,
    ) -> None:
        """Look after `numbers`, deleting at most `rate_limit` per minute."""
        self._store = store
        self._numbers = numbers
        self._rate_limit = rate_limit
        self._fence = fence
        self._candidates: dict[str, int] = {}

    async def run(self) -> int:
        """Look once and give the count of identities deleted. Raises what the store does."""
        started = time.monotonic()
        try:
            deleted = await self._run()
        except Exception:
            RUNS.add(1, "fail")
            raise
        RUNS.add(1, "success")
        LATENCY.set(time.monotonic() - started)
        return deleted

    async def _run(self) -> int:
        masters = (await self._store.list_prefix(MASTERS)).items
        slaves = (await self._store.list_prefix(SLAVES)).items
        used = {slave.key.removeprefix(SLAVES).rpartition("/")[0] for slave in slaves}
        before, self._candidates = self._candidates, {}
        alive = deleted = 0
        for master in masters:
            number = master.key.removeprefix(MASTERS)
            if not number.isdecimal() or int(number) not in self._numbers:
                continue
            labels = master.value.decode("utf-8", "surrogateescape")
            if labels in used:
                alive += 1
            elif before.get(master.key) != master.mod_revision:
                self._candidates[master.key] = master.mod_revision
            elif await self._store.transaction(
                [*self._fence(), unchanged(master), absent_prefix(f"{SLAVES}{labels}/")],
                [Delete(master.key)],
            ):
                log.info("identity deleted", identity=int(number), labels=labels)
                deleted += 1
                if deleted % self._rate_limit == 0:
                    await asyncio.sleep(_RATE_WINDOW_S)
        ENTRIES.replace(
            {
                ("alive",): alive,
                ("candidate",): len(self._candidates),
                ("deleted",): deleted,
            }
        )
        return deleted
