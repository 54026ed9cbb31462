"""Settings of the DNS proxy: flags, environment (`CILIUM_…`), a directory of files, defaults.

What changes the meaning of queries comes from the agent, so that it can change while names go on
being resolved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilium_core.settings import NodeSettings, TelemetrySettings, setting

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class DnsProxySettings(TelemetrySettings, NodeSettings):
    """What a DNS proxy can be told."""

    metrics_listen_address: str = setting(
        "", "Address (host:port) of the metrics; empty serves none.", group="Observability"
    )

    @property
    def copy(self) -> Path:
        """File of what was to be enforced last."""
        return self.state_dir / "proxies" / "dns.json"
