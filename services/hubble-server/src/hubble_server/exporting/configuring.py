"""Which exporters there are: one from settings, any number from a file that may change.

The syntax of both is Hubble's.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import yaml
from cilium_core.errors import InvalidError
from cilium_core.flow_filters import read_filters
from cilium_core.settings import parse_duration
from cilium_core.telemetry import counter, gauge, get_logger

from hubble_server.exporting.exporters import Export, Exporter, Feed, keep_running

if TYPE_CHECKING:
    from pathlib import Path

    from flow import flow_pb2

_log = get_logger()
_POLL_S: Final = 5.0
_MEGABYTES: Final = 10
_BACKUPS: Final = 5
_FIELDS: Final = frozenset(
    {
        "name", "filePath", "fieldMask", "fieldAggregate", "aggregationInterval",
        "includeFilters", "excludeFilters", "fileMaxSizeMb", "fileMaxBackups", "fileCompress",
        "end",
    }
)  # fmt: skip

_EXPORTERS = gauge(
    "hubble_dynamic_exporter_exporters_total", "Exporters of the file, by status.", "status"
)
_UP = gauge("hubble_dynamic_exporter_up", "Whether an exporter writes.", "name")
_CHANGES = counter("hubble_dynamic_exporter_reconfigurations_total", "Changes of exporters.", "op")
_HASH = gauge("hubble_dynamic_exporter_config_hash", "Hash of the file in force.")
_APPLIED = gauge(
    "hubble_dynamic_exporter_config_last_applied", "When the file was applied (s, Unix time)."
)


class ExportConfigError(InvalidError):
    """An exporter that makes no sense; names the field and the value."""


def parse_filters(text: str, field: str) -> tuple[flow_pb2.FlowFilter, ...]:
    """FlowFilters as JSON objects one after another. Raises ExportConfigError or FilterError."""
    decoder = json.JSONDecoder()
    found, rest = [], text.strip()
    while rest:
        try:
            value, end = decoder.raw_decode(rest)
        except ValueError as error:
            raise ExportConfigError(f"{field}: {rest[:60]!r}: {error}") from error
        found.append(value)
        rest = rest[end:].strip()
    return read_filters(field, found)


def parse_file(text: str) -> dict[str, Export]:
    """Exporters of the file by name. Raises InvalidError naming what is wrong where."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ExportConfigError(f"not YAML: {error}") from error
    entries = document.get("flowLogs") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ExportConfigError("flowLogs: must be a list of exporters")
    found: dict[str, Export] = {}
    paths: dict[str, str] = {}
    for at, entry in enumerate(entries):
        export = _read(f"flowLogs[{at}]", entry)
        if export.name in found:
            raise ExportConfigError(f"flowLogs[{at}].name: {export.name} is named twice")
        if export.path in paths:
            raise ExportConfigError(
                f"flowLogs[{at}].filePath: {export.path} is the file of {paths[export.path]} too"
            )
        found[export.name] = export
        paths[export.path] = export.name
    return found


def _read(where: str, entry: Any) -> Export:
    if not isinstance(entry, dict):
        raise ExportConfigError(f"{where}: must have fields")
    if unknown := sorted(set(map(str, entry)) - _FIELDS):
        raise ExportConfigError(
            f"{where}.{unknown[0]}: there is no such field; there are {', '.join(sorted(_FIELDS))}"
        )
    return Export(
        name=_text(where, entry, "name"),
        path=_text(where, entry, "filePath"),
        allow=read_filters(f"{where}.includeFilters", entry.get("includeFilters") or []),
        deny=read_filters(f"{where}.excludeFilters", entry.get("excludeFilters") or []),
        field_mask=_list(where, entry, "fieldMask"),
        aggregate=_list(where, entry, "fieldAggregate"),
        interval_s=_seconds(where, entry.get("aggregationInterval")),
        megabytes=_count(where, entry, "fileMaxSizeMb") or _MEGABYTES,
        backups=_count(where, entry, "fileMaxBackups") or _BACKUPS,
        compress=entry.get("fileCompress") is True,
        end=_moment(where, entry.get("end")),
    )


def _text(where: str, entry: dict[str, Any], field: str) -> str:
    value = entry.get(field)
    if not isinstance(value, str) or not value:
        raise ExportConfigError(f"{where}.{field}: is missing")
    return value


def _list(where: str, entry: dict[str, Any], field: str) -> tuple[str, ...]:
    value = entry.get(field) or []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ExportConfigError(f"{where}.{field}: must be a list of paths")
    return tuple(value)


def _count(where: str, entry: dict[str, Any], field: str) -> int:
    value = entry.get(field) or 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ExportConfigError(f"{where}.{field}: {value!r} is no number of at least 0")
    return value


def _seconds(where: str, value: Any) -> float:
    if value is None:
        return 0.0
    try:
        return parse_duration(str(value))
    except ValueError as error:
        raise ExportConfigError(f"{where}.aggregationInterval: {error}") from error


def _moment(where: str, value: Any) -> datetime | None:
    if value is None:
        return None
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError as error:
        raise ExportConfigError(f"{where}.end: {value!r} is no time of RFC 3339") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class Exporters:
    """Keeps exporters running as a file says; what it says wrongly changes nothing."""

    def __init__(self, path: Path, feed: Feed) -> None:
        self._path = path
        self._feed = feed
        self._seen = ""
        self._running: dict[str, tuple[Export, asyncio.Task[None]]] = {}

    async def run(self) -> None:
        """Follow the file until cancelled."""
        try:
            while True:
                await self.look()
                self._report()
                await asyncio.sleep(_POLL_S)
        finally:
            for name in list(self._running):
                await self._stop(name)

    async def look(self) -> None:
        """Read the file, and apply it if it changed."""
        data, problem = b"", ""
        try:
            data = self._path.read_bytes()
        except OSError as error:
            problem = str(error.strerror)
        seen = hashlib.sha256(data or problem.encode()).hexdigest()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            if problem:
                raise ExportConfigError(problem)
            wanted = parse_file(data.decode("utf-8", "replace"))
            for export in wanted.values():
                export.check()
        except InvalidError as error:
            _CHANGES.add(1, "failure")
            _log.error("exporters stay as they are", file=str(self._path), reason=str(error))
            return
        await self._apply(wanted)
        _HASH.set(int(seen[:12], 16))
        _APPLIED.set(time.time())

    async def _apply(self, wanted: dict[str, Export]) -> None:
        for name in list(self._running):
            if name not in wanted:
                await self._stop(name)
                _UP.remove(name)
                _CHANGES.add(1, "remove")
            elif self._running[name][0] != wanted[name]:
                await self._stop(name)
                self._start(wanted[name])
                _CHANGES.add(1, "update")
        for name, export in wanted.items():
            if name not in self._running:
                self._start(export)
                _CHANGES.add(1, "add")

    def _start(self, export: Export) -> None:
        task = asyncio.create_task(keep_running(Exporter(export, self._feed)))
        self._running[export.name] = (export, task)

    async def _stop(self, name: str) -> None:
        _, task = self._running.pop(name)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    def _report(self) -> None:
        active = [name for name, (export, _) in self._running.items() if export.active]
        _EXPORTERS.set(len(active), "active")
        _EXPORTERS.set(len(self._running) - len(active), "inactive")
        for name in self._running:
            _UP.set(float(name in active), name)
