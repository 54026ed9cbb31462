"""The node's pod CIDRs: assigned by the operator once, kept on disk for the next start.

A start that finds them on disk does not wait for the store. Once in use they change only with a
restart; an operator that disagrees meanwhile is reported.
"""

from __future__ import annotations

import ipaddress
import json
from contextlib import aclosing
from typing import TYPE_CHECKING

from cilium_core.errors import InvalidError
from cilium_core.files import write_atomic
from cilium_core.kvstore import EventKind
from cilium_core.records import POD_CIDRS, PodCIDRRecord
from cilium_core.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from cilium_core.kvstore import Store
    from cilium_core.records import Network

    from cilium_agent.addresses import PodAddresses

log = get_logger()


class PodCIDRs:
    """Where the CIDRs come from. `error` is what the operator says of them, empty if nothing."""

    def __init__(self, store: Store, addresses: PodAddresses, file: Path, node_name: str) -> None:
        """Take the parts; `file` is where the CIDRs are kept."""
        self.error = ""
        self._store = store
        self._addresses = addresses
        self._file = file
        self._key = f"{POD_CIDRS}{node_name}"

    def restore(self) -> None:
        """Use those of the earlier run, if there are any."""
        try:
            document = json.loads(self._file.read_bytes())
            known = tuple(ipaddress.ip_network(text) for text in document["podCIDRs"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("node state ignored", file=str(self._file), error=str(error))
            return
        if known:
            self._use(known)

    async def wait(self) -> None:
        """Return once the operator has assigned all that the node needs."""
        async with aclosing(self._records()) as records:
            async for record in records:
                if isinstance(record, InvalidError):
                    self.error = str(record)
                else:
                    self.error = record.error
                    self._use(record.pod_cidrs)
                if self.error:
                    log.error("pod CIDRs", error=self.error)
                if self._addresses.complete:
                    return

    async def watch(self) -> None:
        """Report when the operator disagrees with the CIDRs in use; ends when cancelled."""
        async with aclosing(self._records()) as records:
            async for record in records:
                if isinstance(record, InvalidError):
                    log.warning("pod CIDR record ignored", error=str(record))
                    continue
                self.error = record.error
                used = self._addresses.pool.pod_cidrs
                if record.pod_cidrs and set(record.pod_cidrs) != set(used):
                    log.error(
                        "the operator assigned other pod CIDRs than those in use",
                        assigned=[str(cidr) for cidr in record.pod_cidrs],
                        used=[str(cidr) for cidr in used],
                    )

    async def _records(self) -> AsyncGenerator[PodCIDRRecord | InvalidError, None]:
        async with aclosing(self._store.watch(self._key)) as events:
            async for event in events:
                if event.kind is not EventKind.PUT or event.key != self._key:
                    continue
                try:
                    yield PodCIDRRecord.from_json(event.key, event.value)
                except InvalidError as error:
                    yield error

    def _use(self, pod_cidrs: tuple[Network, ...]) -> None:
        self._addresses.set_pod_cidrs(pod_cidrs)
        if self._addresses.complete:
            document = {"podCIDRs": [str(cidr) for cidr in pod_cidrs]}
            write_atomic(self._file, json.dumps(document).encode())
