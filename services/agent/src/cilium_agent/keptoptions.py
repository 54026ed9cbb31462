"""Options that were changed at run time, kept over restarts.

`<state-dir>/state/options.json` has each with its value and that of the setting at the time: once
the setting itself changes, it has the last word. A file that cannot be read is passed over.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from cilium_core.files import write_atomic
from cilium_core.telemetry import get_logger

from cilium_agent import options
from cilium_agent.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cilium_agent.datapath import NodeConfig

log = get_logger()


class KeptOptions:
    """The file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._settings: Mapping[str, str] = {}
        self._changed: dict[str, str] = {}

    def restore(self, config: NodeConfig) -> dict[str, Any]:
        """What to change in a configuration that says what the settings do."""
        self._settings = options.current(config)
        self._changed = {
            name: kept["value"]
            for name, kept in self._read().items()
            if kept["setting"] == self._settings.get(name)
        }
        try:
            return options.changes(self._changed)
        except OptionError as error:
            log.warning("kept options ignored", file=str(self._file), error=str(error))
            self._changed = {}
            return {}

    def keep(self, changed: Mapping[str, str]) -> None:
        """Keep changed options; those that are what the settings say need no keeping."""
        self._changed.update(changed)
        self._changed = {
            name: value
            for name, value in self._changed.items()
            if value != self._settings.get(name)
        }
        document = {
            name: {"value": value, "setting": self._settings.get(name, "")}
            for name, value in self._changed.items()
        }
        write_atomic(self._file, json.dumps(document, indent=1).encode())

    def _read(self) -> dict[str, dict[str, str]]:
        try:
            document = json.loads(self._file.read_bytes())
            return {
                str(name): {"value": str(kept["value"]), "setting": str(kept["setting"])}
                for name, kept in document.items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("kept options ignored", file=str(self._file), error=str(error))
            return {}
