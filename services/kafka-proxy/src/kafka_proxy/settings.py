"""Settings of the Kafka proxy: flags, environment (`CILIUM_…`), a directory of files, defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilium_core.settings import NodeSettings, TelemetrySettings, setting

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class KafkaProxySettings(TelemetrySettings, NodeSettings):
    """What a Kafka proxy can be told."""

    metrics_listen_address: str = setting(
        "", "Address (host:port) of the metrics; empty serves none.", group="Observability"
    )

    @property
    def copy(self) -> Path:
        """File of what was to be enforced last."""
        return self.state_dir / "proxies" / "kafka.json"
