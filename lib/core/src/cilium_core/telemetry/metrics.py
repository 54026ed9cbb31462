"""Counters, gauges and histograms, and their Prometheus text.

Instruments are plain dictionaries: recording costs a dictionary update, importing costs nothing,
and exposition happens only when somebody scrapes. Values are given by position in the order of
the declared label names:

    DROPS = counter("cilium_drop_count_total", "Dropped packets.", "reason", "direction")
    DROPS.add(3, "Policy denied", "INGRESS")

Updates come from the event loop and from worker threads; each is one dictionary operation under
one lock per instrument. What is read elsewhere (BPF maps, pools) is refreshed by an `on_collect`
callback just before a scrape.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class _Instrument(ABC):
    kind = ""

    def __init__(self, name: str, help_text: str, labels: tuple[str, ...]) -> None:
        self.name = name
        self.help_text = help_text
        self.labels = labels
        self._lock = threading.Lock()

    def _check(self, values: tuple[str, ...]) -> None:
        if len(values) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, got {values}")

    @abstractmethod
    def forget(self, drops: Callable[[tuple[str, ...]], bool]) -> None:
        """Forget the series for whose label values `drops` holds."""

    @abstractmethod
    def samples(self) -> Iterator[str]:
        """Lines of the exposition, without the head."""

    def _series(self, values: tuple[str, ...], suffix: str = "", extra: str = "") -> str:
        pairs = [
            f'{name}="{_escape(value)}"' for name, value in zip(self.labels, values, strict=True)
        ]
        if extra:
            pairs.append(extra)
        return f"{self.name}{suffix}" + (f"{{{','.join(pairs)}}}" if pairs else "")


class Counter(_Instrument):
    """A number that only grows; its name ends with `_total` by convention."""

    kind = "counter"

    def __init__(self, name: str, help_text: str, labels: tuple[str, ...]) -> None:
        super().__init__(name, help_text, labels)
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}

    def add(self, amount: float = 1, *values: str) -> None:
        """Grow the series of these label values by `amount` ≥ 0."""
        self._check(values)
        with self._lock:
            self._values[values] = self._values.get(values, 0.0) + amount

    def set(self, total: float, *values: str) -> None:
        """Replace the total, for counters that are kept elsewhere (in the kernel)."""
        self._check(values)
        with self._lock:
            self._values[values] = total

    def value(self, *values: str) -> float:
        """Read the present total; 0 for a series never added to."""
        return self._values.get(values, 0.0)

    def forget(self, drops: Callable[[tuple[str, ...]], bool]) -> None:
        """Forget the series for whose label values `drops` holds."""
        with self._lock:
            self._values = {one: value for one, value in self._values.items() if not drops(one)}

    def series(self) -> list[tuple[tuple[str, ...], float]]:
        """Label values and value of every series, sorted."""
        with self._lock:
            return sorted(self._values.items())

    def samples(self) -> Iterator[str]:
        """Lines of the exposition, without the head."""
        for values, value in self.series():
            yield f"{self._series(values)} {_number(value)}"


class Gauge(Counter):
    """A number that goes up and down."""

    kind = "gauge"

    def remove(self, *values: str) -> None:
        """Forget one series; no error when there is none."""
        with self._lock:
            self._values.pop(values, None)

    def replace(self, series: dict[tuple[str, ...], float]) -> None:
        """Replace all series at once."""
        for values in series:
            self._check(values)
        with self._lock:
            self._values = dict(series)


class Histogram(_Instrument):
    """A distribution in buckets, by default of seconds."""

    kind = "histogram"

    def __init__(
        self, name: str, help_text: str, labels: tuple[str, ...], buckets: tuple[float, ...]
    ) -> None:
        super().__init__(name, help_text, labels)
        self.buckets = buckets
        self._values: dict[tuple[str, ...], tuple[list[int], float]] = {}

    def observe(self, value: float, *values: str) -> None:
        """Count one observation."""
        self._check(values)
        slot = bisect_left(self.buckets, value)
        with self._lock:
            counts, total = self._values.get(values) or ([0] * (len(self.buckets) + 1), 0.0)
            counts[slot] += 1
            self._values[values] = (counts, total + value)

    def forget(self, drops: Callable[[tuple[str, ...]], bool]) -> None:
        """Forget the series for whose label values `drops` holds."""
        with self._lock:
            self._values = {one: value for one, value in self._values.items() if not drops(one)}

    def series(self) -> list[tuple[tuple[str, ...], list[int], float]]:
        """Label values, count of each bucket (the last is unbounded) and sum, sorted."""
        with self._lock:
            return sorted(
                (key, list(counts), total) for key, (counts, total) in self._values.items()
            )

    def samples(self) -> Iterator[str]:
        """Lines of the exposition, without the head."""
        for values, counts, total in self.series():
            running = 0
            for bound, count in zip((*self.buckets, float("inf")), counts, strict=True):
                running += count
                edge = "+Inf" if bound == float("inf") else _number(bound)
                yield f"{self._series(values, '_bucket', f'le={chr(34)}{edge}{chr(34)}')} {running}"
            yield f"{self._series(values, '_sum')} {_number(total)}"
            yield f"{self._series(values, '_count')} {running}"


class Exemplar(NamedTuple):
    """One thing that a series counted: its trace (hexadecimal), the value, and when (s, Unix)."""

    trace_id: str
    value: float
    at_s: float


class Registry:
    """The instruments of a process."""

    def __init__(self) -> None:
        self._instruments: dict[str, Counter | Histogram] = {}
        self._callbacks: list[Callable[[], None]] = []

    def add(self, instrument: Counter | Histogram) -> None:
        """Register. Raises ValueError when the name is taken."""
        if instrument.name in self._instruments:
            raise ValueError(f"the metric {instrument.name} exists already")
        self._instruments[instrument.name] = instrument

    def on_collect(self, callback: Callable[[], None]) -> None:
        """Call `callback` before each exposition, to refresh what is read elsewhere."""
        self._callbacks.append(callback)

    def collect(self) -> list[Counter | Histogram]:
        """Refresh what is read elsewhere, and return every instrument."""
        for callback in self._callbacks:
            callback()
        return list(self._instruments.values())

    def exemplars(self) -> dict[tuple[Counter | Histogram, tuple[str, ...]], Exemplar]:
        """The latest exemplar of each series that has one, by instrument and label values."""
        return {}

    def exposition(self) -> str:
        """Prometheus text of everything registered."""
        return "".join(map(_block, self.collect()))


def _block(instrument: Counter | Histogram) -> str:
    lines: Iterable[str] = (
        f"# HELP {instrument.name} {instrument.help_text}",
        f"# TYPE {instrument.name} {instrument.kind}",
        *instrument.samples(),
    )
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


REGISTRY = Registry()
"""What `/metrics` of this process shows."""


def counter(name: str, help_text: str, *labels: str, registry: Registry = REGISTRY) -> Counter:
    """Declare a counter at module level."""
    instrument = Counter(name, help_text, labels)
    registry.add(instrument)
    return instrument


def gauge(name: str, help_text: str, *labels: str, registry: Registry = REGISTRY) -> Gauge:
    """Declare a gauge at module level."""
    instrument = Gauge(name, help_text, labels)
    registry.add(instrument)
    return instrument


def histogram(
    name: str,
    help_text: str,
    *labels: str,
    buckets: tuple[float, ...] = SECONDS_BUCKETS,
    registry: Registry = REGISTRY,
) -> Histogram:
    """Declare a histogram at module level; `buckets` are upper bounds, ascending."""
    instrument = Histogram(name, help_text, labels, buckets)
    registry.add(instrument)
    return instrument
