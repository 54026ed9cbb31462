"""Everything that follows the ring to bring flows elsewhere, as settings name it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hubble_server.agents import AgentClient
from hubble_server.drops import NOTICED, DropNotices
from hubble_server.exporting.configuring import Exporters
from hubble_server.exporting.exporters import Export, Exporter, keep_running

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from hubble_server.exporting.exporters import Feed
    from hubble_server.settings import ServerSettings


def exports(settings: ServerSettings, feed: Feed) -> Iterator[Coroutine[Any, Any, None]]:
    """What to run until the server ends. Raises InvalidError."""
    if (export := settings.export) is not None:
        yield keep_running(Exporter(export, feed))
    if (path := settings.hubble_flowlogs_config_path) is not None:
        yield Exporters(path, feed).run()
    if (export := settings.otlp_export) is not None:
        # OpenTelemetry takes memory, which only those pay who use it
        from cilium_core.telemetry.collectors import Collector

        from hubble_server.exporting.otlp import LogRecords

        limit = settings.hubble_otlp_queue_size
        target = LogRecords(Collector.of(settings), feed.node, limit=limit)
        yield keep_running(Exporter(export, feed, target))
    if (rules := settings.drop_notices) is not None:
        notices = DropNotices(rules, AgentClient(settings.agent_path).report)
        where = str(settings.agent_path)
        export = Export("drop-events", where, allow=rules.filters, field_mask=NOTICED)
        yield keep_running(Exporter(export, feed, notices))
