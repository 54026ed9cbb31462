"""Which metrics there are: from the setting, or from a file that may change at any time.

The syntax of both is Hubble's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml
from cilium_core.flow_filters import FilterError, read_filters
from cilium_core.telemetry import get_logger
from flow import flow_pb2

from hubble_server.metrics.contexts import MetricsConfigError
from hubble_server.metrics.counting import Counted
from hubble_server.metrics.plugins import PLUGINS, Metric

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from hubble_server.metrics.counting import FlowMetrics

_log = get_logger()
_EITHER: Final = frozenset({"http", "httpV2"})
_FIELDS: Final = frozenset({"name", "contextOptions", "includeFilters", "excludeFilters"})
_LABELS: Final = "labelscontext"


def parse_static(texts: Sequence[str]) -> list[Metric]:
    """Metrics of the setting, each `name[:option[=value[|value]][;option…]]`.

    Unknown names are left out with a warning. Raises MetricsConfigError.
    """
    found: dict[str, Metric] = {}
    for text in texts:
        name, _, rest = text.partition(":")
        if name not in PLUGINS:
            _log.warning("unknown metric left out", metric=name, known=sorted(PLUGINS))
            continue
        if name in found:
            raise MetricsConfigError(f"metric {name} is named twice")
        options = []
        for option in filter(None, rest.split(";")):
            key, _, values = option.partition("=")
            separator = "," if key.lower() == _LABELS else "|"
            options.append((key, tuple(value for value in values.split(separator) if value)))
        found[name] = Metric(name, tuple(options))
    _check(found)
    return list(found.values())


def _check(found: Mapping[str, object]) -> None:
    if found.keys() >= _EITHER:
        raise MetricsConfigError("metrics http and httpV2 exclude each other: they share names")


@dataclass(frozen=True, slots=True)
class Configured:
    """A metric of the file, with its filters as written."""

    metric: Metric
    include: tuple[flow_pb2.FlowFilter, ...] = ()
    exclude: tuple[flow_pb2.FlowFilter, ...] = ()

    def make(self) -> Counted:
        """Begin to count. Raises MetricsConfigError."""
        try:
            return Counted(self.metric.make(), self.include, self.exclude)
        except FilterError as error:
            raise MetricsConfigError(f"metric {self.metric.name}: {error}") from error


def parse_dynamic(text: str) -> dict[str, Configured]:
    """Metrics of the file by name. Raises MetricsConfigError naming what is wrong where."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise MetricsConfigError(f"not YAML: {error}") from error
    entries = document.get("metrics") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise MetricsConfigError("metrics: must be a list of metrics")
    found: dict[str, Configured] = {}
    for at, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise MetricsConfigError(f"metrics[{at}].name: is missing")
        name = entry["name"]
        if name in found:
            raise MetricsConfigError(f"metrics[{at}].name: {name} is named twice")
        if unknown := sorted(set(map(str, entry)) - _FIELDS):
            raise MetricsConfigError(
                f"metrics[{at}].{unknown[0]}: there is no such field; there are "
                f"{', '.join(sorted(_FIELDS))}"
            )
        found[name] = Configured(
            Metric(name, tuple(_options(at, entry.get("contextOptions") or []))),
            _read(at, "includeFilters", entry),
            _read(at, "excludeFilters", entry),
        )
    _check(found)
    return found


def _options(at: int, entries: Any) -> list[tuple[str, tuple[str, ...]]]:
    made = []
    for place, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        where = f"metrics[{at}].contextOptions[{place}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise MetricsConfigError(f"{where}.name: is missing")
        values = entry.get("values") or []
        if not isinstance(values, list):
            raise MetricsConfigError(f"{where}.values: must be a list")
        made.append((entry["name"], tuple(map(str, values))))
    return made


def _read(at: int, field: str, entry: Mapping[str, Any]) -> tuple[flow_pb2.FlowFilter, ...]:
    try:
        return read_filters(f"metrics[{at}].{field}", entry.get(field) or [])
    except FilterError as error:
        raise MetricsConfigError(str(error)) from error


class MetricsFile:
    """Keeps metrics as a file says; what the file says wrongly changes nothing."""

    def __init__(self, path: Path, metrics: FlowMetrics) -> None:
        self._path = path
        self._metrics = metrics
        self._seen = ""
        self._configured: dict[str, Configured] = {}

    def look(self) -> bool:
        """Read the file and apply it if it changed; tells whether it was applied.

        Raises MetricsConfigError once for each content that makes no sense.
        """
        data, problem = b"", "is empty"
        try:
            data = self._path.read_bytes()
        except OSError as error:
            problem = str(error.strerror)
        seen = hashlib.sha256(data or problem.encode()).hexdigest()
        if seen == self._seen:
            return False
        self._seen = seen
        if not data:
            raise MetricsConfigError(f"{self._path}: {problem}")
        self._apply(parse_dynamic(data.decode("utf-8", "replace")))
        return True

    def _apply(self, wanted: dict[str, Configured]) -> None:
        present = {one.plugin.name: one for one in self._metrics.counted}
        made = []
        for name, configured in wanted.items():
            known = self._configured.get(name)
            if known is not None and known.metric.options != configured.metric.options:
                raise MetricsConfigError(
                    f"metric {name}: its context options cannot change while the server runs"
                )
            counted = configured.make()
            if known is not None:
                counted.plugin = present[name].plugin
            made.append(present[name] if known == configured else counted)
        self._metrics.counted = tuple(made)
        self._configured = wanted
