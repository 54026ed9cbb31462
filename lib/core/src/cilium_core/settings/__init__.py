"""Settings of a service: declared once as a frozen dataclass, read from four sources.

A field of the dataclass is one setting. Its key is the field's name with dashes, its type says how
text becomes a value, and `setting()` adds the default, the unit and the sentence shown by
`--help`. Sources, strongest first: flag, environment, a file in `--config-dir`, default.

Every `__main__.py` calls `load_or_exit` once, before anything else runs. All that is wrong is
reported in one go, each line naming the key, the value, where it came from and what to write.

    @dataclass(frozen=True)
    class RelaySettings(TelemetrySettings):
        peer_timeout: Seconds = setting(3.0, "How long to wait for a node.", group="Peers")

    settings = load_or_exit(RelaySettings, program="hubble-relay", about="…").value
"""

from __future__ import annotations

from cilium_core.settings._fields import Field, fields_of, setting
from cilium_core.settings._sources import Loaded, Problem, SettingsError, load, load_or_exit
from cilium_core.settings._values import Bytes, Seconds, format_duration, parse_duration, parse_size
from cilium_core.settings.groups import (
    ClusterSettings,
    KvstoreSettings,
    NodeSettings,
    TelemetrySettings,
)

__all__ = [
    "Bytes",
    "ClusterSettings",
    "Field",
    "KvstoreSettings",
    "Loaded",
    "NodeSettings",
    "Problem",
    "Seconds",
    "SettingsError",
    "TelemetrySettings",
    "fields_of",
    "format_duration",
    "load",
    "load_or_exit",
    "parse_duration",
    "parse_size",
    "setting",
]
