"""When to sweep the connection tables.

Dead entries cost memory only: the tables drop their least used entries when full, and the data
plane ignores an entry past its lifetime. So the sweep adapts to how much there is to do.
"""

from __future__ import annotations

FIRST_INTERVAL_S = 300.0
MIN_INTERVAL_S = 10.0
MAX_INTERVAL_S = 12 * 3600.0

_MANY = 0.25
_FEW = 0.05
_STEEPEST = 0.9
_SLOWER = 1.5


def next_interval(
    interval_s: float, deleted: int, total: int, *, max_interval_s: float = MAX_INTERVAL_S
) -> float:
    """Seconds until the next sweep, after one that deleted `deleted` of `total` entries.

    More than a quarter dead shortens the interval in proportion, less than a twentieth lengthens
    it by half; the result lies in 10 s to `max_interval_s`.
    """
    ratio = deleted / total if total else 0.0
    if ratio > _MANY:
        interval_s *= 1 - min(ratio, _STEEPEST)
    elif ratio < _FEW:
        interval_s *= _SLOWER
    return max(MIN_INTERVAL_S, min(interval_s, max_interval_s))
