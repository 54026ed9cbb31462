"""Packets and bytes that the programs count, by outcome and place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cilium_core import abi

from cilium_agent.datapath.models import Counter

if TYPE_CHECKING:
    from cilium_agent.datapath.maps import Maps

_KEY = abi.view("metrics_key", "reason", "direction", "line", "file")
_VALUE = abi.view("metrics_value", "packets", "bytes")


class Counters:
    """Rows of cilium_metrics."""

    def __init__(self, maps: Maps) -> None:
        self._map = maps["METRICS"]

    def dump(self) -> list[Counter]:
        """Every counter, summed over the processors, ordered by reason and direction."""
        found = []
        for key, value in self._map.items():
            reason, direction, line, file = _KEY.unpack(key)
            shares = [_VALUE.unpack(share) for share in self._map.per_cpu(value)]
            packets, size = map(sum, zip(*shares, strict=True))
            found.append(Counter(reason, direction, line, file, packets, size))
        return sorted(found, key=lambda row: (row.reason, row.direction, row.file, row.line))
